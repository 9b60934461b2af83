"""The procedure on made-up and simulated runs: what it decides, in which order it runs what, and what it writes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from pbench.errors import IncomparableError
from pbench.gate.power import Machine
from pbench.gate.run_conditions import CLOCK, DISCARD_RULES, FOREIGN, THROTTLE, Conditions
from pbench.gate.throughput import GatePlan, ThroughputGate
from pbench.gate.throughput_result import (
    FAIL,
    FILE_NAME,
    INCONCLUSIVE,
    PASS,
    Revision,
    ThroughputResult,
    WorkloadResult,
    read_throughput,
)
from pbench.gate.throughput_run import Measurement
from pbench.gate.throughput_view import FILES, summary, write_table

IDENTITY = {"workload.sha256": "ab" * 32, "config.model": "tiny"}
QUIET = Conditions(throttle_bits=0, sm_clock_mhz=1980.0, num_foreign_gpu_processes=0, foreign_cpu_share=0.02)
GPU = {"gpu": {"name": "NVIDIA H200"}}

Change = Callable[[str, int, Measurement], Measurement]


class FakeRuns:
    """Runs of a machine that drifts; head is slower by ``losses`` of the workload. ``change`` may alter any run."""

    def __init__(
        self,
        losses: Mapping[str, float],
        machine: Machine | None = None,
        seed: int = 0,
        change: Change = lambda side, number, measurement: measurement,
    ) -> None:
        self._losses = losses
        self._change = change
        speeds = (machine or Machine()).log_speeds(1, 400, np.random.default_rng(seed))[0]
        self._speeds = iter(1000 * np.exp(speeds))
        self.ran: list[tuple[str, str]] = []  # workload, side
        self.folders: list[Path] = []

    def __call__(self, side: str, workload: str, folder: Path) -> Measurement:
        loss = self._losses[workload] if side == "head" else 0.0
        self.ran.append((workload, side))
        self.folders.append(folder)
        measurement = Measurement(
            tokens_per_s=float(next(self._speeds)) * (1 - loss),
            identity=IDENTITY | {"workload": workload},
            settings={"model": "tiny", "max_running": 128},
            environment=GPU,
            conditions=QUIET,
        )
        return self._change(side, len(self.ran), measurement)

    def sides(self, workload: str) -> str:
        return "".join(side[0] for name, side in self.ran if name == workload)


class Gate:
    """Runs the gate in a folder of its own, with what it showed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []

    def __call__(self, runs: FakeRuns, *workloads: str, **plan: Any) -> ThroughputResult:
        fields: dict[str, Any] = {
            "folder": self.folder,
            "created_at": "2026-01-01T00:00:00+00:00",
            "command": ("pbench", "gate", "throughput"),
            "base": Revision("main", "a" * 40, False),
            "head": Revision(".", "b" * 40, True),
            "workloads": workloads or ("chat",),
        }
        return ThroughputGate(GatePlan(**(fields | plan)), runs, self.lines.append).run()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def only(result: ThroughputResult) -> WorkloadResult:
    (workload,) = result.workloads
    return workload


def test_a_planted_regression_fails_at_the_first_look(gate: Gate) -> None:
    runs = FakeRuns({"chat": 0.1})
    result = gate(runs)
    assert result.verdict == only(result).verdict == FAIL
    (look,) = only(result).looks
    assert (look.num_pairs, look.p_value, look.verdict) == (6, 1 / 64, FAIL)
    assert look.low < 0.9 < look.high < 1
    assert look.ratio == pytest.approx(0.9, rel=0.02)
    assert "head is 9." in only(result).reason or "head is 10." in only(result).reason


def test_the_same_code_on_both_sides_passes(gate: Gate) -> None:
    result = gate(FakeRuns({"chat": 0.0}))
    assert result.verdict == PASS
    assert only(result).looks[-1].low > 0.95


