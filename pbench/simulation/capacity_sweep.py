"""A capacity sweep: the same simulation with one size of the pool after another, several processes at a time."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pbench.figure_text import NOT_MEASURED
from pbench.live import LineView
from pbench.results import Run, RunResult
from pbench.simulation.run import Simulation, SimulationPlan
from pbench.units import format_bytes, format_number, printable

# The curve: what depends on how much memory there is, by its heading.
_SHOWN = {
    "hit %": "prefix_hit_rate_pct",
    "waste %": "waste_pct",
    "running": "mean_running",
    "peak": "peak_running",
    "tok/s": "output_tokens_per_s",
    "preempted": "preemptions",
}


_NO_VIEW = LineView(lambda line: None)


class SizeDone(NamedTuple):
    """One size of the sweep has ended."""

    kv_memory_bytes: int
    result: RunResult


class CapacitySweep:
    """Simulates every plan in a process of its own, at most ``num_processes`` at a time.

    The processes are spawned, not forked, and inherit nothing but their plan.
    """

    def __init__(self, plans: Sequence[SimulationPlan], num_processes: int) -> None:
        self._plans = list(plans)
        self._num_processes = num_processes
        self._context = multiprocessing.get_context("spawn")
        self._should_stop = self._context.RawValue(ctypes.c_bool, False)  # no lock that a killed process could keep

    def stop(self) -> None:
        """Let the simulations that run keep what they have and end, and the others record that they never started."""
        self._should_stop.value = True

    def run(self) -> Iterator[SizeDone]:
        """Run the sweep; gives each size as it ends."""
        waiting = list(reversed(self._plans))
        running: dict[int, tuple[SpawnProcess, SimulationPlan]] = {}  # by the process's sentinel
        try:
            while waiting or running:
                while waiting and len(running) < self._num_processes:
                    plan = waiting.pop()
                    process = self._context.Process(target=_simulate, args=(plan, self._should_stop))
                    Simulation(plan, _NO_VIEW, lambda: True).write()  # there even if the process dies at once
                    process.start()
                    running[process.sentinel] = (process, plan)
                for sentinel in wait(list(running)):
                    assert isinstance(sentinel, int)
                    process, plan = running.pop(sentinel)
                    process.join()
                    yield SizeDone(plan.engines[0].kv_memory_bytes, _outcome(plan, process.exitcode))
        finally:
            for process, _ in running.values():
                process.kill()
                process.join()


def print_curve(done: Sequence[SizeDone], console: Console) -> None:
    """Print the table of the sweep: a row for each size and engine, by size."""
    table = Table(pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("pool", justify="right", no_wrap=True)
    table.add_column("engine", no_wrap=True)
    for heading in _SHOWN:
        table.add_column(heading, justify="right", no_wrap=True)
    for size in sorted(done):
        for engine in size.result.engines:
            values = (engine.summary.get(name) for name in _SHOWN.values())
            table.add_row(
                Text(format_bytes(size.kv_memory_bytes)),
                Text(printable(engine.spec)),
                *(Text(NOT_MEASURED if value is None else format_number(value)) for value in values),
            )
    console.print(table)
    for size in sorted(done):
        for engine in size.result.engines:
            if engine.reason is not None:
                where = f"{format_bytes(size.kv_memory_bytes)}, {engine.spec}"
                console.print(Text(printable(f"{where} {engine.status}: {engine.reason}")), soft_wrap=True)


def _simulate(plan: SimulationPlan, should_stop: ctypes.c_bool) -> None:
    """The process of one size."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C of the terminal reaches the parent, which asks us to stop
    parent_id = os.getppid()
    Simulation(plan, _NO_VIEW, lambda: should_stop.value or os.getppid() != parent_id).run()


def _outcome(plan: SimulationPlan, exit_code: int | None) -> RunResult:
    """The record that the process left; one that says "running" was left by a process that died."""
    result = Run(plan.folder).result
    if result.status != "running":
        return result
    return Simulation(plan, _NO_VIEW, lambda: True).salvage(f"the simulating process ended with exit code {exit_code}")
