"""From the journal of a worker to the tables of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pbench.journal import DEVICE_FILE, RECEIPTS_FILE, REQUESTS_FILE, STEPS_FILE, read_rows
from pbench.results import DEVICE_COLUMNS, RECEIPT_COLUMNS, REQUEST_COLUMNS, STEP_COLUMNS, TOKEN_COLUMNS, write_table
from pbench.token_journal import TOKENS_FILE, read_tokens

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd


class Tables(NamedTuple):
    """What one repeat of an engine measured, with the columns of ``pbench.results``."""

    steps: "pd.DataFrame"
    requests: "pd.DataFrame"  # one row a request, in order of request_id
    device: "pd.DataFrame"
    tokens: "pd.DataFrame | None" = None  # None: nobody noted them
    receipts: "pd.DataFrame | None" = None  # in order of time; None for an engine of ours, whose steps tell


def read_journal(folder: Path, engine: str, repeat: int = 1) -> Tables:
    """The tables of the repeat of ``engine`` that was journalled into ``folder``; empty where it came to nothing.

    A request is noted when it is offered and again when it leaves; the last note stands.

    Raises:
        ResultError: a line other than a file's last is damaged.

    """
    latest = {row["request_id"]: row for row in read_rows(folder / REQUESTS_FILE)}
    receipts = None
    if (folder / RECEIPTS_FILE).exists():
        receipts = _table(read_rows(folder / RECEIPTS_FILE), engine, repeat, RECEIPT_COLUMNS)
        receipts = receipts.sort_values("time_ns", kind="stable", ignore_index=True)
    return Tables(
        steps=_table(read_rows(folder / STEPS_FILE), engine, repeat, STEP_COLUMNS),
        requests=_table([latest[request_id] for request_id in sorted(latest)], engine, repeat, REQUEST_COLUMNS),
        device=_table(read_rows(folder / DEVICE_FILE), engine, repeat, DEVICE_COLUMNS),
        tokens=_table(read_tokens(folder / TOKENS_FILE), engine, repeat, TOKEN_COLUMNS),
        receipts=receipts,
    )


def write_tables(folder: Path, tables: list[Tables]) -> None:
    """Write the tables of all repeats as the parquet files of a run folder, atomically, each as a whole."""
    import pandas as pd

    for name, columns in (
        ("steps", STEP_COLUMNS),
        ("requests", REQUEST_COLUMNS),
        ("device", DEVICE_COLUMNS),
        ("tokens", TOKEN_COLUMNS),
        ("receipts", RECEIPT_COLUMNS),
    ):
        frames = [frame for frame in (getattr(table, name) for table in tables) if frame is not None and len(frame)]
        if not frames and name in ("tokens", "receipts"):
            continue  # of a simulation, or where all engines are ours
        whole = pd.concat(frames, ignore_index=True) if frames else _table([], "", 1, columns)
        write_table(folder / f"{name}.parquet", whole, columns)


def _table(
    rows: "list[dict[str, object]] | Mapping[str, npt.NDArray[np.int32]]",
    engine: str,
    repeat: int,
    columns: Mapping[str, str],
) -> "pd.DataFrame":
    import pandas as pd

    table = pd.DataFrame(rows, columns=list(columns))
    table["engine"], table["repeat"] = engine, repeat
    return table.astype(dict(columns))