def test_base_meets_itself_first_and_then_head_in_abba_order(gate: Gate) -> None:
    runs = FakeRuns({"chat": 0.0})
    result = gate(runs)
    assert runs.sides("chat") == "bbbbbbbb" + "bhhb" * 3
    assert len(set(runs.folders)) == len(runs.folders) == 20
    assert [pair.is_base_first for pair in only(result).pairs] == [True, False] * 3
    aa = only(result).aa
    assert aa is not None
    assert (len(aa.pairs), aa.needed_pairs is not None and aa.needed_pairs < 16) == (4, True)


def test_a_pair_is_recorded_side_by_side_whichever_ran_first(gate: Gate) -> None:
    result = gate(FakeRuns({"chat": 0.5}, Machine(drift=0.0, noise=0.0)))
    for pair in only(result).pairs:
        assert (pair.base_tokens_per_s, pair.head_tokens_per_s) == (1000, 500)
        assert (pair.base_run, pair.head_run) == (
            f"runs/1-chat/{pair.number:02}-base",
            f"runs/1-chat/{pair.number:02}-head",
        )


def test_a_machine_too_noisy_for_delta_is_told_before_head_runs_at_all(gate: Gate) -> None:
    runs = FakeRuns({"chat": 0.1}, Machine(noise=0.2))
    result = gate(runs)
    assert result.verdict == INCONCLUSIVE
    assert runs.sides("chat") == "b" * 8
    aa = only(result).aa
    assert aa is not None
    assert aa.spread is not None
    assert aa.smallest_delta is not None
    assert aa.smallest_delta > result.delta
    assert f"cannot resolve 5.0%: base against itself spreads by {aa.spread:.1%}" in only(result).reason


def test_what_no_look_decides_is_inconclusive_after_sixteen_pairs(gate: Gate) -> None:
    result = gate(FakeRuns({"chat": 0.04}, Machine(drift=0.0, noise=0.02)))
    assert [look.num_pairs for look in only(result).looks] == [6, 10, 16]
    assert {look.verdict for look in only(result).looks} == {result.verdict} == {INCONCLUSIVE}
    assert only(result).reason == "16 pairs do not decide"


def on_run(numbers: set[int], **conditions: float | None) -> Change:
    """Alter what the machine did during the runs of those numbers."""

    def change(side: str, number: int, measurement: Measurement) -> Measurement:
        if number in numbers:
            return replace(measurement, conditions=replace(QUIET, **conditions))
        return measurement

    return change


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ({"throttle_bits": 0x40}, f"head: {THROTTLE}: NVML's reasons 0x40"),
        ({"num_foreign_gpu_processes": 2}, f"head: {FOREIGN}: 2 on the GPU"),
        ({"foreign_cpu_share": 0.6}, f"head: {FOREIGN}: others used 60% of the CPU"),
        ({"sm_clock_mhz": 1800.0}, f"head: {CLOCK}: 1800 MHz, in the A/A check 1980 MHz"),
    ],
)
def test_a_pair_is_discarded_for_a_declared_reason_listed_and_replaced_in_its_order(
    gate: Gate, conditions: dict[str, float], reason: str
) -> None:
    runs = FakeRuns({"chat": 0.0}, change=on_run({11}, **conditions))  # 8 runs of base alone, then head's second
    result = gate(runs)
    assert [pair.discarded for pair in only(result).pairs] == [(), (reason,), (), (), (), (), ()]
    assert runs.sides("chat")[8:] == "bhhb" + "hb" + "bhhb" * 2  # the second pair once more
    assert result.verdict == PASS
    for written in (*map(written_as(result), FILES), table(result)):
        assert reason in written.replace("\\_", "_")
    assert any(reason in line for line in gate.lines)


@pytest.mark.parametrize(
    "conditions",
    [
        {"sm_clock_mhz": 1900.0},
        {"foreign_cpu_share": 0.25},
    ],
)
def test_what_no_rule_names_discards_nothing(gate: Gate, conditions: dict[str, float]) -> None:
    result = gate(FakeRuns({"chat": 0.0}, change=on_run({11}, **conditions)))
    assert not any(pair.discarded for pair in only(result).pairs)


