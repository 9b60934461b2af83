"""Trends: one figure of every engine over the runs of a history, with the level between steps and the steps marked."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go

from pbench.reports.charts.panel import Chart, Panel, Table, log_ticks, new_figure, plain
from pbench.reports.history import Group, Trend
from pbench.reports.palette import Ink
from pbench.reports.quantity import NOT_APPLICABLE, byte_scale, format_quantity
from pbench.reports.reduction import Floats
from pbench.reports.text import plot_label

_MAX_COMMIT_TICKS = 8
_ROOM = 0.05  # of the values, above and below: noise of a percent must not fill the chart
_FAR_APART = 4  # greatest over least
_SYMBOLS = {True: "triangle-up", False: "triangle-down"}


def trends_panel(group: Group, inks: dict[str, Ink]) -> Panel:
    """One chart a metric, all engines in it."""
    names = dict.fromkeys(trend.metric.name for trend in group.trends)
    charts = [
        _chart(group, [trend for trend in group.trends if trend.metric.name == name], inks, f"{group.key}-{name}")
        for name in names
    ]
    num_runs = len(group.runs)
    explanation = (
        f"{num_runs} run{'s' if num_runs > 1 else ''} of one workload, model and machine, each at its place in order of"
        " time, with the commit that was measured. A thick line is the mean level between two steps; a triangle marks"
        " where it changed."
    )
    return Panel(
        group.key,
        group.title,
        explanation,
        tuple(charts),
        _table(group) if charts else None,
        "" if charts else "No engine ran to its end in any of these runs.",
    )


def signed_percent(change: float) -> str:
    """A relative change for people: ``+8.2 %``, with a true minus."""
    return f"{change * 100:+.1f}\u00a0%".replace("-", "\u2212")


def _chart(group: Group, trends: Sequence[Trend], inks: dict[str, Ink], key: str) -> Chart:
    metric = trends[0].metric
    values = np.concatenate([np.array(trend.values) for trend in trends])
    divisor, unit = byte_scale(float(values.max())) if metric.unit == "bytes" else (1, metric.unit)
    place = {id(run): index + 1 for index, run in enumerate(group.runs)}
    figure = new_figure("run, and its commit", unit, hovermode="closest")
    _scale(figure, values / divisor)
    for trend in trends:
        _add(figure, trend, inks[trend.spec], [place[id(point.run)] for point in trend.points], divisor, unit)
    _name_commits(figure, group)
    told = [
        f"{trend.spec} {signed_percent(step.change)} at {trend.points[step.at].commit}"
        for trend in trends
        for step in trend.steps
    ]
    summary = f"{metric.help[0].upper()}{metric.help[1:]}. {'; '.join(told) if told else 'No step'}."
    return Chart(key, metric.label, summary, figure, 280)


def _scale(figure: go.Figure, values: Floats) -> None:
    """The y axis: logarithmic where engines lie so far apart that the steps of the lower one would not be seen."""
    least, greatest = float(values.min()), float(values.max())
    if least > 0 and greatest > _FAR_APART * least:
        figure.update_yaxes(
            type="log",
            range=[math.log10(least * (1 - 2 * _ROOM)), math.log10(greatest * (1 + 2 * _ROOM))],
            tickvals=log_ticks(least, greatest),
        )
        return
    room = _ROOM * max(abs(greatest), 1e-9)
    figure.update_yaxes(range=[max(least - room, 0) if least >= 0 else least - room, greatest + room])


def _add(figure: go.Figure, trend: Trend, ink: Ink, places: Sequence[int], divisor: float, unit: str) -> None:
    values = np.array(trend.values) / divisor
    label = plot_label(trend.spec)
    figure.add_trace(
        go.Scatter(
            x=list(places),
            y=plain(values, 5),
            name=label,
            mode="lines+markers",
            line={"color": ink.shade.light, "dash": ink.dash, "width": 1},
            marker={"size": 6, "color": ink.shade.light},
            customdata=[plot_label(f"{point.commit}, {point.run.created_at[:10]}") for point in trend.points],
            error_y=_interval_bars(trend, divisor, ink),
            hovertemplate=f"%{{y:,.4~r}} {unit}<br>%{{customdata}}<extra>{label}</extra>",
        )
    )
    if not trend.steps:
        return
    edges = [0, *(step.at for step in trend.steps), len(values)]
    xs: list[float | None] = []
    ys: list[float | None] = []
    for begin, end in pairwise(edges):
        level = float(values[begin:end].mean())
        xs += [places[begin] - 0.4, places[end - 1] + 0.4, None]
        ys += [level, level, None]
    figure.add_trace(
        go.Scatter(
            x=xs,
            y=[None if y is None else float(f"{y:.5g}") for y in ys],
            mode="lines",
            line={"color": ink.shade.light, "width": 4},
            opacity=0.35,
            hoverinfo="skip",
            showlegend=False,
        )
    )
    figure.add_trace(
        go.Scatter(
            x=[places[step.at] for step in trend.steps],
            y=plain([values[step.at] for step in trend.steps], 5),
            mode="markers+text",
            marker={
                "size": 14,
                "color": ink.shade.light,
                "symbol": [_SYMBOLS[step.after > step.before] for step in trend.steps],
            },
            text=[signed_percent(step.change) for step in trend.steps],
            textposition="top center",
            cliponaxis=False,
            hovertemplate=f"%{{text}}<extra>{label}</extra>",
            showlegend=False,
        )
    )


def _interval_bars(trend: Trend, divisor: float, ink: Ink) -> dict[str, Any] | None:
    """The intervals of runs whose engines were repeated; None where none was."""
    intervals = [point.engine.intervals.get(trend.metric.name) for point in trend.points]
    if not any(intervals):
        return None
    pairs = list(zip(trend.values, intervals, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": plain([(interval.high - value) / divisor if interval else 0 for value, interval in pairs], 4),
        "arrayminus": plain([(value - interval.low) / divisor if interval else 0 for value, interval in pairs], 4),
        "color": ink.shade.light,
        "thickness": 1,
        "width": 3,
    }


def _name_commits(figure: go.Figure, group: Group) -> None:
    num_runs = len(group.runs)
    rows = np.unique(np.linspace(0, num_runs - 1, min(num_runs, _MAX_COMMIT_TICKS)).round().astype(int)).tolist()
    commits = {id(point.run): point.commit for trend in group.trends for point in trend.points}
    figure.update_xaxes(
        range=[0.4, num_runs + 0.6],
        tickvals=[row + 1 for row in rows],
        ticktext=[plot_label(commits.get(id(group.runs[row]), "?")) for row in rows],
        tickangle=-30 if num_runs > 3 else 0,
    )


def _table(group: Group) -> Table:
    rows = tuple(
        (
            trend.metric.label,
            trend.spec,
            str(len(trend.values)),
            *(format_quantity(value, trend.metric.unit) for value in (trend.values[0], trend.values[-1])),
            signed_percent(trend.values[-1] / trend.values[0] - 1) if trend.values[0] else NOT_APPLICABLE,
            str(len(trend.steps)),
        )
        for trend in group.trends
    )
    return Table(("figure", "engine", "runs", "first", "last", "last over first", "steps"), rows)
