"""The timeline of requests: each a bar from its arrival to its end."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from pbench.reports.charts.latency import PHASES, phases_ms
from pbench.reports.charts.panel import Chart, Panel, Table, hatch, new_time_figure, plain
from pbench.reports.palette import VERMILLION
from pbench.reports.quantity import format_number, format_quantity
from pbench.reports.reduction import Ints, spread_rows
from pbench.reports.subjects import Subject, floats

_MAX_REQUESTS = 160
_NUM_SLOWEST = 8


def timeline_panel(subjects: Sequence[Subject]) -> Panel:
    """One chart an engine: requests in order of arrival, each split into queue, first token and generation."""
    active = [subject for subject in subjects if subject.requests["first_scheduled_ns"].notna().any()]
    charts = tuple(_chart(subject) for subject in active)
    return Panel(
        "timeline",
        "Timeline of requests",
        "Each request is a bar, the first to arrive on top. A staircase of long hatched bars is a queue: requests that"
        " wait until memory is free.",
        charts,
        _table(active),
        missing="" if charts else "No request was ever scheduled.",
    )


def _shown(subject: Subject) -> Ints:
    """Rows to draw: all, or an even spread over the arrivals and the slowest requests."""
    num_requests = len(subject.requests)
    if num_requests <= _MAX_REQUESTS:
        return np.arange(num_requests, dtype=np.int64)
    spans = np.nan_to_num(floats(subject.requests, "finished_ns") - floats(subject.requests, "arrival_ns"), nan=-1)
    slowest = np.argsort(spans, kind="stable")[-_NUM_SLOWEST:]
    return np.union1d(spread_rows(num_requests, _MAX_REQUESTS - _NUM_SLOWEST), slowest)


def _chart(subject: Subject) -> Chart:
    rows = _shown(subject)
    order = np.arange(len(rows))
    figure = new_time_figure(
        "requests",
        barmode="overlay",
        hovermode="closest",
        bargap=0,
        legend_traceorder="normal",
    )
    ids = subject.requests["request_id"].to_numpy()[rows].tolist()
    begin_s = floats(subject.requests, "arrival_ns")[rows] / 1e9
    for phase, spans in zip(PHASES, phases_ms(subject), strict=True):
        span_s = spans[rows] / 1e3
        figure.add_trace(
            go.Bar(
                base=plain(begin_s),
                x=plain(span_s),
                y=order.tolist(),
                width=1.0,
                orientation="h",
                name=phase.label,
                customdata=ids,
                marker={
                    "color": phase.shade.light,
                    "line": {"width": 0},
                    "pattern": hatch(phase.pattern),
                },
                hovertemplate=f"request %{{customdata}}<br>{phase.label} for %{{x:.3g}} s<extra></extra>",
            )
        )
        begin_s = begin_s + span_s
    num_preemptions = np.nan_to_num(floats(subject.requests, "num_preemptions")[rows])  # missing: not known of any
    preempted = np.flatnonzero(num_preemptions)
    if len(preempted):
        figure.add_trace(
            go.Scatter(
                x=plain(begin_s[preempted]),
                y=order[preempted].tolist(),
                mode="markers",
                name="was preempted",
                customdata=plain(num_preemptions[preempted]),
                marker={"symbol": "triangle-left", "size": 8, "color": VERMILLION.light},
                hovertemplate="preempted %{customdata} times<extra></extra>",
            )
        )
    figure.update_yaxes(autorange="reversed", showgrid=False, showticklabels=False)
    num_requests = len(subject.requests)
    if len(rows) < num_requests:
        summary = (
            f"{len(rows)} of {format_number(num_requests)} requests: evenly spread over the arrivals,"
            f" and the {_NUM_SLOWEST} slowest."
        )
    else:
        summary = f"All {format_number(num_requests)} requests." if num_requests > 1 else "The only request."
    return Chart(f"timeline-{subject.key}", subject.label, summary, figure, 380, is_on_time_axis=True)


def _table(subjects: Sequence[Subject]) -> Table:
    rows = []
    for subject in subjects:
        totals = np.sum(phases_ms(subject), axis=0)
        slowest = np.argsort(np.nan_to_num(totals, nan=-1), kind="stable")[::-1][:_NUM_SLOWEST]
        num_preemptions = floats(subject.requests, "num_preemptions")
        for row in slowest:
            spans = [phase[row] for phase in phases_ms(subject)]
            if np.isnan(spans).any():
                continue
            request = subject.requests.iloc[int(row)]
            rows.append(
                (
                    subject.label,
                    str(request["request_id"]),
                    format_number(int(request["num_prompt_tokens"])),
                    format_number(int(request["num_output_tokens"])),
                    *(format_quantity(float(span), "ms") for span in spans),
                    "-" if np.isnan(num_preemptions[row]) else format_number(num_preemptions[row]),
                )
            )
    columns = (
        "engine",
        "request",
        "tokens in",
        "tokens out",
        *(phase.label for phase in PHASES),
        "preemptions",
    )
    return Table(columns, tuple(rows), "the slowest finished requests of each engine")
