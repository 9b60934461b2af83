"""The page about a history: everything that its template shows, in its order."""

from dataclasses import dataclass
from typing import Any, TextIO

from pbench.reports.change_points import METHOD, MIN_RELATIVE_STEP
from pbench.reports.charts.panel import Panel
from pbench.reports.charts.trend import signed_percent, trends_panel
from pbench.reports.details import facts
from pbench.reports.history import Group, History, Point, Trend
from pbench.reports.palette import ink
from pbench.reports.quantity import format_quantity
from pbench.reports.report import render_template
from pbench.reports.verdict import Verdict

_MAX_CHANGES = 8  # settings named beside a step


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step as the page tells it: ``changes`` are the settings that differ between the runs on its two sides."""

    mark: str
    tone: str  # better | worse | neutral
    metric: str
    engine: str
    where: str  # the group's title; empty where there is one group only
    commits: str
    before: str
    after: str
    change: str
    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run that took part."""

    created_at: str
    commit: str
    run_id: str
    status: str
    engines: str
    where: str


@dataclass(frozen=True, slots=True, eq=False)
class HistoryPage:
    """What one page about a history shows."""

    title: str
    overline: tuple[str, ...]
    verdict: Verdict
    steps: tuple[StepRow, ...]
    panels: tuple[Panel, ...]
    runs: tuple[RunRow, ...]
    left_out: tuple[str, ...]
    data: dict[str, Any]


def render_history(history: History, title: str, stream: TextIO, *, plotlyjs: str = "inline") -> None:
    """Write the page about ``history`` to ``stream``, in the look of a report; ``plotlyjs`` as in ``render_report``.

    Raises:
        UsageError: another ``plotlyjs``.
    """
    page = build_history_page(history, title)
    render_template("history.html", stream, plotlyjs, ("theme.js", "page.js"), page=page, method=METHOD)


def build_history_page(history: History, title: str) -> HistoryPage:
    """Work out everything that is shown of ``history``; ``title`` names it."""
    specs = dict.fromkeys(trend.spec for trend in history.trends)
    inks = {spec: ink(index) for index, spec in enumerate(specs)}
    runs = [run for group in history.groups for run in group.runs]
    days = sorted(run.created_at[:10] for run in runs)
    return HistoryPage(
        title=title,
        overline=(f"{len(runs)} runs", f"{days[0]} to {days[-1]}" if days[0] != days[-1] else days[0]),
        verdict=_verdict(history),
        steps=tuple(_step_rows(history)),
        panels=tuple(trends_panel(group, inks) for group in history.groups),
        runs=tuple(_run_row(group, index) for group in history.groups for index in range(len(group.runs))),
        left_out=history.left_out,
        data={
            "trends": [
                {"group": group.key, "engine": trend.spec, "metric": trend.metric.name, "values": trend.values}
                | {"steps": [step._asdict() for step in trend.steps]}
                for group in history.groups
                for trend in group.trends
            ]
        },
    )


def _verdict(history: History) -> Verdict:
    tones = [trend.tone(step) for trend in history.trends for step in trend.steps]
    num_worse, num_better = tones.count("worse"), tones.count("better")
    num_runs = sum(len(group.runs) for group in history.groups)
    looked = f"{len(history.trends)} trends over {num_runs} runs were searched for steps of at least"
    looked = f"{looked} {MIN_RELATIVE_STEP:.0%}."
    caveats: tuple[str, ...] = (
        "Runs are in order of the time at which they were made, which need not be that of their commits.",
    )
    if history.left_out:
        caveats += (f"{len(history.left_out)} folders could not be read and are left out; they are listed below.",)
    if not tones:
        return Verdict("Steady", "=", "neutral", f"No figure changed its level. {looked}", caveats)
    trend, step = max(
        ((trend, step) for trend in history.trends for step in trend.steps),
        key=lambda found: (found[0].tone(found[1]) == "worse", found[0].points[found[1].at].run.created_at),
    )
    sentence = (
        f"The latest{' for the worse' if num_worse else ''}: {trend.metric.label} of {trend.spec}"
        f" {signed_percent(step.change)} at {trend.points[step.at].commit}. {looked}"
    )
    word = f"{len(tones)} step{'s' if len(tones) > 1 else ''}"
    counts = [f"{count} {name}" for count, name in ((num_worse, "worse"), (num_better, "better")) if count]
    if counts:
        word += f": {', '.join(counts)}"
    if num_worse:
        return Verdict(word, "▼", "bad", sentence, caveats)
    return Verdict(word, "▲" if num_better else "●", "good" if num_better else "neutral", sentence, caveats)


def _step_rows(history: History) -> list[StepRow]:
    """Every step, the latest first."""
    rows = [
        (
            trend.points[step.at].run.created_at,
            _step_row(group.title if len(history.groups) > 1 else "", trend, index),
        )
        for group in history.groups
        for trend in group.trends
        for index, step in enumerate(trend.steps)
    ]
    return [row for _, row in sorted(rows, key=lambda row: row[0], reverse=True)]


def _step_row(where: str, trend: Trend, index: int) -> StepRow:
    step = trend.steps[index]
    before, after = trend.points[step.at - 1], trend.points[step.at]
    tone = trend.tone(step)
    unit = trend.metric.unit
    larger = max(abs(step.before), abs(step.after))
    return StepRow(
        "▲" if step.after > step.before else "▼",
        tone,
        trend.metric.label,
        trend.spec,
        where,
        f"{before.commit} → {after.commit}" if before.commit != after.commit else after.commit,
        format_quantity(step.before, unit, largest=larger),
        format_quantity(step.after, unit, largest=larger),
        signed_percent(step.change) if step.before else "from 0",
        _changes(before, after),
    )


def _changes(before: Point, after: Point) -> tuple[str, ...]:
    """Settings that differ between two runs, as ``block size: 16 → 32``."""
    sides = [
        {fact.name: fact.text for record in (point.run.environment, point.run.config) for fact in facts(record)}
        | {fact.name: fact.text for fact in facts(point.engine.config)}
        for point in (before, after)
    ]
    names = dict.fromkeys(name for side in sides for name in side if not name.startswith("pbench, git"))
    changed = [
        f"{name}: {sides[0].get(name, 'absent')} → {sides[1].get(name, 'absent')}"
        for name in names
        if sides[0].get(name) != sides[1].get(name)
    ]
    if len(changed) > _MAX_CHANGES:
        changed[_MAX_CHANGES:] = [f"and {len(changed) - _MAX_CHANGES} more"]
    return tuple(changed)


def _run_row(group: Group, index: int) -> RunRow:
    run = group.runs[index]
    commit = Point(run, run.engines[0]).commit if run.engines else "?"
    engines = ", ".join(
        engine.spec if engine.status == "complete" else f"{engine.spec} ({engine.status})" for engine in run.engines
    )
    return RunRow(run.created_at[:16].replace("T", " "), commit, run.run_id, run.status, engines, group.title)
