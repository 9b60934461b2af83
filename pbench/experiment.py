"""A run: one workload through every engine, one fresh process after the other, and the folder that keeps it.

Every engine runs as often as the plan repeats it. The engines take turns, each round in the opposite order of the one
before (A B, B A, A B, ...): whatever drifts slowly, such as a machine that warms up, then meets all of them alike.
"""

import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from pbench.disk_reserve import DiskReserve
from pbench.environment import own_process
from pbench.errors import RunFailedError
from pbench.external.kinds import common_config, external_kind, recorded_config, unused_notes
from pbench.job import (
    DEFAULT_ACCESS,
    DEFAULT_PROFILING,
    ENGINE_FACTORY,
    EngineOptions,
    Job,
    ProfilingChoice,
    ServerAccess,
    WorkloadChoice,
)
from pbench.live import View
from pbench.pool_history import gather_pool_maps
from pbench.prefix_hits import write_prefix_hits
from pbench.profiling.profiling import keep_recordings
from pbench.results import EngineResult, Repeat, RunResult, write_result
from pbench.step_cost import step_cost
from pbench.summary.aggregation import aggregate
from pbench.tables import Tables, read_journal, write_tables
from pbench.units import display_path, slug
from pbench.validity.repeat import Watching
from pbench.validity.run import check_run
from pbench.worker_process import WorkerProcess

if TYPE_CHECKING:
    from pbench.workloads.workload import Workload

JOURNAL_FOLDER = ".journal"  # holds a folder for every repeat: its job, what its worker said when ready, its tables
JOB_FILE = "job.json"
READY_FILE = "ready.json"


@dataclass(frozen=True, slots=True)
class ExperimentPlan:
    """Everything that a run needs, resolved: nothing below decides for itself."""

    folder: Path  # exists and is empty
    run_id: str
    created_at: str  # ISO 8601, UTC
    command: tuple[str, ...]
    workload_choice: WorkloadChoice
    workload: "Workload"
    engines: tuple[EngineOptions, ...]
    environment: Mapping[str, Any]
    notes: tuple[str, ...] = ()  # hold for every engine
    sample_interval_s: float = 0.1
    timeout_s: float | None = None  # of each repeat
    num_repeats: int = 1
    targets_ms: Mapping[str, float] = field(default_factory=dict)  # of latencies, by name: --slo
    engine_factory: str = ENGINE_FACTORY
    access: ServerAccess = DEFAULT_ACCESS
    profiling: ProfilingChoice = DEFAULT_PROFILING


