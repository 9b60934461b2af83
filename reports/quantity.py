"""Figures as people read them: unit, sensible digits, and two of them compared."""

import math
from datetime import datetime
from typing import NamedTuple

from pbench.results import Metric

NOT_MEASURED = "not measured"
NOT_APPLICABLE = "\u2013"
TIMES = "\u00d7"
MINUS = "\u2212"
LONG_MS = 10_000  # from here on, milliseconds are written as seconds
EQUAL_RATIO = 0.01  # two figures closer than this are called equal
_TELLING_RATIO = 0.05  # closer than this, one run of each says nothing about better or worse
_TELLING_POINTS = 0.5

_GROUP = "\u202f"  # narrow no-break space between thousands
_UNIT_SPACE = "\u00a0"
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Comparison(NamedTuple):
    """One figure against the baseline's."""

    text: str
    direction: str  # "up", "down" or "same"
    tone: str  # "better", "worse" or "neutral"


def format_number(value: float, significant_digits: int = 3) -> str:
    """``value`` with that many significant digits, whole from 100 on, thousands set apart by a narrow space."""
    if math.isinf(value) or math.isnan(value):
        return str(value)
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4:
        return f"{value:.{significant_digits - 1}e}"
    num_decimals = max(0, significant_digits - 1 - magnitude)
    if isinstance(value, int) or value == int(value):
        num_decimals = 0
    return f"{value:,.{num_decimals}f}".replace(",", _GROUP)


def format_moment(created_at: str) -> str:
    """An ISO 8601 time for people; what is no such time stands as it is."""
    try:
        moment = datetime.fromisoformat(created_at)
    except ValueError:
        return created_at
    zone = moment.strftime("%Z") or "local time"
    return f"{moment.day} {moment:%B %Y, %H:%M} {zone}"


def byte_scale(largest_bytes: float) -> tuple[int, str]:
    """Divisor and binary unit in which ``largest_bytes`` lies between 1 and 1024."""
    power = 0
    while largest_bytes >= 1024 and power < len(_BYTE_UNITS) - 1:
        largest_bytes /= 1024
        power += 1
    return 1024**power, _BYTE_UNITS[power]


def format_quantity(value: float | None, unit: str, *, largest: float | None = None) -> str:
    """``value`` in ``unit`` (a ``Metric.unit``) for people; None reads as "not measured", never as 0.

    ``largest`` is the greatest of the figures beside which it is read: it chooses the unit of all of them.
    """
    if value is None:
        return NOT_MEASURED
    largest = abs(value) if largest is None else largest
    if unit == "bytes":
        divisor, unit = byte_scale(largest)
        return f"{format_number(value / divisor)}{_UNIT_SPACE}{unit}"
    if unit == "ms" and largest >= LONG_MS:
        return f"{format_number(value / 1000)}{_UNIT_SPACE}s"
    if unit == "%":
        num_decimals = 1 if abs(value) >= 1 or value == 0 else 2
        return f"{value:.{num_decimals}f}{_UNIT_SPACE}%"
    digits = format_number(value)
    return f"{digits}{_UNIT_SPACE}{unit}" if unit else digits


def compare(
    value: float | None, baseline: float | None, metric: Metric, bounds: tuple[float, float] | None = None
) -> Comparison | None:
    """How ``value`` stands to ``baseline``: in percentage points for shares, as a factor otherwise.

    ``bounds`` are those of the difference of shares or of the ratio, over repeats: a difference tells if they do not
    hold "no difference". Without them only a large one does. None when either was not measured.
    """
    if value is None or baseline is None:
        return None
    difference = value - baseline
    if metric.unit == "%":
        is_equal, is_telling = abs(difference) < 0.05, abs(difference) >= _TELLING_POINTS
        none, text = 0.0, f"{difference:+.1f} points".replace("-", MINUS)
    else:
        is_equal = abs(difference) <= EQUAL_RATIO * abs(baseline)
        is_telling = abs(difference) > _TELLING_RATIO * abs(baseline)
        none, text = 1.0, "" if is_equal else _factor(value, baseline, metric.unit)
    if bounds is not None and bounds[0] < bounds[1]:
        if bounds[0] <= none <= bounds[1]:
            return Comparison(f"not told apart {_between(*bounds)}", "same", "neutral")
        if none and difference < 0:
            bounds = 1 / bounds[1], 1 / bounds[0]  # as the factor beside it: so many times less
        is_equal, is_telling, text = False, True, f"{text or 'almost equal'} {_between(*bounds)}"
    if is_equal:
        return Comparison("equal", "same", "neutral")
    direction = "up" if difference > 0 else "down"
    if metric.is_higher_better is None or not is_telling:
        return Comparison(text, direction, "neutral")
    return Comparison(text, direction, "better" if (difference > 0) == metric.is_higher_better else "worse")


def _between(low: float, high: float) -> str:
    return f"[{format_number(low)}, {format_number(high)}]".replace("-", MINUS)


def _factor(value: float, baseline: float, unit: str) -> str:
    if value == 0 or baseline == 0 or (value > 0) != (baseline > 0):
        largest = max(abs(value), abs(baseline))
        texts = (format_quantity(figure, unit, largest=largest) for figure in (value, baseline))
        return " against ".join(texts)
    ratio = value / baseline
    return f"{format_number(ratio)}{TIMES} as much" if ratio > 1 else f"{format_number(1 / ratio)}{TIMES} less"
