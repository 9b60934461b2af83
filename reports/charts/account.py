"""The account of the memory in use at its peak: weights, pool, buffers, and what nobody can explain."""

from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from pbench.reports.charts.panel import (
    ROW_GAP,
    Chart,
    Panel,
    Table,
    hatch,
    label_rows,
    new_figure,
    plain,
    rows_height_px,
)
from pbench.reports.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, SURFACE, Shade
from pbench.reports.quantity import NOT_APPLICABLE, byte_scale, format_quantity
from pbench.reports.subjects import Subject
from pbench.reports.text import plot_label

_PEAK = "peak"


class _Part(NamedTuple):
    key: str  # in EngineResult.memory
    shade: Shade
    pattern: str


_PARTS = (
    _Part("weights", BLUE, ""),
    _Part("pool", GREEN, "-"),
    _Part("buffers", SKY, "."),
    _Part("graphs", PURPLE, "\\"),
    _Part("activations", ORANGE, "/"),
    _Part("unexplained", GREY, "x"),
)


def account_panel(subjects: Sequence[Subject]) -> Panel:
    """One bar an engine: the parts of its peak, which sum to it."""
    active = [subject for subject in subjects if subject.engine.memory]
    return Panel(
        "account",
        "What the memory in use was",
        "The most memory in use at any sample, split into what the engine knows it holds, what else torch's allocator"
        " keeps (activations), and what is in use but through neither: the device's context, libraries, the"
        " interpreter, other processes.",
        (_chart(active),) if active else (),
        _table(active) if active else None,
        "" if active else "The run kept no account of its memory.",
    )


def _chart(subjects: Sequence[Subject]) -> Chart:
    divisor, unit = byte_scale(max(subject.engine.memory[_PEAK] for subject in subjects))
    # Relative: torch may hold less than the engine's parts add up to, and that part is then negative.
    figure = new_figure(unit, "", barmode="relative", hovermode="closest", bargap=ROW_GAP)
    labels = [plot_label(subject.label) for subject in subjects]
    for part in _PARTS:
        num_bytes = [subject.engine.memory.get(part.key, 0) for subject in subjects]
        if not any(num_bytes):
            continue
        figure.add_trace(
            go.Bar(
                x=plain([each / divisor for each in num_bytes]),
                y=labels,
                orientation="h",
                name=part.key,
                marker={
                    "color": part.shade.light,
                    "line": {"color": SURFACE.light, "width": 1},
                    "pattern": hatch(part.pattern),
                },
                hovertemplate=f"%{{y}}<br>{part.key}: %{{x:.4g}} {unit}<extra></extra>",
            )
        )
    label_rows(figure, labels)
    peaks = ", ".join(
        f"{subject.label} {format_quantity(subject.engine.memory[_PEAK], 'bytes')}" for subject in subjects
    )
    return Chart("account-bars", "Parts of the peak", f"Peak: {peaks}.", figure, rows_height_px(len(labels)))


def _table(subjects: Sequence[Subject]) -> Table:
    keys = [part.key for part in _PARTS] + [_PEAK]
    rows = tuple((subject.label, *(_bytes(subject.engine.memory.get(key)) for key in keys)) for subject in subjects)
    return Table(("engine", *keys), rows)


def _bytes(num_bytes: int | None) -> str:
    return NOT_APPLICABLE if num_bytes is None else format_quantity(num_bytes, "bytes")
