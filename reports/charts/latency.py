"""Latency: distributions, percentiles with their support, and where a request's time went."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from pbench.reports.charts.panel import (
    ROW_GAP,
    Chart,
    Panel,
    Table,
    hatch,
    label_rows,
    log_ticks,
    new_figure,
    plain,
    rows_height_px,
)
from pbench.reports.palette import BLUE, GREY, SKY, SURFACE, Shade
from pbench.reports.quantity import NOT_APPLICABLE, format_number, format_quantity
from pbench.reports.reduction import Floats, spread_rows
from pbench.reports.subjects import Subject, floats
from pbench.reports.text import plot_label

_MAX_CURVE_POINTS = 400
_NUM_TAIL_POINTS = 60
_PERCENTILES = (50, 90, 99)


class Phase(NamedTuple):
    """A part of a request's life: its name, colour, pattern and explanation."""

    label: str
    shade: Shade
    pattern: str
    help: str


PHASES = (
    Phase("in queue", GREY, "/", "from the intended arrival to the first step that computed it"),
    Phase("to the first token", SKY, ".", "computing the prompt"),
    Phase("generating", BLUE, "", "from the first token to the last"),
)


class _Latency(NamedTuple):
    name: str  # as in the summary's metric names
    label: str
    help: str


_LATENCIES = (
    _Latency("ttft", "Time to first token", "From the intended arrival to the first token"),
    _Latency("tpot", "Time per output token", "Mean gap between a request's tokens after its first"),
    _Latency("e2e", "End to end", "From the intended arrival to the last token"),
)


_TABULATED = (
    ("ttft", "time to first token"),
    ("queue", "time in queue"),
    ("itl", "gap between tokens"),
    ("tpot", "time per output token"),
    ("e2e", "end to end"),
)


def phases_ms(subject: Subject) -> tuple[Floats, ...]:
    """Milliseconds of every request in each of PHASES, NaN where it did not get so far."""
    marks = [
        floats(subject.requests, f"{name}_ns") for name in ("arrival", "first_scheduled", "first_token", "finished")
    ]
    return tuple((after - before) / 1e6 for before, after in pairwise(marks))


def latency_panel(subjects: Sequence[Subject]) -> Panel:
    """Cumulative distributions of the three latencies, and mean time by phase."""
    key, title = "latency", "Latency"
    explanation = (
        "Read a curve at 90 % to find the latency that nine of ten requests stay under. Times run from a"
        " request's intended arrival, so waiting for an overloaded engine counts."
    )
    active = [subject for subject in subjects if subject.requests["first_token_ns"].notna().any()]
    if not active:
        return Panel(key, title, explanation, missing="No request got its first token.")
    charts = [_curves(latency, active) for latency in _LATENCIES]
    return Panel(key, title, explanation, (*charts, _phase_chart(active)), _table(subjects))


def _values_ms(subject: Subject, name: str) -> Floats:
    """Latencies of the requests that have one, ascending."""
    requests = subject.requests
    arrival, first, finished = (floats(requests, f"{mark}_ns") for mark in ("arrival", "first_token", "finished"))
    # Output tokens are counted over all sequences of a request; its sequences run side by side.
    num_gaps = floats(requests, "num_output_tokens") / np.maximum(floats(requests, "num_sequences"), 1) - 1
    if name == "ttft":
        spans = first - arrival
    elif name == "e2e":
        spans = np.where(requests["status"] == "finished", finished - arrival, np.nan)
    else:
        spans = np.divide(finished - first, num_gaps, out=np.full(len(requests), np.nan), where=num_gaps > 0)
    return np.sort(spans[~np.isnan(spans)]) / 1e6


