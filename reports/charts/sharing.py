"""Prefix sharing: the slots that it saves over time, and the prompt tokens that were never computed."""

from collections.abc import Sequence

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
from pbench.reports.palette import BLUE, GREEN, SKY, SURFACE, TEXT
from pbench.reports.quantity import format_number, format_quantity
from pbench.reports.reduction import m4_rows
from pbench.reports.subjects import Subject, floats
from pbench.reports.text import plot_label


def sharing_panel(subjects: Sequence[Subject]) -> Panel:
    """Slots with and without sharing, one chart an engine that shared; prompt tokens by where they came from."""
    active = [subject for subject in subjects if not subject.steps.empty]
    sharing = [subject for subject in active if subject.steps["shared_saved"].any()]
    charts = [_saved_chart(subject) for subject in sharing]
    if any(subject.requests["num_prefix_hit_tokens"].any() for subject in active):
        charts.append(_prompts_chart(active))
    missing = "" if charts else "No engine shared a prefix: no prompt tokens came from the cache."
    return Panel(
        "sharing",
        "Prefix sharing",
        "Requests whose prompts begin alike can use the same blocks. What is saved are slots that would hold the same"
        " tokens once more, and prompt tokens whose KV is found instead of computed.",
        tuple(charts),
        _table(active) if charts else None,
        missing if active else "No engine kept a step.",
    )


def _saved_chart(subject: Subject) -> Chart:
    times = subject.steps["end_ns"].to_numpy(dtype=np.int64)
    held, saved = floats(subject.steps, "token_state"), floats(subject.steps, "shared_saved")
    rows = m4_rows(times, [held, saved, held + saved])
    figure = new_time_figure("token slots", yaxis_rangemode="tozero", legend_traceorder="normal")
    for name, values, shade, pattern in (
        ("held", held, GREEN, ""),
        ("needed without sharing", saved, SKY, "/"),
    ):
        figure.add_trace(
            go.Scatter(
                x=seconds(times[rows]),
                y=plain(values[rows]),
                name=name,
                mode="lines",
                stackgroup="slots",
                line={"width": 0.5, "color": shade.light, "shape": "hv"},
                fillcolor=shade.light,
                fillpattern=hatch(pattern, size=7),
                hovertemplate="%{y:,.0f} slots",
            )
        )
    num_slots = subject.pool_figure("num_slots")
    greatest = float((held + saved).max())
    if num_slots and greatest > num_slots:
        figure.add_hline(y=num_slots, line={"color": TEXT.light, "width": 1.5, "dash": "dash"})
        beyond = f" Without sharing, the pool ({format_number(num_slots)} slots, dashed) could not have held them."
    else:
        beyond = ""
    summary = (
        f"At most {format_number(int(saved.max()))} slots saved at once; on average"
        f" {format_quantity(subject.metric('shared_saved_pct'), '%')} of those needed without sharing.{beyond}"
    )
    return Chart(f"sharing-{subject.key}", subject.label, summary, figure, 300, is_on_time_axis=True)


def _prompts_chart(subjects: Sequence[Subject]) -> Chart:
    figure = new_figure("prompt tokens", "", barmode="stack", hovermode="closest", bargap=ROW_GAP)
    labels = [plot_label(subject.label) for subject in subjects]
    computed, hits = [], []
    for subject in subjects:
        prompts = subject.requests[subject.requests["first_token_ns"].notna()]  # of the others no one knows how much
        hits.append(int(prompts["num_prefix_hit_tokens"].sum()))
        computed.append(int(prompts["num_prompt_tokens"].sum()) - hits[-1])
    for name, values, shade, pattern in (("computed", computed, BLUE, ""), ("prefix hits", hits, SKY, "/")):
        figure.add_trace(
            go.Bar(
                x=values,
                y=labels,
                orientation="h",
                name=name,
                marker={
                    "color": shade.light,
                    "line": {"color": SURFACE.light, "width": 1},
                    "pattern": hatch(pattern),
                },
                hovertemplate=f"%{{y}}<br>%{{x:,}} prompt tokens: {name}<extra></extra>",
            )
        )
    label_rows(figure, labels)
    rates = ", ".join(
        f"{subject.label} {format_quantity(subject.metric('prefix_hit_rate_pct'), '%')}" for subject in subjects
    )
    return Chart(
        "sharing-prompts",
        "Where prompt tokens came from",
        f"Prefix hit rate: {rates}.",
        figure,
        rows_height_px(len(labels)),
    )


def _table(subjects: Sequence[Subject]) -> Table:
    columns = (
        "engine",
        "prompt tokens",
        "prefix hits",
        "hit rate",
        "recomputed tokens",
        "saved by sharing",
        "bytes saved",
    )
    rows = []
    for subject in subjects:
        slot_bytes = subject.pool_figure("slot_bytes")
        most_saved = int(subject.steps["shared_saved"].max())
        rows.append(
            (
                subject.label,
                format_number(int(subject.requests["num_prompt_tokens"].sum())),
                format_number(int(subject.requests["num_prefix_hit_tokens"].sum())),
                format_quantity(subject.metric("prefix_hit_rate_pct"), "%"),
                format_number(int(subject.requests["num_recomputed_tokens"].sum())),
                format_quantity(subject.metric("shared_saved_pct"), "%"),
                format_quantity(None if slot_bytes is None else most_saved * slot_bytes, "bytes"),
            )
        )
    return Table(columns, tuple(rows), "bytes saved: at the moment of most sharing")
