"""The block map: the pool at many moments as the page carries it, to be drawn in the browser under one time slider.

The spans of all moments stand one after the other, a column at a time, as 32-bit integers, deflated. A page holds at
most ``MAX_BYTES`` of them: where a run kept more, every second moment is left out until they fit.
"""

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pbench.reports.charts.panel import Chart, Panel, Table
from pbench.reports.charts.pool_picture import pool_chart
from pbench.reports.palette import KINDS, Kind
from pbench.reports.quantity import NOT_APPLICABLE, format_number, format_quantity
from pbench.reports.reduction import Ints, spread_rows
from pbench.reports.subjects import Subject

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 2_000_000  # of base64, all engines together
COLUMNS = ("length", "request_id", "num_sharers", "token_state", "reserved", "internal", "cached")  # free is the rest
_MAX_CELLS = 4096  # as the engine counts blocks together
_MAX_TABLE_ROWS = 12
_DRAWN_KINDS = ("reserved", "internal", "cached", "free")


@dataclass(frozen=True, slots=True)
class Picture:
    """One engine's pool: what its canvas is called, and what it shows at the moment of most live tokens."""

    key: str
    label: str
    summary: str


@dataclass(frozen=True, slots=True)
class BlockMap:
    """The pictures, what their colours mean, and the data for the page's script."""

    pictures: tuple[Picture, ...]
    kinds: tuple[Kind, ...]
    num_positions: int  # of the slider
    first_position: int
    data: dict[str, Any]
    subjects: tuple[Subject, ...]

    def paper_charts(self) -> tuple[Chart, ...]:
        """The pictures as charts, each at its engine's fullest moment: for a paper, not for the page."""
        cell_slots = max(map(_cell_slots, self.subjects))
        return tuple(pool_chart(subject, _fullest_moment(subject), cell_slots) for subject in self.subjects)


def block_map_panel(subjects: Sequence[Subject]) -> Panel:
    """The pool of every engine that kept maps, side by side."""
    mapped = [subject for subject in subjects if len(subject.pool_map) and subject.pool_figure("num_slots")]
    explanation = (
        "The pool as it lies in memory, row after row, at any moment of the run. Every colour is a request; what"
        " several share has a dot. Blocks are taken one at a time, anywhere, as tokens come; an extent is reserved"
        " whole, and its hatched tail keeps everybody else out. Point at a request to see all that it holds, in every"
        " pool."
    )
    if not mapped:
        missing = "No engine kept maps of its pool: one that was killed leaves none, and other engines do not tell."
        if not subjects or all(subject.steps.empty for subject in subjects):
            missing = "No engine kept a step."
        return Panel("pool-map", "The pool, block by block", explanation, missing=missing)
    return Panel(
        "pool-map",
        "The pool, block by block",
        explanation,
        table=_table(mapped),
        block_map=_block_map(mapped),
    )


def _block_map(subjects: Sequence[Subject]) -> BlockMap:
    stride = 1
    while True:
        encoded = [_encode(subject, stride) for subject in subjects]
        num_bytes = sum(len(each["spans"]) for each in encoded)
        if num_bytes <= MAX_BYTES or all(len(each["times_ns"]) <= 2 for each in encoded):
            break
        stride *= 2
    times_ns = sorted({time_ns for each in encoded for time_ns in each["times_ns"]})
    fullest_ns = _fullest_moment(subjects[0])
    return BlockMap(
        pictures=tuple(Picture(f"map-{subject.key}", subject.label, _summary(subject)) for subject in subjects),
        kinds=tuple(kind for kind in KINDS if kind.column in _DRAWN_KINDS),
        num_positions=len(times_ns),
        first_position=int(np.searchsorted(times_ns, fullest_ns)) if fullest_ns <= times_ns[-1] else 0,
        data={
            "columns": list(COLUMNS),
            "times_ns": times_ns,
            "cell_slots": max(_cell_slots(subject) for subject in subjects),
            "kinds": {
                kind.column: {"shade": list(kind.shade), "pattern": kind.pattern}
                for kind in KINDS
                if kind.column in _DRAWN_KINDS
            },
            "engines": encoded,
        },
        subjects=tuple(subjects),
    )


