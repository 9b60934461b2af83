"""The summary's figures on the page: the cards, and the table of every metric. Values are run.json's own."""

from collections.abc import Sequence
from dataclasses import dataclass

from pbench.reports.quantity import Comparison, compare, format_quantity
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
    """The six figures that a reader asks for first, measured or not."""
    rows = []
    for names in _CARDS:
        candidates = [_row(_METRIC_BY_NAME[name], subjects, pair) for name in names]
        rows.append(max(candidates, key=lambda row: sum(figure.value is not None for figure in row.figures)))
    return rows


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
                else compare(value, baseline.metric(metric.name), metric),
            )
            for subject, value in zip(subjects, values, strict=True)
        ),
    )
