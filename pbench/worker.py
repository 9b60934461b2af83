"""The worker: one engine in a process of its own, ``python -P -m pbench.worker JOB.json``.

It journals what it measures and tells its parent how it is doing, one JSON object a line on its standard output:

    {"event": "stage", "stage": "loading" | "warming up" | "running"}
    {"event": "ready", "pool": {...}, "gpu": {...} | null}
    {"event": "progress", ...}                        about ten times a second
    {"event": "watched", "noting_s": ..., "sampling_s": ...}  what both took, see pbench.validity.repeat.Watching
    {"event": "done", "status": "complete" | "failed" | "interrupted", "reason": ..., "notes": [...]}

A worker that ends without "done" was killed. SIGINT ends it gracefully: after the step that runs just now, with
everything measured written. When the parent is gone the next event cannot be sent, and the worker ends too.
"""

import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from pbench.arrivals import Arrivals, prepare
from pbench.engine.errors import EngineError
from pbench.engine.model_config import load_model_config
from pbench.engine.pool_map import SPAN_FIELDS
from pbench.environment import gpu_environment
from pbench.external.errors import ExternalError
from pbench.external.kinds import external_kind
from pbench.external.playback import ExternalPlayback
from pbench.external.target import ExternalTarget
from pbench.job import Job
from pbench.journal import Journal
from pbench.nvml import NvmlDevice, NvmlUnavailableError
from pbench.playback import Playback
from pbench.pool_history import PoolHistory
from pbench.profiling.profiling import Profiling, unused_profiling
from pbench.sampler import DeviceProbe, Sampler
from pbench.target import Announces, MapsPool, Target, load_factory
from pbench.workloads.errors import WorkloadError

if TYPE_CHECKING:
    import torch

    from pbench.workloads.workload import Workload

MAX_REASON_CHARACTERS = 600


class Outcome(NamedTuple):
    """How the worker ended, for the event "done"."""

    status: str  # complete | failed | interrupted
    reason: str | None = None
    notes: tuple[str, ...] = ()


class WorkloadChangedError(Exception):
    """The workload is not what the parent read."""


class EventStream:
    """The line to the parent: a copy of standard output that nobody else writes to.

    Libraries print to standard output too; after construction what they print goes to standard error.
    """

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, event: Mapping[str, Any]) -> None:
        """Send one event.

        Raises:
            BrokenPipeError: the parent is gone.

        """
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()


class StopSignal:
    """SIGINT: raises KeyboardInterrupt while the engine loads, and only sets ``is_set`` once it runs."""

    def __init__(self) -> None:
        self.is_set = False
        self.is_deferred = False
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.is_set = True
        if not self.is_deferred:
            raise KeyboardInterrupt


def main() -> int:
    """Do the job named on the command line and return 0 if it was done to its end."""
    events = EventStream()
    job = Job.read(Path(sys.argv[1]))
    try:
        outcome = _guarded(job, events, StopSignal())
        events.send({"event": "done", **outcome._asdict()})
    except BrokenPipeError:
        print("the parent process is gone; what was measured is in the journal", file=sys.stderr)
        return 1
    return 0 if outcome.status == "complete" else 1


def _guarded(job: Job, events: EventStream, stop: StopSignal) -> Outcome:
    try:
        return _run(job, events, stop)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return Outcome("interrupted", "interrupted before the engine ran")
    except (EngineError, ExternalError, WorkloadError, WorkloadChangedError) as error:
        return Outcome("failed", str(error))
    except Exception as error:
        with suppress(OSError):  # the log is on the disk that may just have become full
            traceback.print_exc()
        return Outcome("failed", _describe(error))


