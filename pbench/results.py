"""The result record: what a run folder holds, and how it is read and written.

A run is a folder::

    run.json          what was run, where, how it ended, and the summary of every engine
    steps.parquet     one row per engine step          (columns: STEP_COLUMNS)
    requests.parquet  one row per request              (columns: REQUEST_COLUMNS)
    device.parquet    one row per sample of the device (columns: DEVICE_COLUMNS)
    prefixes.parquet  one row per engine and prompt prefix that requests share (columns: PREFIX_COLUMNS)
    pool_map.parquet  one row per stretch of the pool, at a bounded number of moments (columns: POOL_MAP_COLUMNS)
    tokens.parquet    one row per token given out      (columns: TOKEN_COLUMNS)
    receipts.parquet  one row per moment at which an engine that is not ours gave out tokens (columns: RECEIPT_COLUMNS)
    report.html

A row belongs to one repeat of one engine: ``engine`` and ``repeat`` name it. All times in the tables are nanoseconds
since that repeat's own start of measurement, so that those that ran one after the other lie on one axis. JSON and
parquet only. Every file is written to a temporary name and renamed.

History of the format (``SCHEMA_VERSION``):

1   the first.
2   steps count near misses, and blocks by their sharers; a map of the pool; the prefixes.
3   engines are repeated: tables have a column ``repeat``, an engine's summary is the mean over its repeats and has
    intervals; a repeat keeps its own summary, warm-up and steady stretch; checks of validity; token times.
    Engines that are not ours: receipts, requests that fail and say why, figures of requests that may be missing.

Records of version 2 are read as if every engine had run once.
"""

import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pbench.errors import ResultError
from pbench.summary.catalogue import METRICS as METRICS
from pbench.summary.catalogue import Metric as Metric
from pbench.summary.repeat import CONFIDENCE as CONFIDENCE
from pbench.summary.repeat import OUTCOMES as OUTCOMES
from pbench.summary.repeat import WIDE_SPREAD_PCT as WIDE_SPREAD_PCT
from pbench.summary.repeat import Check as Check
from pbench.summary.repeat import Interval as Interval
from pbench.summary.repeat import PhaseTime as PhaseTime
from pbench.summary.repeat import Repeat as Repeat
from pbench.summary.repeat import Sampling as Sampling
from pbench.summary.repeat import SteadyState as SteadyState
from pbench.summary.repeat import WarmUp as WarmUp

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 3
READABLE_VERSIONS = (2, 3)

STATUSES = ("running", "complete", "failed", "interrupted")

STEP_COLUMNS = {
    "engine": "string",
    "repeat": "int32",  # of the engine, from 1
    "step": "int64",
    "start_ns": "int64",
    "end_ns": "int64",
    "num_prefill_tokens": "int64",
    "num_decode_tokens": "int64",
    "num_output_tokens": "int64",
    "num_prefix_hit_tokens": "int64",
    "num_near_miss_tokens": "int64",
    "num_recomputed_tokens": "int64",
    "num_running": "int64",
    "num_waiting": "int64",
    "num_finished": "int64",
    "num_preempted": "int64",
    "num_forks": "int64",
    "num_copied_blocks": "int64",
    "num_evicted_blocks": "int64",
    "num_swapped_out_blocks": "int64",
    "num_swapped_in_blocks": "int64",
    "num_moved_slots": "int64",
    "is_memory_blocked": "bool",
    # KVUsage, in slots: the first six sum to the pool
    "token_state": "int64",
    "reserved": "int64",
    "internal": "int64",
    "external": "int64",
    "cached": "int64",
    "free": "int64",
    "shared_saved": "int64",
    # Held blocks by how many sequences hold them; all 0 where memory has no blocks
    "blocks_of_1": "int64",
    "blocks_of_2": "int64",
    "blocks_of_3_4": "int64",
    "blocks_of_5_8": "int64",
    "blocks_of_9_16": "int64",
    "blocks_of_17_up": "int64",
}
SHARER_COLUMNS = tuple(name for name in STEP_COLUMNS if name.startswith("blocks_of_"))

