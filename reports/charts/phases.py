"""Where a step's time went: on the host, and on the device where steps were timed within."""

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
from pbench.reports.palette import BLUE, DARK_GREY, GREEN, GREY, ORANGE, PURPLE, SKY, SURFACE, VERMILLION, YELLOW, Shade
from pbench.reports.quantity import format_number, format_quantity
from pbench.reports.subjects import Subject
from pbench.reports.text import plot_label
from pbench.results import PhaseTime


class _Look(NamedTuple):
    shade: Shade
    pattern: str


# Of the host, then of the device; phases that are not here share the last look.
_LOOKS = {
    "schedule": _Look(ORANGE, "/"),
    "launch": _Look(BLUE, ""),
    "wait": _Look(GREY, "."),
    "complete": _Look(PURPLE, "\\"),
    "outside": _Look(DARK_GREY, "x"),
    "prepare": _Look(YELLOW, "-"),
    "swap": _Look(ORANGE, "x"),
    "copy": _Look(ORANGE, "."),
    "attention": _Look(GREEN, ""),
    "mlp": _Look(SKY, "/"),
    "projections and norms": _Look(BLUE, "\\"),
    "replay": _Look(BLUE, "x"),
    "sample": _Look(VERMILLION, "."),
}
_OTHER = _Look(GREY, "x")


class _Row(NamedTuple):
    label: str
    parts: tuple[PhaseTime, ...]


def phases_panel(subjects: Sequence[Subject]) -> Panel:
    """One bar an engine and kind of step, split into its phases."""
    rows = [row for subject in subjects for row in _rows(subject)]
    missing = ""
    if not rows:
        has_steps = any(len(subject.steps) for subject in subjects)
        missing = "Nobody timed the phases of these steps." if has_steps else "No engine kept a step."
    return Panel(
        "phases",
        "Where a step's time went",
        "The host schedules a step, launches it, waits for the tokens of the step before, and takes them over; what"
        " lies outside is the bench's. Some steps are timed within too: attention grows with the contexts, the matrix"
        " products with the batch. Of those that a CUDA graph replays the whole is known, of those launched kernel by"
        " kernel each part.",
        (_chart(rows),) if rows else (),
        _table(rows) if rows else None,
        missing,
    )


def _rows(subject: Subject) -> list[_Row]:
    groups: dict[tuple[str, str], list[PhaseTime]] = {}
    for part in subject.engine.phases:
        groups.setdefault((part.where, part.steps), []).append(part)
    return [
        _Row(f"{subject.label}, {_title(where, steps, parts[0])}", tuple(parts))
        for (where, steps), parts in groups.items()
    ]


def _title(where: str, steps: str, part: PhaseTime) -> str:
    if where == "host":
        return "host, all steps"
    number = "" if part.num_steps is None else f"{format_number(part.num_steps)} "
    return f"within {number}{steps} {'step' if part.num_steps == 1 else 'steps'}"


def _chart(rows: Sequence[_Row]) -> Chart:
    figure = new_figure("ms, mean of a step", "", barmode="stack", hovermode="closest", bargap=ROW_GAP)
    labels = [plot_label(row.label) for row in rows]
    for phase in dict.fromkeys(part.phase for row in rows for part in row.parts):
        look = _LOOKS.get(phase, _OTHER)
        by_row = [next((part for part in row.parts if part.phase == phase), None) for row in rows]
        figure.add_trace(
            go.Bar(
                x=plain([part.mean_ms if part else 0.0 for part in by_row], 4),
                y=labels,
                orientation="h",
                name=plot_label(phase),
                customdata=plain([part.share_pct if part else 0.0 for part in by_row], 3),
                marker={
                    "color": look.shade.light,
                    "line": {"color": SURFACE.light, "width": 1},
                    "pattern": hatch(look.pattern),
                },
                hovertemplate=f"%{{y}}<br>{plot_label(phase)}: %{{x:.3~g}} ms, %{{customdata}} %<extra></extra>",
            )
        )
    label_rows(figure, labels)
    told = "; ".join(f"{row.label}: {_longest(row)}" for row in rows)
    return Chart("phases-bars", "Phases of a step", f"Most of it: {told}.", figure, rows_height_px(len(rows)))


def _longest(row: _Row) -> str:
    part = max(row.parts, key=lambda part: part.mean_ms)
    return f"{part.phase} {format_quantity(part.share_pct, '%')}"


def _table(rows: Sequence[_Row]) -> Table:
    return Table(
        ("steps", "phase", "mean of a step", "share"),
        tuple(
            (row.label, part.phase, format_quantity(part.mean_ms, "ms"), format_quantity(part.share_pct, "%"))
            for row in rows
            for part in row.parts
        ),
        "of the repeat that stands for all",
    )
