"""The page about a throughput gate: everything that its template shows, in its order."""

from dataclasses import dataclass
from typing import Any, TextIO

from pbench.gate.throughput_result import FAIL, PASS, Revision, ThroughputResult, WorkloadResult
from pbench.reports.charts.pairs import forest_panel, pairs_panel
from pbench.reports.charts.panel import Panel
from pbench.reports.checks import Tally, tally
from pbench.reports.details import Fact, command_line, facts
from pbench.reports.quantity import TIMES, format_moment, format_number
from pbench.reports.report import render_template
from pbench.reports.verdict import Verdict
from pbench.results import OUTCOMES, Check

_WORDS = {PASS: ("Passed", "\u2713", "good"), FAIL: ("Failed", "\u2715", "bad")}
_UNSURE = ("Inconclusive", "?", "neutral")


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that base and head resolved differently."""

    workload: str
    name: str
    base: str
    head: str


@dataclass(frozen=True, slots=True, eq=False)
class GatePage:
    """What one page about a throughput gate shows."""

    title: str
    overline: tuple[str, ...]
    verdict: Verdict
    checks: tuple[Check, ...]
    tally: Tally | None
    panels: tuple[Panel, ...]
    rules: tuple[Fact, ...]  # how it was judged, declared before the first run
    differences: tuple[Difference, ...]
    settings: tuple[tuple[str, tuple[Fact, ...]], ...]  # by workload
    environment: tuple[Fact, ...]
    command: str
    data: dict[str, Any]


def render_gate_page(page: GatePage, stream: TextIO, *, plotlyjs: str = "inline") -> None:
    """Write ``page`` to ``stream``, in the look of a report; ``plotlyjs`` as there.

    Raises:
        UsageError: another ``plotlyjs``.
    """
    render_template("gate.html", stream, plotlyjs, ("theme.js", "page.js"), page=page)


def build_gate_page(result: ThroughputResult) -> GatePage:
    """Work out everything that is shown of a gate's result."""
    gpu, cpu = (result.environment.get(name) for name in ("gpu", "cpu"))
    device = gpu.get("name") if isinstance(gpu, dict) else cpu.get("model") if isinstance(cpu, dict) else None
    checks = _checks(result)
    rules = {
        "loss that fails": f"{result.delta:.1%}",
        "chance of a false failure, at most": f"{result.alpha:.1%}",
        "looks after so many pairs": result.looks,
    }
    return GatePage(
        title=f"{result.head.name} against {result.base.name}",
        overline=tuple(str(part) for part in ("throughput gate", device, format_moment(result.created_at)) if part),
        verdict=_verdict(result),
        checks=tuple(checks),
        tally=tally(checks),
        panels=(forest_panel(result), pairs_panel(result)),
        rules=tuple(facts(rules) + [Fact(f"left out: {name}", rule) for name, rule in result.discard_rules.items()]),
        differences=tuple(
            Difference(one.name, name, str(base), str(head))
            for one in result.workloads
            for name, (base, head) in one.differing.items()
        ),
        settings=tuple((one.name, tuple(facts(one.settings))) for one in result.workloads),
        environment=tuple(facts(result.environment)),
        command=command_line(result.command),
        data={
            "verdict": result.verdict,
            "workloads": [
                {"name": one.name, "ratio": one.looks[-1].ratio if one.looks else None, "verdict": one.verdict}
                for one in result.workloads
            ],
        },
    )


def _verdict(result: ThroughputResult) -> Verdict:
    word, icon, tone = _WORDS.get(result.verdict, _UNSURE)
    revisions = f"{_revision(result.head)} against {_revision(result.base)}"
    parts = [f"{one.name} {_ratio_text(one)}" for one in result.workloads if one.looks]
    sentence = f"Output tokens/s of {revisions}: {'; '.join(parts) or 'nothing could be judged'}."
    sentence += f" A loss of {result.delta:.1%} or more fails."
    reasons = tuple(f"{one.name}: {one.reason}" for one in result.workloads if one.verdict != PASS and one.reason)
    dirty = tuple(
        f"{side.name} has changes that are not committed" for side in (result.base, result.head) if side.is_dirty
    )
    return Verdict(word, icon, tone, sentence, (*reasons, *dirty, *result.notes))


def _ratio_text(one: WorkloadResult) -> str:
    look = one.looks[-1]
    return (
        f"{format_number(look.ratio, 4)}{TIMES} ({look.confidence:.1%} interval {format_number(look.low, 4)} to"
        f" {format_number(look.high, 4)}, {look.num_pairs} pairs)"
    )


def _revision(side: Revision) -> str:
    return f"{side.name} ({side.commit[:9]}{'*' if side.is_dirty else ''})" if side.commit else side.name


def _checks(result: ThroughputResult) -> list[Check]:
    """What a careful reader would verify of each workload, failures first."""
    checks = []
    for one in result.workloads:
        num_left_out = len(one.pairs) - len(one.counted_pairs)
        outcome = "pass" if not num_left_out else "warn"
        checks.append(
            Check(f"{one.name}: pairs kept", outcome, f"{len(one.counted_pairs)} of {len(one.pairs)} pairs count")
        )
        checks.append(Check(f"{one.name}: machine against itself", *_resolution(one, result.delta)))
        checks.append(
            Check(
                f"{one.name}: same settings on both sides",
                "warn" if one.differing else "pass",
                f"they differ in {', '.join(one.differing)}" if one.differing else "no setting differs",
            )
        )
    return sorted(checks, key=lambda check: OUTCOMES.index(check.outcome))


def _resolution(one: WorkloadResult, delta: float) -> tuple[str, str]:
    """Outcome and detail of the A/A check."""
    if one.aa is None or one.aa.smallest_delta is None:
        return "unknown", "the machine was not compared with itself" if one.aa is None else "too few pairs count"
    outcome = "pass" if one.aa.smallest_delta <= delta else "fail"
    return outcome, f"it resolves a loss of {one.aa.smallest_delta:.1%}; {delta:.1%} is asked"
