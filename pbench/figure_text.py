"""A figure of a summary as a table shows it: with its interval, and marked where it must not be taken at its word."""

from collections.abc import Iterable, Iterator

from pbench.results import CONFIDENCE, WIDE_SPREAD_PCT, EngineResult, Interval, Metric
from pbench.summary.support import min_samples
from pbench.units import format_quantity

NOT_MEASURED = "-"
WIDE_MARK = "!"
UNSUPPORTED_MARK = "*"


def figure_text(engine: EngineResult, metric: Metric) -> str:
    """The figure of one engine: ``925 tok/s ±3.1% !``."""
    value = engine.summary.get(metric.name)
    if value is None:
        return NOT_MEASURED
    interval = engine.intervals.get(metric.name)
    parts = [
        format_quantity(value, metric.unit),
        "" if interval is None else half_width(value, interval, metric.unit),
        WIDE_MARK if interval is not None and interval.is_wide else "",
        UNSUPPORTED_MARK if metric.name in engine.unsupported else "",
    ]
    return " ".join(filter(None, parts))


def half_width(value: float, interval: Interval, unit: str) -> str:
    """Half of the interval: in points of a share, else in % of the figure; empty where it is nothing."""
    half = (interval.high - interval.low) / 2
    if not half:
        return ""
    if unit == "%":
        return f"±{_two_digits(half)}"
    return f"±{_two_digits(100 * half / abs(value))}%" if value else ""


def legend(engines: Iterable[EngineResult]) -> Iterator[str]:
    """What the marks mean that the figures of ``engines`` have."""
    engines = list(engines)
    intervals = [interval for engine in engines for interval in engine.intervals.values()]
    if intervals:
        yield f"± is half of the {CONFIDENCE:.0%} t interval over the repeats"
    if any(interval.is_wide for interval in intervals):
        yield f"{WIDE_MARK} the repeats lie more than {WIDE_SPREAD_PCT:g} % apart"
    unsupported = {name for engine in engines for name in engine.unsupported}
    if unsupported:
        needed = sorted({(name.rpartition("_")[2], min_samples(name) or 0) for name in unsupported})
        yield (
            f"{UNSUPPORTED_MARK} not supported: a percentile of too few requests"
            f" ({', '.join(f'{percentile} needs {number}' for percentile, number in needed)})"
        )


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.2g}"