def _run(job: Job, events: EventStream, stop: StopSignal) -> Outcome:
    events.send({"event": "stage", "stage": "loading"})
    workload = _load_workload(job)
    requests = prepare(workload, load_model_config(job.engine.model).vocab_size)
    kind = external_kind(job.engine.memory)
    is_local = kind is None or kind.is_local
    profiling = Profiling(job.profiling, job.engine.device) if kind is None else None
    with _target(job) as target:
        events.send({"event": "stage", "stage": "warming up"})
        warm_up_start_ns = time.monotonic_ns()
        num_warm_up_steps = target.warm_up()
        warm_up_s = (time.monotonic_ns() - warm_up_start_ns) / 1e9
        torch_device = _torch_device(job.engine.device) if is_local else None
        nvml, nvml_note = _open_nvml(torch_device) if is_local else (None, None)
        events.send(
            {
                "event": "ready",
                **_describe_target(target),
                "warm_up": {"duration_s": warm_up_s, "num_steps": num_warm_up_steps},
                "gpu": None if torch_device is None else gpu_environment(torch_device, nvml),
            }
        )
        if kind is None:
            # Our engine makes no reference cycles, and looking for them costs more of a step the more requests run.
            gc.collect()
            gc.disable()
        stop.is_deferred = True
        events.send({"event": "stage", "stage": "running"})
        if profiling is not None and isinstance(target, Announces):
            profiling.listen(target)
        start_ns = time.monotonic_ns()
        with Journal(Path(job.journal), start_ns, has_receipts=kind is not None) as journal:
            probe = DeviceProbe(nvml, torch_device)
            sampler = Sampler(probe, journal.sample, start_ns=start_ns, interval_s=job.sample_interval_s)
            is_sampling = is_local and job.sample_interval_s > 0
            arrivals = Arrivals(requests, start_ns, workload.concurrency)
            history = None
            if isinstance(target, MapsPool):
                history = PoolHistory(target.pool_map, time.monotonic_ns, start_ns)
            playback: Playback | ExternalPlayback
            if isinstance(target, ExternalTarget):
                playback = ExternalPlayback(target, arrivals, journal, events.send, lambda: stop.is_set)
            else:
                playback = Playback(target, arrivals, journal, events.send, lambda: stop.is_set, history)
            if is_sampling:
                sampler.start()
            try:
                is_complete = playback.play()
            finally:
                if is_sampling:
                    sampler.stop()
                if history is not None:
                    history.write(Path(job.journal), job.engine.memory, job.repeat)
            # Not after an error: an engine that broke in the middle of a step has nothing reliable to say.
            playback.note_unfinished()
        profiling_notes = unused_profiling(job.profiling) if profiling is None else profiling.write(Path(job.journal))
        events.send({"event": "watched", "noting_s": playback.noting_ns / 1e9, "sampling_s": sampler.busy_ns / 1e9})
        own_notes = target.notes() if isinstance(target, ExternalTarget) else ()
    notes = tuple(note for note in (nvml_note, probe.lost_note, *own_notes, *profiling_notes) if note)
    if not is_complete:
        return Outcome("interrupted", "interrupted while the engine ran", notes)
    if isinstance(playback, ExternalPlayback) and playback.failure is not None:
        return Outcome("failed", playback.failure, notes)
    return Outcome("complete", None, notes)


@contextmanager
def _target(job: Job) -> Iterator[Target | ExternalTarget]:
    """The engine of the job, loaded; one that is not ours is closed at the end, also after an error."""
    kind = external_kind(job.engine.memory)
    if kind is None:
        yield load_factory(job.engine_factory)(job.engine.config(), job.engine.weights)
        return
    target = kind.load(job.engine, job.access)
    try:
        yield target
    finally:
        target.close()


def _load_workload(job: Job) -> "Workload":
    workload = job.workload.load()
    if workload.sha256 != job.workload_sha256:
        raise WorkloadChangedError(
            f"workload {job.workload.spec} changed since the run began: its SHA-256 is {workload.sha256},"
            f" it was {job.workload_sha256}"
        )
    return workload


def _torch_device(device: str) -> "torch.device | None":
    if device != "cuda":
        return None
    import torch

    return torch.device("cuda", torch.cuda.current_device())


def _open_nvml(torch_device: "torch.device | None") -> tuple[NvmlDevice | None, str | None]:
    """The GPU's NVML device, or None and a note that says what is measured instead."""
    if torch_device is None:
        return None, "memory in use is the worker process's resident memory: the engine runs on the CPU"
    import torch

    try:
        return NvmlDevice.open(str(torch.cuda.get_device_properties(torch_device).uuid)), None
    except NvmlUnavailableError as error:
        return None, f"memory in use is the worker process's resident memory: {error}"


def _describe_target(target: Target | ExternalTarget) -> dict[str, Any]:
    """What a warm engine tells of itself; what it does not know is missing, or None."""
    if isinstance(target, ExternalTarget):
        return {
            "pool": target.pool(),
            "memory": target.memory_bytes(),
            "facts": target.facts(),
            "num_cached_slots": None,
        }
    pool = {
        "num_slots": target.num_slots,
        "slot_bytes": target.slot_bytes,
        "pool_bytes": target.pool_bytes,
        "block_size": target.block_size,
        "weights_bytes": target.weights_bytes,
    }
    num_cached_slots = None
    if isinstance(target, MapsPool):
        num_cached_slots = int(target.pool_map()[:, SPAN_FIELDS.index("cached")].sum())
    return {"pool": pool, "memory": target.memory_bytes(), "facts": {}, "num_cached_slots": num_cached_slots}


def _describe(error: Exception) -> str:
    """One line that names the error; memory that ran out is named as such, whoever raised it."""
    text = " ".join(str(error).split())[:MAX_REASON_CHARACTERS]
    torch_module = sys.modules.get("torch")
    if torch_module is not None and isinstance(error, torch_module.cuda.OutOfMemoryError):
        return f"out of GPU memory (torch.cuda.OutOfMemoryError): {text}"
    if isinstance(error, MemoryError):
        return f"out of memory (MemoryError): {text}".removesuffix(": ")
    return f"{type(error).__name__}: {text}".removesuffix(": ")


if __name__ == "__main__":
    sys.exit(main())
