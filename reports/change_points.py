"""Steps in a series of measurements: where it changed its level for good, as against noise around one level.

The method is E-divisive (D. S. Matteson, N. A. James, "A Nonparametric Approach for Multiple Change Point Analysis of
Multivariate Data", JASA 109, 2014), which MongoDB and others use on the histories of their benchmarks (D. Daly et al.,
"The Use of Change Point Detection to Identify Software Performance Regressions in a Continuous Integration System",
ICPE 2020). Of all places to cut a series in two, the one is taken where the two sides lie farthest apart in energy
distance::

    Q = m n / (m + n) * (2 E|X - Y| - E|X - X'| - E|Y - Y'|)        X: the m values before, Y: the n values after

The cut counts as a step when hardly any shuffle of the values reaches its Q (a permutation test); then both sides are
searched in the same way. Nothing is assumed of the noise's distribution.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pbench.reports.reduction import Floats, Ints

METHOD = (
    "E-divisive (Matteson and James, 2014): the cut that sets both sides farthest apart in energy distance, if at most"
    " 1 % of shuffles reach its distance"
)
SIGNIFICANCE = 0.01
MIN_RELATIVE_STEP = 0.01  # smaller ones are not told, however sure they are
_NUM_SHUFFLES = 299
_MIN_SIDE = 2  # values; one alone has no spread


class Step(NamedTuple):
    """A lasting change: ``at`` is the place of the first value after it, beside the mean levels on both sides."""

    at: int
    before: float
    after: float

    @property
    def change(self) -> float:
        """After over before, less 1; infinite from 0."""
        return self.after / self.before - 1 if self.before else float("inf")


def find_steps(values: Floats, *, is_exact: bool = False) -> list[Step]:
    """The steps of a series, in its order.

    Args:
        values: (num_values,), finite.
        is_exact: the values have no noise (a simulation), so that any two that differ are a step apart.

    Returns:
        Steps of at least MIN_RELATIVE_STEP; each side's mean reaches to the next cut.
    """
    if is_exact:
        cuts = [int(index) for index in np.flatnonzero(np.diff(values)) + 1]
    else:
        cuts = sorted(_cuts(values, 0, len(values), np.random.default_rng(0)))
    while True:
        edges = [0, *cuts, len(values)]
        means = [float(values[begin:end].mean()) for begin, end in pairwise(edges) if end > begin]
        steps = [Step(cut, *means[i : i + 2]) for i, cut in enumerate(cuts)]
        small = [step.at for step in steps if abs(step.after - step.before) < MIN_RELATIVE_STEP * abs(step.before)]
        if not small:
            return steps
        cuts.remove(small[0])  # its two sides become one level, and their neighbours' steps are measured again


def _cuts(values: Floats, begin: int, end: int, rng: np.random.Generator) -> list[int]:
    """Significant cuts between ``begin`` and ``end``, in any order."""
    pending, found = [(begin, end)], []
    while pending:
        begin, end = pending.pop()
        part = values[begin:end]
        if len(part) < 2 * _MIN_SIDE:
            continue
        distances = np.abs(part[:, None] - part[None, :])
        cut, separation = _best_cut(distances)
        if separation <= 0 or not _is_significant(distances, separation, rng):
            continue
        found.append(begin + cut)
        pending += [(begin, begin + cut), (begin + cut, end)]
    return found


def _best_cut(distances: Floats) -> tuple[int, float]:
    """The cut of greatest Q, and that Q. ``distances``: (num_values, num_values), of every pair."""
    num_values = len(distances)
    sums = distances.cumsum(axis=0).cumsum(axis=1)
    m: Ints = np.arange(_MIN_SIDE, num_values - _MIN_SIDE + 1)
    n = num_values - m
    within_before = sums[m - 1, m - 1]  # each pair twice, as in the two below
    across = 2 * (sums[m - 1, -1] - within_before)
    within_after = sums[-1, -1] - within_before - across
    separation = m * n / num_values * (across / (m * n) - within_before / (m * (m - 1)) - within_after / (n * (n - 1)))
    best = int(separation.argmax())
    return int(m[best]), float(separation[best])


def _is_significant(distances: Floats, separation: float, rng: np.random.Generator) -> bool:
    """Whether at most SIGNIFICANCE of the shuffles, this order counted as one of them, are cut as far apart."""
    allowed = int(SIGNIFICANCE * (_NUM_SHUFFLES + 1)) - 1
    num_reached = 0
    for _ in range(_NUM_SHUFFLES):
        order = rng.permutation(len(distances))
        num_reached += _best_cut(distances[np.ix_(order, order)])[1] >= separation * (1 - 1e-9)
        if num_reached > allowed:
            return False
    return True
