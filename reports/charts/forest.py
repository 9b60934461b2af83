"""Ratios side by side: a forest plot, each row a ratio with its interval where it has one, on a logarithmic axis."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from pbench.reports.charts.panel import Chart, Panel, Table, label_rows, new_figure, plain, rows_height_px
from pbench.reports.palette import BLUE, DARK_GREY, GREY, TEXT
from pbench.reports.quantity import TIMES, format_number
from pbench.reports.subjects import Subject
from pbench.reports.text import plot_label
from pbench.reports.verdict import has_same_workload
from pbench.results import METRICS

TELLING_SHARE = 0.05  # the band in which one run of each says nothing
_SHOWN = ("output_tokens_per_s", "mean_running", "ttft_ms_p50", "ttft_ms_p99", "tpot_ms_p50", "e2e_ms_p99")
_LABELS = {metric.name: metric.label for metric in METRICS}


class Ratio(NamedTuple):
    """One row: a ratio, its interval if it has one, and the single ratios that it was made of."""

    label: str
    ratio: float
    interval: tuple[float, float] | None = None
    singles: tuple[float, ...] = ()


def forest_chart(key: str, title: str, summary: str, ratios: Sequence[Ratio], band: float) -> Chart:
    """Rows from the top; ``band`` is the share around 1 in which a ratio tells nothing, drawn as a stripe."""
    values = [value for row in ratios for value in (row.ratio, *(row.interval or ()), *row.singles)]
    reach = max(1 + 2 * band, *(max(value, 1 / value) for value in values)) * 1.04
    ticks = [tick for tick in (0.1, 0.2, 0.5, 0.8, 0.9, 1, 1.1, 1.25, 2, 5, 10, 20, 50) if 1 / reach <= tick <= reach]
    figure = new_figure(
        "ratio, logarithmic",
        "",
        xaxis_type="log",
        xaxis_range=[-math.log10(reach), math.log10(reach)],
        hovermode="closest",
    )
    figure.update_xaxes(tickvals=ticks, ticktext=[f"{tick:g}{TIMES}" for tick in ticks])
    figure.add_vrect(x0=1 - band, x1=1 + band, fillcolor=GREY.light, opacity=0.6, line_width=0, layer="below")
    figure.add_vline(x=1, line={"color": TEXT.light, "width": 1})
    labels = [plot_label(f"{row.label}: {format_number(row.ratio)}{TIMES}") for row in ratios]
    singles = [(value, label) for row, label in zip(ratios, labels, strict=True) for value in row.singles]
    if singles:
        figure.add_trace(
            go.Scatter(
                x=plain([value for value, _ in singles], 5),
                y=[label for _, label in singles],
                mode="markers",
                name="single pairs",
                marker={"symbol": "line-ns-open", "size": 12, "color": DARK_GREY.light},
                hovertemplate="%{x:.4g}" + TIMES + "<extra>one pair</extra>",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=plain([row.ratio for row in ratios], 5),
            y=labels,
            mode="markers",
            name="ratio",
            showlegend=bool(singles),
            marker={"symbol": "diamond", "size": 11, "color": BLUE.light},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": plain([row.interval[1] - row.ratio if row.interval else 0 for row in ratios], 5),
                "arrayminus": plain([row.ratio - row.interval[0] if row.interval else 0 for row in ratios], 5),
                "color": BLUE.light,
                "thickness": 2,
                "width": 6,
            },
            hovertemplate="%{x:.4g}" + TIMES + "<extra></extra>",
        )
    )
    label_rows(figure, labels)
    return Chart(key, title, summary, figure, rows_height_px(len(ratios)))


def comparison_panel(subjects: Sequence[Subject]) -> Panel | None:
    """Several runs against the first, engine by engine; None where there are no two of one engine to compare."""
    by_spec: dict[str, list[Subject]] = {}
    for subject in subjects:
        by_spec.setdefault(subject.engine.spec, []).append(subject)
    groups = [group for group in by_spec.values() if len(group) > 1 and has_same_workload(group)]
    charts, rows = [], []
    for group in groups:
        first, *others = group
        ratios = []
        for other in others:
            for name in _SHOWN:
                value, base = other.metric(name), first.metric(name)
                if value and base:
                    whose = f", {other.run.run_id}" if len(others) > 1 else ""
                    ratios.append(Ratio(f"{_LABELS[name]}{whose}", value / base))
                    figures = (format_number(base), format_number(value), f"{format_number(value / base)}{TIMES}")
                    rows.append((other.label, _LABELS[name], *figures))
        if ratios:
            summary = f"Over {first.label}, the first. One run of each: a ratio in the grey band tells nothing."
            charts.append(forest_chart(f"forest-{first.key}", first.engine.spec, summary, ratios, band=TELLING_SHARE))
    if not charts:
        return None
    return Panel(
        "comparison",
        "Run against run",
        "Each figure of the later runs over the same figure of the first, engine by engine. To the right of 1 is more,"
        " which is better for tokens/s and requests together, and worse for latencies.",
        tuple(charts),
        Table(("engine", "figure", "first", "this run", "ratio"), tuple(rows)),
    )
