"""Intervals over repeats, by Student's t. Over the requests of one run there is none: they are not independent.

Welch's fractional degrees of freedom are rounded down, which makes an interval wider, never narrower.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev, variance

from pbench.summary.repeat import CONFIDENCE, WIDE_SPREAD_PCT, Interval
from pbench.summary.student_t import t_quantile


def interval_of(values: Sequence[float]) -> Interval | None:
    """The interval of the mean of ``values``, one of each repeat; None for fewer than two."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    half = t_quantile(len(values) - 1, CONFIDENCE) * stdev(values) / math.sqrt(len(values))
    spread_pct = 100 * (max(values) - min(values)) / abs(mean) if mean else None
    is_wide = spread_pct is not None and spread_pct > WIDE_SPREAD_PCT
    return Interval(mean - half, mean + half, spread_pct, is_wide)


def paired_ratio(first: Sequence[float], other: Sequence[float]) -> tuple[float, float] | None:
    """Bounds of other / first (geometric means) where the two were measured side by side, round after round.

    None for fewer than two pairs, or where a figure is not above 0: it has no logarithm.
    """
    pairs = list(zip(first, other, strict=True))
    if len(pairs) < 2 or min((*first, *other)) <= 0:
        return None
    logs = [math.log(b / a) for a, b in pairs]
    half = t_quantile(len(logs) - 1, CONFIDENCE) * stdev(logs) / math.sqrt(len(logs))
    return math.exp(fmean(logs) - half), math.exp(fmean(logs) + half)


def welch_ratio(first: Sequence[float], other: Sequence[float]) -> tuple[float, float] | None:
    """Bounds of other / first (geometric means) of repeats that have nothing to do with each other (Welch 1947).

    None for fewer than two of either, or where a figure is not above 0.
    """
    if min(len(first), len(other)) < 2 or min((*first, *other)) <= 0:
        return None
    bounds = welch_difference([math.log(value) for value in first], [math.log(value) for value in other])
    assert bounds is not None
    return math.exp(bounds[0]), math.exp(bounds[1])


def welch_difference(first: Sequence[float], other: Sequence[float]) -> tuple[float, float] | None:
    """Bounds of mean(other) - mean(first); None for fewer than two of either."""
    if min(len(first), len(other)) < 2:
        return None
    parts = [variance(values) / len(values) for values in (first, other)]
    difference, total = fmean(other) - fmean(first), sum(parts)
    if not total:
        return difference, difference
    freedom = total**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (first, other), strict=True))
    half = t_quantile(max(1, math.floor(freedom + 1e-9)), CONFIDENCE) * math.sqrt(total)
    return difference - half, difference + half
