"""How far an engine's time is from the floor: the least that its steps take where the machine reaches its ceilings.

The floor of a step is the longer of two times: its bytes (weights, and KV of which a shared block counts once) at the
copy bandwidth, and its FLOPs at the matrix rate. It is found step by step, from the step's record
(``pbench.reports.roofline``); with prompts in a step its FLOPs, and so its floor, are those at least.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pbench.errors import UsageError
from pbench.profiling.phase_timer import OUTSIDE
from pbench.reports.roofline import Bench, Ceilings, StepFloors, ceilings_of, device_name, step_floors, step_loads
from pbench.reports.subjects import Subject, floats
from pbench.results import PhaseTime
from pbench.units import printable

OUTSIDE_STEPS = "outside steps"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Time of one kind, and its floor. The three parts are what each would take alone at the ceilings."""

    name: str
    num_steps: int
    time_s: float
    floor_s: float
    weights_s: float
    kv_s: float
    arithmetic_s: float

    @property
    def gap_s(self) -> float:
        """What is above the floor; below 0 where steps were faster, so that the ceilings are too low."""
        return self.time_s - self.floor_s

    @property
    def bound_by(self) -> str | None:
        """What takes the longest of all steps: arithmetic, or the greater part of the bytes; None without a floor."""
        if not self.floor_s:
            return None
        if self.arithmetic_s > self.weights_s + self.kv_s:
            return "arithmetic"
        return "weights" if self.weights_s >= self.kv_s else "KV"


@dataclass(frozen=True, slots=True)
class PhasePart:
    """A phase of the steps, as the phase timers found it (``pbench.profiling.phase_timer``).

    Of the host every step is timed, of the device only some. What lies outside the steps is no phase here.
    """

    where: str  # "host" | "device"
    steps: str  # "all" | "launched" | "replayed"
    phase: str
    num_steps: int  # that were timed
    mean_s: float  # of a step
    share_pct: float  # of the wall time where it is the host's, else of what the device took for such steps

    @property
    def timed_s(self) -> float:
        """What it took of the steps that were timed: of the host's all steps."""
        return self.num_steps * self.mean_s


@dataclass(frozen=True, slots=True)
class EngineFloor:
    """One engine of a run, against the floor of its steps; of its repeats the typical one."""

    run_id: str
    workload: str
    engine: str  # unique among those that are looked at
    repeat: int
    ceilings: Ceilings
    stretches: tuple[Stretch, ...]  # the kinds of steps that there were, and what lay outside them
    phases: tuple[PhasePart, ...]  # none where nobody timed them

    @property
    def whole(self) -> Stretch:
        """All of it: ``time_s`` is the wall time, to the end of the last step."""
        stretches = self.stretches
        return Stretch(
            "all",
            sum(one.num_steps for one in stretches),
            sum(one.time_s for one in stretches),
            sum(one.floor_s for one in stretches),
            sum(one.weights_s for one in stretches),
            sum(one.kv_s for one in stretches),
            sum(one.arithmetic_s for one in stretches),
        )

    @property
    def largest_gap(self) -> Stretch:
        """The stretch that lost the most."""
        return max(self.stretches, key=lambda one: one.gap_s)

    def longest_phase(self, where: str) -> PhasePart | None:
        """The phase that took the most of the host, or of the device; None where nobody timed it."""
        return max((part for part in self.phases if part.where == where), key=lambda part: part.timed_s, default=None)


def engine_floor(subject: Subject, bench: Bench) -> EngineFloor | None:
    """Hold an engine against the floor; None where its record has no steps, or does not say what they cost.

    Raises:
        UsageError: nobody says what its machine reaches.
    """
    loads = step_loads(subject)
    if loads is None:
        return None
    ceilings = ceilings_of(subject, bench)
    if ceilings is None:
        machine = printable(device_name(subject.run.environment)) or "the run's machine"
        raise UsageError(
            f"what {machine} reaches at most is not known; measure it there with `pbench kernels --json FILE` and give"
            " --kernels FILE"
        )
    steps = subject.steps
    floors = step_floors(loads, ceilings)
    has_prompts, has_decodes = loads.has_prompts, floats(steps, "num_decode_tokens") > 0
    kinds = {
        "only decodes": has_decodes & ~has_prompts,
        "decodes and prompts": has_decodes & has_prompts,
        "only prompts": has_prompts & ~has_decodes,
        "neither": ~has_prompts & ~has_decodes,  # swaps alone
    }
    stretches = [_stretch(name, chosen, loads.seconds, floors) for name, chosen in kinds.items() if chosen.any()]
    outside_s = float(floats(steps, "end_ns").max()) / 1e9 - float(loads.seconds.sum())
    stretches.append(Stretch(OUTSIDE_STEPS, 0, max(outside_s, 0.0), 0.0, 0.0, 0.0, 0.0))
    wall_s = sum(one.time_s for one in stretches)
    return EngineFloor(
        run_id=subject.run.run_id,
        workload=str(subject.run.workload.get("name")),
        engine=subject.label,
        repeat=subject.engine.typical_repeat,
        ceilings=ceilings,
        stretches=tuple(stretches),
        phases=tuple(_phase_parts(subject.engine.phases, len(steps), wall_s)),
    )


def _stretch(name: str, chosen: NDArray[np.bool_], seconds: NDArray[np.float64], floors: StepFloors) -> Stretch:
    return Stretch(
        name,
        int(chosen.sum()),
        *(float(part[chosen].sum()) for part in (seconds, floors.least_s, *floors)),
    )


def _phase_parts(phases: Sequence[PhaseTime], num_steps: int, wall_s: float) -> Iterator[PhasePart]:
    for phase in phases:
        num_timed = num_steps if phase.num_steps is None else phase.num_steps
        mean_s = phase.mean_ms / 1e3
        share_pct = phase.share_pct if phase.where == "device" else 100 * num_timed * mean_s / wall_s
        if phase.phase != OUTSIDE:
            yield PhasePart(phase.where, phase.steps, phase.phase, num_timed, mean_s, share_pct)
