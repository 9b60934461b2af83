"""Where a repeat's throughput is steady, by MSER.

White, K. P., "An effective truncation heuristic for bias reduction in simulation output", Simulation 69(6), 1997: of
the series x_1 ... x_n leave out the first d, where the squared standard error of what remains is smallest,

    MSER(d) = sum over i > d of (x_i - mean of x_(d+1) ... x_n)^2 / (n - d)^2

A minimum in the second half of the series says that it was too short to become steady. Here the series is output tokens
a second in equal windows of time. A workload that ends also has a tail in which the last requests run alone, so
the same rule, run backwards over what the first left, ends the steady stretch.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pbench.summary.repeat import SteadyState

if TYPE_CHECKING:
    import pandas as pd

MAX_WINDOWS = 200
MIN_WINDOWS = 20
STEPS_PER_WINDOW = 2  # at least: a window within one step says nothing of its own

Floats = npt.NDArray[np.float64]


def find_steady_state(steps: "pd.DataFrame") -> SteadyState | None:
    """The steady stretch of one repeat's ``steps``; None where there is none, or too little to tell."""
    num_windows = min(MAX_WINDOWS, len(steps) // STEPS_PER_WINDOW)
    if num_windows < MIN_WINDOWS or not steps["num_output_tokens"].any():
        return None
    edges_ns = np.linspace(0, float(steps["end_ns"].iloc[-1]), num_windows + 1)
    rates = np.diff(tokens_until(steps, edges_ns))
    head = truncation(rates)
    if head is None:
        return None
    tail = truncation(rates[head:][::-1])
    if tail is None:
        return None
    return SteadyState(round(edges_ns[head]), round(edges_ns[num_windows - tail]))


def steady_rate(steps: "pd.DataFrame", steady: SteadyState) -> float:
    """Output tokens a second in the steady stretch."""
    first, last = tokens_until(steps, np.array([steady.start_ns, steady.end_ns], dtype=np.float64))
    return float(last - first) / (steady.end_ns - steady.start_ns) * 1e9


def tokens_until(steps: "pd.DataFrame", times_ns: Floats) -> Floats:
    """Output tokens given out until each time; those of a step are spread evenly over it."""
    ends = steps["num_output_tokens"].to_numpy(dtype=np.float64).cumsum()
    times = steps[["start_ns", "end_ns"]].to_numpy(dtype=np.float64).ravel()
    totals = np.column_stack([np.concatenate([[0.0], ends[:-1]]), ends]).ravel()
    return np.asarray(np.interp(times_ns, times, totals), dtype=np.float64)


def truncation(series: Floats) -> int | None:
    """How many leading values MSER leaves out; None where that is half of them or more."""
    num = len(series)
    # Of the last k values, for every k: their number, sum and sum of squares, about the mean so that little cancels
    tail = (series - series.mean())[::-1]
    counts = np.arange(1, num + 1)
    sums, squares = tail.cumsum(), (tail**2).cumsum()
    errors = ((squares - sums**2 / counts) / counts**2)[::-1]
    best = int(np.argmin(errors[: num // 2 + 1]))
    return best if best < num // 2 else None
