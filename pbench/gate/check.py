"""The gate of exact counters: what the code counts now against a baseline, noise-free, so every difference is real."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pbench.errors import IncomparableError
from pbench.gate.baseline import REMEDY, Case
from pbench.gate.counters import COUNTERS, Counter
from pbench.units import printable

BETTER, WORSE, ALLOWED, CHANGED = "better", "worse", "worse, allowed", "changed"


@dataclass(frozen=True, slots=True)
class Difference:
    """A counter that is not what it was."""

    scenario: str
    engine: str
    counter: str
    baseline: float
    now: float
    verdict: str  # BETTER | WORSE | ALLOWED | CHANGED

    @property
    def change_pct(self) -> float | None:
        """The change in % of the baseline; None from a baseline of 0."""
        return 100 * (self.now - self.baseline) / self.baseline if self.baseline else None


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the check came to."""

    cases: tuple[Case, ...]  # as they are now
    differences: tuple[Difference, ...]
    allowed_pct: float

    @property
    def num_worse(self) -> int:
        """Differences that fail the gate."""
        return sum(difference.verdict == WORSE for difference in self.differences)

    @property
    def has_passed(self) -> bool:
        """Whether nothing is worse than allowed."""
        return not self.num_worse

    def differences_of(self, case: Case) -> list[Difference]:
        """The differences of one case, in order of COUNTERS."""
        return [one for one in self.differences if (one.scenario, one.engine) == (case.scenario, case.engine)]


def check(baseline: Sequence[Case], now: Sequence[Case], allowed_pct: float) -> GateResult:
    """Compare what is counted now with the baseline; a counter may be worse by ``allowed_pct`` % of its baseline.

    From a baseline of 0 any worsening is too much, whatever is allowed.

    Raises:
        IncomparableError: the two are not of the same scenarios, workloads, settings or counters.

    """
    then = {case.key: case for case in baseline}
    reasons = [*_other_cases(then, now), *(reason for case in now for reason in _reasons(then.get(case.key), case))]
    if reasons:
        raise IncomparableError("\n".join(["the baseline is of something else:", *reasons, REMEDY]))
    differences = tuple(one for case in now for one in _differences(then[case.key], case, allowed_pct))
    return GateResult(tuple(now), differences, allowed_pct)


def _other_cases(then: Mapping[str, Case], now: Sequence[Case]) -> Iterator[str]:
    keys = [case.key for case in now]
    yield from (f"{key}: not in the baseline" for key in keys if key not in then)
    yield from (f"{printable(key)}: in the baseline only" for key in then if key not in keys)


def _reasons(then: Case | None, now: Case) -> Iterator[str]:
    """Why two cases of one key cannot be compared."""
    if then is None:
        return
    if then.workload_sha256 != now.workload_sha256:
        hashes = [printable(case.workload_sha256[:12]) for case in (then, now)]
        yield f"{now.key}: workload sha256 {hashes[0]} in the baseline, {hashes[1]} now"
    if then.workload_seed != now.workload_seed:
        yield f"{now.key}: workload seed {then.workload_seed} in the baseline, {now.workload_seed} now"
    for name in dict.fromkeys((*then.settings, *now.settings)):
        if then.settings.get(name) != now.settings.get(name):
            old, new = (side.settings.get(name, "absent") for side in (then, now))
            yield f"{now.key}: setting {printable(name)} {printable(str(old))} in the baseline, {new} now"
    for name in sorted(then.counters.keys() ^ now.counters.keys()):
        yield f"{now.key}: counter {printable(name)} {'in the baseline only' if name in then.counters else 'is new'}"


def _differences(then: Case, now: Case, allowed_pct: float) -> Iterator[Difference]:
    for counter in COUNTERS:
        old, new = then.counters[counter.name], now.counters[counter.name]
        if old != new:
            verdict = _verdict(counter, old, new, allowed_pct)
            yield Difference(now.scenario, now.engine, counter.name, old, new, verdict)


def _verdict(counter: Counter, old: float, new: float, allowed_pct: float) -> str:
    if counter.is_higher_better is None:
        return CHANGED
    if (new > old) == counter.is_higher_better:
        return BETTER
    loss_pct = 100 * abs(new - old) / abs(old) if old else math.inf
    return ALLOWED if loss_pct <= allowed_pct else WORSE
