"""Runs side by side: whether they can be compared at all, how they were set up differently, and what came of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

from pbench.comparison.sides import LabelledRun
from pbench.errors import IncomparableError, UsageError
from pbench.figure_text import NOT_MEASURED, figure_text
from pbench.results import CONFIDENCE, METRICS, OUTCOMES, EngineResult, Interval, Metric, RunResult
from pbench.summary.intervals import welch_difference, welch_ratio
from pbench.units import printable

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_RATE_UNITS = ("tok/s", "req/s")
_TIME_UNITS = ("ms", "s")

SAME = "same"
NOT_SIGNIFICANT = "not significant"
ABSENT = NOT_MEASURED

# What must be equal before figures are compared. The seed goes with the hash: prompts are made from both.
_IDENTITY = (
    "workload.sha256",
    "workload.seed",
    "config.model",
    "config.dtype",
    "config.device",
    "config.hardware.gpu",  # of a simulation
    "environment.gpu.name",
    "environment.gpu.driver_version",
)

NO_INTERVAL = (
    "not repeated on both sides (--repeats): there is no interval, so how much of a difference is noise is not known"
)
NO_NOISE = "simulated: the same code gives the same figures every time, so there is no noise and no interval"


@dataclass(frozen=True, slots=True)
class SettingDifference:
    """A setting that is not the same in all runs."""

    name: str  # dotted: config.kv_memory_bytes
    values: tuple[str, ...]  # one a run; ABSENT where the run has none

    @property
    def text(self) -> str:
        """The difference in one line."""
        return f"{self.name}: {' | '.join(self.values)}"


@dataclass(frozen=True, slots=True)
class MetricSide:
    """One figure of one run: over its repeats, and of each."""

    value: float | None  # the mean over the repeats; None: not measured
    repeats: tuple[float, ...] = ()
    interval: Interval | None = None
    is_supported: bool = True  # False: a percentile of too few values
    text: str = ABSENT  # the figure with its interval and marks


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One figure in all runs."""

    metric: Metric
    sides: tuple[MetricSide, ...]

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """Every run's figure but the first's over the first's; None where the quotient has no meaning.

        Of geometric means where there is an interval, which is about their quotient.
        """
        first, *others = self.sides
        return tuple(_ratio(first, other, bounds) for other, bounds in zip(others, self.ratio_bounds, strict=True))

    @property
    def ratio_bounds(self) -> tuple[tuple[float, float] | None, ...]:
        """The interval of each ratio; None where a side has fewer than two repeats, or a figure that is not above 0."""
        first, *others = self.sides
        return tuple(welch_ratio(first.repeats, other.repeats) for other in others)

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Every run but the first against the first, in words."""
        first, *others = self.sides
        triples = zip(others, self.ratios, self.ratio_bounds, strict=True)
        return tuple(_verdict(self.metric, first, other, ratio, bounds) for other, ratio, bounds in triples)


@dataclass(frozen=True, slots=True)
class EngineRows:
    """One engine in all runs; or, where every run has one engine only, those."""

    specs: tuple[str, ...]
    rows: tuple[MetricRow, ...]
    results: tuple[EngineResult, ...] = ()

    @property
    def title(self) -> str:
        """The engine's name, or the names where they differ."""
        return printable(" | ".join(dict.fromkeys(self.specs)))


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Several runs side by side, each against the first."""

    runs: tuple[LabelledRun, ...]
    forbidding: tuple[SettingDifference, ...]  # why they should not be compared; empty unless the user forced it
    settings: tuple[SettingDifference, ...]  # all that differ, those included
    engines: tuple[EngineRows, ...]
    notes: tuple[str, ...]

    @property
    def letters(self) -> tuple[str, ...]:
        """A short name for every run, in their order."""
        return tuple(_LETTERS[: len(self.runs)])


def compare_runs(runs: Sequence[LabelledRun], *, is_forced: bool) -> RunComparison:
    """Compare every run with the first.

    Raises:
        UsageError: fewer than two runs, one given twice, too many, or no engine that all have.
        IncomparableError: the runs are of other workloads, models or machines, and ``is_forced`` is False.

    """
    if not 2 <= len(runs) <= len(_LETTERS):
        raise UsageError(f"{len(runs)} runs to compare; give 2 to {len(_LETTERS)} run folders")
    labels = [run.label for run in runs]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"run {printable(label)} is given twice; a run cannot be compared with itself")
    settings = tuple(_differences([_run_settings(run.result) for run in runs]))
    forbidding = tuple(one for one in settings if one.name in _IDENTITY)
    if forbidding and not is_forced:
        lines = [f"  {one.text}" for one in forbidding]
        raise IncomparableError(
            "\n".join(["these runs are not of the same thing:", *lines, "--force compares them all the same"])
        )
    groups = _common_engines(runs)
    engines = tuple(_engine_rows(group) for group in groups)
    by_engine = tuple(one for group in groups for one in _engine_settings(runs, group))
    return RunComparison(tuple(runs), forbidding, settings + by_engine, engines, tuple(_notes(runs, groups)))


def _run_settings(result: RunResult) -> dict[str, str]:
    parts = {"workload": result.workload, "config": result.config, "environment": result.environment}
    return dict(_flat(parts))


def _engine_settings(runs: Sequence[LabelledRun], group: Sequence[EngineResult]) -> Iterator[SettingDifference]:
    """What differs in the engines' own configurations, but not in what their runs' engines have in common."""
    own = []
    for run, engine in zip(runs, group, strict=True):
        common = dict(_flat(run.result.config))
        own.append({name: value for name, value in _flat(engine.config) if common.get(name) != value})
    title = " | ".join(dict.fromkeys(engine.spec for engine in group))
    for one in _differences(own):
        yield SettingDifference(f"{printable(title)}: {one.name}", one.values)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:  # what is None is not there: a machine without a GPU has no GPU's name
            yield f"{prefix}{name}", str(value)


def _differences(sides: Sequence[Mapping[str, str]]) -> Iterator[SettingDifference]:
    for name in dict.fromkeys(name for side in sides for name in side):
        values = tuple(printable(side.get(name, ABSENT)) for side in sides)
        if len(set(values)) > 1:
            yield SettingDifference(printable(name), values)


def _common_engines(runs: Sequence[LabelledRun]) -> list[tuple[EngineResult, ...]]:
    """The engines to compare: those that all runs have, or the only one of each."""
    by_spec = [{engine.spec: engine for engine in run.result.engines} for run in runs]
    common = [spec for spec in by_spec[0] if all(spec in engines for engines in by_spec)]
    if common:
        return [tuple(engines[spec] for engines in by_spec) for spec in common]
    if all(len(engines) == 1 for engines in by_spec):
        return [tuple(next(iter(engines.values())) for engines in by_spec)]
    pairs = zip(runs, by_spec, strict=True)
    held = "; ".join(f"{printable(run.label)} has {', '.join(map(printable, specs))}" for run, specs in pairs)
    raise UsageError(f"no engine is in all of these runs: {held}; give runs with a common engine, or with one each")


def _engine_rows(group: Sequence[EngineResult]) -> EngineRows:
    rows = (MetricRow(metric, tuple(_side(engine, metric) for engine in group)) for metric in METRICS)
    measured = tuple(row for row in rows if any(side.value is not None for side in row.sides))
    return EngineRows(tuple(engine.spec for engine in group), measured, tuple(group))


def _side(engine: EngineResult, metric: Metric) -> MetricSide:
    return MetricSide(
        engine.summary.get(metric.name),
        engine.values(metric.name),
        engine.intervals.get(metric.name),
        metric.name not in engine.unsupported,
        figure_text(engine, metric),
    )


def _notes(runs: Sequence[LabelledRun], groups: Sequence[Sequence[EngineResult]]) -> Iterator[str]:
    """What to know before believing the figures: the interval first."""
    yield _interval_note(runs, groups)
    compared = [engine.spec for group in groups for engine in group]
    who_says: dict[str, list[str]] = {}
    for letter, run in zip(_LETTERS, runs, strict=False):
        for engine in run.result.engines:
            name = f"{letter} {printable(engine.spec)}"
            if engine.spec not in compared:
                yield f"{name}: left out, not all runs have it"
                continue
            if engine.status != "complete":
                yield f"{name}: {engine.status}: {printable(engine.reason or 'no reason is recorded')}"
            for note in engine.notes:
                who_says.setdefault(note, []).append(name)
    yield from _check_notes(runs, compared)
    for note, names in who_says.items():
        scope = "" if len(names) == len(compared) else f" ({', '.join(names)})"
        yield f"{printable(note)}{scope}"


def _check_notes(runs: Sequence[LabelledRun], compared: Sequence[str]) -> Iterator[str]:
    """The checks that were not passed, worst first; what this machine cannot tell is left to the runs themselves."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for letter, run in zip(_LETTERS, runs, strict=False):
        made = [(f"{letter} {engine.spec}", engine.checks) for engine in run.result.engines if engine.spec in compared]
        for name, checks in (*made, (letter, run.result.checks)):
            for check in checks:
                if check.outcome in ("fail", "warn"):
                    found.setdefault((check.outcome, check.name, check.detail), []).append(name)
    for (outcome, name, detail), who in sorted(found.items(), key=lambda one: OUTCOMES.index(one[0][0])):
        yield printable(f"{outcome}: {name} ({', '.join(who)}): {detail}")


