"""Profiling of one repeat, in its worker: what is listened to, what is recorded, and what comes of it."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pbench.profiling.phase_timer import ClockStamps, EventStamps, PhaseTimer
from pbench.profiling.step_trace import TRACE_FILE, StepTrace
from pbench.summary.repeat import PhaseTime

if TYPE_CHECKING:
    from pbench.job import ProfilingChoice
    from pbench.target import Announces

PHASES_FILE = "phases.json"
MEMORY_FILE = "memory.pickle"
MAX_MEMORY_EVENTS = 1_000_000


class Profiling:
    """Listens to one engine. Make it before the engine is loaded: torch's memory is recorded from here on."""

    def __init__(self, choice: "ProfilingChoice", device: str) -> None:
        self._choice = choice
        self._is_cuda = device == "cuda"
        self._timer: PhaseTimer | None = None
        self._trace: StepTrace | None = None
        self._has_memory = "memory" in choice.kinds and self._is_cuda
        if self._has_memory:
            import torch

            torch.cuda.memory._record_memory_history(max_entries=MAX_MEMORY_EVENTS)

    def listen(self, engine: "Announces") -> None:
        """Listen to ``engine``, which is warm. Steps that torch's profiler slows down are not timed."""
        if "torch" in self._choice.kinds:
            self._trace = StepTrace(*self._choice.steps, is_cuda=self._is_cuda)
            engine.announce(self._trace)
        elif self._choice.phase_interval:
            stamps = EventStamps() if self._is_cuda else ClockStamps()
            self._timer = PhaseTimer(stamps, self._choice.phase_interval)
            engine.announce(self._timer)

    def write(self, folder: Path) -> tuple[str, ...]:
        """Write all that came of it into ``folder``, and return what a reader must know."""
        notes = []
        if self._timer is not None:
            times = [asdict(one) for one in self._timer.results()]
            (folder / PHASES_FILE).write_text(json.dumps(times), encoding="utf-8")
        if self._trace is not None:
            notes.append(self._trace.write(folder))
        if self._has_memory:
            import torch

            dump: Callable[[str], None] = torch.cuda.memory._dump_snapshot
            dump(str(folder / MEMORY_FILE))
            notes.append("torch's allocator noted every allocation: the run is slower than without")
        return tuple(notes)


def unused_profiling(choice: "ProfilingChoice") -> tuple[str, ...]:
    """What a reader must know of an engine that announces nothing."""
    return tuple(f"--profile {kind} is not applied to it" for kind in choice.kinds)


def keep_recordings(journal: Path, folder: Path, name: str) -> None:
    """Move what was recorded of the repeat ``name`` from its ``journal`` into the run's ``folder``."""
    for file in (TRACE_FILE, MEMORY_FILE):
        if (journal / file).exists():
            kind, _, ending = file.partition(".")
            (journal / file).rename(folder / f"{kind}-{name}.{ending}")


def read_phases(folder: Path) -> tuple[PhaseTime, ...]:
    """What ``Profiling.write`` wrote; nothing where it did not get so far."""
    path = folder / PHASES_FILE
    if not path.exists():
        return ()
    return tuple(PhaseTime(**one) for one in json.loads(path.read_text(encoding="utf-8")))