class Experiment:
    """Runs a plan. run.json is there from the start, and the tables after every repeat."""

    def __init__(self, plan: ExperimentPlan, view: View) -> None:
        self._plan = plan
        self._view = view
        self._worker: WorkerProcess | None = None
        self._is_interrupted = False
        self._environment = dict(plan.environment) | {"gpu": None}
        self._tables: list[Tables] = []
        self._journals: list[Path] = []
        self._is_storage_broken = False
        self._reserve = DiskReserve(plan.folder)
        self._configs = [recorded_config(options) for options in plan.engines]
        self._engines = [
            EngineResult(options.memory, "running", config=config, cost=_cost_of(options))
            for options, config in zip(plan.engines, self._configs, strict=True)
        ]

    def run(self) -> RunResult:
        """Run all engines and return the record, which is also in the folder.

        SIGINT and SIGTERM end the repeat that runs just now, keep what it measured, and start no further one.
        """
        plan = self._plan
        self._reserve.take()
        self._write()
        with self._signals():
            for position, (index, number) in enumerate(schedule(len(plan.engines), plan.num_repeats)):
                if self._is_interrupted or self._is_storage_broken:
                    break
                repeat = self._run_repeat(index, number, position)
                repeats = (*self._engines[index].repeats, repeat)
                engine = aggregate(self._engines[index], repeats, plan.num_repeats)
                self._engines[index] = engine if number == plan.num_repeats else replace(engine, status="running")
                self._write()
        self._engines = [self._ended(engine) for engine in self._engines]
        self._write()
        if not self._is_storage_broken:  # else the journals hold the only copy of what was measured
            try:
                write_prefix_hits(plan.folder, plan.workload)
            except OSError as error:
                note = f"there is no table of shared prefixes: {self._storage_broke(error)}"
                self._engines = [replace(engine, notes=(*engine.notes, note)) for engine in self._engines]
                self._write()
            shutil.rmtree(plan.folder / JOURNAL_FOLDER)
        self._reserve.release()
        return self._result()

    def _ended(self, engine: EngineResult) -> EngineResult:
        """The engine as it stays: what was not started by now never will be."""
        num_repeats, num_started = self._plan.num_repeats, len(engine.repeats)
        if num_started == num_repeats:
            return engine
        missing = "not started" if not num_started else f"{num_started} of {num_repeats} repeats were started"
        status = "failed" if any(repeat.status == "failed" for repeat in engine.repeats) else "interrupted"
        return replace(engine, status=status, reason="; ".join(filter(None, (engine.reason, missing))))

    def _run_repeat(self, index: int, number: int, position: int) -> Repeat:
        """Run one repeat; one whose files cannot be written has failed, and says so in what is left of the folder."""
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            return replace(self._play(index, number), position=position, started_at=started_at)
        except OSError as error:
            return Repeat(number, "failed", self._storage_broke(error), position, started_at)

    def _storage_broke(self, error: OSError) -> str:
        """Note that the folder takes no more, and say so."""
        self._is_storage_broken = True
        return f"{display_path(self._plan.folder)} cannot be written: {error.strerror or error}"

    def _play(self, index: int, number: int) -> Repeat:
        from pbench.summary.repeat_summary import summarise_repeat

        plan = self._plan
        options = plan.engines[index]
        spec = options.memory
        name = slug(spec) if plan.num_repeats == 1 else f"{slug(spec)}-{number}"
        journal = plan.folder / JOURNAL_FOLDER / name
        journal.mkdir(parents=True)
        self._journals.append(journal)
        job = Job(
            journal=str(journal),
            engine=options,
            workload=plan.workload_choice,
            workload_sha256=plan.workload.sha256,
            sample_interval_s=plan.sample_interval_s,
            repeat=number,
            engine_factory=plan.engine_factory,
            access=plan.access,
            profiling=plan.profiling,
        )
        job.write(journal / JOB_FILE)
        log_path = plan.folder / f"{name}.log"
        label = spec if plan.num_repeats == 1 else f"{spec} {number}/{plan.num_repeats}"
        self._view.begin(label, plan.workload.num_requests)
        worker = self._worker = WorkerProcess(journal / JOB_FILE, log_path, plan.timeout_s)
        ready: Mapping[str, Any] = {}
        watching: Watching | None = None
        status = "failed"
        try:
            if self._is_interrupted and not worker.is_interrupted:  # while it was being started
                worker.interrupt()
            for event in worker.events():
                if event is not None and event["event"] == "ready":
                    ready = event
                    (journal / READY_FILE).write_text(json.dumps(event), encoding="utf-8")
                    if event["gpu"] is not None:
                        self._environment["gpu"] = event["gpu"]
                    config = self._configs[index] | event["facts"]
                    self._engines[index] = replace(self._engines[index], pool=event["pool"], config=config)
                if event is not None and event["event"] == "watched":
                    watching = Watching(event["noting_s"], event["sampling_s"])
                self._view.show(event)
            outcome = worker.outcome()
            status = outcome.status
        finally:
            self._worker = None
            worker.kill()
            self._view.end(status)
        tables = read_journal(journal, spec, number)
        self._tables.append(tables)
        try:
            write_tables(plan.folder, self._tables)
            gather_pool_maps(plan.folder, self._journals)
            keep_recordings(journal, plan.folder, name)
        except OSError as error:
            outcome = outcome._replace(status="failed", reason=self._storage_broke(error))
        if outcome.status == "complete" and log_path.stat().st_size == 0:
            log_path.unlink()
        return summarise_repeat(
            number,
            outcome,
            tables,
            journal=journal,
            ready=ready,
            watching=watching,
            workload=plan.workload.record(),
            sample_interval_s=plan.sample_interval_s,
            targets_ms=plan.targets_ms,
            notes=(*plan.notes, *unused_notes(options)),
        )

    def _result(self) -> RunResult:
        plan = self._plan
        return RunResult(
            run_id=plan.run_id,
            created_at=plan.created_at,
            status=_run_status([engine.status for engine in self._engines]),
            command=plan.command,
            workload=plan.workload.record(),
            config=common_config(self._configs)
            | {"sample_interval_s": plan.sample_interval_s, "timeout_s": plan.timeout_s}
            | {"num_repeats": plan.num_repeats, "targets_ms": dict(plan.targets_ms)},
            environment=self._environment,
            process=own_process(),
            engines=tuple(self._engines),
            checks=check_run(self._engines, plan.workload.record()),
        )

    def _write(self) -> None:
        """Write run.json; on a full disk into the room that was kept for it.

        Raises:
            RunFailedError: it cannot be written at all.

        """
        try:
            try:
                write_result(self._plan.folder, self._result())
            except OSError:
                self._reserve.release()
                write_result(self._plan.folder, self._result())
        except OSError as error:
            raise RunFailedError(self._storage_broke(error)) from error

    @contextmanager
    def _signals(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._interrupt) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._is_interrupted = True
        if self._worker is not None:
            self._worker.interrupt()


def schedule(num_engines: int, num_repeats: int) -> list[tuple[int, int]]:
    """Which engine (its place) runs which of its repeats (from 1), in their order."""
    order = []
    for number in range(1, num_repeats + 1):
        places = range(num_engines) if number % 2 else reversed(range(num_engines))
        order += [(place, number) for place in places]
    return order


def _cost_of(options: EngineOptions) -> dict[str, int]:
    """What a step of an engine of ours costs; of others nothing is known."""
    return step_cost(options.config()) if external_kind(options.memory) is None else {}


def _run_status(statuses: list[str]) -> str:
    """The worst of the engines' statuses; a run is complete when all its engines are."""
    return next(status for status in ("running", "failed", "interrupted", "complete") if status in statuses)
