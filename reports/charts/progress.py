"""Tokens/s, requests running and waiting, and what happened to blocks, over time: engines in one chart each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from pbench.reports.charts.events import EVENTS, event_windows, mark_sizes
from pbench.reports.charts.panel import Chart, Panel, Table, label_rows, new_time_figure, plain, rows_height_px, seconds
from pbench.reports.quantity import NOT_MEASURED, format_number, format_quantity
from pbench.reports.reduction import Ints, Rate, common_window_ns, m4_rows, rate_over_time
from pbench.reports.subjects import Subject, floats
from pbench.reports.text import plot_label

if TYPE_CHECKING:
    import pandas as pd
_MAX_WAITING_NAMED = 3  # engines: of more, a legend with both lines of each would cover the chart


def progress_panel(subjects: Sequence[Subject]) -> Panel:
    """Output tokens/s, requests together, and events, each engine on its own clock from 0."""
    key, title = "progress", "Throughput and requests over time"
    explanation = (
        "More requests together make bigger batches, and bigger batches more tokens/s: memory is what limits how"
        " many fit. Engines ran one after the other; each is drawn from its own start."
    )
    giving = [subject for subject in subjects if not subject.giving.empty]
    if not giving:
        return Panel(key, title, explanation, missing="No engine kept a step.")
    window_ns = common_window_ns([subject.giving["end_ns"].to_numpy(dtype=np.int64) for subject in giving])
    charts = [_speed_chart(giving, window_ns)]
    active = [subject for subject in giving if not subject.steps.empty]
    if active:
        charts.append(_requests_chart(active))
    if (events := _events_chart(active)) is not None:
        charts.append(events)
    return Panel(key, title, explanation, tuple(charts), _table(giving, window_ns))


def _speed(subject: Subject, window_ns: float) -> Rate:
    return _rate(subject.giving, window_ns)


def _rate(steps: "pd.DataFrame", window_ns: float) -> Rate:
    start_ns, end_ns = (steps[name].to_numpy(dtype=np.int64) for name in ("start_ns", "end_ns"))
    return rate_over_time(start_ns, end_ns, floats(steps, "num_output_tokens"), window_ns)


def _times(subject: Subject, column: str) -> Ints:
    return subject.steps[column].to_numpy(dtype=np.int64)


def _speed_chart(subjects: Sequence[Subject], window_ns: float) -> Chart:
    figure = new_time_figure("output tok/s", yaxis_rangemode="tozero")
    for subject in subjects:
        for steps in subject.other_steps:
            rate = _rate(steps, window_ns)
            figure.add_trace(
                go.Scatter(
                    x=seconds(rate.time_ns),
                    y=plain(rate.per_s, 5),
                    mode="lines",
                    line={"color": subject.ink.shade.light, "dash": subject.ink.dash, "width": 1},
                    opacity=0.35,
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
        rate = _speed(subject, window_ns)
        figure.add_trace(
            go.Scatter(
                x=seconds(rate.time_ns),
                y=plain(rate.per_s, 5),
                name=plot_label(subject.label),
                mode="lines+markers" if len(rate.per_s) == 1 else "lines",
                line={"color": subject.ink.shade.light, "dash": subject.ink.dash, "width": 2},
                hovertemplate="%{y:,.0f} tok/s",
            )
        )
    means = ", ".join(
        f"{subject.label} {format_quantity(subject.metric('output_tokens_per_s'), 'tok/s')}" for subject in subjects
    )
    summary = f"Totals over windows of {format_quantity(window_ns / 1e9, 's')}. Over the whole run: {means}."
    if any(subject.other_steps for subject in subjects):
        summary += " Thin lines are the other repeats."
    return Chart("progress-speed", "Output tokens/s", summary, figure, 280, is_on_time_axis=True)


def _requests_chart(subjects: Sequence[Subject]) -> Chart:
    figure = new_time_figure("requests", yaxis_rangemode="tozero")
    for subject in subjects:
        times = _times(subject, "end_ns")
        running, waiting = floats(subject.steps, "num_running"), floats(subject.steps, "num_waiting")
        rows = m4_rows(times, [running, waiting])
        for name, values, width in (("running", running, 2.2), ("waiting", waiting, 1.0)):
            figure.add_trace(
                go.Scatter(
                    x=seconds(times[rows]),
                    y=plain(values[rows]),
                    name=f"{plot_label(subject.label)}, {name}",
                    showlegend=name == "running" or len(subjects) <= _MAX_WAITING_NAMED,
                    mode="lines",
                    line={
                        "color": subject.ink.shade.light,
                        "dash": subject.ink.dash if name == "running" else "dot",
                        "width": width,
                        "shape": "hv",
                    },
                    hovertemplate="%{y:,.0f}",
                )
            )
    peaks = "; ".join(
        f"{subject.label} at most {int(subject.steps['num_running'].max())} together" for subject in subjects
    )
    summary = f"{peaks}. Thin dotted lines: waiting."
    return Chart("progress-requests", "Requests running and waiting", summary, figure, 280, is_on_time_axis=True)


def _events_chart(subjects: Sequence[Subject]) -> Chart | None:
    """Marks whose size is the number of events in a window; None when nothing happened."""
    figure = new_time_figure("", hovermode="closest", showlegend=False)
    totals, rows = [], []
    for subject in subjects:
        for event in EVENTS:
            found = event_windows(subject.steps, event)
            if not len(found.counts):
                continue
            totals.append(f"{subject.label}: {format_number(int(found.counts.sum()))} {event.label}")
            rows.append(f"{plot_label(subject.label)}: {event.label}")
            figure.add_trace(
                go.Scatter(
                    x=seconds(found.time_ns),
                    y=[rows[-1]] * len(found.counts),
                    mode="markers",
                    name=rows[-1],
                    customdata=plain(found.counts),
                    marker={
                        "color": subject.ink.shade.light,
                        "size": plain(mark_sizes(found.counts), 3),
                        "symbol": event.symbol,
                        "opacity": 0.8,
                    },
                    hovertemplate="%{customdata:,} in this window<extra>%{y}</extra>",
                )
            )
    if not totals:
        return None
    label_rows(figure, rows)
    summary = f"{'; '.join(totals)}. A mark's size is the number in its window."
    return Chart(
        "progress-events",
        "Preemptions, copies, evictions, swaps, moves",
        summary,
        figure,
        rows_height_px(len(rows)),
        is_on_time_axis=True,
    )


def _table(subjects: Sequence[Subject], window_ns: float) -> Table:
    rows = []
    for subject in subjects:
        speed, steps = _speed(subject, window_ns).per_s, subject.steps
        counts = [steps[column].max() for column in ("num_running", "num_waiting")]
        counts += [steps[column].sum() for column, *_ in EVENTS]
        rows.append(
            (
                subject.label,
                format_quantity(float(speed.min()), "tok/s"),
                format_quantity(float(np.median(speed)), "tok/s"),
                format_quantity(float(speed.max()), "tok/s"),
                *(NOT_MEASURED if steps.empty else format_number(int(count)) for count in counts),
            )
        )
    columns = (
        "engine", "slowest window", "median window", "fastest window", "most running", "most waiting",
        *(label for _, label, _ in EVENTS),
    )  # fmt: skip
    return Table(columns, tuple(rows))
