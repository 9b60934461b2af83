"""Ratios side by side: a forest plot, each row a ratio with its interval where it has one, on a logarithmic axis."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from pbench.reports.charts.panel import Chart, label_rows, new_figure, plain, rows_height_px
from pbench.reports.palette import BLUE, DARK_GREY, GREY, TEXT
from pbench.reports.quantity import TIMES, format_number
from pbench.reports.text import plot_label

_MIN_REACH = 1.05


class Ratio(NamedTuple):
    """One row: a ratio, its interval if it has one, and the single ratios that it was made of."""

    label: str
    ratio: float
    interval: tuple[float, float] | None = None
    singles: tuple[float, ...] = ()


def forest_chart(key: str, title: str, summary: str, ratios: Sequence[Ratio], band: tuple[float, float]) -> Chart:
    """Rows from the top; ``band``, from its low to its high end, is drawn as a stripe."""
    values = [value for row in ratios for value in (row.ratio, *(row.interval or ()), *row.singles)]
    low, high = min(1 / _MIN_REACH, *band, *values), max(_MIN_REACH, *band, *values)
    room = (high / low) ** 0.03
    figure = new_figure("ratio, logarithmic", "", xaxis_type="log", hovermode="closest")
    figure.update_xaxes(range=[math.log10(low / room), math.log10(high * room)], tickangle=0)
    ticks = [tick for tick in _ticks(high / low) if low / room <= tick <= high * room]
    figure.update_xaxes(tickvals=ticks, ticktext=[f"{tick:g}{TIMES}" for tick in ticks])
    if band[0] < band[1]:
        figure.add_vrect(x0=band[0], x1=band[1], fillcolor=GREY.light, opacity=0.6, line_width=0, layer="below")
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


def _ticks(width: float) -> list[float]:
    """Ratios to name on an axis whose ends are a factor of ``width`` apart: few enough to stand beside each other."""
    if width > 8:
        steps: tuple[float, ...] = (1, 2, 5) if width < 100 else (1,)
        return [step * 10.0**decade for decade in range(-4, 5) for step in steps]
    spacing = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.25, 1.0) if width < 1 + 7 * step or step == 1)
    return [round(1 + spacing * number, 4) for number in range(-40, 41) if 1 + spacing * number > 0.01]
