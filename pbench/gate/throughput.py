"""The throughput gate: base against itself, then base against head, pair by pair, until it is decided.

See ``pbench.gate.paired_statistics`` for the rule. Who measures is given: the procedure runs on recorded figures too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np

from pbench.errors import IncomparableError, PbenchError
from pbench.gate.paired_statistics import (
    Design,
    Floats,
    estimate,
    has_failed,
    has_passed,
    holm_thresholds,
    needed_pairs,
    smallest_delta,
    spread_of,
)
from pbench.gate.run_conditions import DISCARD_RULES, discard_reasons
from pbench.gate.throughput_result import (
    FAIL,
    FILE_NAME,
    INCONCLUSIVE,
    PASS,
    Look,
    Pair,
    Resolution,
    Revision,
    ThroughputResult,
    WorkloadResult,
    write_throughput,
)
from pbench.gate.throughput_run import Measurement
from pbench.units import format_number, printable, slug

RUNS_FOLDER = "runs"
UNFINISHED = "not finished"


class Measure(Protocol):
    """Makes one run."""

    def __call__(self, side: str, workload: str, folder: Path) -> Measurement:
        """Run the workload with the code of ``side`` (base or head) into a folder that does not exist yet."""


@dataclass(frozen=True, slots=True)
class GatePlan:
    """Everything that the gate needs, resolved."""

    folder: Path  # exists and is empty
    created_at: str  # ISO 8601, UTC
    command: tuple[str, ...]
    base: Revision
    head: Revision
    workloads: tuple[str, ...]
    design: Design = field(default_factory=Design)
    discard_rules: Mapping[str, str] = field(default_factory=lambda: DISCARD_RULES)


@dataclass(slots=True)
class _Case:
    """One workload, as far as it has come."""

    name: str
    folder: Path
    firsts: dict[str, Measurement] = field(default_factory=dict)  # of each side
    clocks_mhz: list[float] = field(default_factory=list)  # of the A/A check's runs
    aa_pairs: list[Pair] = field(default_factory=list)
    aa: Resolution | None = None
    pairs: list[Pair] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    verdict: str | None = None  # None: open
    reason: str = UNFINISHED

    def decide(self, verdict: str, reason: str) -> None:
        self.verdict, self.reason = verdict, reason


class ThroughputGate:
    """Runs a plan. ``throughput.json`` is there from the first pair on, and inconclusive until it is decided."""

    def __init__(self, plan: GatePlan, measure: Measure, show: Callable[[str], None]) -> None:
        self._plan = plan
        self._design = plan.design
        self._measure = measure
        self._show = show
        runs = plan.folder / RUNS_FOLDER
        self._last: Measurement | None = None
        self._cases = [
            _Case(name, runs / f"{number}-{slug(Path(name).name)}") for number, name in enumerate(plan.workloads, 1)
        ]

    def run(self) -> ThroughputResult:
        """Run everything and return the record, which is also in the folder.

        Raises:
            IncomparableError: the runs are not of the same thing.
            PbenchError: what ``measure`` raised.

        """
        for case in self._cases:
            case.folder.mkdir(parents=True)
            self._check_resolution(case)
        if len(self._open_cases()) == len(self._cases):
            for num_pairs in self._design.looks:
                for case in self._open_cases():
                    self._add_pairs(case, case.pairs, num_pairs, is_aa=False)
                self._look()
        for case in self._open_cases():
            case.decide(
                INCONCLUSIVE, _undecided(case.looks[-1]) if case.looks else "another workload cannot be measured here"
            )
        return self._write()

    @property
    def result(self) -> ThroughputResult:
        """The record as far as it has come."""
        plan = self._plan
        return ThroughputResult(
            created_at=plan.created_at,
            command=plan.command,
            base=plan.base,
            head=plan.head,
            delta=plan.design.delta,
            alpha=plan.design.alpha,
            looks=plan.design.looks,
            discard_rules=plan.discard_rules,
            environment=self._last.environment if self._last else {},
            workloads=tuple(_workload_result(case) for case in self._cases),
            verdict=_overall([case.verdict for case in self._cases]),
            notes=tuple(_notes(self._last)) if self._last else (),
        )

    def _open_cases(self) -> list[_Case]:
        return [case for case in self._cases if case.verdict is None]

    def _check_resolution(self, case: _Case) -> None:
        """The A/A check: whether the machine is so quiet that an unchanged head would pass."""
        design = self._design
        self._add_pairs(case, case.aa_pairs, design.aa_pairs, is_aa=True)
        logs = _logs(case.aa_pairs)
        if logs.size < design.aa_pairs:
            case.aa = Resolution(tuple(case.aa_pairs), design.power)
            return
        spread = float(spread_of(logs)[0])
        delta = float(smallest_delta(spread_of(logs), design)[0])
        needed = needed_pairs(spread, design)
        case.aa = Resolution(tuple(case.aa_pairs), design.power, spread, needed, delta)
        if delta > design.delta:
            more = f"{format_number(needed)} pairs" if needed else "far too many pairs"
            case.decide(
                INCONCLUSIVE,
                f"this machine cannot resolve {design.delta:.1%}: base against itself spreads by {spread:.1%} a pair,"
                f" so {design.most_pairs} pairs resolve {delta:.1%} and {more} would be needed",
            )

    def _add_pairs(self, case: _Case, pairs: list[Pair], num_pairs: int, *, is_aa: bool) -> None:
        """Measure until ``num_pairs`` of ``pairs`` count; give the case up when as many were discarded."""
        while (num_counted := sum(not pair.discarded for pair in pairs)) < num_pairs:
            if len(pairs) - num_counted >= num_pairs:
                num_discarded = len(pairs) - num_counted
                reason = f"the machine is not quiet: {num_discarded} of {len(pairs)} pairs were discarded"
                case.decide(INCONCLUSIVE, reason)
                return
            # A pair that replaces a discarded one has its order, so that those that count alternate.
            is_base_first = num_counted % 2 == 0
            pairs.append(self._pair(case, len(pairs) + 1, is_aa=is_aa, is_base_first=is_base_first))
            self._write()

    def _pair(self, case: _Case, number: int, *, is_aa: bool, is_base_first: bool) -> Pair:
        labels = ("a", "b") if is_aa else ("base", "head")
        folders = {label: case.folder / f"{'aa-' if is_aa else ''}{number:02}-{label}" for label in labels}
        runs: dict[str, Measurement] = {}
        for label in labels if is_base_first else reversed(labels):
            side = "base" if is_aa else label
            try:
                runs[label] = self._last = self._measure(side, case.name, folders[label])
                _check_same(case, side, runs[label])
            except PbenchError as error:
                case.reason = " ".join(str(error).split())
                self._write()
                raise
        normal_clock = None if is_aa or not case.clocks_mhz else median(case.clocks_mhz)
        discarded = tuple(
            f"{label}: {reason}"
            for label in labels
            for reason in discard_reasons(runs[label].conditions, normal_clock, self._plan.discard_rules)
        )
        if is_aa and not discarded:
            case.clocks_mhz += [clock for run in runs.values() if (clock := run.conditions.sm_clock_mhz) is not None]
        base, head = labels
        pair = Pair(
            number=number,
            is_base_first=is_base_first,
            base_tokens_per_s=runs[base].tokens_per_s,
            head_tokens_per_s=runs[head].tokens_per_s,
            base_run=str(folders[base].relative_to(self._plan.folder)),
            head_run=str(folders[head].relative_to(self._plan.folder)),
            discarded=discarded,
        )
        self._show(_pair_line(case.name, pair, is_aa=is_aa))
        return pair

    def _look(self) -> None:
        """Judge every open workload by the pairs that count."""
        design = self._design
        cases = self._open_cases()
        estimates = [estimate(_logs(case.pairs), design) for case in cases]
        p_values = [float(one.p_value[0]) for one in estimates]
        num_open = sum(case.verdict != FAIL for case in self._cases)
        thresholds = holm_thresholds(p_values, design.alpha_per_look, num_open)
        for case, one, threshold in zip(cases, estimates, thresholds, strict=True):
            verdict = INCONCLUSIVE
            if has_failed(one, threshold, design)[0]:
                verdict = FAIL
            elif has_passed(one, design)[0]:
                verdict = PASS
            look = Look(
                num_pairs=_logs(case.pairs).size,
                ratio=float(one.ratio[0]),
                low=float(one.low[0]),
                high=float(one.high[0]),
                confidence=design.confidence,
                p_value=float(one.p_value[0]),
                p_threshold=threshold,
                verdict=verdict,
            )
            case.looks.append(look)
            if verdict != INCONCLUSIVE:
                case.decide(verdict, _decided(look, design.delta))
        self._write()

    def _write(self) -> ThroughputResult:
        result = self.result
        write_throughput(self._plan.folder / FILE_NAME, result)
        return result


def _logs(pairs: Sequence[Pair]) -> Floats:
    """log(ratio) of the pairs that count, (1, pairs)."""
    return np.log([[pair.ratio for pair in pairs if not pair.discarded]])


def _check_same(case: _Case, side: str, run: Measurement) -> None:
    """Refuse a run that is of something else than the workload's first."""
    first = next(iter(case.firsts.values()), run)
    case.firsts.setdefault(side, run)
    reasons = [
        f"  {name}: {printable(str(first.identity.get(name)))} | {printable(str(run.identity.get(name)))}"
        for name in dict.fromkeys((*first.identity, *run.identity))
        if first.identity.get(name) != run.identity.get(name)
    ]
    if reasons:
        what = f"{printable(case.name)}: a run of {side} is not of what base's first run was of:"
        raise IncomparableError("\n".join([what, *reasons]))


