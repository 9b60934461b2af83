"""The attained share of the machine's bandwidth and arithmetic: a roofline, where the time went against it, kernels."""

from collections.abc import Sequence
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
from pbench.reports.palette import BLUE, DARK_GREY, GREEN, GREY, ORANGE, SKY, SURFACE, TEXT, Shade
from pbench.reports.quantity import NOT_APPLICABLE, format_number, format_quantity
from pbench.reports.reduction import Floats, spread_rows
from pbench.reports.roofline import Bench, Ceilings, KernelFigure, StepLoads, ceilings_of, step_floors, step_loads
from pbench.reports.subjects import Subject, floats
from pbench.reports.text import plot_label

_MAX_POINTS = 500
_SYMBOLS = ("circle", "diamond-open", "x-thin-open", "square-open", "triangle-up-open", "cross-thin-open")
_OURS = "pbench"  # how the names of our own implementations begin; what follows tells variants apart
_MAX_KERNELS = 24


class _Loaded(NamedTuple):
    subject: Subject
    loads: StepLoads
    ceilings: Ceilings | None


class _Part(NamedTuple):
    label: str
    shade: Shade
    pattern: str


_PARTS = (
    _Part("reading the weights", BLUE, ""),
    _Part("reading and writing KV", GREEN, "/"),
    _Part("arithmetic beyond that", ORANGE, "."),
    _Part("everything else in steps", GREY, "x"),
    _Part("between steps", SKY, "-"),
)


def roofline_panel(subjects: Sequence[Subject], bench: Bench) -> Panel:
    """The panel; its charts depend on what the record and ``bench`` know."""
    loaded = [
        _Loaded(subject, loads, ceilings_of(subject, bench))
        for subject in subjects
        if (loads := step_loads(subject)) is not None
    ]
    charts = []
    if any(one.ceilings for one in loaded):
        charts.append(_time_chart([one for one in loaded if one.ceilings]))
    if loaded:
        charts.append(_roofline_chart(loaded))
    if bench.kernels:
        charts.append(_kernels_chart(bench.kernels))
    missing = ""
    if not loaded:
        has_steps = any(len(subject.steps) for subject in subjects)
        missing = "The record does not say what a step costs by arithmetic." if has_steps else "No engine kept a step."
    elif not any(one.ceilings for one in loaded):
        missing = (
            "What this machine reaches at most is not known, so there are no shares: `pbench report --kernels FILE`"
            " takes what `pbench kernels --json FILE` measured."
        )
    return Panel(
        "roofline",
        "Steps against the machine's ceilings",
        "A step must read all weights and every sequence's KV, and multiply. Whichever takes longer at the machine's"
        " ceilings is the least that the step can take (Williams et al., CACM 2009). To the left memory binds, to the"
        " right arithmetic; the higher a mark under the roof, the better the machine is used.",
        tuple(charts),
        _table(loaded) if loaded else None,
        missing,
    )


def _least_parts_s(one: _Loaded) -> list[float]:
    """Seconds in each of _PARTS; those of a step that ran faster than its ceilings allow are cut to its length."""
    assert one.ceilings is not None
    loads, steps = one.loads, one.subject.steps
    floors = step_floors(loads, one.ceilings)
    weights, kv, least = floors.weights_s, floors.kv_s, floors.least_s
    beyond = least - weights - kv
    scale = np.minimum(1, np.divide(loads.seconds, least, out=np.zeros_like(least), where=least > 0))
    gaps_s = (floats(steps, "start_ns")[1:] - floats(steps, "end_ns")[:-1]) / 1e9
    parts = [float((part * scale).sum()) for part in (weights, kv, beyond)]
    return [*parts, float((loads.seconds - least * scale).sum()), float(np.maximum(gaps_s, 0).sum())]


def _time_chart(loaded: Sequence[_Loaded]) -> Chart:
    figure = new_figure("% of the time", "", barmode="stack", hovermode="closest", bargap=ROW_GAP, xaxis_range=[0, 100])
    labels = [plot_label(one.subject.label) for one in loaded]
    shares = []
    for one in loaded:
        parts = np.array(_least_parts_s(one))
        shares.append(100 * parts / max(parts.sum(), 1e-12))
    for index, part in enumerate(_PARTS):
        figure.add_trace(
            go.Bar(
                x=plain([share[index] for share in shares], 4),
                y=labels,
                orientation="h",
                name=part.label,
                marker={
                    "color": part.shade.light,
                    "line": {"color": SURFACE.light, "width": 1},
                    "pattern": hatch(part.pattern),
                },
                hovertemplate=f"%{{y}}<br>{part.label}: %{{x:.1f}} %<extra></extra>",
            )
        )
    label_rows(figure, labels)
    told = ", ".join(
        f"{one.subject.label} {format_quantity(float(share[:3].sum()), '%')}"
        for one, share in zip(loaded, shares, strict=True)
    )
    sources = "; ".join(dict.fromkeys(one.ceilings.source for one in loaded if one.ceilings))
    summary = (
        "Reading and arithmetic at the ceilings, and what else there was: scheduling, launches, sampling, and kernels"
        f" that stay below the ceilings. No way around: {told} of the time. Ceilings {sources}."
    )
    return Chart(
        "roofline-time", "What could not be helped, and the rest", summary, figure, rows_height_px(len(labels))
    )


