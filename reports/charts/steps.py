"""Steps: how long one takes, how that depends on what it computes, and what lies between two of them."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from pbench.reports.charts.panel import Chart, Panel, Table, log_ticks, new_figure, new_time_figure, plain, seconds
from pbench.reports.quantity import format_number, format_quantity
from pbench.reports.reduction import Floats, Ints, m4_rows, spread_rows
from pbench.reports.subjects import Subject, floats
from pbench.reports.text import plot_label

_MAX_POINTS = 600
_NUM_LONGEST = 40
_SYMBOLS = ("circle", "diamond-open", "x-thin-open", "square-open", "triangle-up-open", "cross-thin-open")


def steps_panel(subjects: Sequence[Subject]) -> Panel:
    """Durations over time, durations against tokens computed, and a table with the gaps between steps."""
    active = [subject for subject in subjects if not subject.steps.empty]
    return Panel(
        "steps",
        "The steps",
        "An engine computes in steps, each one pass of the model over every running request. Steps that compute prompts"
        " are long; a step that only generates grows slowly with the number of requests, which is why more requests"
        " together mean more tokens/s.",
        (_cost_chart(active), _duration_chart(active)) if active else (),
        _table(active) if active else None,
        "" if active else "No engine kept a step.",
    )


def _durations_ms(subject: Subject) -> Floats:
    return (floats(subject.steps, "end_ns") - floats(subject.steps, "start_ns")) / 1e6


def _gaps_ms(subject: Subject) -> Floats:
    """Time from the end of each step but the last to the start of the next."""
    return (floats(subject.steps, "start_ns")[1:] - floats(subject.steps, "end_ns")[:-1]) / 1e6


def _num_tokens(subject: Subject) -> Floats:
    return floats(subject.steps, "num_prefill_tokens") + floats(subject.steps, "num_decode_tokens")


def _sampled_rows(durations_ms: Floats) -> Ints:
    longest = np.argsort(durations_ms, kind="stable")[-_NUM_LONGEST:]
    return np.union1d(spread_rows(len(durations_ms), _MAX_POINTS), longest)


def _cost_chart(subjects: Sequence[Subject]) -> Chart:
    figure = new_figure("tokens computed in the step", "ms", xaxis_type="log", yaxis_type="log", hovermode="closest")
    num_all = 0
    costs_ms = np.empty(0)
    for index, subject in enumerate(subjects):
        durations_ms, num_tokens = _durations_ms(subject), _num_tokens(subject)
        rows = _sampled_rows(durations_ms)
        rows = rows[(num_tokens[rows] > 0) & (durations_ms[rows] > 0)]  # a log axis has no place for 0
        num_all += len(durations_ms)
        costs_ms = np.append(costs_ms, durations_ms[rows])
        figure.add_trace(
            go.Scatter(
                x=plain(num_tokens[rows]),
                y=plain(durations_ms[rows], 4),
                name=plot_label(subject.label),
                mode="markers",
                marker={
                    "color": subject.ink.shade.light,
                    "size": 6,
                    "opacity": 0.6,
                    "symbol": _SYMBOLS[index % len(_SYMBOLS)],
                },
                hovertemplate="%{x:,} tokens in %{y:.3g} ms",
            )
        )
    if len(costs_ms):
        figure.update_yaxes(tickvals=log_ticks(float(costs_ms.min()), float(costs_ms.max())))
    figure.update_xaxes(dtick=1)
    shown = (
        f"{format_number(len(costs_ms))} of {format_number(num_all)} steps, evenly spread, and the longest."
        if len(costs_ms) < num_all
        else f"All {format_number(num_all)} steps."
    )
    return Chart("steps-cost", "What a step costs", f"One mark a step. {shown}", figure, 300)


def _duration_chart(subjects: Sequence[Subject]) -> Chart:
    figure = new_time_figure("ms", yaxis_rangemode="tozero")
    for subject in subjects:
        times = subject.steps["end_ns"].to_numpy(dtype=np.int64)
        durations_ms = _durations_ms(subject)
        rows = m4_rows(times, [durations_ms])
        figure.add_trace(
            go.Scatter(
                x=seconds(times[rows]),
                y=plain(durations_ms[rows], 4),
                name=plot_label(subject.label),
                mode="lines",
                line={"color": subject.ink.shade.light, "width": 1},
                hovertemplate="%{y:.3g} ms",
            )
        )
    medians = ", ".join(
        f"{subject.label} {format_quantity(float(np.median(_durations_ms(subject))), 'ms')}" for subject in subjects
    )
    return Chart("steps-duration", "How long steps took", f"Median step: {medians}.", figure, 300, is_on_time_axis=True)


def _table(subjects: Sequence[Subject]) -> Table:
    rows = []
    for subject in subjects:
        durations_ms, gaps_ms = _durations_ms(subject), _gaps_ms(subject)
        total_ms = float(durations_ms.sum() + gaps_ms.sum())
        quantiles = (format_quantity(float(np.percentile(durations_ms, q)), "ms") for q in (50, 90, 99, 100))
        rows.append(
            (
                subject.label,
                format_number(len(durations_ms)),
                *quantiles,
                format_number(float(_num_tokens(subject).mean())),
                format_quantity(float(gaps_ms.sum()) / total_ms * 100 if total_ms else None, "%"),
            )
        )
    columns = ("engine", "steps", "median", "p90", "p99", "longest", "tokens a step, mean", "time between steps")
    return Table(columns, tuple(rows))