def _encode(subject: Subject, stride: int) -> dict[str, Any]:
    moments = subject.pool_map["time_ns"].unique()
    kept = moments[::stride]
    table = subject.pool_map[subject.pool_map["time_ns"].isin(kept)]
    counts = table.groupby("time_ns", sort=False).size()
    packed = np.concatenate([table[column].to_numpy(dtype="<i4") for column in COLUMNS])
    return {
        "key": f"map-{subject.key}",
        "num_slots": subject.pool_figure("num_slots"),
        "block_size": subject.pool_figure("block_size") if subject.is_paged else None,
        "end_ns": int(subject.steps["end_ns"].iloc[-1]) if len(subject.steps) else int(kept[-1]),
        "times_ns": [int(time_ns) for time_ns in kept],
        "num_spans": [int(count) for count in counts],
        "spans": base64.b64encode(zlib.compress(packed.tobytes(), 6)).decode("ascii"),
    }


def _cell_slots(subject: Subject) -> int:
    """Slots of one square: a block, or as many neighbours as the engine counts together."""
    num_slots = subject.pool_figure("num_slots") or 1
    unit = (subject.pool_figure("block_size") if subject.is_paged else None) or 1
    return unit * -(-num_slots // (unit * _MAX_CELLS))


def _moment(subject: Subject, time_ns: int) -> "pd.DataFrame":
    return subject.pool_map[subject.pool_map["time_ns"] == time_ns]


def _fullest_moment(subject: Subject) -> int:
    """When most slots held tokens, nanoseconds."""
    table = subject.pool_map
    times_ns, moments = np.unique(table["time_ns"].to_numpy(dtype=np.int64), return_inverse=True)
    return int(times_ns[np.bincount(moments, weights=table["token_state"].to_numpy(dtype=np.float64)).argmax()])


def _summary(subject: Subject) -> str:
    time_ns = _fullest_moment(subject)
    spans = _moment(subject, time_ns)
    held = spans[spans["request_id"] >= 0]
    length = int(spans["length"].sum())
    num_held = int(length - spans["free"].sum() - spans["cached"].sum())
    text = (
        f"At its fullest, after {format_quantity(time_ns / 1e9, 's')}, {held['request_id'].nunique()} requests hold"
        f" {format_quantity(100 * num_held / length, '%')} of the pool, and"
        f" {format_quantity(100 * int(spans['token_state'].sum()) / max(num_held, 1), '%')} of that has tokens in it"
    )
    most = int(spans["num_sharers"].max())
    if most > 1:
        num_shared = int(spans.loc[spans["num_sharers"] > 1, "length"].sum())
        return f"{text}; {format_number(num_shared)} slots are shared, by up to {most} sequences."
    return f"{text}."


def _table(subjects: Sequence[Subject]) -> Table:
    rows = []
    for subject in subjects:
        times_ns: Ints = subject.pool_map["time_ns"].unique()
        for index in spread_rows(len(times_ns), _MAX_TABLE_ROWS):
            spans = _moment(subject, int(times_ns[index]))
            length = int(spans["length"].sum())
            shared = spans[spans["num_sharers"] > 1]
            shares = (
                format_quantity(100 * float(spans[kind.column].sum()) / length, "%")
                for kind in KINDS
                if kind.column in spans
            )
            rows.append(
                (
                    subject.label,
                    format_quantity(int(times_ns[index]) / 1e9, "s"),
                    format_number(spans.loc[spans["request_id"] >= 0, "request_id"].nunique()),
                    format_number(int(shared["length"].sum())) if subject.is_paged else NOT_APPLICABLE,
                    format_number(int(spans["num_sharers"].max())),
                    *shares,
                )
            )
    kinds = (kind.label for kind in KINDS if kind.column != "external")
    columns = ("engine", "time", "requests", "shared slots", "most sharers", *kinds)
    return Table(columns, tuple(rows), "evenly spread moments, share of the pool; external slots are among the free")
