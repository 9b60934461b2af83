"""Where the pool went: its partition over time, and on average beside the paper's figure 2."""

from collections.abc import Mapping, Sequence
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
    new_figure,
    new_time_figure,
    plain,
    rows_height_px,
    seconds,
)
from pbench.reports.palette import KINDS, SURFACE, WASTE_COLUMNS
from pbench.reports.paper import CITATION, FIGURE_2
from pbench.reports.quantity import NOT_APPLICABLE, format_quantity
from pbench.reports.reduction import m4_rows, spread_rows
from pbench.reports.subjects import Subject, floats
from pbench.reports.text import plot_label

_MAX_TABLE_ROWS = 16


class _Bar(NamedTuple):
    label: str
    percent_by_kind: Mapping[str, float | None]


def partition_panel(subjects: Sequence[Subject]) -> Panel:
    """The partition of the pool over time, one chart an engine."""
    charts, rows = [], []
    for subject in subjects:
        num_slots = subject.pool_figure("num_slots")
        if subject.steps.empty or not num_slots:
            continue
        charts.append(_area_chart(subject, num_slots))
        percent = {kind.column: floats(subject.steps, kind.column) * 100 / num_slots for kind in KINDS}
        for row in spread_rows(len(subject.steps), _MAX_TABLE_ROWS):
            time_s = float(subject.steps["end_ns"].iloc[row]) / 1e9
            shares = (format_quantity(float(percent[kind.column][row]), "%") for kind in KINDS)
            rows.append((subject.label, format_quantity(time_s, "s"), *shares))
    return Panel(
        "partition",
        "Where the pool went",
        "Every slot of the pool, at every step: the six parts always sum to the whole pool."
        " Waste is reserved + internal + external: memory that holds nothing and serves nobody else.",
        tuple(charts),
        Table(
            ("engine", "time", *(kind.label for kind in KINDS)),
            tuple(rows),
            "evenly spread steps, share of the pool",
        ),
        missing="" if charts else "No engine kept a step.",
    )


def figure_2_panel(subjects: Sequence[Subject]) -> Panel:
    """The partition averaged over time, as bars beside the paper's own."""
    bars = [bar for subject in subjects for bar in _measured_bars(subject)]
    has_measured = bool(bars)
    bars += [_Bar(bar.label, bar.percent_by_kind) for bar in FIGURE_2]
    kinds = [kind for kind in KINDS if any(bar.percent_by_kind.get(kind.column) for bar in bars)]
    figure = new_figure(
        "% of the pool",
        "",
        barmode="stack",
        hovermode="closest",
        bargap=ROW_GAP,
        xaxis_range=[0, 100],
        uniformtext={"mode": "hide", "minsize": 11},
    )
    labels = [plot_label(bar.label) for bar in bars]
    for kind in kinds:
        values = [bar.percent_by_kind.get(kind.column) for bar in bars]
        figure.add_trace(
            go.Bar(
                x=values,
                y=labels,
                orientation="h",
                name=kind.label,
                marker={
                    "color": kind.shade.light,
                    "line": {"color": SURFACE.light, "width": 1},
                    "pattern": hatch(kind.pattern),
                },
                text=[f"{value:.1f}" if value is not None and value >= 4 else "" for value in values],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                textfont={"color": kind.text_shade.light, "size": 12},
                hovertemplate=f"%{{y}}<br>{kind.label}: %{{x:.1f}} %<extra></extra>",
            )
        )
    label_rows(figure, labels)
    chart = Chart(
        "figure-2-bars",
        "Mean share of the pool",
        "One bar an engine, split into the parts of its pool, above the four bars of the paper.",
        figure,
        rows_height_px(len(bars)),
    )
    table = Table(
        ("bar", *(kind.label for kind in KINDS)),
        tuple((bar.label, *(_share(bar.percent_by_kind.get(kind.column)) for kind in KINDS)) for bar in bars),
    )
    return Panel(
        "figure-2",
        "Beside the paper's figure 2",
        "The same partition averaged over time, in the form of the PagedAttention paper's figure 2. The paper measured"
        " a full, busy server; a run also fills and drains its pool, so the part of it in which requests waited for"
        f" memory stands by itself. Its bars: {CITATION}; its external part includes what was never allocated, and of"
        " the paged system's last 3.7 % it gives no breakdown.",
        (chart,),
        table,
        missing="" if has_measured else "No engine kept its averages; the paper's bars stand alone.",
    )


def _measured_bars(subject: Subject) -> list[_Bar]:
    """The whole run as run.json has it, and, where requests waited for memory, that part of it alone."""
    whole = {kind.column: subject.metric(f"{kind.column}_pct") for kind in KINDS}
    if all(value is None for value in whole.values()):
        return []
    bars = [_Bar(subject.label, whole)]
    num_slots = subject.pool_figure("num_slots")
    share = subject.blocked_share
    if not num_slots or not share or share > 0.99:
        return bars
    blocked = subject.steps[subject.steps["is_memory_blocked"]]
    step_ns = floats(blocked, "end_ns") - floats(blocked, "start_ns")
    percent = {
        kind.column: float(np.average(floats(blocked, kind.column), weights=step_ns)) * 100 / num_slots
        for kind in KINDS
    }
    return [*bars, _Bar(f"{subject.label}, pool full", percent)]


def _area_chart(subject: Subject, num_slots: int) -> Chart:
    figure = new_time_figure("% of the pool", yaxis_range=[0, 100], legend_traceorder="normal")
    times = subject.steps["end_ns"].to_numpy(dtype=np.int64)
    slots = {kind.column: floats(subject.steps, kind.column) for kind in KINDS}
    waste = sum((slots[column] for column in WASTE_COLUMNS), np.zeros(len(times)))
    rows = m4_rows(times, [*slots.values(), waste])
    for kind in KINDS:
        figure.add_trace(
            go.Scatter(
                x=seconds(times[rows]),
                y=plain(slots[kind.column][rows] * 100 / num_slots),
                name=kind.label,
                mode="lines",
                stackgroup="pool",
                line={"width": 0.5, "color": kind.shade.light, "shape": "hv"},
                fillcolor=kind.shade.light,
                fillpattern=hatch(kind.pattern, size=7),
                hovertemplate="%{y:.1f} %",
            )
        )
    means = ", ".join(
        f"{kind.label} {format_quantity(value, '%')}"
        for kind in KINDS
        if (value := subject.metric(f"{kind.column}_pct")) is not None
    )
    summary = f"On average: {means}." if means else "Averages were not kept."
    return Chart(f"partition-{subject.key}", subject.label, summary, figure, 320, is_on_time_axis=True)


def _share(value: float | None) -> str:
    return NOT_APPLICABLE if value is None else format_quantity(value, "%")