def test_a_rule_that_was_taken_off_before_discards_nothing(gate: Gate) -> None:
    rules = {name: rule for name, rule in DISCARD_RULES.items() if name != THROTTLE}
    result = gate(FakeRuns({"chat": 0.0}, change=on_run({11}, throttle_bits=0x40)), discard_rules=rules)
    assert not any(pair.discarded for pair in only(result).pairs)
    assert THROTTLE not in result.discard_rules


@pytest.mark.parametrize("first", [1, 9])
def test_a_machine_that_is_never_quiet_is_given_up(gate: Gate, first: int) -> None:
    result = gate(FakeRuns({"chat": 0.1}, change=on_run(set(range(first, 400)), foreign_cpu_share=0.9)))
    assert result.verdict == INCONCLUSIVE
    assert "the machine is not quiet" in only(result).reason
    assert "discarded pair" in table(result) or "discarded A/A pair" in table(result)


def test_one_failing_workload_fails_the_gate_and_the_others_are_judged_all_the_same(gate: Gate) -> None:
    result = gate(FakeRuns({"chat": 0.0, "code": 0.15, "long": 0.0}), "chat", "code", "long")
    assert [one.verdict for one in result.workloads] == [PASS, FAIL, PASS]
    assert result.verdict == FAIL
    assert summary(result).startswith("failed: code: head is 1")
    # 6 pairs cannot reach alpha / 3 looks / 3 workloads: it takes a second look to fail one of several.
    first, second = result.workloads[1].looks
    assert (first.p_value, first.p_threshold) == (1 / 64, pytest.approx(0.05 / 9))
    assert second.num_pairs == 10


def test_a_workload_that_is_too_noisy_ends_the_gate_before_any_head_runs(gate: Gate) -> None:
    calm = Machine(drift=0.0, noise=0.001)

    def change(side: str, number: int, measurement: Measurement) -> Measurement:
        factor = 1.3 if measurement.identity["workload"] == "loud" and number % 2 else 1.0
        return replace(measurement, tokens_per_s=measurement.tokens_per_s * factor)

    runs = FakeRuns({"calm": 0.1, "loud": 0.1}, calm, change=change)
    result = gate(runs, "calm", "loud")
    assert {side for _, side in runs.ran} == {"base"}
    assert result.verdict == INCONCLUSIVE
    assert result.workloads[0].reason == "another workload cannot be measured here"


@pytest.mark.parametrize(("name", "value"), [("config.model", "llama-1b"), ("workload.sha256", "cd" * 32)])
def test_runs_of_something_else_are_refused_and_the_difference_is_named(gate: Gate, name: str, value: str) -> None:
    def change(side: str, number: int, measurement: Measurement) -> Measurement:
        identity = {**measurement.identity, name: value} if side == "head" else measurement.identity
        return replace(measurement, identity=identity)

    with pytest.raises(IncomparableError, match="a run of head is not of what base's first run was of") as refusal:
        gate(FakeRuns({"chat": 0.0}, change=change))
    assert f"{name}: {IDENTITY[name]} | {value}" in str(refusal.value)


def test_what_cannot_be_seen_on_this_machine_is_noted(gate: Gate) -> None:
    blind = on_run(set(range(400)), throttle_bits=None, sm_clock_mhz=None, num_foreign_gpu_processes=None)
    assert [note.split(" cannot be seen")[0] for note in gate(FakeRuns({"chat": 0.0}, change=blind)).notes] == [
        "whether the GPU throttles",
        "the GPU's clock",
        "which processes compute on the GPU",
    ]


def test_nothing_is_noted_where_all_is_seen(gate: Gate) -> None:
    assert gate(FakeRuns({"chat": 0.0})).notes == ()


