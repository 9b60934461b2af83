"""From an engine's repeats to the engine: means, intervals, and what a reader must know of all of them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean

from pbench.results import METRICS, OUTCOMES, Check, EngineResult, Interval, Repeat
from pbench.summary.intervals import interval_of
from pbench.summary.support import is_supported
from pbench.validity.run import check_spread

_Summary = dict[str, float | int | None]


def aggregate(engine: EngineResult, repeats: Sequence[Repeat], num_repeats: int) -> EngineResult:
    """``engine`` with what follows from ``repeats``, which have ended, of ``num_repeats`` that are to be.

    Figures are of the complete repeats; where there is none, of those that measured anything.
    """
    chosen = [repeat for repeat in repeats if repeat.status == "complete"] or list(repeats)
    filled = replace(engine, repeats=tuple(repeats))
    if not repeats:
        return filled
    broken = [repeat for repeat in repeats if repeat.status != "complete"]
    statuses = {repeat.status for repeat in repeats}
    reasons = [_of_repeat(repeat, num_repeats, repeat.reason) for repeat in broken if repeat.reason is not None]
    summary, intervals = _summarise(chosen)
    aggregated = replace(
        filled,
        status=next(status for status in ("failed", "interrupted", "complete") if status in statuses),
        reason="; ".join(reasons) or None,
        memory=max((repeat.memory for repeat in chosen), key=lambda memory: memory.get("peak", 0)),
        summary=summary,
        intervals=intervals,
        unsupported=tuple(_unsupported(chosen)),
        notes=tuple(_notes(repeats, num_repeats)),
        checks=tuple(_worst_checks(chosen, num_repeats)),
    )
    spread = check_spread(aggregated)
    return aggregated if spread is None else replace(aggregated, checks=(*aggregated.checks, spread))


def _summarise(repeats: Sequence[Repeat]) -> tuple[_Summary, dict[str, Interval]]:
    summary: _Summary = {}
    intervals: dict[str, Interval] = {}
    for metric in METRICS:
        values = [value for repeat in repeats if (value := repeat.summary.get(metric.name)) is not None]
        is_same = len(set(values)) == 1  # a count that every repeat has stays a count
        summary[metric.name] = values[0] if is_same else fmean(values) if values else None
        interval = interval_of(values)
        if interval is not None:
            intervals[metric.name] = interval
    return summary, intervals


def _unsupported(repeats: Sequence[Repeat]) -> Iterable[str]:
    """Percentiles that some repeat has too few values for."""
    for metric in METRICS:
        numbers = [repeat.samples[metric.name] for repeat in repeats if metric.name in repeat.samples]
        if numbers and not is_supported(metric.name, min(numbers)):
            yield metric.name


def _notes(repeats: Sequence[Repeat], num_repeats: int) -> Iterable[str]:
    """Every note once; one that is not of all repeats says of which."""
    for note in dict.fromkeys(note for repeat in repeats for note in repeat.notes):
        having = [repeat for repeat in repeats if note in repeat.notes]
        if len(having) == len(repeats):
            yield note
        else:
            numbers = ", ".join(str(repeat.repeat) for repeat in having)
            yield f"repeat {numbers} of {num_repeats}: {note}"


def _worst_checks(repeats: Sequence[Repeat], num_repeats: int) -> Iterable[Check]:
    """Each check once, with its worst outcome and the detail of the repeat that had it."""
    by_name: dict[str, list[tuple[Repeat, Check]]] = {}
    for repeat in repeats:
        for check in repeat.checks:
            by_name.setdefault(check.name, []).append((repeat, check))
    for found in by_name.values():
        repeat, worst = min(found, key=lambda one: OUTCOMES.index(one[1].outcome))
        is_alike = all(check.outcome == worst.outcome for _, check in found)
        yield worst if is_alike else replace(worst, detail=_of_repeat(repeat, num_repeats, worst.detail))


def _of_repeat(repeat: Repeat, num_repeats: int, text: str | None) -> str:
    return f"repeat {repeat.repeat} of {num_repeats}: {text}" if num_repeats > 1 else f"{text}"
