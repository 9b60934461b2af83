import math
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbench.workloads.streams import Stream

NUM_DRAWS = 20_000


def test_the_words_of_a_stream_never_change() -> None:
    assert Stream(0, "test").words(3).tolist() == [1879238393593531462, 16712447933689696640, 701830039527449997]
    assert Stream(0, "test").integers(8, 1, 6).tolist() == [1, 6, 1, 5, 6, 2, 1, 5]


def test_the_mappings_never_change() -> None:
    assert Stream(0, "test").uniforms(2) == [0.10187371744761375, 0.9059836178628625]
    assert Stream(0, "test").normals(2) == pytest.approx([-1.2709471950737121, 1.3164210403994743], rel=1e-14)
    assert Stream(0, "test").exponentials(2) == pytest.approx([2.2840212969716345, 0.09873405493170603], rel=1e-14)
    assert Stream(0, "test").gammas(2, 0.25) == pytest.approx([0.036287083243119835, 0.5777893841644393], rel=1e-12)
    assert Stream(0, "test").choices(6, [1, 2, 3]) == [0, 2, 0, 2, 2, 1]


@given(st.integers(), st.integers(0, 30), st.integers(0, 30))
def test_a_stream_goes_on_where_it_ended(seed: int, first: int, second: int) -> None:
    stream = Stream(seed, "x")
    assert stream.uniforms(first) + stream.uniforms(second) == Stream(seed, "x").uniforms(first + second)


@given(st.integers(0, 600), st.integers(0, 600), st.floats(0.05, 20))
def test_the_first_gammas_do_not_depend_on_how_many_are_asked_for(few: int, more: int, shape: float) -> None:
    few, more = sorted((few, more))
    assert Stream(1, "g").gammas(few, shape) == Stream(1, "g").gammas(more, shape)[:few]


@pytest.mark.parametrize(("seed", "purpose"), [(1, "a"), (0, "b"), (-1, "a"), (2**80, "a")])
def test_streams_of_other_names_are_independent(seed: int, purpose: str) -> None:
    here, there = Stream(0, "a").uniforms(NUM_DRAWS), Stream(seed, purpose).uniforms(NUM_DRAWS)
    assert not set(here) & set(there)
    covariance = fmean(x * y for x, y in zip(here, there, strict=True)) - fmean(here) * fmean(there)
    assert abs(covariance / (pstdev(here) * pstdev(there))) < 4 / math.sqrt(NUM_DRAWS)


@given(st.integers(-1000, 1000), st.integers(0, 50))
def test_integers_stay_in_their_range(low: int, extra: int) -> None:
    drawn = Stream(0, f"{low}").integers(50, low, low + extra)
    assert low <= drawn.min() <= drawn.max() <= low + extra


def test_integers_are_uniform() -> None:
    counts = [0] * 7
    for value in Stream(0, "dice").integers(NUM_DRAWS, 3, 9).tolist():
        counts[value - 3] += 1
    expected = NUM_DRAWS / 7
    chi_squared = sum((count - expected) ** 2 / expected for count in counts)
    assert chi_squared < 22.5  # 6 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    ("numbers", "mean", "deviation"),
    [
        (Stream(0, "u").uniforms(NUM_DRAWS), 0.5, 12**-0.5),
        (Stream(0, "n").normals(NUM_DRAWS), 0.0, 1.0),
        (Stream(0, "e").exponentials(NUM_DRAWS), 1.0, 1.0),
        (Stream(0, "g").gammas(NUM_DRAWS, 4.0), 4.0, 2.0),
        (Stream(0, "g").gammas(NUM_DRAWS, 0.25), 0.25, 0.5),
    ],
    ids=["uniform", "normal", "exponential", "gamma 4", "gamma 1/4"],
)
def test_distributions_have_their_mean_and_deviation(numbers: list[float], mean: float, deviation: float) -> None:
    assert fmean(numbers) == pytest.approx(mean, abs=4 * deviation / math.sqrt(NUM_DRAWS))
    assert pstdev(numbers) == pytest.approx(deviation, rel=0.06)


def test_choices_follow_their_weights() -> None:
    drawn = Stream(0, "c").choices(NUM_DRAWS, [1, 0, 3])
    assert drawn.count(1) == 0
    assert drawn.count(2) / NUM_DRAWS == pytest.approx(0.75, abs=0.015)
