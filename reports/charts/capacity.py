"""Capacity curves: the same workload with one size of the pool after another."""

from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from pbench.reports.charts.panel import Chart, Panel, Table, new_figure, plain
from pbench.reports.palette import ink
from pbench.reports.quantity import byte_scale, format_quantity
from pbench.reports.subjects import Subject
from pbench.reports.text import plot_label
from pbench.reports.verdict import Verdict, has_same_workload
from pbench.results import METRICS, Metric

_CURVES = ("output_tokens_per_s", "mean_running", "prefix_hit_rate_pct", "waste_pct", "ttft_ms_p99", "preemptions")
_MAX_NOTES = 4
_METRIC_BY_NAME = {metric.name: metric for metric in METRICS}


class Sweep(NamedTuple):
    """An engine at several sizes of its pool, ascending."""

    spec: str
    subjects: tuple[Subject, ...]


def find_sweeps(subjects: Sequence[Subject]) -> list[Sweep]:
    """Engines that played one workload with at least three sizes of the pool; empty when there are none."""
    by_spec: dict[str, dict[int, Subject]] = {}
    for subject in subjects:
        pool_bytes = subject.pool_figure("pool_bytes")
        if pool_bytes is not None:
            by_spec.setdefault(subject.engine.spec, {}).setdefault(pool_bytes, subject)
    sweeps = [
        Sweep(spec, tuple(by_size[size] for size in sorted(by_size)))
        for spec, by_size in by_spec.items()
        if len(by_size) > 2
    ]
    return [sweep for sweep in sweeps if has_same_workload(sweep.subjects)]


def capacity_panel(sweeps: Sequence[Sweep]) -> Panel | None:
    """One chart a figure, one curve an engine; None where nothing was swept."""
    if not sweeps:
        return None
    charts = [chart for name in _CURVES if (chart := _chart(_METRIC_BY_NAME[name], sweeps)) is not None]
    return Panel(
        "capacity",
        "What more memory buys",
        "The same workload with one size of the pool after another. Where a curve goes flat, more memory buys nothing:"
        " everything that is offered fits already.",
        tuple(charts),
        _table(sweeps),
    )


def sweep_verdict(sweeps: Sequence[Sweep]) -> Verdict:
    """What the largest pool gives over the smallest, engine by engine."""
    sentences = []
    for spec, subjects in sweeps:
        small, large = subjects[0], subjects[-1]
        sizes = [format_quantity(subject.pool_figure("pool_bytes"), "bytes") for subject in (small, large)]
        speeds = [format_quantity(subject.metric("output_tokens_per_s"), "tok/s") for subject in (small, large)]
        sentences.append(
            f"{spec} gives {speeds[0]} of output with {sizes[0]} of KV memory and {speeds[1]} with {sizes[1]}."
        )
    notes = tuple(dict.fromkeys(note for sweep in sweeps for each in sweep.subjects for note in each.engine.notes))
    num_sizes = max(len(sweep.subjects) for sweep in sweeps)
    return Verdict(f"{num_sizes} sizes", "◔", "neutral", " ".join(sentences), notes[:_MAX_NOTES])


def _chart(metric: Metric, sweeps: Sequence[Sweep]) -> Chart | None:
    sizes = [subject.pool_figure("pool_bytes") or 0 for sweep in sweeps for subject in sweep.subjects]
    divisor, unit = byte_scale(max(sizes))
    figure = new_figure(f"KV memory, {unit}", metric.unit, yaxis_rangemode="tozero", xaxis_type="log")
    ticks = sorted(set(sizes))
    figure.update_xaxes(tickvals=plain([size / divisor for size in ticks], 4), tickformat="~r")
    ends = []
    for index, sweep in enumerate(sweeps):
        known = [subject for subject in sweep.subjects if subject.metric(metric.name) is not None]
        if not known:
            continue
        values = [float(subject.metric(metric.name) or 0) for subject in known]
        figure.add_trace(
            go.Scatter(
                x=plain([(subject.pool_figure("pool_bytes") or 0) / divisor for subject in known], 5),
                y=plain(values, 5),
                name=plot_label(sweep.spec),
                mode="lines+markers",
                line={"color": ink(index).shade.light, "dash": ink(index).dash, "width": 2},
                hovertemplate=f"%{{y:,.4~r}} {metric.unit}",
            )
        )
        first, last = (format_quantity(value, metric.unit) for value in (values[0], values[-1]))
        ends.append(f"{sweep.spec} from {first} to {last}")
    if not ends:
        return None
    summary = f"{metric.help}. {'; '.join(ends)}."
    return Chart(f"capacity-{metric.name}", metric.label, summary[0].upper() + summary[1:], figure, 280)


def _table(sweeps: Sequence[Sweep]) -> Table:
    rows = tuple(
        (
            sweep.spec,
            format_quantity(subject.pool_figure("pool_bytes"), "bytes"),
            *(format_quantity(subject.metric(name), _METRIC_BY_NAME[name].unit) for name in _CURVES),
        )
        for sweep in sweeps
        for subject in sweep.subjects
    )
    return Table(("engine", "pool", *(_METRIC_BY_NAME[name].label for name in _CURVES)), rows)
