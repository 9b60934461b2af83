from collections.abc import Sequence

import numpy as np
import pytest

from pbench.reports.change_points import Step, find_steps
from pbench.reports.reduction import Floats


def noisy(levels: Sequence[tuple[float, int]], seed: int, spread: float = 0.01) -> Floats:
    """Values around each level: (level, how many)."""
    means = np.concatenate([np.full(count, level) for level, count in levels])
    return means * (1 + spread * np.random.default_rng(seed).standard_normal(len(means)))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("after", [0.92, 1.1])
def test_a_step_is_found_where_it_is(seed: int, after: float) -> None:
    (step,) = find_steps(noisy([(100, 20), (100 * after, 12)], seed))
    assert step.at == 20
    assert step.change == pytest.approx(after - 1, abs=0.02)


def test_several_steps_are_each_found() -> None:
    steps = find_steps(noisy([(100, 15), (80, 15), (120, 15)], seed=3))
    assert [step.at for step in steps] == [15, 30]
    assert [round(step.after, -1) for step in steps] == [80, 120]


def test_noise_alone_is_seldom_called_a_step() -> None:
    num_alarms = sum(bool(find_steps(noisy([(100, 30)], seed, spread=0.05))) for seed in range(100))
    assert num_alarms <= 5


def test_one_outlier_is_no_step() -> None:
    values = noisy([(100, 30)], seed=1)
    values[17] = 300.0
    assert find_steps(values) == []


def test_a_slow_run_at_the_end_is_no_step_until_it_is_confirmed() -> None:
    assert find_steps(noisy([(100, 15), (80, 1)], seed=2)) == []
    assert [step.at for step in find_steps(noisy([(100, 15), (80, 3)], seed=2))] == [15]


def test_a_sure_step_below_one_percent_is_not_told() -> None:
    assert find_steps(noisy([(100, 30), (100.5, 30)], seed=0, spread=0.0001)) == []


def test_without_noise_every_change_is_a_step() -> None:
    values = np.array([100.0, 100.0, 90.0, 90.0, 90.2, 110.0])
    steps = find_steps(values, is_exact=True)
    assert [step.at for step in steps] == [2, 5]
    assert steps[0] == Step(2, 100.0, pytest.approx(90.0666, rel=1e-4))


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0, 3.0], [5.0] * 20])
def test_too_few_values_and_equal_ones_have_no_step(values: list[float]) -> None:
    assert find_steps(np.array(values)) == []


def test_the_same_values_give_the_same_steps() -> None:
    values = noisy([(100, 25), (97, 25)], seed=5, spread=0.02)
    assert find_steps(values) == find_steps(values)


def test_from_a_level_of_zero_a_step_is_infinite() -> None:
    (step,) = find_steps(np.array([0.0] * 12 + [1.0] * 12))
    assert (step.at, step.change) == (12, float("inf"))