def _roofline_chart(loaded: Sequence[_Loaded]) -> Chart:
    figure = new_figure("FLOP for each byte moved", "TFLOP/s attained", xaxis_type="log", yaxis_type="log")
    figure.update_layout(hovermode="closest")
    xs, ys = np.empty(0), np.empty(0)
    for index, one in enumerate(loaded):
        seconds, loads = np.maximum(one.loads.seconds, 1e-12), one.loads
        rows = spread_rows(len(seconds), _MAX_POINTS)
        rows = rows[loads.flops[rows] > 0]
        x, y = loads.flops[rows] / loads.num_bytes[rows], loads.flops[rows] / seconds[rows] / 1e12
        xs, ys = np.append(xs, x), np.append(ys, y)
        figure.add_trace(
            go.Scatter(
                x=plain(x, 4),
                y=plain(y, 4),
                name=plot_label(one.subject.label),
                mode="markers",
                customdata=plain(loads.num_bytes[rows] / seconds[rows] / 1e9, 4),
                marker={
                    "color": one.subject.ink.shade.light,
                    "size": 6,
                    "opacity": 0.6,
                    "symbol": _SYMBOLS[index % len(_SYMBOLS)],
                },
                hovertemplate="%{y:.3~g} TFLOP/s and %{customdata:,.4~r} GB/s",
            )
        )
    ceilings = list(dict.fromkeys(one.ceilings for one in loaded if one.ceilings))
    if len(xs):
        span = [float(xs.min()) / 1.5, float(xs.max()) * 1.5]
        for roof in ceilings:
            ys = np.append(ys, _add_roof(figure, roof, span))
        figure.update_xaxes(tickvals=log_ticks(*span), tickangle=0)
        figure.update_yaxes(tickvals=log_ticks(float(ys.min()), float(ys.max())))
    summary = "One mark a step, an even spread of them. With prompts a step's arithmetic is that at least."
    if ceilings:
        roofs = "; ".join(
            f"{format_number(roof.bytes_per_s / 1e9)} GB/s and {format_number(roof.flops_per_s / 1e12)} TFLOP/s"
            f" {roof.source}"
            for roof in ceilings
        )
        summary += f" The roof: {roofs}."
    return Chart("roofline-steps", "Roofline of the steps", summary, figure, 340)


def _add_roof(figure: go.Figure, roof: Ceilings, span: Sequence[float]) -> Floats:
    ridge = roof.flops_per_s / roof.bytes_per_s
    x = np.unique(np.clip([*span, ridge], min(span), max(*span, ridge)))
    y = np.minimum(x * roof.bytes_per_s, roof.flops_per_s) / 1e12
    figure.add_trace(
        go.Scatter(
            x=plain(x, 4),
            y=plain(y, 4),
            mode="lines",
            name="the roof",
            line={"color": TEXT.light, "width": 2},
            hovertemplate="at most %{y:.3~g} TFLOP/s",
        )
    )
    return y


def _kernels_chart(kernels: Sequence[KernelFigure]) -> Chart:
    ours = [figure for figure in kernels if figure.implementation.split(",")[0] == _OURS] or list(kernels)
    shown = sorted(ours, key=lambda kernel: kernel.share)[:_MAX_KERNELS]
    figure = new_figure("% of the ceiling that binds it", "", hovermode="closest", bargap=ROW_GAP, showlegend=False)
    labels = [plot_label(_kernel_label(kernel)) for kernel in shown]
    figure.add_trace(
        go.Bar(
            x=plain([100 * kernel.share for kernel in shown], 4),
            y=labels,
            orientation="h",
            marker={"color": BLUE.light, "line": {"color": SURFACE.light, "width": 1}},
            customdata=plain([kernel.median_us for kernel in shown], 4),
            hovertemplate="%{x:.1f} % in %{customdata:,} us<extra></extra>",
        )
    )
    figure.update_xaxes(range=[0, max(100.0, *(105 * kernel.share for kernel in shown))])
    figure.add_vline(x=100, line={"color": DARK_GREY.light, "width": 1, "dash": "dash"})
    label_rows(figure, labels)
    which = (
        f"The {len(shown)} of {len(ours)} that reach least"
        if len(shown) < len(ours)
        else "Those that reach least first"
    )
    summary = f"Each kernel alone, as `pbench kernels` timed it. {which}."
    return Chart("roofline-kernels", "Kernels against the ceilings", summary, figure, rows_height_px(len(labels)))


def _kernel_label(kernel: KernelFigure) -> str:
    variant = kernel.implementation.removeprefix(f"{_OURS}, ")
    return ", ".join((kernel.kernel, kernel.shape, *([variant] if variant != _OURS else ())))


def _table(loaded: Sequence[_Loaded]) -> Table:
    rows = []
    for one in loaded:
        for name, chosen in (("with prompts", one.loads.has_prompts), ("only generating", ~one.loads.has_prompts)):
            total_s = float(one.loads.seconds[chosen].sum())
            if not total_s:
                continue
            bytes_per_s = float(one.loads.num_bytes[chosen].sum()) / total_s
            flops_per_s = float(one.loads.flops[chosen].sum()) / total_s
            roof = one.ceilings
            rows.append(
                (
                    one.subject.label,
                    name,
                    format_number(int(chosen.sum())),
                    f"{format_number(bytes_per_s / 1e9)} GB/s",
                    format_quantity(100 * bytes_per_s / roof.bytes_per_s, "%") if roof else NOT_APPLICABLE,
                    f"{format_number(flops_per_s / 1e12)} TFLOP/s",
                    format_quantity(100 * flops_per_s / roof.flops_per_s, "%") if roof else NOT_APPLICABLE,
                )
            )
    columns = ("engine", "steps", "number", "moved", "of the ceiling", "computed", "of the ceiling")
    return Table(columns, tuple(rows), "means over the steps' time, by arithmetic from the steps' records")