REQUEST_COLUMNS = {
    "engine": "string",
    "repeat": "int32",
    "request_id": "int64",
    "status": "string",  # finished | aborted | failed | unfinished (the run ended first)
    "arrival_ns": "int64",  # intended
    "added_ns": "Int64",  # capital: may be missing
    "first_scheduled_ns": "Int64",
    "first_token_ns": "Int64",
    "finished_ns": "Int64",
    "num_prompt_tokens": "int64",
    "num_output_tokens": "int64",
    "num_sequences": "int64",
    # Missing where the engine cannot tell
    "num_prefix_hit_tokens": "Int64",
    "num_recomputed_tokens": "Int64",
    "num_preemptions": "Int64",
    "kv_byte_seconds": "Float64",  # KV memory held, over time; a shared block is split among its holders
    "reason": "string",  # why it failed
}

DEVICE_COLUMNS = {
    "engine": "string",
    "repeat": "int32",
    "time_ns": "int64",
    "source": "string",  # nvml | process
    "device_used_bytes": "Int64",  # NVML: memory used on the GPU, by everybody
    "process_rss_bytes": "Int64",
    "torch_allocated_bytes": "Int64",
    "torch_reserved_bytes": "Int64",
    "gpu_utilization_pct": "Float64",
    "power_w": "Float64",
    "energy_j": "Float64",  # since the first sample, from the GPU's own counter
    "sm_clock_mhz": "Float64",
    "memory_clock_mhz": "Float64",
    "temperature_c": "Float64",
    "throttle_reasons": "Int64",  # NVML's bit mask
    "torch_inactive_bytes": "Int64",  # free pieces of blocks that torch split: reserved, and of no use to a larger one
    "device_process_bytes": "Int64",  # NVML: memory of the worker process, where the driver tells
    "num_foreign_processes": "Int64",  # others that compute on the GPU
    "host_used_bytes": "Int64",  # of the machine, by everybody
    # About once a second, and since the sample before that has them:
    "host_cpu_pct": "Float64",  # of the cores that the worker may run on, by everybody
    "process_cpu_pct": "Float64",  # of one core, by the worker process
    "host_swapped_bytes": "Int64",  # by the machine, in and out, since the first sample
}


RECEIPT_COLUMNS = {
    "engine": "string",
    "repeat": "int32",
    "request_id": "int64",
    "time_ns": "int64",
    "num_tokens": "Int64",  # missing: the engine did not tell
}

PREFIX_FILE = "prefixes.parquet"
PREFIX_COLUMNS = {
    "engine": "string",
    "repeat": "int32",
    "prefix": "int64",  # its number, parents before children
    "parent": "int64",  # -1: none
    "start": "int64",  # tokens before it, which its requests share too
    "num_tokens": "int64",
    "num_requests": "int64",  # whose prompts begin so
    "num_hit_requests": "int64",  # that found some of it in the cache
    "hit_tokens": "int64",  # found in the cache instead of computed, over all requests
}

POOL_MAP_FILE = "pool_map.parquet"
POOL_MAP_COLUMNS = {
    "engine": "string",
    "repeat": "int32",
    "time_ns": "int64",  # of the moment: between two steps
    # A stretch of the pool that is alike all over, in slots; those of a moment tile the pool
    "start": "int32",
    "length": "int32",
    "request_id": "int32",  # who has held it longest; -1: nobody
    "num_sharers": "int32",  # sequences that hold it
    # Its parts as in KVUsage, external slots among the free; they sum to the length
    "token_state": "int32",
    "reserved": "int32",
    "internal": "int32",
    "cached": "int32",
    "free": "int32",
}

TOKEN_FILE = "tokens.parquet"
TOKEN_COLUMNS = {
    "engine": "string",
    "repeat": "int32",
    "request_id": "int32",
    "sequence": "int16",  # which of the request's
    "step": "int32",  # that gave it out; the token's time is the step's end
}

KILLED = "pbench itself was killed while it ran"

_CLOCK_S = 1.0  # by which two readings of a process's start may differ

# Columns that tables of an earlier version lack, and what stands for them.
_SUBSTITUTES = {
    "repeat": 1,
    "reason": None,
    "torch_inactive_bytes": None,
    "device_process_bytes": None,
    "num_foreign_processes": None,
    "host_used_bytes": None,
    "host_cpu_pct": None,
    "process_cpu_pct": None,
    "host_swapped_bytes": None,
}