def _curves(latency: _Latency, subjects: Sequence[Subject]) -> Chart:
    figure = new_figure("", "% of requests", xaxis_type="log", yaxis_range=[0, 101], hovermode="closest")
    medians = []
    least, greatest = math.inf, 0.0
    for subject in subjects:
        values = _values_ms(subject, latency.name)
        values = values[values > 0]  # a log axis has no place for 0
        if not len(values):
            continue
        least, greatest = min(least, float(values[0])), max(greatest, float(values[-1]))
        rows = np.union1d(
            spread_rows(len(values), _MAX_CURVE_POINTS),
            np.arange(max(0, len(values) - _NUM_TAIL_POINTS), len(values)),
        )
        figure.add_trace(
            go.Scatter(
                x=plain(values[rows], 5),
                y=plain((rows + 1) * 100 / len(values), 5),
                name=plot_label(subject.label),
                mode="lines+markers" if len(values) < 3 else "lines",
                line={"color": subject.ink.shade.light, "dash": subject.ink.dash, "width": 2, "shape": "hv"},
                hovertemplate="%{y:.1f} % within %{x:,.4g} ms",
            )
        )
        median = subject.metric(f"{latency.name}_ms_p50")
        medians.append(f"{subject.label} {format_quantity(median, 'ms')}")
    if greatest:
        ticks = log_ticks(least, greatest)
        figure.update_xaxes(tickvals=ticks, ticktext=[_tick_text(tick) for tick in ticks], tickangle=0)
    return Chart(
        f"latency-{latency.name}",
        latency.label,
        f"{latency.help}. Median: {', '.join(medians) or 'not measured'}.",
        figure,
        280,
    )


def _tick_text(milliseconds: float) -> str:
    return f"{milliseconds / 1000:g} s" if milliseconds >= 1000 else f"{milliseconds:g} ms"


def _phase_chart(subjects: Sequence[Subject]) -> Chart:
    figure = new_figure("seconds, mean of finished requests", "", barmode="stack", hovermode="closest", bargap=ROW_GAP)
    means = {subject.key: _mean_phases_s(subject) for subject in subjects}
    labels = [plot_label(subject.label) for subject in subjects]
    for index, phase in enumerate(PHASES):
        figure.add_trace(
            go.Bar(
                x=plain([means[subject.key][index] for subject in subjects], 4),
                y=labels,
                orientation="h",
                name=phase.label,
                marker={
                    "color": phase.shade.light,
                    "line": {"color": SURFACE.light, "width": 1},
                    "pattern": hatch(phase.pattern),
                },
                hovertemplate=f"%{{y}}<br>{phase.label}: %{{x:.3g}} s<extra></extra>",
            )
        )
    label_rows(figure, labels)
    summary = "; ".join(
        f"{subject.label}: "
        + ", ".join(
            f"{format_quantity(mean, 's')} {phase.label}"
            for phase, mean in zip(PHASES, means[subject.key], strict=True)
            if not np.isnan(mean)
        )
        for subject in subjects
    )
    return Chart("latency-phases", "Waiting against computing", f"{summary}.", figure, rows_height_px(len(labels)))


def _mean_phases_s(subject: Subject) -> tuple[float, ...]:
    is_whole = (subject.requests["status"] == "finished").to_numpy(dtype=bool)
    return tuple(
        float(spans[is_whole].mean()) / 1000 if is_whole.any() else float("nan") for spans in phases_ms(subject)
    )


def _table(subjects: Sequence[Subject]) -> Table:
    rows = []
    for subject in subjects:
        for name, label in _TABULATED:
            figures = [subject.metric(f"{name}_ms_p{q}") for q in _PERCENTILES]
            if all(figure is None for figure in figures):
                continue
            num_values = _num_values(subject, name)
            unsupported = [f"p{q}" for q in _PERCENTILES if f"{name}_ms_p{q}" in subject.engine.unsupported]
            rows.append(
                (
                    subject.label,
                    label,
                    *(format_quantity(figure, "ms") for figure in figures),
                    NOT_APPLICABLE if num_values is None else format_number(num_values),
                    NOT_APPLICABLE if num_values is None else format_number(num_values // 100),
                    ", ".join(unsupported) or "none",
                )
            )
    columns = ("engine", "latency", "median", "p90", "p99", "values", "beyond p99", "too few values for")
    return Table(columns, tuple(rows), "a p99 with few values beyond it is little more than the slowest")


def _num_values(subject: Subject, name: str) -> int | None:
    """How many values the percentiles are of: as recorded of the typical repeat, else counted; None: not known."""
    for repeat in subject.engine.repeats:
        if repeat.repeat == subject.engine.typical_repeat and f"{name}_ms_p99" in repeat.samples:
            return repeat.samples[f"{name}_ms_p99"]
    return len(_values_ms(subject, name)) if name in {latency.name for latency in _LATENCIES} else None
