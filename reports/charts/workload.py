"""The workload as it was offered: lengths, and requests offered against requests finished."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from pbench.reports.charts.panel import Chart, Panel, Table, hatch, new_figure, new_time_figure, plain, seconds
from pbench.reports.palette import DARK_GREY, GREEN, SKY, SURFACE
from pbench.reports.quantity import format_number
from pbench.reports.reduction import Floats, spread_rows
from pbench.reports.subjects import Subject, floats
from pbench.reports.text import plot_label

_NUM_BINS = 40
_MAX_CURVE_POINTS = 300


def workload_panel(subjects: Sequence[Subject]) -> Panel:
    """Lengths of prompts and outputs, and cumulative requests over time."""
    key, title = "workload-charts", "The workload"
    explanation = "What was asked of the engines. Lengths in tokens; every engine was offered the same requests."
    active = [subject for subject in subjects if not subject.requests.empty]
    if not active:
        return Panel(key, title, explanation, missing="The run kept no requests.")
    lengths = {
        "tokens in": floats(active[0].requests, "num_prompt_tokens"),
        "tokens out": floats(active[0].requests, "num_output_tokens"),
    }
    rows = []
    for name, values in lengths.items():
        figures = (
            values.min(),
            values.mean(),
            *np.percentile(values, (50, 90, 99)),
            values.max(),
            values.sum(),
        )
        rows.append((name, *(format_number(float(figure)) for figure in figures)))
    table = Table(("", "least", "mean", "median", "p90", "p99", "greatest", "sum"), tuple(rows))
    return Panel(key, title, explanation, (_lengths_chart(lengths), _arrivals_chart(active)), table)


def _lengths_chart(lengths: dict[str, Floats]) -> Chart:
    figure = new_figure("tokens", "requests", barmode="overlay", hovermode="closest", bargap=0.04)
    longest = max(float(values.max()) for values in lengths.values())
    edges = np.linspace(0, max(longest, 1), _NUM_BINS + 1)
    marks = ((SKY, "", 0.9), (GREEN, "/", 0.55))
    for (name, values), (shade, pattern, opacity) in zip(lengths.items(), marks, strict=True):
        counts, _ = np.histogram(values, edges)
        figure.add_trace(
            go.Bar(
                x=plain((edges[:-1] + edges[1:]) / 2, 4),
                y=counts.tolist(),
                name=name,
                opacity=opacity,
                marker={
                    "color": shade.light,
                    "line": {"color": SURFACE.light, "width": 0.5},
                    "pattern": hatch(pattern),
                },
                hovertemplate=f"%{{y:,}} requests of about %{{x:.0f}} {name}<extra></extra>",
            )
        )
    means = ", ".join(f"{format_number(float(values.mean()))} {name}" for name, values in lengths.items())
    return Chart("workload-lengths", "Lengths", f"On average {means}.", figure, 260)


def _arrivals_chart(subjects: Sequence[Subject]) -> Chart:
    figure = new_time_figure("requests", yaxis_rangemode="tozero")
    arrivals = np.sort(floats(subjects[0].requests, "arrival_ns"))
    _add_count(figure, arrivals, "offered", DARK_GREY.light, "dot")
    for subject in subjects:
        finished = floats(subject.requests, "finished_ns")[
            (subject.requests["status"] == "finished").to_numpy(dtype=bool)
        ]
        _add_count(
            figure,
            np.sort(finished),
            f"{plot_label(subject.label)}, finished",
            subject.ink.shade.light,
            subject.ink.dash,
        )
    is_at_once = len(arrivals) > 1 and arrivals[0] == arrivals[-1]
    summary = "All requests were offered at once." if is_at_once else "Requests were offered at their arrival times."
    return Chart("workload-arrivals", "Offered and finished", summary, figure, 260, is_on_time_axis=True)


def _add_count(figure: go.Figure, times_ns: Floats, name: str, color: str, dash: str) -> None:
    """A line that climbs by one at each of ``times_ns`` (ascending)."""
    if not len(times_ns):
        return
    rows = spread_rows(len(times_ns), _MAX_CURVE_POINTS)
    figure.add_trace(
        go.Scatter(
            x=[0, *seconds(times_ns[rows])],
            y=[0, *plain(rows + 1)],
            name=name,
            mode="lines",
            line={"color": color, "dash": dash, "width": 2, "shape": "hv"},
            hovertemplate="%{y:,}",
        )
    )
