"""Memory over time: what the device, the process and torch hold, the pool, and the live KV in it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from pbench.reports.charts.events import EVENTS, event_windows, mark_sizes
from pbench.reports.charts.panel import Chart, Panel, Table, new_time_figure, plain, seconds
from pbench.reports.palette import BLUE, DARK_GREY, GREEN, ORANGE, PURPLE, SURFACE, TEXT, VERMILLION, Shade
from pbench.reports.quantity import byte_scale, format_quantity
from pbench.reports.reduction import Floats, Ints, m4_rows
from pbench.reports.subjects import Subject, floats


class _Source(NamedTuple):
    column: str
    label: str
    shade: Shade
    dash: str


class _Line(NamedTuple):
    label: str
    shade: Shade
    dash: str
    time_ns: Ints
    used_bytes: Floats
    is_inside_pool: bool = False

    @property
    def peak_bytes(self) -> float:
        """The greatest value; a line has at least one."""
        return float(np.nanmax(self.used_bytes))


_SOURCES = (
    _Source("device_used_bytes", "GPU, all processes (NVML)", TEXT, "solid"),
    _Source("torch_reserved_bytes", "torch reserved", PURPLE, "dash"),
    _Source("torch_allocated_bytes", "torch allocated", BLUE, "dot"),
    _Source("process_rss_bytes", "worker process (RSS)", VERMILLION, "dashdot"),
)
_MARK_ROW = 0.055  # of the pool: how far apart kinds of events are marked
_SMALL_SHARE = 0.25  # a pool below this share of the greatest line is drawn by itself as well


def memory_panel(subjects: Sequence[Subject]) -> Panel:
    """One chart an engine, all on the same scales; a pool too small to be read there is drawn by itself as well."""
    lines = {subject: _lines(subject) for subject in subjects}
    drawn = {subject: of_subject for subject, of_subject in lines.items() if of_subject}
    key, title = "memory", "Memory over time"
    explanation = (
        "Every source of memory on one axis. The pool is taken once, when the engine starts;"
        " what fills it is the live KV: the closer the green area comes to the pool's line, the less is wasted. Marks"
        " along that line are preemptions, copies, evictions, swaps and moves; the larger, the more at that time."
    )
    if not drawn:
        return Panel(key, title, explanation, missing="No memory was measured: no engine came to its first step.")
    largest = max(line.peak_bytes for of_subject in drawn.values() for line in of_subject)
    inside = {subject: kept for subject in drawn if (kept := [line for line in drawn[subject] if line.is_inside_pool])}
    pool = max((line.peak_bytes for kept in inside.values() for line in kept), default=0.0)
    is_small = bool(inside) and pool < _SMALL_SHARE * largest
    charts = [
        _chart(subject, of_subject, largest, "memory", has_pool_chart=is_small) for subject, of_subject in drawn.items()
    ]
    if is_small:
        charts += [_chart(subject, kept, pool, "pool", has_pool_chart=True) for subject, kept in inside.items()]
    return Panel(key, title, explanation, tuple(charts), _table(drawn))


def _lines(subject: Subject) -> list[_Line]:
    """What was measured of one engine; a source without a single sample gives no line."""
    lines = []
    times = subject.device["time_ns"].to_numpy(dtype=np.int64)
    has_gpu = bool(subject.device["device_used_bytes"].notna().any())
    for source in _SOURCES:
        if source.column == "process_rss_bytes" and has_gpu:
            continue  # host memory has no place on the GPU's axis
        used = floats(subject.device, source.column)
        if np.isnan(used).all():
            continue
        rows = m4_rows(times, [used])
        lines.append(_Line(source.label, source.shade, source.dash, times[rows], used[rows]))
    slot_bytes, pool_bytes = subject.pool_figure("slot_bytes"), subject.pool_figure("pool_bytes")
    if subject.steps.empty or slot_bytes is None:
        return lines
    times = subject.steps["end_ns"].to_numpy(dtype=np.int64)
    live = floats(subject.steps, "token_state") * slot_bytes
    if pool_bytes is not None:
        ends = np.array([0, times[-1]])
        lines.append(_Line("pool", DARK_GREY, "longdash", ends, np.full(2, float(pool_bytes)), is_inside_pool=True))
    rows = m4_rows(times, [live])
    lines.append(_Line("live KV", GREEN, "solid", times[rows], live[rows], is_inside_pool=True))
    return lines


def _mark_events(figure: go.Figure, subject: Subject, divisor: float) -> None:
    """Preemptions, copies, evictions, swaps and moves as marks on and above the pool's line, each kind by itself."""
    pool_bytes = subject.pool_figure("pool_bytes")
    if subject.steps.empty or pool_bytes is None:
        return
    seen = [(event, found) for event in EVENTS if len((found := event_windows(subject.steps, event)).counts)]
    for row, (event, found) in enumerate(seen):
        figure.add_trace(
            go.Scatter(
                x=seconds(found.time_ns),
                y=plain([pool_bytes / divisor * (1 + _MARK_ROW * row)] * len(found.counts), 4),
                mode="markers",
                name=event.label,
                customdata=plain(found.counts),
                marker={
                    "color": ORANGE.light,
                    "symbol": event.symbol,
                    "size": plain(mark_sizes(found.counts), 3),
                    "line": {"color": SURFACE.light, "width": 0.5},
                },
                hovertemplate="%{customdata:,} in this window",
            )
        )

    top = pool_bytes / divisor * (1 + _MARK_ROW * len(seen))
    figure.update_yaxes(range=[0, max(top, figure.layout.yaxis.range[1])])


def _chart(
    subject: Subject, lines: Sequence[_Line], largest: float, key: str, *, has_pool_chart: bool = False
) -> Chart:
    divisor, unit = byte_scale(largest)
    figure = new_time_figure(unit, yaxis_range=[0, largest / divisor * 1.06])
    for line in lines:
        is_live = line.label == "live KV"
        figure.add_trace(
            go.Scatter(
                x=seconds(line.time_ns),
                y=plain(line.used_bytes / divisor),
                name=line.label,
                mode="lines",
                line={"color": line.shade.light, "dash": line.dash, "width": 1.5 if is_live else 2, "shape": "hv"},
                fill="tozeroy" if is_live else None,
                hovertemplate=f"%{{y:.4g}} {unit}",
            )
        )
    if key == ("pool" if has_pool_chart else "memory"):
        _mark_events(figure, subject, divisor)
    peaks = ", ".join(f"{line.label} {format_quantity(line.peak_bytes, 'bytes')}" for line in lines)
    title = subject.label if key == "memory" else f"{subject.label}: the pool alone"
    height_px = 320 if key == "memory" else 240
    return Chart(f"{key}-{subject.key}", title, f"Peaks: {peaks}.", figure, height_px, is_on_time_axis=True)


def _table(lines: Mapping[Subject, Sequence[_Line]]) -> Table:
    rows = []
    for subject, of_subject in lines.items():
        for line in of_subject:
            known = line.used_bytes[~np.isnan(line.used_bytes)]
            figures = (known.min(), known.max(), known[-1])
            rows.append((subject.label, line.label, *(format_quantity(float(value), "bytes") for value in figures)))
    return Table(("engine", "source", "least", "greatest", "last"), tuple(rows))