@dataclass(frozen=True, slots=True)
class EngineResult:
    """How one engine did: what its repeats have in common, and what follows from all of them together."""

    spec: str  # "paged", "contiguous:max", "transformers", ...
    status: str  # one of STATUSES; the worst of its repeats
    reason: str | None = None  # why it failed or was interrupted
    config: Mapping[str, Any] = field(default_factory=dict)  # resolved; None: means nothing to this engine
    pool: Mapping[str, Any] = field(
        default_factory=dict
    )  # num_slots, slot_bytes, pool_bytes, block_size, weights_bytes, as far as the engine tells
    memory: Mapping[str, int] = field(default_factory=dict)  # the peak's parts in bytes, see pbench.memory_account
    # By Metric.name, the mean over the complete repeats; None: not measured
    summary: Mapping[str, float | int | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what a reader must know before believing the figures
    intervals: Mapping[str, Interval] = field(default_factory=dict)  # by Metric.name; of two complete repeats or more
    unsupported: tuple[str, ...] = ()  # Metric.name of percentiles that too few values support
    repeats: tuple[Repeat, ...] = ()  # those that were started, by Repeat.repeat; none of a simulation
    checks: tuple[Check, ...] = ()  # each with the worst outcome of its repeats
    cost: Mapping[str, int] = field(default_factory=dict)  # of a step by arithmetic, see pbench.step_cost

    def values(self, name: str) -> tuple[float | int, ...]:
        """A metric of every complete repeat that measured it, in their order; of an engine without repeats its own."""
        return tuple(self.values_by_repeat(name).values())

    def values_by_repeat(self, name: str) -> dict[int, float | int]:
        """The same by ``Repeat.repeat``."""
        complete = [repeat for repeat in self.repeats if repeat.status == "complete"]
        summaries = {repeat.repeat: repeat.summary for repeat in complete} or {1: self.summary}
        return {number: value for number, summary in summaries.items() if (value := summary.get(name)) is not None}

    @property
    def phases(self) -> tuple[PhaseTime, ...]:
        """Where the time of the typical repeat's steps went; empty where nobody timed them."""
        return next((repeat.phases for repeat in self.repeats if repeat.repeat == self.typical_repeat), ())

    @property
    def typical_repeat(self) -> int:
        """The repeat to show where one must stand for all: the complete one of median output tokens/s, else the last.

        Of an even number the lower of the middle two; 1 without repeats.
        """
        name = "output_tokens_per_s"
        complete = [repeat for repeat in self.repeats if repeat.status == "complete"]
        ranked = sorted(complete, key=lambda repeat: repeat.summary.get(name) or 0)
        if ranked:
            return ranked[(len(ranked) - 1) // 2].repeat
        return self.repeats[-1].repeat if self.repeats else 1


@dataclass(frozen=True, slots=True)
class RunResult:
    """The contents of run.json."""

    run_id: str
    created_at: str  # ISO 8601, UTC
    status: str  # one of STATUSES; "failed" if any engine failed
    command: tuple[str, ...]
    workload: Mapping[str, Any]  # name, description, source, sha256, seed, parameters, num_requests, dropped, ...
    config: Mapping[str, Any]  # resolved, as far as the engines have it in common
    environment: Mapping[str, Any]
    engines: tuple[EngineResult, ...]
    checks: tuple[Check, ...] = ()  # of the engines against each other
    process: Mapping[str, Any] = field(default_factory=dict)  # that wrote the record: host, id, created_s
    schema_version: int = SCHEMA_VERSION


class Run:
    """A run folder on disk. Reading is lazy: ``result`` needs no pandas, the tables do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def result(self) -> RunResult:
        """The parsed run.json.

        Raises:
            ResultError: it is missing, not JSON, of another schema version, or lacks a field.

        """
        return read_result(self.path)

    def steps(self) -> "pd.DataFrame":
        """Table with ``STEP_COLUMNS``; empty when the run kept none."""
        return _read_table(self.path / "steps.parquet", STEP_COLUMNS)

    def requests(self) -> "pd.DataFrame":
        """Table with ``REQUEST_COLUMNS``; empty when the run kept none."""
        return _read_table(self.path / "requests.parquet", REQUEST_COLUMNS)

    def device(self) -> "pd.DataFrame":
        """Table with ``DEVICE_COLUMNS``; empty when the run kept none."""
        return _read_table(self.path / "device.parquet", DEVICE_COLUMNS)

    def receipts(self) -> "pd.DataFrame":
        """Table with ``RECEIPT_COLUMNS``; empty when all engines were ours."""
        return _read_table(self.path / "receipts.parquet", RECEIPT_COLUMNS)

    def prefixes(self) -> "pd.DataFrame":
        """Table with ``PREFIX_COLUMNS``; empty when the workload's prompts share nothing."""
        return _read_table(self.path / PREFIX_FILE, PREFIX_COLUMNS)

    def pool_map(self) -> "pd.DataFrame":
        """Table with ``POOL_MAP_COLUMNS``; empty when the run kept none."""
        return _read_table(self.path / POOL_MAP_FILE, POOL_MAP_COLUMNS)

    def tokens(self) -> "pd.DataFrame":
        """Table with ``TOKEN_COLUMNS``; empty when the run kept none."""
        return _read_table(self.path / TOKEN_FILE, TOKEN_COLUMNS)


def read_result(folder: Path) -> RunResult:
    """Read ``folder/run.json``.

    Raises:
        ResultError: it is missing, not JSON, of another schema version, or lacks a field.

    A run that says "running" while its process is gone is read as failed: nobody was left to write it.
    """
    path = folder / "run.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(f"{folder} is not a run folder: it has no run.json") from None
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} cannot be read: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version not in READABLE_VERSIONS:
        known = " and ".join(map(str, READABLE_VERSIONS))
        raise ResultError(
            f"{path} has schema version {version!r}; this pbench reads versions {known}: run the workload again"
        )
    try:
        engines = tuple(map(_engine, data.pop("engines")))
        checks = tuple(Check(**check) for check in data.pop("checks", ()))
        result = RunResult(**(data | {"command": tuple(data["command"])}), engines=engines, checks=checks)
    except (KeyError, TypeError) as error:
        raise ResultError(f"{path} is not a complete record: {error}") from error
    return _buried(result) if result.status == "running" and is_gone(result.process) else result


def is_gone(process: Mapping[str, Any]) -> bool:
    """Whether the process was of this machine and is no more; False where that cannot be told."""
    import psutil

    if process.get("host") != platform.node():
        return False
    try:
        # Ids are given again: one of a younger process is not the same.
        return bool(abs(psutil.Process(process["id"]).create_time() - process["created_s"]) > _CLOCK_S)
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _buried(result: RunResult) -> RunResult:
    """The record of a run whose process was killed before it could write how it ended."""
    engines = (
        replace(engine, status="failed", reason=KILLED) if engine.status == "running" else engine
        for engine in result.engines
    )
    return replace(result, status="failed", engines=tuple(engines))


def _engine(data: Mapping[str, Any]) -> EngineResult:
    fields = dict(data)
    intervals = {name: Interval(**one) for name, one in fields.pop("intervals", {}).items()}
    repeats = tuple(map(Repeat.from_json, fields.pop("repeats", ())))
    checks = tuple(Check(**check) for check in fields.pop("checks", ()))
    notes, unsupported = tuple(fields.pop("notes")), tuple(fields.pop("unsupported", ()))
    return EngineResult(
        **fields, notes=notes, intervals=intervals, unsupported=unsupported, repeats=repeats, checks=checks
    )


def write_result(folder: Path, result: RunResult) -> None:
    """Write ``folder/run.json`` atomically."""
    text = json.dumps(asdict(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder / "run.json", lambda stream: stream.write(text.encode()))


def write_table(path: Path, rows: "list[dict[str, Any]] | pd.DataFrame", columns: Mapping[str, str]) -> None:
    """Write rows as a parquet file with exactly ``columns`` (name -> pandas dtype), atomically.

    Rows that do not say of which repeat they are, are of the first.
    """
    import pandas as pd

    table = pd.DataFrame(rows, columns=list(columns)).fillna({"repeat": 1}).astype(dict(columns))
    write_atomically(path, lambda stream: table.to_parquet(stream, index=False))


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it: readers see all or nothing."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read_table(path: Path, columns: Mapping[str, str]) -> "pd.DataFrame":
    import pandas as pd

    if not path.exists():
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})
    try:
        table = pd.read_parquet(path)
        missing = {name: value for name, value in _SUBSTITUTES.items() if name in columns and name not in table}
        return table.assign(**missing)[list(columns)].astype(dict(columns))
    except (OSError, ValueError, KeyError) as error:
        raise ResultError(f"{path} cannot be read as a table of this run: {error}") from error
