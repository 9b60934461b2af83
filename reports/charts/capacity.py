"""Capacity curves: the same workload with one size of the pool after another."""

from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from pbench.reports.charts.panel import Chart, Panel, Table, new_figure, plain
from pbench.reports.palette import ink
from pbench.reports.quantity import EQUAL_RATIO, LONG_MS, TIMES, byte_scale, format_number, format_quantity
from pbench.reports.subjects import Subject
from pbench.reports.text import plot_label
from pbench.reports.verdict import Verdict, has_same_workload
from pbench.results import METRICS, Metric

_SPEED = "output_tokens_per_s"
_CURVES = (_SPEED, "mean_running", "prefix_hit_rate_pct", "waste_pct", "ttft_ms_p99", "preemptions")
_MAX_NOTES = 4
_METRIC_BY_NAME = {metric.name: metric for metric in METRICS}


class Sweep(NamedTuple):
    """An engine at several sizes of its pool, ascending."""

    spec: str
    subjects: tuple[Subject, ...]


class _Rivals(NamedTuple):
    """Two engines with a pool of one size."""

    paged: Subject
    baseline: Subject

    @property
    def ratio(self) -> float:
        """Of their output tokens/s."""
        return _speed(self.paged) / _speed(self.baseline)


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
    """The paged engine against the baseline, size by size; without both, what more memory buys each engine."""
    notes = tuple(dict.fromkeys(note for sweep in sweeps for each in sweep.subjects for note in each.engine.notes))
    rivals = _rivals(sweeps)
    if rivals:
        return _judge_rivals(rivals, notes[:_MAX_NOTES])
    sentences = []
    for spec, subjects in sweeps:
        small, large = subjects[0], subjects[-1]
        sentences.append(
            f"{spec} gives {_speed_text(small)} of output with {_pool_text(small)} of KV memory and"
            f" {_speed_text(large)} with {_pool_text(large)}."
        )
    num_sizes = max(len(sweep.subjects) for sweep in sweeps)
    return Verdict(f"{num_sizes} sizes", "\u25d4", "neutral", " ".join(sentences), notes[:_MAX_NOTES])


def _rivals(sweeps: Sequence[Sweep]) -> list[_Rivals]:
    """The first paged engine and the first contiguous one at each size with which both ran to their ends, ascending."""
    paged = next((sweep.subjects for sweep in sweeps if sweep.subjects[0].is_paged), ())
    baseline = next((sweep.subjects for sweep in sweeps if sweep.subjects[0].is_contiguous), ())
    if not paged or not baseline or not has_same_workload((*paged, *baseline)):
        return []
    by_size = {subject.pool_figure("pool_bytes"): subject for subject in baseline if _is_whole(subject)}
    return [
        _Rivals(subject, by_size[size])
        for subject in paged
        if _is_whole(subject) and (size := subject.pool_figure("pool_bytes")) in by_size
    ]


def _judge_rivals(rivals: Sequence[_Rivals], notes: tuple[str, ...]) -> Verdict:
    small, large = rivals[0], rivals[-1]
    sentence = (
        f"{small.paged.engine.spec} generated {format_number(small.ratio)}{TIMES} the output tokens/s of"
        f" {small.baseline.engine.spec} with {_pool_text(small.paged)} of KV memory, and"
        f" {format_number(large.ratio)}{TIMES} with {_pool_text(large.paged)}."
    )
    enough = next((paged for paged, _ in rivals[:-1] if _speed(paged) >= _speed(large.baseline)), None)
    if enough is not None:
        sentence += (
            f" With {_pool_text(enough)} it was already as fast as {large.baseline.engine.spec} with"
            f" {_pool_text(large.baseline)}: {_speed_text(enough)} against {_speed_text(large.baseline)}."
        )
    ratios = [each.ratio for each in rivals]
    ends = list(dict.fromkeys(format_number(ratio) for ratio in (min(ratios), max(ratios))))
    span = f"{' to '.join(ends)}{TIMES}"
    if min(ratios) > 1 + EQUAL_RATIO:
        return Verdict(f"{span} faster", "\u25b2", "good", sentence, notes)
    return Verdict(f"{span} the speed", "\u25d4", "neutral", sentence, notes)


def _is_whole(subject: Subject) -> bool:
    return subject.engine.status == "complete" and _speed(subject) > 0


def _speed(subject: Subject) -> float:
    return subject.metric(_SPEED) or 0


def _pool_text(subject: Subject) -> str:
    return format_quantity(subject.pool_figure("pool_bytes"), "bytes")


def _speed_text(subject: Subject) -> str:
    return format_quantity(subject.metric(_SPEED), "tok/s")


def _chart(metric: Metric, sweeps: Sequence[Sweep]) -> Chart | None:
    sizes = [subject.pool_figure("pool_bytes") or 0 for sweep in sweeps for subject in sweep.subjects]
    divisor, unit = byte_scale(max(sizes))
    figures = (subject.metric(metric.name) for sweep in sweeps for subject in sweep.subjects)
    largest = max((figure for figure in figures if figure is not None), default=0)
    scale, y_unit = (1000, "s") if metric.unit == "ms" and largest >= LONG_MS else (1, metric.unit)
    figure = new_figure(f"KV memory, {unit}", y_unit, yaxis_rangemode="tozero", xaxis_type="log")
    ticks = sorted(set(sizes))
    figure.update_xaxes(tickvals=plain([size / divisor for size in ticks], 4), tickformat="~r")
    ends = []
    for index, sweep in enumerate(sweeps):
        measured = [subject for subject in sweep.subjects if subject.metric(metric.name) is not None]
        if not measured:
            continue
        values = [float(subject.metric(metric.name) or 0) for subject in measured]
        figure.add_trace(
            go.Scatter(
                x=plain([(subject.pool_figure("pool_bytes") or 0) / divisor for subject in measured], 5),
                y=plain([value / scale for value in values], 5),
                name=plot_label(sweep.spec),
                mode="lines+markers",
                line={"color": ink(index).shade.light, "dash": ink(index).dash, "width": 2},
                hovertemplate=f"%{{y:,.4~r}} {y_unit}",
            )
        )
        first, last = (format_quantity(value, metric.unit, largest=largest) for value in (values[0], values[-1]))
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