def _interval_note(runs: Sequence[LabelledRun], groups: Sequence[Sequence[EngineResult]]) -> str:
    if all(run.result.environment.get("is_simulated") for run in runs):
        return NO_NOISE
    numbers = [min(len(group[place].values("output_tokens_per_s")) for group in groups) for place in range(len(runs))]
    if min(numbers) < 2:
        return NO_INTERVAL
    return (
        f"intervals are Welch's t at {CONFIDENCE:.0%} over {' and '.join(map(str, numbers))} repeats, each figure by"
        f" itself: of 20 figures that did not change, one is expected to be called different"
    )


def _ratio(first: MetricSide, other: MetricSide, bounds: tuple[float, float] | None) -> float | None:
    if bounds is not None:
        return geometric_mean(other.repeats) / geometric_mean(first.repeats)
    if first.value is None or other.value is None or first.value <= 0:
        return None
    return other.value / first.value


def _verdict(
    metric: Metric, first: MetricSide, other: MetricSide, ratio: float | None, bounds: tuple[float, float] | None
) -> str:
    """How ``other`` stands to ``first``; SAME as far as a factor of two decimals tells."""
    if first.value is None or other.value is None:
        return ""
    is_more = other.value > first.value if ratio is None else ratio > 1
    factor = f"{_above_one(ratio):.2f}x " if ratio else ""
    if first.value == other.value or factor == "1.00x ":
        return SAME
    if not _is_significant(first, other, bounds):
        return NOT_SIGNIFICANT
    within = "" if bounds is None or bounds[0] == bounds[1] else _within(bounds, is_more)
    if metric.unit in _RATE_UNITS:
        return f"{factor}{'faster' if is_more else 'slower'}{within}"
    if metric.unit in _TIME_UNITS:
        return f"{factor}{'slower' if is_more else 'faster'}{within}"
    amount = f"{factor}{'more' if is_more else 'less'}"
    if metric.is_higher_better is None:
        return f"{amount}{within}"
    return f"{amount}, {'better' if is_more == metric.is_higher_better else 'worse'}{within}"


def _is_significant(first: MetricSide, other: MetricSide, bounds: tuple[float, float] | None) -> bool:
    """Whether the interval of the difference leaves out "none"; taken for granted where there is no interval."""
    if bounds is not None:
        return not bounds[0] <= 1 <= bounds[1]
    difference = welch_difference(first.repeats, other.repeats)
    return difference is None or not difference[0] <= 0 <= difference[1]


def _within(bounds: tuple[float, float], is_more: bool) -> str:
    """The interval of the factor as it is told, which is never below 1."""
    low, high = bounds if is_more else (1 / bounds[1], 1 / bounds[0])
    return f" [{low:.2f}, {high:.2f}]"


def _above_one(ratio: float) -> float:
    return max(ratio, 1 / ratio)
