import itertools
import math
from statistics import fmean, stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbench.gate.paired_statistics import (
    Design,
    Estimates,
    estimate,
    has_failed,
    has_passed,
    holm_thresholds,
    needed_pairs,
    sign_flip_p_values,
    smallest_delta,
    spread_of,
)

DESIGN = Design()


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=8))
def test_the_sign_flip_test_counts_every_way_to_flip_ties_included(values: list[int]) -> None:
    """In integers nothing rounds, so the count by hand is exact; tenths of them round, and must count the same."""
    sums = [sum(map(lambda a, b: a * b, values, signs)) for signs in itertools.product((1, -1), repeat=len(values))]
    expected = sum(one <= sum(values) for one in sums) / len(sums)
    assert sign_flip_p_values(np.array([values]) / 10)[0] == expected


def test_all_of_six_pairs_slower_is_the_smallest_p_value_and_significant_at_the_first_look() -> None:
    (p_value,) = sign_flip_p_values(np.full((1, 6), -0.01))
    assert p_value == 1 / 64 <= DESIGN.alpha_per_look < 1 / 32
    assert sign_flip_p_values(np.full((1, 6), 0.01))[0] == 1.0


def test_experiments_are_judged_one_by_one_however_many_there_are() -> None:
    logs = np.random.default_rng(0).standard_normal((300, 16))  # more than one chunk
    together = sign_flip_p_values(logs)
    assert together.tolist() == [sign_flip_p_values(row[None])[0] for row in logs]


def test_under_no_difference_the_p_value_is_no_smaller_than_it_says() -> None:
    p_values = sign_flip_p_values(np.random.default_rng(1).standard_t(3, (20_000, 6)))
    for alpha in (1 / 64, 0.05, 0.25):
        assert (p_values <= alpha).mean() <= alpha + 0.005


def test_the_estimate_is_the_geometric_mean_with_the_interval_of_t() -> None:
    ratios = [0.9, 0.93, 0.95, 0.91, 0.97, 0.92]
    logs = [math.log(ratio) for ratio in ratios]
    one = estimate(np.array([logs]), DESIGN)
    half = 3.5341 * stdev(logs) / math.sqrt(6)  # t of 5 degrees of freedom within 1 - 0.05 / 3
    assert one.ratio[0] == pytest.approx(math.exp(fmean(logs)))
    assert (one.low[0], one.high[0]) == pytest.approx(
        (math.exp(fmean(logs) - half), math.exp(fmean(logs) + half)), rel=1e-4
    )


def estimates(ratio: float, low: float, p_value: float) -> Estimates:
    return Estimates(*(np.array([value]) for value in (ratio, low, 1.0, p_value)))


@pytest.mark.parametrize(
    ("ratio", "low", "p_value", "failed", "passed"),
    [
        (0.94, 0.93, 0.001, True, False),
        (0.95, 0.93, 0.001, True, False),  # at 1 - delta
        (0.951, 0.93, 0.001, False, False),  # significant, but not so slow
        (0.94, 0.90, 0.02, False, False),  # so slow, but not significant
        (0.97, 0.951, 0.001, False, True),  # significantly slower, surely by less than delta
        (0.97, 0.95, 0.001, False, False),  # the lower end must be above
        (1.2, 0.94, 1.0, False, False),
    ],
)
def test_a_verdict_needs_significance_and_size_to_fail_and_the_interval_to_pass(
    ratio: float, low: float, p_value: float, failed: bool, passed: bool
) -> None:
    one = estimates(ratio, low, p_value)
    assert (has_failed(one, DESIGN.alpha_per_look, DESIGN)[0], has_passed(one, DESIGN)[0]) == (failed, passed)


def test_holm_steps_down_from_the_smallest_p_value() -> None:
    assert holm_thresholds([0.01], 0.05, 1) == [0.05]
    assert holm_thresholds([0.04, 0.01], 0.05, 2) == [0.05, 0.025]  # the smallest is rejected, so one is left
    assert holm_thresholds([0.04, 0.03], 0.05, 2) == [0.025, 0.025]
    # One that is tested no more and was not rejected still counts.
    assert holm_thresholds([0.04, 0.01], 0.05, 3) == pytest.approx([0.025, 0.05 / 3])


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(0, 3))
def test_holm_rejects_what_bonferroni_rejects_and_never_more_than_uncorrected(p_values: list[float], rest: int) -> None:
    num_open = len(p_values) + rest
    for p_value, threshold in zip(p_values, holm_thresholds(p_values, 0.05, num_open), strict=True):
        assert 0.05 / num_open <= threshold <= 0.05
        if p_value <= 0.05 / num_open:
            assert p_value <= threshold


def test_a_quiet_machine_resolves_more_and_needs_fewer_pairs() -> None:
    spreads = np.array([0.005, 0.02, 0.05, 0.2])
    deltas = smallest_delta(spreads, DESIGN)
    assert (np.diff(deltas) > 0).all()
    needed = [needed_pairs(float(spread), DESIGN) for spread in spreads]
    assert needed == sorted(needed, key=lambda number: number or math.inf)
    assert needed_pairs(100.0, DESIGN) is None
    for spread, delta, number in zip(spreads, deltas, needed, strict=True):
        assert number is not None
        assert (number <= DESIGN.most_pairs) == (delta <= DESIGN.delta), spread


def test_the_smallest_delta_is_one_that_an_unchanged_head_passes_with_the_power_said() -> None:
    spread = 0.05
    delta = float(smallest_delta(np.array([spread]), DESIGN)[0])
    logs = spread * np.random.default_rng(2).standard_normal((4000, DESIGN.most_pairs))
    passed = has_passed(estimate(logs, Design(delta=delta)), Design(delta=delta))
    assert passed.mean() == pytest.approx(DESIGN.power, abs=0.02)


def test_the_spread_of_base_against_itself_is_taken_about_no_difference() -> None:
    assert spread_of(np.array([[0.03, -0.03], [0.04, 0.0]])) == pytest.approx([0.03, 0.04 / math.sqrt(2)])
