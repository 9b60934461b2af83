"""Intervals against printed tables, and against what they promise: to hold the truth so often."""

import math
import random

import pytest

from pbench.summary.intervals import interval_of, paired_ratio, welch_difference, welch_ratio
from pbench.summary.student_t import t_quantile


@pytest.mark.parametrize(
    ("freedom", "confidence", "quantile"),
    [  # from the tables of any textbook
        (1, 0.95, 12.706),
        (2, 0.95, 4.303),
        (3, 0.95, 3.182),
        (4, 0.95, 2.776),
        (9, 0.95, 2.262),
        (30, 0.95, 2.042),
        (120, 0.95, 1.980),
        (5, 0.99, 4.032),
        (8, 0.90, 1.860),
    ],
)
def test_quantiles_are_those_of_the_tables(freedom: int, confidence: float, quantile: float) -> None:
    assert t_quantile(freedom, confidence) == pytest.approx(quantile, abs=5e-4)


def test_an_interval_done_by_hand() -> None:
    interval = interval_of([9.0, 10.0, 11.0])
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(
        (10 - 4.303 / math.sqrt(3), 10 + 4.303 / math.sqrt(3)), abs=1e-3
    )
    assert interval.spread_pct == pytest.approx(20.0)
    assert interval.is_wide


def test_one_value_has_no_interval_and_equal_ones_a_point() -> None:
    assert interval_of([5.0]) is None
    assert interval_of([]) is None
    point = interval_of([5, 5, 5])
    assert point is not None
    assert (point.low, point.high, point.spread_pct, point.is_wide) == (5, 5, 0, False)
    nothing = interval_of([0, 0])
    assert nothing is not None
    assert nothing.spread_pct is None
    assert not nothing.is_wide


def test_ratios_of_what_is_not_positive_have_no_interval() -> None:
    assert paired_ratio([0.0, 1.0], [1.0, 1.0]) is None
    assert welch_ratio([1.0, 1.0], [1.0, -1.0]) is None
    assert paired_ratio([1.0], [2.0]) is None
    assert welch_ratio([1.0], [2.0, 2.0]) is None
    assert welch_difference([0.0, 0.0], [3.0, 3.0]) == (3.0, 3.0)


def test_pairs_cancel_what_drifts_and_welch_does_not() -> None:
    first = [100.0, 80.0, 60.0, 40.0]
    other = [value * 1.05 for value in first]
    assert paired_ratio(first, other) == pytest.approx((1.05, 1.05))
    unpaired = welch_ratio(first, other)
    assert unpaired is not None
    assert unpaired[0] < 1 < unpaired[1]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    source = random.Random(0)
    held = {"mean": 0, "welch": 0, "paired": 0}
    num = 2000
    for _ in range(num):
        a = [source.lognormvariate(0, 0.1) for _ in range(4)]
        b = [1.1 * source.lognormvariate(0, 0.02) for _ in range(6)]
        mean = interval_of([math.log(value) for value in a])
        welch, paired = welch_ratio(a, b), paired_ratio(a, b[:4])
        assert mean is not None
        assert welch is not None
        assert paired is not None
        held["mean"] += mean.low <= 0 <= mean.high
        held["welch"] += welch[0] <= 1.1 <= welch[1]
        held["paired"] += paired[0] <= 1.1 <= paired[1]
    assert held["mean"] / num == pytest.approx(0.95, abs=0.015)
    assert held["paired"] / num == pytest.approx(0.95, abs=0.015)
    assert 0.94 < held["welch"] / num < 0.99  # its degrees of freedom are rounded down
