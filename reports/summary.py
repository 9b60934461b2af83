"""The summary's figures on the page: the cards, and the table of every metric. Values are run.json's own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pbench.reports.quantity import Comparison, compare, format_number, format_quantity
from pbench.reports.ratios import difference_bounds, ratio_bounds
from pbench.reports.subjects import Subject
from pbench.reports.verdict import Pair
from pbench.results import METRICS, Metric

# Of each card the metrics that may fill it, best first: memory has another source on every machine.
_CARDS: tuple[tuple[str, ...], ...] = (
    ("output_tokens_per_s",),
    ("peak_running",),
    ("waste_pct",),
    ("peak_device_used_bytes", "peak_torch_reserved_bytes", "peak_process_rss_bytes"),
    ("ttft_ms_p99",),
    ("joules_per_output_token",),
)
_GOODPUT = "goodput_requests_per_s"
_METRIC_BY_NAME = {metric.name: metric for metric in METRICS}


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of one engine. ``share`` (0..1) is its part of the largest value beside it, for a bar."""

    subject: Subject
    metric: Metric
    value: float | int | None
    text: str
    share: float
    comparison: Comparison | None  # against the baseline; None for the baseline itself
    interval_text: str = ""  # over the repeats: "± 3.1 %"
    marks: tuple[str, ...] = ()  # why the figure must not be taken at its word


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric of every engine on the page."""

    metric: Metric
    figures: tuple[Figure, ...]

    @property
    def is_measured(self) -> bool:
        """Whether any engine has it."""
        return any(figure.value is not None for figure in self.figures)


def metric_rows(subjects: Sequence[Subject], pair: Pair | None) -> list[MetricRow]:
    """Every metric, in the record's order. ``pair`` is None when the engines cannot be compared."""
    return [_row(metric, subjects, pair) for metric in METRICS]


def cards(subjects: Sequence[Subject], pair: Pair | None) -> list[MetricRow]:
    """The six figures that a reader asks for first, measured or not; and the goodput where targets were set."""
    rows = []
    has_targets = any(subject.metric(_GOODPUT) is not None for subject in subjects)
    for names in (*_CARDS, (_GOODPUT,)) if has_targets else _CARDS:
        candidates = [_row(_METRIC_BY_NAME[name], subjects, pair) for name in names]
        rows.append(max(candidates, key=lambda row: sum(figure.value is not None for figure in row.figures)))
    return rows


def _bounds(subject: Subject, baseline: Subject, metric: Metric) -> tuple[float, float] | None:
    find = difference_bounds if metric.unit == "%" else ratio_bounds
    found = find(subject, baseline, metric.name)
    return None if found is None else (found.low, found.high)


def _interval_text(subject: Subject, metric: Metric) -> str:
    """Half of the interval: in points of a share, else in % of the figure; empty where it is nothing."""
    interval, value = subject.engine.intervals.get(metric.name), subject.metric(metric.name)
    half = (interval.high - interval.low) / 2 if interval else 0.0
    if not half or not value:
        return ""
    if metric.unit == "%":
        return f"± {format_number(half, 2)} points"
    return f"± {format_number(100 * half / abs(value), 2)} %"


def _marks(subject: Subject, metric: Metric) -> Iterator[str]:
    interval = subject.engine.intervals.get(metric.name)
    if interval is not None and interval.is_wide and interval.spread_pct is not None:
        yield f"repeats lie {format_number(interval.spread_pct, 2)} % apart"
    if metric.name in subject.engine.unsupported:
        yield "too few requests for this percentile"


def _row(metric: Metric, subjects: Sequence[Subject], pair: Pair | None) -> MetricRow:
    values = [subject.metric(metric.name) for subject in subjects]
    largest = max((abs(value) for value in values if value is not None), default=0)
    baseline = pair.baseline if pair else None
    return MetricRow(
        metric,
        tuple(
            Figure(
                subject,
                metric,
                value,
                format_quantity(value, metric.unit, largest=largest),
                abs(value) / largest if value is not None and largest else 0.0,
                None
                if baseline is None or subject is baseline
                else compare(value, baseline.metric(metric.name), metric, _bounds(subject, baseline, metric)),
                _interval_text(subject, metric),
                tuple(_marks(subject, metric)),
            )
            for subject, value in zip(subjects, values, strict=True)
        ),
    )