def test_settings_that_the_sides_resolve_differently_are_told(gate: Gate) -> None:
    def change(side: str, number: int, measurement: Measurement) -> Measurement:
        return replace(measurement, settings={"model": "tiny", "max_running": 256 if side == "head" else 128})

    result = gate(FakeRuns({"chat": 0.0}, change=change))
    assert (only(result).settings, only(result).differing) == ({"model": "tiny"}, {"max_running": (128, 256)})
    assert "max_running differs: 128 | 256" in table(result)


def test_the_record_on_disk_is_the_result_and_is_there_while_the_gate_runs(gate: Gate) -> None:
    states: list[ThroughputResult] = []

    def change(side: str, number: int, measurement: Measurement) -> Measurement:
        if number > 2:
            states.append(read_throughput(gate.folder / FILE_NAME))
        return measurement

    result = gate(FakeRuns({"chat": 0.0}, change=change))
    assert read_throughput(gate.folder / FILE_NAME) == result
    assert {(state.verdict, only(state).reason) for state in states} == {(INCONCLUSIVE, "not finished")}
    assert [len(only(state).pairs) for state in states[-4:]] == [4, 4, 5, 5]


def table(result: ThroughputResult) -> str:
    stream = StringIO()
    write_table(result, stream)
    return stream.getvalue()


def written_as(result: ThroughputResult) -> Callable[[str], str]:
    def written(name: str) -> str:
        stream = StringIO()
        FILES[name](result, stream)
        return stream.getvalue()

    return written


@pytest.fixture(params=[(0.0, PASS, "passed"), (0.1, FAIL, "failed"), (0.04, INCONCLUSIVE, "inconclusive")])
def decided(request: pytest.FixtureRequest, gate: Gate) -> tuple[ThroughputResult, str, str]:
    loss, verdict, word = request.param
    result = gate(FakeRuns({"chat": loss}, Machine(drift=0.0, noise=0.02)))
    assert result.verdict == verdict
    return result, verdict, word


def test_table_and_markdown_tell_ratio_interval_and_verdict(decided: tuple[ThroughputResult, str, str]) -> None:
    result, _, word = decided
    look = only(result).looks[-1]
    for text in (table(result), written_as(result)("comment.md")):
        (row,) = (line for line in text.splitlines() if "chat" in line and f"{look.ratio:.3f}" in line and word in line)
        assert f"{look.low:.3f} to {look.high:.3f}" in row
        assert f"{word}: chat: {only(result).reason}" in text
        assert "main (aaaaaaaaaaaa), head . (bbbbbbbbbbbb, with changes)" in text


def test_markdown_has_every_pair_in_tables_that_are_whole(decided: tuple[ThroughputResult, str, str]) -> None:
    lines = written_as(decided[0])("comment.md").splitlines()
    num_pairs = len(only(decided[0]).pairs)
    assert sum(line.startswith("| chat | A/A") for line in lines) == 4
    assert sum(line.startswith("| chat |") for line in lines) == 1 + 4 + num_pairs
    for above, below in pairwise(lines):
        if above.startswith("|") and below.startswith("|"):
            assert above.count("|") == below.count("|")


def test_junit_fails_a_regression_and_errs_on_what_is_not_decided(decided: tuple[ThroughputResult, str, str]) -> None:
    result, verdict, _ = decided
    suite = ElementTree.fromstring(written_as(result)("junit.xml").encode())
    counts = {name: int(suite.get(name, "-1")) for name in ("tests", "failures", "errors")}
    assert counts == {"tests": 1, "failures": verdict == FAIL, "errors": verdict == INCONCLUSIVE}
    (test,) = suite.findall("testcase")
    tags = {child.tag for child in test} - {"system-out"}
    assert tags == {PASS: set(), FAIL: {"failure"}, INCONCLUSIVE: {"error"}}[verdict]
    assert (test.findtext("system-out") or "").count("chat | A/A") == 4
