"""The page: everything that the template shows, in its order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pbench.reports.block_map import block_map_panel
from pbench.reports.charts.account import account_panel
from pbench.reports.charts.capacity import capacity_panel, find_sweeps, sweep_verdict
from pbench.reports.charts.comparison import comparison_panel
from pbench.reports.charts.device import device_panel
from pbench.reports.charts.latency import latency_panel
from pbench.reports.charts.memory import memory_panel
from pbench.reports.charts.panel import Panel
from pbench.reports.charts.partition import figure_2_panel, partition_panel
from pbench.reports.charts.phases import phases_panel
from pbench.reports.charts.prefix_tree import prefix_tree_panel
from pbench.reports.charts.progress import progress_panel
from pbench.reports.charts.repeats import repeats_panel
from pbench.reports.charts.roofline import roofline_panel
from pbench.reports.charts.sharing import sharing_panel
from pbench.reports.charts.steps import steps_panel
from pbench.reports.charts.timeline import timeline_panel
from pbench.reports.charts.workload import workload_panel
from pbench.reports.checks import Tally, run_checks, tally
from pbench.reports.details import Difference, Fact, command_line, config_differences, facts, workload_facts
from pbench.reports.embedding import ATTACHED_BYTES_LIMIT, Attachment, attachments
from pbench.reports.glossary import GLOSSARY, Term
from pbench.reports.palette import ink
from pbench.reports.quantity import format_moment
from pbench.reports.roofline import NOTHING_KNOWN, Bench
from pbench.reports.subjects import Subject, load_subjects
from pbench.reports.summary import MetricRow, cards, metric_rows
from pbench.reports.text import shorten
from pbench.reports.verdict import Verdict, comparable_pair, reach_verdict
from pbench.results import Check, Run, RunResult

_TITLE_CHARS = 80
_MAX_DRAWN = 6  # engines: as many as there are inks


@dataclass(frozen=True, slots=True)
class RunDetails:
    """One run's provenance: what was asked, where, and the command that repeats it."""

    run: RunResult
    created: str
    command: str
    workload: tuple[Fact, ...]
    config: tuple[Fact, ...]
    environment: tuple[Fact, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """What one report shows."""

    title: str
    overline: tuple[str, ...]  # workload, model, device, date: what a reader must know before the verdict
    verdict: Verdict
    subjects: tuple[Subject, ...]
    num_drawn: int  # of them, shown in every chart; the figures are there for all
    baseline_key: str | None  # of the subject that the others are compared with
    checks: tuple[Check, ...]
    tally: Tally | None  # of the checks, beside the verdict; None without any
    cards: tuple[MetricRow, ...]
    metrics: tuple[MetricRow, ...]
    panels: tuple[Panel, ...]
    runs: tuple[RunDetails, ...]
    workloads: tuple[RunDetails, ...]  # of these, one of each workload
    differences: tuple[Difference, ...]
    attachments: tuple[Attachment, ...]
    terms: tuple[Term, ...]
    data: dict[str, Any]  # the figures of the summaries as the page's own script and tests read them


def build_page(runs: Sequence[Run], bench: Bench = NOTHING_KNOWN, *, carries_raw: bool = True) -> Page:
    """Read ``runs`` and work out everything that is shown of them.

    ``bench`` is what is known of their machines; ``carries_raw`` says whether the page holds their raw files.

    Raises:
        ResultError: a run folder cannot be read.

    """
    subjects = _inked(load_subjects(runs))
    results = [run.result for run in runs]
    sweeps = find_sweeps(subjects)
    pair = comparable_pair(subjects) if not sweeps else None  # pools of many sizes have no one baseline
    drawn = _drawn_in_detail(subjects)
    checks = run_checks(subjects)
    details = tuple(map(_details, results))
    panels = tuple(
        panel
        for panel in (
            memory_panel(drawn),
            progress_panel(drawn),
            account_panel(drawn),
            partition_panel(drawn),
            figure_2_panel(drawn),
            block_map_panel(drawn),
            sharing_panel(drawn),
            prefix_tree_panel(drawn),
            latency_panel(drawn),
            timeline_panel(drawn),
            steps_panel(drawn),
            phases_panel(drawn),
            roofline_panel(drawn, bench),
            device_panel(drawn),
            repeats_panel(drawn),
            capacity_panel(sweeps) if sweeps else comparison_panel(subjects),
            workload_panel(drawn),
        )
        if panel is not None
    )
    _align_time_axes(panels, subjects)
    return Page(
        title=" + ".join(dict.fromkeys(shorten(_workload_name(result), _TITLE_CHARS) for result in results)),
        overline=_overline(results),
        verdict=reach_verdict(subjects) if not sweeps else sweep_verdict(sweeps),
        subjects=tuple(subjects),
        num_drawn=len(drawn),
        baseline_key=pair.baseline.key if pair and pair.baseline else None,
        checks=tuple(checks),
        tally=tally(checks),
        cards=tuple(cards(subjects if not sweeps else drawn, pair)),
        metrics=tuple(metric_rows(subjects, pair)),
        panels=panels,
        runs=details,
        workloads=tuple({one.workload: one for one in reversed(details)}.values())[::-1],
        differences=tuple(config_differences(subjects)),
        attachments=tuple(attachments(runs, ATTACHED_BYTES_LIMIT if carries_raw else 0)),
        terms=GLOSSARY,
        data={
            "engines": [
                {"key": subject.key, "run_id": subject.run.run_id, "spec": subject.engine.spec}
                | {"summary": dict(subject.engine.summary)}
                for subject in subjects
            ]
        },
    )


def _drawn_in_detail(subjects: Sequence[Subject]) -> list[Subject]:
    """All, or of too many the engines of the first, the middle and the last run, by size of the pool."""
    if len(subjects) <= _MAX_DRAWN:
        return list(subjects)
    by_pool = sorted(subjects, key=lambda subject: subject.pool_figure("pool_bytes") or 0)  # stable: else as given
    run_ids = list(dict.fromkeys(subject.run.run_id for subject in by_pool))
    chosen = {run_ids[0], run_ids[len(run_ids) // 2], run_ids[-1]}
    return [subject for subject in subjects if subject.run.run_id in chosen][:_MAX_DRAWN]


def _inked(subjects: Sequence[Subject]) -> list[Subject]:
    """Inks in order, first to those that are drawn together: no two of these look alike."""
    drawn = {subject.key for subject in _drawn_in_detail(subjects)}
    order = sorted(subjects, key=lambda subject: subject.key not in drawn)  # stable
    inks = {subject.key: ink(index) for index, subject in enumerate(order)}
    return [replace(subject, ink=inks[subject.key]) for subject in subjects]


def _align_time_axes(panels: Sequence[Panel], subjects: Sequence[Subject]) -> None:
    """Let every chart over time reach from 0 to the end of the longest engine: equal lengths are equal times."""
    ends_ns = [int(subject.giving["end_ns"].iloc[-1]) for subject in subjects if len(subject.giving)]
    for chart in (chart for panel in panels for chart in panel.charts):
        if chart.is_on_time_axis and ends_ns:
            chart.figure.update_xaxes(range=[0, max(ends_ns) / 1e9])


def _details(result: RunResult) -> RunDetails:
    return RunDetails(
        result,
        format_moment(result.created_at),
        command_line(result.command),
        tuple(workload_facts(result.workload)),
        tuple(facts(result.config)),
        tuple(facts(result.environment)),
    )


def _overline(results: Sequence[RunResult]) -> tuple[str, ...]:
    """Each part once, however many runs share it."""
    parts = []
    for result in results:
        gpu = result.environment.get("gpu")
        cpu = result.environment.get("cpu")
        device = gpu if isinstance(gpu, dict) else cpu if isinstance(cpu, dict) else {}
        simulated = str(result.config.get("device"))
        parts += [
            result.config.get("model"),
            result.config.get("dtype"),
            simulated if simulated.startswith("simulated") else device.get("name") or device.get("model"),
            format_moment(result.created_at),
        ]
    return tuple(dict.fromkeys(shorten(str(part), _TITLE_CHARS) for part in parts if part))


def _workload_name(result: RunResult) -> str:
    return str(result.workload.get("name") or "unnamed workload")
