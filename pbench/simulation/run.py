"""A simulated run: one workload through every engine without its model, and the folder that keeps it."""

import gc
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbench.arrivals import Arrivals
from pbench.engine.engine import Engine
from pbench.engine.records import StepRecord
from pbench.engine.roofline import Speed
from pbench.engine.simulation import SimulatedClock, simulated_engine
from pbench.experiment import JOURNAL_FOLDER
from pbench.job import EngineOptions
from pbench.journal import Journal
from pbench.lazy_requests import lazy_arrivals
from pbench.live import View
from pbench.pool_history import PoolHistory, gather_pool_maps
from pbench.prefix_hits import write_prefix_hits
from pbench.results import EngineResult, Run, RunResult, write_result
from pbench.step_cost import step_cost
from pbench.summary.support import is_supported
from pbench.tables import Tables, read_journal, write_tables
from pbench.units import slug
from pbench.validity.run import check_run

if TYPE_CHECKING:
    from pbench.workloads.workload import Workload

PROGRESS_INTERVAL_S = 0.1
_USAGE = ("token_state", "reserved", "internal", "external", "cached", "free")
_POOL = ("num_slots", "slot_bytes", "pool_bytes", "block_size", "weights_bytes")


@dataclass(frozen=True, slots=True)
class SimulationPlan:
    """Everything that a simulated run needs, resolved: nothing below decides for itself."""

    folder: Path  # exists and is empty
    run_id: str
    created_at: str  # ISO 8601, UTC
    command: tuple[str, ...]
    workload: "Workload"
    engines: tuple[EngineOptions, ...]
    hardware: Mapping[str, Any]  # what the record keeps of the hardware that is simulated
    speed: Speed
    environment: Mapping[str, Any]
    notes: tuple[str, ...] = ()  # hold for every engine
    process: Mapping[str, Any] = field(default_factory=dict)  # that started it: a sweep's own, not its helpers'


class Simulation:
    """Runs a plan in this process, on one core. run.json is there from the start, and the tables after every engine."""

    def __init__(self, plan: SimulationPlan, view: View, should_stop: Callable[[], bool]) -> None:
        self._plan = plan
        self._view = view
        self._should_stop = should_stop
        self._tables: list[Tables] = []
        self._engines = [
            EngineResult(options.memory, "running", config=self._config(options), cost=step_cost(options.config()))
            for options in plan.engines
        ]

    def run(self) -> RunResult:
        """Simulate all engines and return the record, which is also in the folder."""
        journals = self._plan.folder / JOURNAL_FOLDER
        journals.mkdir()
        self.write()
        for index, options in enumerate(self._plan.engines):
            if self._should_stop():
                self._engines[index] = replace(self._engines[index], status="interrupted", reason="not started")
            else:
                self._engines[index] = self._simulate(options)
            self.write()
        write_prefix_hits(self._plan.folder, self._plan.workload)
        shutil.rmtree(journals)
        return self._result()

    def write(self) -> None:
        """Write run.json as things stand."""
        write_result(self._plan.folder, self._result())

    def salvage(self, reason: str) -> RunResult:
        """Make a failed run of what a process left behind that died in ``run``, and return its record."""
        journals = self._plan.folder / JOURNAL_FOLDER
        self._engines = list(Run(self._plan.folder).result.engines)
        for index, engine in enumerate(self._engines):
            journal_folder = journals / slug(engine.spec)
            if journal_folder.exists():
                tables = read_journal(journal_folder, engine.spec)
                self._tables.append(tables)
                if engine.status == "running":
                    self._engines[index] = self._summarised(engine, tables, "failed", reason)
            elif engine.status == "running":
                self._engines[index] = replace(engine, status="failed", reason=f"not started: {reason}")
        write_tables(self._plan.folder, self._tables)
        self.write()
        shutil.rmtree(journals, ignore_errors=True)  # it died before it made one
        return self._result()

    def _simulate(self, options: EngineOptions) -> EngineResult:
        plan, spec = self._plan, options.memory
        journal_folder = plan.folder / JOURNAL_FOLDER / slug(spec)
        journal_folder.mkdir()
        self._view.begin(spec, plan.workload.num_requests)
        self._view.show({"event": "stage", "stage": "running"})
        config = options.config()
        engine, clock = simulated_engine(config, plan.speed)
        status, reason = "complete", None
        last_arrival_ns = int(plan.workload.requests.arrival_ns[-1])
        history = PoolHistory(engine.pool_map, clock, start_ns=0, least_duration_ns=last_arrival_ns)
        with Journal(journal_folder, start_ns=0) as journal:
            arrivals = lazy_arrivals(plan.workload, config.model.vocab_size)
            play = _Play(engine, clock, arrivals, journal, self._view, history)
            try:
                with _no_cycle_collection():
                    is_complete = play.run(self._should_stop)
                if not is_complete:
                    status, reason = "interrupted", "interrupted while the engine ran"
                play.note_unfinished()
            except Exception as error:
                # An engine that broke in the middle of a step has nothing reliable to say of what is unfinished.
                status, reason = "failed", f"{type(error).__name__}: {error}"
                (plan.folder / f"{slug(spec)}.log").write_text(traceback.format_exc(), encoding="utf-8")
        history.write(journal_folder, spec)
        self._view.end(status)
        tables = read_journal(journal_folder, spec)
        self._tables.append(tables)
        write_tables(plan.folder, self._tables)
        gather_pool_maps(plan.folder, (journal_folder.parent / slug(options.memory) for options in plan.engines))
        pool = {name: getattr(engine, name) for name in _POOL}
        return self._summarised(
            EngineResult(spec, "running", None, self._config(options), pool, cost=step_cost(options.config())),
            tables,
            status,
            reason,
        )

    def _summarised(self, engine: EngineResult, tables: Tables, status: str, reason: str | None) -> EngineResult:
        from pbench.summary.metrics import summarise
        from pbench.validity.repeat import Evidence, check_repeat

        summary = summarise(tables, engine.pool)
        evidence = Evidence(
            tables=tables,
            pool=engine.pool,
            workload=self._plan.workload.record(),
            duration_s=summary.values["duration_s"],
            steady=summary.steady,
            sampling=None,
            is_simulated=True,
        )
        return replace(
            engine,
            status=status,
            reason=reason,
            summary=summary.values,
            notes=(*self._plan.notes, *summary.notes),
            unsupported=tuple(name for name, num in summary.samples.items() if not is_supported(name, num)),
            checks=check_repeat(evidence),
        )

    def _config(self, options: EngineOptions) -> dict[str, Any]:
        return asdict(options) | {"hardware": dict(self._plan.hardware)}

    def _result(self) -> RunResult:
        plan = self._plan
        statuses = [engine.status for engine in self._engines]
        return RunResult(
            run_id=plan.run_id,
            created_at=plan.created_at,
            status=next(status for status in ("running", "failed", "interrupted", "complete") if status in statuses),
            command=plan.command,
            workload=plan.workload.record(),
            config={key: value for key, value in self._config(plan.engines[0]).items() if key != "memory"},
            environment=plan.environment,
            engines=tuple(self._engines),
            checks=check_run(self._engines, plan.workload.record()),
            process=plan.process,
        )


