from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbench.workloads.arrivals import ARRIVALS, Int64s, dejitter, parse_arrivals, scale_rate
from pbench.workloads.errors import WorkloadError
from pbench.workloads.streams import Stream

TIMED = ("recorded", "poisson:2", "gamma:2:3", "gamma:5:0.4", "constant:2", "ramp:1:9", "ramp:9:1", "ramp:2:2")
COUNT = 20_000


def times(text: str, count: int = COUNT, seed: int = 0) -> Int64s:
    recorded = np.arange(count, dtype=np.int64) ** 2 + 10**18
    return parse_arrivals(text).times_ns(recorded, Stream(seed, "arrivals"))


@pytest.mark.parametrize("text", ["all", *TIMED, "closed:8"])
def test_arrivals_print_as_they_are_written(text: str) -> None:
    assert str(parse_arrivals(text)) == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("pioson:3", "did you mean 'poisson'?"),
        ("", "known: all, recorded"),
        ("poisson", "poisson:RATE"),
        ("poisson:", "RATE is ;"),
        ("poisson:fast", "RATE is fast; it is a number in"),
        ("poisson:0", "RATE is 0; it is a number in 0.001.."),
        ("poisson:-1", "RATE is -1"),
        ("poisson:nan", "RATE is nan"),
        ("constant:inf", "RATE is inf"),
        ("gamma:3", "gamma:RATE:CV"),
        ("gamma:3:0", "CV is 0"),
        ("all:3", "not of the form all"),
        ("closed:0", "CONCURRENCY is 0; it is a whole number in 1.."),
        ("closed:2.5", "CONCURRENCY is 2.5"),
        ("closed:inf", "CONCURRENCY is inf"),
        ("ramp:1", "ramp:FROM:TO"),
    ],
)
def test_a_wrong_spelling_is_refused_with_what_would_be_right(text: str, hint: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        parse_arrivals(text)
    assert repr(text) in str(caught.value)
    assert hint in str(caught.value)


def test_every_listed_process_can_be_parsed() -> None:
    for spelling in ARRIVALS:
        kind, *names = spelling.split(":")
        assert parse_arrivals(":".join([kind, *("2" for _ in names)])).kind == kind


@pytest.mark.parametrize("text", TIMED)
@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_times_begin_at_zero_and_never_go_back(text: str, count: int) -> None:
    arrived = times(text, count)
    assert len(arrived) == count
    assert arrived.dtype == np.int64
    assert arrived[:1].tolist() in ([], [0])
    assert bool((np.diff(arrived) >= 0).all())


@pytest.mark.parametrize("text", [text for text in TIMED if not text.startswith("ramp")])  # a ramp is as long as all
def test_the_first_times_do_not_depend_on_how_many_follow(text: str) -> None:
    assert times(text, 700)[:300].tolist() == times(text, 300).tolist()


def test_all_and_closed_loops_have_no_times() -> None:
    for text in ("all", "closed:3"):
        assert not parse_arrivals(text).is_timed
        assert not times(text, 50).any()
    assert parse_arrivals("closed:3").concurrency == 3
    assert parse_arrivals("all").concurrency is None


def test_recorded_times_are_relative_to_the_first() -> None:
    assert times("recorded", 4).tolist() == [0, 1, 4, 9]


@pytest.mark.parametrize(("text", "rate", "cv"), [("poisson:2", 2, 1), ("gamma:2:3", 2, 3), ("gamma:5:0.4", 5, 0.4)])
def test_random_gaps_have_the_rate_and_the_variation_they_declare(text: str, rate: float, cv: float) -> None:
    gaps_s = np.diff(times(text)) / 1e9
    assert gaps_s.mean() == pytest.approx(1 / rate, rel=4 * cv / COUNT**0.5)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.1)


def test_constant_arrivals_do_not_drift() -> None:
    arrived = times("constant:3")
    assert arrived[-1] == round((COUNT - 1) * 1e9 / 3)
    assert np.ptp(np.diff(arrived)) <= 1


