"""The repeats of every engine: how far they lie apart, and whether the machine drifted while they ran."""

from collections.abc import Sequence

import plotly.graph_objects as go

from pbench.reports.charts.panel import Chart, Panel, Table, label_rows, new_figure, plain, rows_height_px
from pbench.reports.palette import TEXT
from pbench.reports.quantity import NOT_APPLICABLE, format_number, format_quantity
from pbench.reports.subjects import Subject
from pbench.reports.text import plot_label
from pbench.results import CONFIDENCE, METRICS, Metric

_SHOWN = ("output_tokens_per_s", "ttft_ms_p99", "tpot_ms_p50", "joules_per_output_token")
_METRIC_BY_NAME = {metric.name: metric for metric in METRICS}


def repeats_panel(subjects: Sequence[Subject]) -> Panel | None:
    """Order and spread of the repeats; None where every engine ran once."""
    repeated = [subject for subject in subjects if subject.num_repeats > 1]
    if not repeated:
        return None
    return Panel(
        "repeats",
        "The repeats",
        "Every engine ran several times, in turns and each time in a fresh process. What differs between repeats is"
        " noise: a difference between engines must be larger to be believed. The charts over time show the repeat of"
        " median output tokens/s.",
        (_order_chart(repeated), _spread_chart(repeated)),
        _table(repeated),
    )


def _order_chart(subjects: Sequence[Subject]) -> Chart:
    figure = new_figure("place in the order in which they ran", "output tok/s", hovermode="closest")
    figure.update_yaxes(rangemode="tozero")
    told = []
    for subject in subjects:
        complete = [repeat for repeat in subject.engine.repeats if repeat.status == "complete"]
        in_order = sorted(complete, key=lambda repeat: repeat.position)
        figure.add_trace(
            go.Scatter(
                x=[repeat.position + 1 for repeat in in_order],
                y=plain([repeat.summary.get("output_tokens_per_s") or float("nan") for repeat in in_order], 5),
                name=plot_label(subject.label),
                mode="lines+markers",
                line={"color": subject.ink.shade.light, "dash": subject.ink.dash, "width": 1.5},
                marker={"size": 8, "color": subject.ink.shade.light},
                customdata=[repeat.repeat for repeat in in_order],
                hovertemplate="repeat %{customdata}: %{y:,.4~r} tok/s",
            )
        )
        told.append(f"{subject.label} {subject.num_repeats}")
    figure.update_xaxes(dtick=1, tickformat="d")
    summary = f"A line that falls or climbs is a machine that drifted. Repeats: {', '.join(told)}."
    return Chart("repeats-order", "In the order in which they ran", summary, figure, 300)


def _spread_chart(subjects: Sequence[Subject]) -> Chart:
    figure = new_figure("% of the mean", "", hovermode="closest", showlegend=False)
    figure.add_vline(x=100, line={"color": TEXT.light, "width": 1})
    labels = []
    for metric in (_METRIC_BY_NAME[name] for name in _SHOWN):
        for subject in subjects:
            mean = subject.metric(metric.name)
            values = subject.engine.values(metric.name)
            if mean and len(values) > 1:
                labels.append(plot_label(f"{metric.label}, {subject.label}"))
                _add_row(figure, subject, metric, mean, labels[-1])
    label_rows(figure, labels)
    summary = f"A mark is a repeat, a bar the {CONFIDENCE:.0%} interval of the mean."
    return Chart("repeats-spread", "How far they lie apart", summary, figure, rows_height_px(len(labels)))


def _add_row(figure: go.Figure, subject: Subject, metric: Metric, mean: float, label: str) -> None:
    color = subject.ink.shade.light
    interval = subject.engine.intervals.get(metric.name)
    if interval is not None:
        figure.add_trace(
            go.Scatter(
                x=plain([100 * interval.low / mean, 100 * interval.high / mean], 5),
                y=[label, label],
                mode="lines",
                line={"color": color, "width": 5},
                opacity=0.4,
                hovertemplate="%{x:.4g} % of the mean<extra>interval</extra>",
            )
        )
    by_repeat = subject.engine.values_by_repeat(metric.name)
    figure.add_trace(
        go.Scatter(
            x=plain([100 * value / mean for value in by_repeat.values()], 5),
            y=[label] * len(by_repeat),
            mode="markers",
            marker={"size": 13, "color": color, "symbol": "line-ns-open", "line": {"width": 2}},
            customdata=list(by_repeat),
            hovertemplate="repeat %{customdata}: %{x:.4g} % of the mean<extra></extra>",
        )
    )


def _table(subjects: Sequence[Subject]) -> Table:
    rows = []
    for metric in (_METRIC_BY_NAME[name] for name in _SHOWN):
        for subject in subjects:
            mean, values = subject.metric(metric.name), subject.engine.values(metric.name)
            if mean is None or not values:
                continue
            interval = subject.engine.intervals.get(metric.name)
            ends = (interval.low, interval.high) if interval else (None, None)
            figures = (mean, *ends, min(values), max(values))
            rows.append(
                (
                    metric.label,
                    subject.label,
                    str(len(values)),
                    *(NOT_APPLICABLE if figure is None else format_quantity(figure, metric.unit) for figure in figures),
                    f"{format_number(interval.spread_pct, 2)} %"
                    if interval and interval.spread_pct is not None
                    else NOT_APPLICABLE,
                )
            )
    columns = ("figure", "engine", "repeats", "mean", "low end", "high end", "least", "greatest", "spread")
    return Table(
        columns, tuple(rows), f"ends of the {CONFIDENCE:.0%} interval; spread: greatest - least, in % of the mean"
    )
