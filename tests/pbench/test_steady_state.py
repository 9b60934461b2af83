"""The steady stretch: found where it is, not found where there is none, and its rate is that of its tokens."""

import numpy as np
import pandas as pd
import pytest

from pbench.results import SteadyState
from pbench.summary.steady_state import find_steady_state, steady_rate, truncation


def steps(tokens: list[int], step_ns: int = 10**7, gap_ns: int = 0) -> pd.DataFrame:
    starts = np.arange(len(tokens)) * (step_ns + gap_ns)
    return pd.DataFrame({"start_ns": starts, "end_ns": starts + step_ns, "num_output_tokens": tokens})


def naive_truncation(series: list[float]) -> int | None:
    """The rule as it is written."""
    num, errors = len(series), []
    for cut in range(num // 2 + 1):
        rest = series[cut:]
        mean = sum(rest) / len(rest)
        errors.append(sum((value - mean) ** 2 for value in rest) / len(rest) ** 2)
    best = errors.index(min(errors))
    return best if best < num // 2 else None


@pytest.mark.parametrize("seed", range(20))
def test_truncation_is_the_rule_as_it_is_written(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num = int(rng.integers(4, 120))
    series = 1e4 + rng.normal(0, 5, num) + 300 * np.exp(-np.arange(num) / rng.integers(1, 30))
    assert truncation(series) == naive_truncation(series.tolist())


def test_a_start_and_a_tail_are_left_out() -> None:
    rng = np.random.default_rng(0)
    ramp, tail = list(range(0, 100, 2)), list(range(100, 0, -2))
    level = [int(value) for value in rng.normal(100, 3, 400)]
    table = steps([*ramp, *level, *tail])
    steady = find_steady_state(table)
    assert steady is not None
    assert 0.35e9 <= steady.start_ns <= 0.8e9  # the ramp ends at 0.5 s
    assert 4.2e9 <= steady.end_ns <= 4.65e9  # the tail begins at 4.5 s
    assert steady_rate(table, steady) == pytest.approx(10_000, rel=0.02)


def test_what_is_level_from_the_start_is_steady_throughout() -> None:
    table = steps([7] * 100)
    steady = find_steady_state(table)
    assert steady is not None
    assert (steady.start_ns, steady.end_ns) == (0, 10**9)
    assert steady_rate(table, steady) == pytest.approx(700)


def test_what_never_levels_off_and_what_is_too_short_is_not_steady() -> None:
    assert find_steady_state(steps([int(1.05**step) for step in range(200)])) is None
    assert find_steady_state(steps([5] * 39)) is None
    assert find_steady_state(steps([0] * 100)) is None
    assert find_steady_state(steps([])) is None


def test_idle_time_between_steps_gives_out_nothing() -> None:
    table = steps([10, 10], gap_ns=10**7)
    assert steady_rate(table, SteadyState(10**7, 2 * 10**7)) == 0.0
    assert steady_rate(table, SteadyState(0, 10**7)) == pytest.approx(1000)
