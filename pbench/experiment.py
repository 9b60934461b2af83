"""A run: one workload through every engine, one fresh process after the other, and the folder that keeps it."""

import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from pbench.job import ENGINE_FACTORY, EngineOptions, Job, WorkloadChoice
from pbench.live import View
from pbench.pool_history import gather_pool_maps
from pbench.prefix_hits import write_prefix_hits
from pbench.results import EngineResult, RunResult, write_result
from pbench.tables import Tables, read_journal, write_tables
from pbench.units import slug
from pbench.worker_process import WorkerProcess

if TYPE_CHECKING:
    from pbench.workloads.workload import Workload

JOURNAL_FOLDER = ".journal"


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
    timeout_s: float | None = None  # of each engine
    engine_factory: str = ENGINE_FACTORY


class Experiment:
    """Runs a plan. run.json is there from the start, and the tables after every engine."""

    def __init__(self, plan: ExperimentPlan, view: View) -> None:
        self._plan = plan
        self._view = view
        self._worker: WorkerProcess | None = None
        self._is_interrupted = False
        self._environment = dict(plan.environment) | {"gpu": None}
        self._tables: list[Tables] = []
        self._engines = [EngineResult(options.memory, "running", config=asdict(options)) for options in plan.engines]

    def run(self) -> RunResult:
        """Run all engines and return the record, which is also in the folder.

        SIGINT and SIGTERM end the engine that runs just now, keep what it measured, and start no further one.
        """
        (self._plan.folder / JOURNAL_FOLDER).mkdir()
        self._write()
        with self._signals():
            for index, options in enumerate(self._plan.engines):
                if self._is_interrupted:
                    self._engines[index] = replace(self._engines[index], status="interrupted", reason="not started")
                else:
                    self._engines[index] = self._run_engine(options)
                self._write()
        write_prefix_hits(self._plan.folder, self._plan.workload)
        shutil.rmtree(self._plan.folder / JOURNAL_FOLDER)
        return self._result()

    def _run_engine(self, options: EngineOptions) -> EngineResult:
        from pbench.memory_account import account_memory
        from pbench.metrics import summarise

        spec = options.memory
        plan = self._plan
        journal = plan.folder / JOURNAL_FOLDER / slug(spec)
        journal.mkdir()
        job = Job(
            journal=str(journal),
            engine=options,
            workload=plan.workload_choice,
            workload_sha256=plan.workload.sha256,
            sample_interval_s=plan.sample_interval_s,
            engine_factory=plan.engine_factory,
        )
        job.write(journal / "job.json")
        log_path = plan.folder / f"{slug(spec)}.log"
        self._view.begin(spec, plan.workload.num_requests)
        worker = self._worker = WorkerProcess(journal / "job.json", log_path, plan.timeout_s)
        pool: Mapping[str, int] = {}
        memory: Mapping[str, int] = {}
        status = "failed"
        try:
            if self._is_interrupted and not worker.is_interrupted:  # while it was being started
                worker.interrupt()
            for event in worker.events():
                if event is not None and event["event"] == "ready":
                    pool, memory = event["pool"], event["memory"]
                    self._environment["gpu"] = event["gpu"]
                self._view.show(event)
            outcome = worker.outcome()
            status = outcome.status
        finally:
            self._worker = None
            worker.kill()
            self._view.end(status)
        tables = read_journal(journal, spec)
        self._tables.append(tables)
        write_tables(plan.folder, self._tables)
        gather_pool_maps(plan.folder, (journal.parent / slug(options.memory) for options in plan.engines))
        if outcome.status == "complete" and log_path.stat().st_size == 0:
            log_path.unlink()
        summary = summarise(tables, pool)
        return EngineResult(
            spec=spec,
            status=outcome.status,
            reason=outcome.reason,
            config=asdict(options),
            pool=pool,
            memory=account_memory(memory, tables.device) if memory else {},
            summary=summary.values,
            notes=(*plan.notes, *summary.notes, *outcome.notes),
        )

    def _result(self) -> RunResult:
        plan = self._plan
        return RunResult(
            run_id=plan.run_id,
            created_at=plan.created_at,
            status=_run_status([engine.status for engine in self._engines]),
            command=plan.command,
            workload=plan.workload.record(),
            config={key: value for key, value in asdict(plan.engines[0]).items() if key != "memory"}
            | {"sample_interval_s": plan.sample_interval_s, "timeout_s": plan.timeout_s},
            environment=self._environment,
            engines=tuple(self._engines),
        )

    def _write(self) -> None:
        write_result(self._plan.folder, self._result())

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


def _run_status(statuses: list[str]) -> str:
    """The worst of the engines' statuses; a run is complete when all its engines are."""
    return next(status for status in ("running", "failed", "interrupted", "complete") if status in statuses)
