"""The GPU while it ran: utilization, power, clock and temperature, as NVML has them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from pbench.reports.charts.panel import Chart, Panel, Table, new_time_figure, plain, seconds
from pbench.reports.quantity import format_quantity
from pbench.reports.reduction import m4_rows
from pbench.reports.subjects import Subject, floats
from pbench.reports.text import plot_label


class _Reading(NamedTuple):
    column: str
    title: str
    unit: str
    help: str


_READINGS = (
    _Reading("gpu_utilization_pct", "GPU utilization", "%", "Share of the time in which any kernel ran; not how well"),
    _Reading("power_w", "Power", "W", "Of the whole board"),
    _Reading("sm_clock_mhz", "SM clock", "MHz", "Of the GPU's cores"),
    _Reading("temperature_c", "Temperature", "°C", "Of the GPU"),
)


def device_panel(subjects: Sequence[Subject]) -> Panel:
    """One chart a reading, all engines in each."""
    charts = tuple(chart for reading in _READINGS if (chart := _chart(reading, subjects)) is not None)
    return Panel(
        "device",
        "The GPU meanwhile",
        "What the device itself reports. A clock that falls or a power line that is flat at the limit means that the"
        " figures above are those of a GPU held back.",
        charts,
        _table(subjects) if charts else None,
        "" if charts else "Nothing was read from a GPU: the engines ran on the CPU, or NVML was not there.",
    )


def _chart(reading: _Reading, subjects: Sequence[Subject]) -> Chart | None:
    figure = new_time_figure(reading.unit, yaxis_rangemode="tozero")
    means = []
    for subject in subjects:
        values = floats(subject.device, reading.column)
        if np.isnan(values).all():
            continue
        times = subject.device["time_ns"].to_numpy(dtype=np.int64)
        rows = m4_rows(times, [values])
        means.append(f"{subject.label} {format_quantity(float(np.nanmean(values)), reading.unit)}")
        figure.add_trace(
            go.Scatter(
                x=seconds(times[rows]),
                y=plain(values[rows], 5),
                name=plot_label(subject.label),
                mode="lines",
                line={"color": subject.ink.shade.light, "dash": subject.ink.dash, "width": 2},
                hovertemplate=f"%{{y:,.4~r}} {reading.unit}",
            )
        )
    if not means:
        return None
    summary = f"{reading.help}. Mean: {', '.join(means)}."
    return Chart(f"device-{reading.column}", reading.title, summary, figure, 220, is_on_time_axis=True)


def _table(subjects: Sequence[Subject]) -> Table:
    rows = []
    for subject in subjects:
        for reading in _READINGS:
            values = floats(subject.device, reading.column)
            known = values[~np.isnan(values)]
            if not len(known):
                continue
            figures = (known.min(), known.mean(), known.max())
            texts = (format_quantity(float(figure), reading.unit) for figure in figures)
            rows.append((subject.label, reading.title, *texts))
    return Table(("engine", "reading", "least", "mean", "greatest"), tuple(rows))
