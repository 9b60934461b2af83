from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbench.workloads.statistics import length_histogram, summarise_arrivals, summarise_lengths

LENGTHS = st.lists(st.integers(1, 2**31 - 1) | st.integers(1, 300), min_size=1, max_size=60)


@given(LENGTHS, st.integers(2, 20))
def test_every_length_is_in_one_bin_of_a_few_that_adjoin(lengths: list[int], max_bins: int) -> None:
    bins = length_histogram(np.array(lengths, dtype=np.int32), max_bins)
    assert len(bins) <= max_bins
    assert [each.num_requests for each in bins] == [
        sum(each.low <= length <= each.high for length in lengths) for each in bins
    ]
    assert sum(each.num_requests for each in bins) == len(lengths)
    for before, after in pairwise(bins):
        assert before.high + 1 == after.low
    assert bins[0].num_requests
    assert bins[-1].num_requests


@pytest.mark.parametrize(
    ("lengths", "bins"),
    [
        ([7], [(7, 7)]),
        ([100, 1024], [(100, 199), (200, 299)]),
        ([1, 64], [(1, 1), (2, 3)]),
        ([1, 10], [(1, 1), (2, 2)]),
    ],
)
def test_bins_are_round(lengths: list[int], bins: list[tuple[int, int]]) -> None:
    found = length_histogram(np.array(lengths, dtype=np.int32))
    assert [(low, high) for low, high, _ in found[:2]] == bins


def test_a_summary_of_lengths() -> None:
    summary = summarise_lengths(np.arange(1, 102, dtype=np.int32))
    assert summary == (1, 51.0, 51.0, 91.0, 100.0, 101)


def test_a_summary_of_arrivals() -> None:
    summary = summarise_arrivals(np.array([0, 0, 1, 4]) * 10**9, num_parts=4)
    assert summary.duration_s == 4.0
    assert summary.mean_rate == 0.75
    assert summary.gap_cv == pytest.approx(np.std([0, 1, 3]) / np.mean([0, 1, 3]))
    assert summary.num_distinct == 3
    assert summary.counts == (2, 1, 0, 1)


def test_arrivals_all_at_once_have_no_rate() -> None:
    assert summarise_arrivals(np.zeros(3, dtype=np.int64)) == (0.0, None, None, 1, ())
