"""One engine's figure over another's, with its interval where repeats give one."""

from typing import NamedTuple

from pbench.reports.subjects import Subject
from pbench.summary.intervals import paired_ratio, welch_difference, welch_ratio


class Bounds(NamedTuple):
    """The interval of a ratio or of a difference at ``pbench.results.CONFIDENCE``, and what it is made of."""

    low: float
    high: float
    num_repeats: int  # of the engine that has fewer
    is_paired: bool  # the engines took turns in one run

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in it; an interval of no width holds nothing but its own value."""
        return self.low <= value <= self.high


def ratio_bounds(candidate: Subject, baseline: Subject, name: str) -> Bounds | None:
    """Of candidate / baseline. In pairs where the engines took turns, by Welch's t where the runs are strangers.

    None without two repeats of each, or where a figure is not above 0.
    """
    ours, theirs = candidate.engine.values_by_repeat(name), baseline.engine.values_by_repeat(name)
    if _took_turns(candidate, baseline):
        rounds = sorted(ours.keys() & theirs.keys())
        found = paired_ratio([theirs[number] for number in rounds], [ours[number] for number in rounds])
        return None if found is None else Bounds(*found, len(rounds), is_paired=True)
    found = welch_ratio(list(theirs.values()), list(ours.values()))
    return None if found is None else Bounds(*found, min(len(ours), len(theirs)), is_paired=False)


def difference_bounds(candidate: Subject, baseline: Subject, name: str) -> Bounds | None:
    """Of candidate - baseline, by Welch's t; None without two repeats of each."""
    ours, theirs = candidate.engine.values(name), baseline.engine.values(name)
    found = welch_difference(theirs, ours)
    return None if found is None else Bounds(*found, min(len(ours), len(theirs)), is_paired=False)


def single_ratios(candidate: Subject, baseline: Subject, name: str) -> tuple[float, ...]:
    """The ratio of every round of engines that took turns; none where there was one round only."""
    ours, theirs = candidate.engine.values_by_repeat(name), baseline.engine.values_by_repeat(name)
    rounds = sorted(ours.keys() & theirs.keys()) if _took_turns(candidate, baseline) else []
    ratios = tuple(ours[number] / theirs[number] for number in rounds if theirs[number] > 0 and ours[number] > 0)
    return ratios if len(ratios) > 1 else ()


def _took_turns(candidate: Subject, baseline: Subject) -> bool:
    return candidate.run is baseline.run
