"""Student's t for whole degrees of freedom, where it has a closed form (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""

import math
from functools import cache


@cache
def t_quantile(freedom: int, confidence: float) -> float:
    """The t for which a value of ``freedom`` (at least 1) degrees of freedom lies in -t ... t with ``confidence``."""
    low, high = 0.0, 1.0
    while central_probability(high, freedom) < confidence:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if central_probability(middle, freedom) < confidence else (low, middle)
    return high


def central_probability(t: float, freedom: int) -> float:
    """Probability of a value within -t ... t."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, is_odd = math.cos(angle), freedom % 2
    term = cosine if is_odd else 1.0
    total = 0.0
    for k in range(1 + is_odd, freedom, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if is_odd else total
