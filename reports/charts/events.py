"""What happened to requests and blocks while an engine ran, counted in windows of time."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pbench.reports.reduction import Floats
from pbench.reports.subjects import floats

if TYPE_CHECKING:
    import pandas as pd

_NUM_WINDOWS = 60


class Event(NamedTuple):
    """A kind of event: the column of the steps that counts it, its name, and plotly's symbol for it."""

    column: str
    label: str
    symbol: str


EVENTS = (
    Event("num_preempted", "preemptions", "triangle-down"),
    Event("num_copied_blocks", "copied blocks", "diamond"),
    Event("num_evicted_blocks", "evicted blocks", "x"),
    Event("num_swapped_out_blocks", "blocks swapped out", "square"),
    Event("num_swapped_in_blocks", "blocks swapped in", "square-open"),
    Event("num_moved_slots", "moved slots", "star"),
)


class Windows(NamedTuple):
    """The windows in which something happened: their middles and how often it did."""

    time_ns: Floats
    counts: Floats


def event_windows(steps: "pd.DataFrame", event: Event) -> Windows:
    """Where ``event`` happened, of equal windows from 0 to the last step's end; empty where it never did."""
    counts = floats(steps, event.column)
    if not counts.any():
        return Windows(np.empty(0), np.empty(0))
    ends_ns = steps["end_ns"].to_numpy(dtype=np.int64)
    last_ns = max(int(ends_ns[-1]), 1)
    windows = np.minimum(ends_ns * _NUM_WINDOWS // last_ns, _NUM_WINDOWS - 1)
    sums = np.bincount(windows, weights=counts, minlength=_NUM_WINDOWS).astype(np.float64)
    filled = np.flatnonzero(sums)
    return Windows((filled + 0.5) * last_ns / _NUM_WINDOWS, sums[filled])


def mark_sizes(counts: Floats) -> Floats:
    """Sizes in pixels whose areas grow with the counts."""
    sizes: Floats = 5 + 8 * np.sqrt(counts / counts.max())
    return sizes