class _Play:
    """The loop: offers requests when they are due on the simulated clock, steps the engine, notes what happens."""

    def __init__(
        self,
        engine: Engine,
        clock: SimulatedClock,
        arrivals: Arrivals,
        journal: Journal,
        view: View,
        pool_history: PoolHistory,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._arrivals = arrivals
        self._journal = journal
        self._view = view
        self._pool_history = pool_history
        self._num_added = 0
        self._num_finished = 0
        self._num_output_tokens = 0
        self._next_progress_s = 0.0

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """Run until every request has left the engine. False when it was told to stop before that."""
        engine, clock, arrivals, journal = self._engine, self._clock, self._arrivals, self._journal
        while not should_stop():
            for request in arrivals.due(clock(), self._num_added - self._num_finished):
                engine.add_request(request)
                journal.offered(request, clock())
                self._num_added += 1
            if engine.has_unfinished:
                output = engine.step()
                journal.step(output.record)
                self._pool_history.look(output.record.end_ns)
                for record in output.finished:
                    journal.request(record)
                self._num_finished += len(output.finished)
                self._num_output_tokens += output.record.num_output_tokens
                if time.monotonic() >= self._next_progress_s:
                    self._show(output.record)
            elif arrivals.has_more:
                clock.advance(arrivals.wait_ns(clock()))  # nothing happens until then
            else:
                self._show(output.record)  # a workload has a request, so there was a step
                return True
        return not (engine.has_unfinished or arrivals.has_more)

    def note_unfinished(self) -> None:
        """Journal how the requests stand that are still in the engine."""
        for record in self._engine.unfinished():
            self._journal.request(record)

    def _show(self, record: StepRecord) -> None:
        self._next_progress_s = time.monotonic() + PROGRESS_INTERVAL_S
        self._view.show(
            {
                "event": "progress",
                "elapsed_ns": record.end_ns,
                "num_finished": self._num_finished,
                "num_output_tokens": self._num_output_tokens,
                "num_running": record.num_running - record.num_finished,
                "num_waiting": record.num_waiting,
            }
            | {name: getattr(record.usage, name) for name in _USAGE}
        )


@contextmanager
def _no_cycle_collection() -> Iterator[None]:
    """Switch Python's search for reference cycles off: the engine makes none, and looking for them takes a tenth."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
