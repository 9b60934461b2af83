"""What a workload looks like from outside: how long its requests are, and how they come."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

_WIDTHS = (1, 2, 5)  # a bin is one of these times a power of ten wide
_LOGARITHMIC_FROM = 64  # largest over smallest from which bins double instead


class LengthSummary(NamedTuple):
    """Tokens of a column of lengths."""

    smallest: int
    mean: float
    median: float
    p90: float
    p99: float
    largest: int


class Bin(NamedTuple):
    """How many lengths lie in low..high, both included."""

    low: int
    high: int
    num_requests: int


class ArrivalSummary(NamedTuple):
    """How requests come, from the first to the last."""

    duration_s: float
    mean_rate: float | None  # requests/s; None when all come at once
    gap_cv: float | None  # coefficient of variation of the gaps: 0 even, 1 Poisson, above 1 bursty; None likewise
    num_distinct: int  # timestamps that differ
    counts: tuple[int, ...]  # requests in equal parts of the duration; () when all come at once


def summarise_lengths(lengths: Lengths) -> LengthSummary:
    """Summary of at least one length, shape (N,); quantiles interpolate linearly."""
    median, p90, p99 = np.quantile(lengths, (0.5, 0.9, 0.99)).tolist()
    return LengthSummary(int(lengths.min()), float(lengths.mean()), median, p90, p99, int(lengths.max()))


def length_histogram(lengths: Lengths, max_bins: int = 12) -> tuple[Bin, ...]:
    """At most ``max_bins`` adjoining bins that hold every one of the lengths, shape (N,), all at least 1.

    Bins have equal round widths, or double from one to the next where lengths differ by more than a factor of 64; bins
    of the lower end are then put together.
    """
    smallest, largest = int(lengths.min()), int(lengths.max())
    edges = _doubling_edges if largest >= _LOGARITHMIC_FROM * smallest else _even_edges
    starts = edges(smallest, largest, max_bins)
    counts, _ = np.histogram(lengths, bins=starts)  # the last edge is beyond the largest length
    return tuple(
        Bin(low, high - 1, count) for low, high, count in zip(starts, starts[1:], counts.tolist(), strict=False)
    )


def summarise_arrivals(arrival_ns: Int64s, num_parts: int = 60) -> ArrivalSummary:
    """Summary of at least one arrival, nanoseconds after the start, shape (N,), not decreasing."""
    num_distinct = len(np.unique(arrival_ns))
    duration_ns = int(arrival_ns[-1] - arrival_ns[0])
    if duration_ns == 0:
        return ArrivalSummary(0.0, None, None, num_distinct, ())
    gaps = np.diff(arrival_ns)
    counts, _ = np.histogram(arrival_ns, bins=num_parts)
    return ArrivalSummary(
        duration_s=duration_ns / 1e9,
        mean_rate=len(gaps) / (duration_ns / 1e9),
        gap_cv=float(gaps.std() / gaps.mean()),
        num_distinct=num_distinct,
        counts=tuple(counts.tolist()),
    )


def _even_edges(smallest: int, largest: int, max_bins: int) -> list[int]:
    power = 1
    while True:
        for digit in _WIDTHS:
            width = digit * power
            first, last = smallest // width, largest // width
            if last - first < max_bins:
                return [max(index * width, 1) for index in range(first, last + 2)]
        power *= 10


def _doubling_edges(smallest: int, largest: int, max_bins: int) -> list[int]:
    first, last = smallest.bit_length() - 1, largest.bit_length()
    return [2**first, *(2**exponent for exponent in range(max(first, last - max_bins) + 1, last + 1))]
