"""The journal: what a worker measures, appended to disk while it runs, so that a killed process loses a moment only.

One folder per repeat of an engine, one JSONL file per table. The first line of a file is the list of its columns;
every further line is one row, a list in that order. A line that the kill cut in half is the last one, and readers leave
it out. Times are nanoseconds since the repeat's start of measurement. Tokens are too many for JSON: see
``pbench.token_journal``.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from pbench.engine.records import RequestRecord, StepRecord, TokenOutput
from pbench.engine.request import Request
from pbench.errors import ResultError
from pbench.external.target import Receipt, RequestOutcome
from pbench.results import DEVICE_COLUMNS, RECEIPT_COLUMNS, REQUEST_COLUMNS, SHARER_COLUMNS, STEP_COLUMNS
from pbench.token_journal import TOKENS_FILE, TokenFile

FLUSH_INTERVAL_NS = 250_000_000

STEPS_FILE = "steps.jsonl"
REQUESTS_FILE = "requests.jsonl"
DEVICE_FILE = "device.jsonl"
RECEIPTS_FILE = "receipts.jsonl"

# The engine's name and the number of its repeat are the folder's, not every row's.
_STEP_FIELDS = tuple(STEP_COLUMNS)[2:]
_REQUEST_FIELDS = tuple(REQUEST_COLUMNS)[2:]
_DEVICE_FIELDS = tuple(DEVICE_COLUMNS)[2:]
_RECEIPT_FIELDS = tuple(RECEIPT_COLUMNS)[2:]

_USAGE_FIELDS = ("token_state", "reserved", "internal", "external", "cached", "free", "shared_saved")
_step_values = attrgetter(
    *(
        name if name not in _USAGE_FIELDS else f"usage.{name}"
        for name in _STEP_FIELDS[3:]
        if name not in SHARER_COLUMNS  # they are one field of the record, and the last columns
    )
)
_request_values = attrgetter(*_REQUEST_FIELDS[:-1])  # a reason has only what can fail
_REQUEST_TIMES = tuple(_REQUEST_FIELDS.index(name) for name in _REQUEST_FIELDS if name.endswith("_ns"))
_FINISHED_NS = _REQUEST_FIELDS.index("finished_ns")


class DeviceSample(NamedTuple):
    """One look at the device, in the order of ``DEVICE_COLUMNS``. None: not measured."""

    time_ns: int
    source: str  # nvml | process
    device_used_bytes: int | None = None
    process_rss_bytes: int | None = None
    torch_allocated_bytes: int | None = None
    torch_reserved_bytes: int | None = None
    gpu_utilization_pct: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    throttle_reasons: int | None = None
    torch_inactive_bytes: int | None = None
    device_process_bytes: int | None = None
    num_foreign_processes: int | None = None
    host_used_bytes: int | None = None
    host_cpu_pct: float | None = None
    process_cpu_pct: float | None = None
    host_swapped_bytes: int | None = None


class JournalFile:
    """An append-only JSONL file, handed to the operating system every ``FLUSH_INTERVAL_NS``. Safe between threads."""

    def __init__(self, path: Path, columns: Sequence[str], clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._stream = path.open("w", encoding="utf-8")
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._rows: list[Sequence[Any]] = [list(columns)]
        self._is_broken = False
        self._flushed_ns = clock_ns() - FLUSH_INTERVAL_NS
        self.flush_if_due()

    def append(self, row: Sequence[Any]) -> None:
        """Add a row. It is encoded only when it is flushed: the caller is in the middle of an engine's loop."""
        with self._lock:
            self._rows.append(row)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Hand what was added to the operating system, where it survives this process, if the last time is long ago."""
        if self._clock_ns() - self._flushed_ns >= FLUSH_INTERVAL_NS:
            self._flush()

    def close(self) -> None:
        """Flush and close."""
        with closing(self._stream):
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            self._flushed_ns = self._clock_ns()
            if self._rows and not self._is_broken:
                self._is_broken = True  # a row that is cut in half must be the last
                self._stream.write("".join(f"{_encode(row)}\n" for row in self._rows))
                self._stream.flush()
                self._rows.clear()
                self._is_broken = False


class Journal:
    """The files of one repeat. Samples may come from another thread than the rest.

    An engine that is not ours has receipts, and no steps.
    """

    def __init__(self, folder: Path, start_ns: int, *, has_receipts: bool = False) -> None:
        self.start_ns = start_ns
        self._steps = JournalFile(folder / STEPS_FILE, _STEP_FIELDS)
        self._requests = JournalFile(folder / REQUESTS_FILE, _REQUEST_FIELDS)
        self._device = JournalFile(folder / DEVICE_FILE, _DEVICE_FIELDS)
        self._tokens = TokenFile(folder / TOKENS_FILE)
        self._receipts = JournalFile(folder / RECEIPTS_FILE, _RECEIPT_FIELDS) if has_receipts else None

    def step(self, record: StepRecord) -> None:
        """Note one engine step."""
        self._steps.append(
            (
                record.step,
                record.start_ns - self.start_ns,
                record.end_ns - self.start_ns,
                *_step_values(record),
                *record.usage.blocks_by_sharers,
            )
        )

    def tokens(self, step: int, tokens: Sequence[TokenOutput]) -> None:
        """Note which sequences a step gave tokens to."""
        self._tokens.append(step, tokens)

    def offered(self, request: Request, added_ns: int) -> None:
        """Note that a request was given to the engine: all that is known of it if the process is killed."""
        self._requests.append(
            (
                request.request_id,
                "unfinished",
                request.arrival_ns - self.start_ns,
                added_ns - self.start_ns,
                None,
                None,
                None,
                len(request.prompt_token_ids),
                0,
                request.sampling.num_sequences,
                *((0, 0, 0, 0.0) if self._receipts is None else (None, None, None, None)),
                None,
            )
        )

    def request(self, record: RequestRecord | RequestOutcome) -> None:
        """Note how a request stands. A later note of the same request replaces this one."""
        values = [*_request_values(record), record.reason if isinstance(record, RequestOutcome) else None]
        if record.status == "unfinished":
            values[_FINISHED_NS] = None
        for index in _REQUEST_TIMES:
            if values[index] is not None:
                values[index] -= self.start_ns
        self._requests.append(values)

    def receipt(self, receipt: Receipt) -> None:
        """Note tokens that an engine gave out which is not ours."""
        assert self._receipts is not None, "a receipt of an engine of ours"
        self._receipts.append((receipt.request_id, receipt.time_ns - self.start_ns, receipt.num_tokens))

    def sample(self, sample: DeviceSample) -> None:
        """Note one device sample; its time is already relative to the start.

        Steps are flushed with it: they reach the disk although the engine hangs and adds none.
        """
        self._device.append(sample)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Let rows reach the disk although none are added just now."""
        self._steps.flush_if_due()
        self._requests.flush_if_due()
        if self._receipts is not None:
            self._receipts.flush_if_due()

    def close(self) -> None:
        """Flush and close the files: all of them, whatever happens to one."""
        with ExitStack() as files:
            for file in (self._tokens, self._steps, self._requests, self._device, self._receipts):
                if file is not None:
                    files.callback(file.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a journal's file as dictionaries; empty when the file does not exist or is empty.

    Raises:
        ResultError: a line other than the last is damaged.

    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    # A complete file ends with a newline, so the last piece is empty; anything else was cut in half by a kill.
    rows: list[dict[str, Any]] = []
    columns: list[str] = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            values = json.loads(line)
            if number == 1:
                columns = values
            else:
                rows.append(dict(zip(columns, values, strict=True)))
        except (ValueError, TypeError) as error:
            raise ResultError(f"{path}, line {number} is damaged: {error}") from error
    return rows


def _encode(row: Sequence[Any]) -> str:
    return json.dumps(row, separators=(",", ":"), allow_nan=False)
