"""The statistics of paired runs: what log(tps_head / tps_base) of pairs run one right after the other says of a ratio.

A machine drifts: it warms up, others come and go. Two runs side by side have nearly the same machine, so their ratio is
free of what is slower than a pair; in ABBA order (base first, then head first, ...) what grows steadily cancels too.

The rule, at each of the looks (after 6, 10 and 16 pairs), with alpha shared among the looks (Bonferroni):

    fail          head is significantly slower, by the exact one-sided sign-flip test, and its estimated ratio is at or
                  below 1 - delta
    pass          the lower end of the ratio's t interval is above 1 - delta
    inconclusive  neither: go on to the next look, if there is one

The sign-flip test (Fisher 1935) asks how many of the 2^n ways to call one run of each pair head would have made head
look at least as slow. It assumes only that, were both alike, either run of a pair would be the faster one as often. 6
pairs are the fewest whose best, 1/64, reaches 0.05 / 3. Over several workloads one failure fails all, so the tests are
Holm's (1979); a pass needs all to pass, which needs no correction.

Functions take arrays of shape (experiments, pairs) and answer for every experiment.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pbench.summary.student_t import t_quantile

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

MAX_NEEDED_PAIRS = 10_000  # beyond it a machine is simply too noisy
_CHUNK = 1 << 22  # sums of the sign-flip test held at once


@dataclass(frozen=True, slots=True)
class Design:
    """The rule, as it is declared before the first run."""

    delta: float = 0.05  # the loss that fails
    alpha: float = 0.05  # chance of a false failure, over all looks and workloads
    looks: tuple[int, ...] = (6, 10, 16)
    aa_pairs: int = 4
    power: float = 0.8  # with which an unchanged head must pass by the last look: else the machine is too noisy

    @property
    def alpha_per_look(self) -> float:
        """Bonferroni's share."""
        return self.alpha / len(self.looks)

    @property
    def confidence(self) -> float:
        """Of every interval, so that those of all looks hold together with 1 - alpha."""
        return 1 - self.alpha_per_look

    @property
    def most_pairs(self) -> int:
        """Pairs at the last look."""
        return self.looks[-1]


class Estimates(NamedTuple):
    """One look at every experiment, in ratios."""

    ratio: Floats  # (experiments,), geometric mean
    low: Floats
    high: Floats
    p_value: Floats  # of the sign-flip test


def estimate(logs: Floats, design: Design) -> Estimates:
    """The ratio that ``logs`` (experiments, pairs) tell of, its t interval and its p-value."""
    num_pairs = logs.shape[1]
    mean = logs.mean(axis=1)
    half = t_quantile(num_pairs - 1, design.confidence) * logs.std(axis=1, ddof=1) / math.sqrt(num_pairs)
    return Estimates(np.exp(mean), np.exp(mean - half), np.exp(mean + half), sign_flip_p_values(logs))


def sign_flip_p_values(logs: Floats) -> Floats:
    """Share of all 2^n ways to flip the signs of n ``logs`` whose sum is at most the sum as it is: exact, one-sided."""
    num_experiments, num_pairs = logs.shape
    flips = np.arange(2**num_pairs)
    signs = 1.0 - 2.0 * (flips >> np.arange(num_pairs)[:, None] & 1)  # (pairs, 2^pairs)
    # Sums that are equal on paper must count as equal: the way as it is, and its ties, are among those counted.
    tolerance = 1e-12 * np.abs(logs).sum(axis=1)
    p_values = np.empty(num_experiments)
    size = max(1, _CHUNK // len(flips))
    for start in range(0, num_experiments, size):
        part = slice(start, start + size)
        observed = logs[part].sum(axis=1) + tolerance[part]
        p_values[part] = (logs[part] @ signs <= observed[:, None]).mean(axis=1)
    return p_values


def has_failed(estimates: Estimates, p_threshold: float, design: Design) -> Flags:
    """Where head is significantly slower, and by delta at least."""
    return (estimates.p_value <= p_threshold) & (estimates.ratio <= 1 - design.delta)


def has_passed(estimates: Estimates, design: Design) -> Flags:
    """Where head is surely not slower by delta."""
    return estimates.low > 1 - design.delta


def holm_thresholds(p_values: Sequence[float], alpha: float, num_open: int) -> list[float]:
    """What every p-value is to be held against, by Holm's step-down over ``num_open`` hypotheses.

    ``num_open`` counts those too that are tested no more and were not rejected. The smallest p-value is held against
    alpha / num_open, the next, if that was rejected, against alpha / (num_open - 1), and so on; once one is not
    rejected the rest are held against its threshold, which they cannot reach.
    """
    thresholds = [0.0] * len(p_values)
    for index in sorted(range(len(p_values)), key=p_values.__getitem__):
        thresholds[index] = alpha / num_open
        if p_values[index] <= thresholds[index]:
            num_open -= 1
    return thresholds


def spread_of(logs: Floats) -> Floats:
    """Standard deviation of a pair of every A/A check, about 0: base against itself has no ratio to be estimated."""
    return np.asarray(np.sqrt((logs**2).mean(axis=1)))


def smallest_delta(spread: Floats, design: Design) -> Floats:
    """The delta that is resolved by the last look: below it an unchanged head passes with less than ``power``."""
    return np.asarray(-np.expm1(-_reach(design.most_pairs, design) * spread))


def needed_pairs(spread: float, design: Design) -> int | None:
    """Pairs after which an unchanged head passes with ``power``; None for more than MAX_NEEDED_PAIRS."""
    margin = -math.log(1 - design.delta)

    def is_enough(num_pairs: int) -> bool:
        return _reach(num_pairs, design) * spread <= margin

    low, high = 1, MAX_NEEDED_PAIRS  # reach falls with the number of pairs
    if not is_enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _reach(num_pairs: int, design: Design) -> float:
    """How far below 1 the interval's lower end stays with ``power``, in spreads of a pair (log scale)."""
    freedom = num_pairs - 1
    to_pass = t_quantile(freedom, 2 * design.power - 1) if design.power > 0.5 else 0.0
    return (t_quantile(freedom, design.confidence) + to_pass) / math.sqrt(num_pairs)
