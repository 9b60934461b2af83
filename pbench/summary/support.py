"""Whether a percentile has enough values beneath it to be one.

A percentile says where a tail begins; with fewer than ``MIN_BEYOND`` values in that tail it is one or two requests, or
an interpolation between them, and the next run will have others.
"""

import re

MIN_BEYOND = 5

_PERCENTILE = re.compile(r"_p([0-9]+)$")


def min_samples(metric: str) -> int | None:
    """How many values the percentile that ``metric`` names needs: p50 10, p90 50, p99 500. None: it names none."""
    match = _PERCENTILE.search(metric)
    return -(-MIN_BEYOND * 100 // (100 - int(match[1]))) if match else None


def is_supported(metric: str, num_samples: int) -> bool:
    """Whether so many values support the percentile that ``metric`` names; true of what is no percentile."""
    needed = min_samples(metric)
    return needed is None or num_samples >= needed