@pytest.mark.parametrize(("first", "last"), [(1, 9), (9, 1), (4, 4)])
def test_a_ramp_goes_from_its_first_rate_to_its_last(first: float, last: float) -> None:
    arrived_s = times(f"ramp:{first}:{last}") / 1e9
    length_s = 2 * COUNT / (first + last)
    for low, high in pairwise((0.0, 0.1, 0.5, 0.9, 1.0)):
        count = int(((arrived_s >= low * length_s) & (arrived_s < high * length_s)).sum())
        rate = first + (last - first) * (low + high) / 2
        expected = rate * (high - low) * length_s
        assert count == pytest.approx(expected, abs=5 * expected**0.5)
    assert arrived_s[-1] == pytest.approx(length_s, rel=0.05)


def test_random_times_are_whole_microseconds() -> None:
    assert not (times("poisson:2", 100) % 1000).any()


def test_other_seeds_give_other_times() -> None:
    assert times("poisson:2", 100, seed=1).tolist() != times("poisson:2", 100, seed=0).tolist()


def test_a_rate_scale_divides_every_time() -> None:
    assert scale_rate(np.array([0, 10, 25]), 2.0).tolist() == [0, 5, 12]
    assert scale_rate(np.array([0, 10, 25]), 0.5).tolist() == [0, 20, 50]


def test_dejitter_spreads_a_tick_over_the_time_until_the_next() -> None:
    ticks = np.array([0, 0, 0, 3000, 3000, 6000, 6000, 6000, 6000, 6000])
    assert dejitter(ticks).tolist() == [0, 1000, 2000, 3000, 4500, 6000, 6600, 7200, 7800, 8400]


def test_dejitter_leaves_a_single_tick_alone() -> None:
    assert dejitter(np.array([5, 5, 5])).tolist() == [5, 5, 5]
    assert dejitter(np.array([], dtype=np.int64)).tolist() == []


@given(st.lists(st.integers(0, 2**62), max_size=50))
def test_dejitter_keeps_the_order_and_every_distinct_time(unsorted: list[int]) -> None:
    ticks = np.array(sorted(unsorted), dtype=np.int64)
    spread = dejitter(ticks)
    assert bool((np.diff(spread) >= 0).all())
    assert bool((spread >= ticks).all())
    assert set(ticks.tolist()) <= set(spread.tolist())


def test_dejitter_does_not_overflow_when_many_share_a_long_tick() -> None:
    ticks = np.append(np.zeros(100_000, dtype=np.int64), 2**61)
    spread = dejitter(ticks)
    assert bool((np.diff(spread) > 0).all())
    assert spread[-2] < 2**61


class SlowStream(Stream):
    """Draws gaps that only a hundred million requests would add up to."""

    def exponentials(self, count: int) -> list[float]:
        return [1e8] * count

    def gammas(self, count: int, shape: float) -> list[float]:
        return [1e8] * count


@pytest.mark.parametrize("text", ["poisson:0.001", "gamma:0.001:1", "ramp:0.001:0.001"])
def test_random_times_that_64_bits_cannot_hold_are_refused(text: str) -> None:
    with pytest.raises(WorkloadError, match=r"the last request would arrive after 1e\+12 s"):
        parse_arrivals(text).times_ns(np.zeros(11, dtype=np.int64), SlowStream(0, "arrivals"))


def test_constant_times_that_64_bits_cannot_hold_are_refused() -> None:
    recorded = np.broadcast_to(np.int64(0), 10**7)  # one number in memory
    with pytest.raises(WorkloadError, match=r"after 1e\+10 s, and times end at"):
        parse_arrivals("constant:0.001").times_ns(recorded, Stream(0, "arrivals"))


@pytest.mark.parametrize("rate_scale", [1e-6, 0.2])
def test_scaled_times_that_64_bits_cannot_hold_are_refused(rate_scale: float) -> None:
    with pytest.raises(WorkloadError, match="use a higher rate or rate scale, or fewer requests"):
        scale_rate(np.array([0, 2**61], dtype=np.int64), rate_scale)
    assert scale_rate(np.array([0, 2**61], dtype=np.int64), 0.5).tolist() == [0, 2**62]
