"""Engine against engine, or run against run: a forest plot of every figure's ratio."""

from collections.abc import Sequence

from pbench.reports.charts.forest import Ratio, forest_chart
from pbench.reports.charts.panel import Chart, Panel, Table
from pbench.reports.quantity import NOT_APPLICABLE, TIMES, format_number, format_quantity
from pbench.reports.ratios import ratio_bounds, single_ratios
from pbench.reports.subjects import Subject
from pbench.reports.verdict import comparable_pair, has_same_workload
from pbench.results import CONFIDENCE, METRICS

_TELLING_BAND = (0.95, 1.05)  # in which one run of each says nothing
_NO_BAND = (1.0, 1.0)
_SHOWN = (
    "output_tokens_per_s",
    "steady_output_tokens_per_s",
    "mean_running",
    "ttft_ms_p50",
    "ttft_ms_p99",
    "tpot_ms_p50",
    "e2e_ms_p99",
    "peak_device_used_bytes",
    "joules_per_output_token",
)
_METRIC_BY_NAME = {metric.name: metric for metric in METRICS}


def comparison_panel(subjects: Sequence[Subject]) -> Panel | None:
    """Several runs against the first, engine by engine; of one run the engines against the baseline.

    None where there are no two to compare.
    """
    by_spec: dict[str, list[Subject]] = {}
    for subject in subjects:
        by_spec.setdefault(subject.engine.spec, []).append(subject)
    groups = [group for group in by_spec.values() if len(group) > 1 and has_same_workload(group)]
    title, what = "Run against run", "Each figure of the later runs over the same figure of the first, engine by engine"
    if not groups:
        pair = comparable_pair(subjects)
        if pair is None or pair.baseline is None:
            return None
        groups = [[pair.baseline, *(subject for subject in subjects if subject is not pair.baseline)]]
        title, what = "Engine against engine", f"Each figure over the same figure of {pair.baseline.label}"
    found = [(group, ratios) for group in groups if (ratios := _ratios(group))]
    if not found:
        return None
    return Panel(
        "comparison",
        title,
        f"{what}. To the right of 1 is more, which is better for tokens/s and requests together, and worse for"
        " latencies, memory and energy.",
        tuple(_chart(group, [ratio for *_, ratio in ratios]) for group, ratios in found),
        _table([row for _, ratios in found for row in ratios]),
    )


_Row = tuple[Subject, Subject, str, Ratio]  # first, other, metric's name


def _ratios(group: Sequence[Subject]) -> list[_Row]:
    first, *others = group
    rows = []
    for other in others:
        for name in _SHOWN:
            value, base = other.metric(name), first.metric(name)
            if not value or not base:
                continue
            whose = f", {_who(other, first)}" if len(others) > 1 else ""
            bounds = ratio_bounds(other, first, name)
            interval = (bounds.low, bounds.high) if bounds else None
            label = f"{_METRIC_BY_NAME[name].label}{whose}"
            rows.append((first, other, name, Ratio(label, value / base, interval, single_ratios(other, first, name))))
    return rows


def _who(other: Subject, first: Subject) -> str:
    return other.run.run_id if other.engine.spec == first.engine.spec else other.label


def _chart(group: Sequence[Subject], ratios: Sequence[Ratio]) -> Chart:
    first, *others = group
    has_intervals = any(ratio.interval for ratio in ratios)
    summary = f"Over {first.label}. "
    if has_intervals:
        summary += f"A bar is the {CONFIDENCE:.0%} interval over the repeats: one that reaches 1 tells no difference."
    elif all(subject.is_simulated for subject in group):
        summary += "Simulated: there is no noise, and every ratio tells."
    else:
        summary += "One run of each: a ratio in the grey band tells nothing."
    title = first.engine.spec
    if len(others) == 1 and others[0].engine.spec != title:
        title = f"{others[0].label} over {first.label}"
    band = _TELLING_BAND if "grey band" in summary else _NO_BAND
    return forest_chart(f"forest-{first.key}", title, summary, ratios, band)


def _table(rows: Sequence[_Row]) -> Table:
    texts = []
    for first, other, name, ratio in rows:
        metric = _METRIC_BY_NAME[name]
        values = [subject.metric(name) or 0 for subject in (first, other)]
        low_high = " to ".join(map(format_number, ratio.interval)) if ratio.interval else NOT_APPLICABLE
        texts.append(
            (
                other.label,
                metric.label,
                *(format_quantity(value, metric.unit, largest=max(values)) for value in values),
                f"{format_number(ratio.ratio)}{TIMES}",
                low_high,
                str(max(len(ratio.singles), 1)),
            )
        )
    columns = ("engine", "figure", "first", "this one", "ratio", f"{CONFIDENCE:.0%} interval", "pairs")
    return Table(columns, tuple(texts))
