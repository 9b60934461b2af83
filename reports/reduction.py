"""Long series made short enough to draw, without losing what a reader looks for.

Levels (memory, the pool's partition, running requests) are reduced by M4: of each bucket of time the first and the
last row and the rows of every column's least and greatest value are kept, so no peak can vanish and a line drawn
from what is kept covers the same pixels (U. Jugel et al., "M4: A Visualization-Oriented Time Series Data
Aggregation", PVLDB 7(10), 2014). Rates are totals over windows, exact by construction.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

METHOD = "M4 (of every interval the first, last, least and greatest value are kept, so no peak is lost)"
NUM_BUCKETS = 300
NUM_WINDOWS = 120
_STEPS_PER_WINDOW = 8  # fewer would draw the steps, not the rate

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Rate(NamedTuple):
    """A quantity per second over equal windows: ``time_ns[i]`` is the middle of the window of ``per_s[i]``."""

    time_ns: Floats
    per_s: Floats


def m4_rows(times: Ints, columns: Sequence[Floats], num_buckets: int = NUM_BUCKETS) -> Ints:
    """Ascending indices of the rows to keep.

    Args:
        times: (num_rows,), ascending.
        columns: each (num_rows,); NaN is never an extreme.
        num_buckets: equal intervals of time.

    Returns:
        All rows when there are at most ``2 * num_buckets``; else at most ``(2 + 2 * len(columns)) * num_buckets``.
    """
    num_rows = len(times)
    if num_rows <= 2 * num_buckets:
        return np.arange(num_rows, dtype=np.int64)
    elapsed = (times - times[0]).astype(np.float64)
    bucket_ids = np.minimum((elapsed / max(elapsed[-1], 1.0) * num_buckets).astype(np.int64), num_buckets - 1)
    starts = np.flatnonzero(np.diff(bucket_ids, prepend=-1))
    group_ids = np.cumsum(np.diff(bucket_ids, prepend=bucket_ids[0]) > 0)
    kept = [starts, np.append(starts[1:], num_rows) - 1]
    for column in columns:
        for reduce in (np.fmin, np.fmax):  # they ignore NaN
            extremes = reduce.reduceat(column, starts)
            rows = np.flatnonzero(column == extremes[group_ids])
            _, first = np.unique(group_ids[rows], return_index=True)
            kept.append(rows[first])
    return np.unique(np.concatenate(kept)).astype(np.int64)


def common_window_ns(end_ns: Sequence[Ints]) -> float:
    """One window for all series of steps: NUM_WINDOWS in the longest, and several steps of every series in each."""
    longest_ns = max(float(ends[-1]) for ends in end_ns)
    slowest_step_ns = max(float(ends[-1]) / len(ends) for ends in end_ns)
    return max(longest_ns / NUM_WINDOWS, _STEPS_PER_WINDOW * slowest_step_ns)


def rate_over_time(start_ns: Ints, end_ns: Ints, amounts: Floats, window_ns: float) -> Rate:
    """Amount per second in windows of ``window_ns`` from 0 to the last end; the last one takes in the remainder.

    Each amount is spread evenly over its own interval, so the windows' totals add up to the sum of ``amounts``:
    nothing is sampled. Intervals are ascending and do not overlap (engine steps); there is at least one.
    """
    done = np.cumsum(amounts)
    knots_ns = np.column_stack([start_ns, end_ns]).ravel()
    knots_done = np.column_stack([done - amounts, done]).ravel()
    num_windows = max(1, int(end_ns[-1] / window_ns))
    edges_ns = np.append(np.arange(num_windows) * window_ns, float(end_ns[-1]))
    widths_ns = np.diff(edges_ns)
    per_s = np.diff(np.interp(edges_ns, knots_ns, knots_done, left=0.0)) / np.maximum(widths_ns, 1) * 1e9
    return Rate((edges_ns[:-1] + edges_ns[1:]) / 2, per_s)


def spread_rows(num_rows: int, max_rows: int) -> Ints:
    """Indices of at most ``max_rows`` of ``num_rows`` rows, evenly spread, the first and the last among them."""
    if num_rows <= max_rows:
        return np.arange(num_rows, dtype=np.int64)
    return np.unique(np.linspace(0, num_rows - 1, max_rows).round().astype(np.int64))