def _workload_result(case: _Case) -> WorkloadResult:
    base = case.firsts.get("base")
    head = case.firsts.get("head", base)
    settings: dict[str, Any] = {}
    differing: dict[str, tuple[Any, Any]] = {}
    if base and head:
        for name in dict.fromkeys((*base.settings, *head.settings)):
            sides = base.settings.get(name), head.settings.get(name)
            if sides[0] == sides[1]:
                settings[name] = sides[0]
            else:
                differing[name] = sides
    return WorkloadResult(
        name=case.name,
        sha256=base.workload_sha256 if base else "",
        settings=settings,
        differing=differing,
        aa=case.aa,
        pairs=tuple(case.pairs),
        looks=tuple(case.looks),
        verdict=case.verdict or INCONCLUSIVE,
        reason=case.reason,
    )


def _overall(verdicts: Sequence[str | None]) -> str:
    """One failure fails all; all must pass to pass."""
    if FAIL in verdicts:
        return FAIL
    return PASS if all(verdict == PASS for verdict in verdicts) else INCONCLUSIVE


def _notes(run: Measurement) -> Iterator[str]:
    """Reasons for discarding that cannot be seen on this machine."""
    if not run.environment.get("gpu"):
        yield "on the CPU neither throttling nor clocks are seen, only what other processes used of the CPU"
        return
    conditions = run.conditions
    for what, seen in (
        ("whether the GPU throttles", conditions.throttle_bits),
        ("the GPU's clock", conditions.sm_clock_mhz),
        ("which processes compute on the GPU", conditions.num_foreign_gpu_processes),
    ):
        if seen is None:
            yield f"{what} cannot be seen here: no pair was discarded for it"


def _pair_line(name: str, pair: Pair, *, is_aa: bool) -> str:
    base, head = format_number(pair.base_tokens_per_s), format_number(pair.head_tokens_per_s)
    what = f"A/A pair {pair.number}: {base} and {head}" if is_aa else f"pair {pair.number}: base {base}, head {head}"
    discarded = f"; discarded: {'; '.join(pair.discarded)}" if pair.discarded else ""
    return f"{printable(name)}, {what} tok/s, ratio {pair.ratio:.3f}{discarded}"


def _decided(look: Look, delta: float) -> str:
    if look.verdict == FAIL:
        return f"head is {1 - look.ratio:.1%} slower than base, significantly (p = {look.p_value:.2g})"
    return f"head is not {delta:.1%} slower than base: its ratio's interval begins at {look.low:.3f}"


def _undecided(look: Look) -> str:
    return f"{look.num_pairs} pairs do not decide"
