"""``pbench gate``: the same code counts the same, worse code fails, and what is not comparable is refused."""

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pbench.__main__ import main
from pbench.engine.paged_memory import PagedMemory
from pbench.engine.records import KVUsage, StepRecord
from pbench.errors import IncomparableError, ResultError
from pbench.gate import scenarios as gate_scenarios
from pbench.gate.baseline import Case, read_baseline, write_baseline
from pbench.gate.check import ALLOWED, BETTER, CHANGED, WORSE, check
from pbench.gate.counters import COUNTERS, count
from pbench.gate.scenarios import SCENARIOS, Scenario, play
from pbench.gate.view import WRITERS
from pbench.results import METRICS

ROOT = Path(__file__).parent.parent.parent

SMALL = (
    Scenario("chat", "chat-shared-prompt", 16, "512MiB", ("paged", "contiguous:max")),
    Scenario("lengths", "sharegpt-lengths", 16, "512MiB", ("paged",)),
)
CASE = Case("chat", "paged", "ab" * 32, 0, {"block_size": 16}, {counter.name: 100 for counter in COUNTERS})


@pytest.fixture
def small_scenarios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_scenarios, "SCENARIOS", SMALL)


@pytest.fixture
def baseline(tmp_path: Path, small_scenarios: None) -> Path:
    path = tmp_path / "gate.json"
    assert main(["gate", "record", "--out", str(path)]) == 0
    return path


def hoard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the paged memory take every block before it is needed."""
    grow = PagedMemory.grow
    monkeypatch.setattr(
        PagedMemory, "grow", lambda self, seq, num_new_tokens: grow(self, seq, num_new_tokens + self.block_size)
    )


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def with_counter(name: str, value: float) -> Case:
    return replace(CASE, counters={**CASE.counters, name: value})


def checked(path: Path, *options: str) -> int:
    return main(["gate", "check", "--baseline", str(path), *options])


def test_the_committed_baseline_holds_for_this_code() -> None:
    cases = [case for scenario in SCENARIOS for case in play(scenario)]
    assert check(read_baseline(ROOT / "benchmarks" / "gate.json"), cases, 0.0).differences == ()


def test_every_mechanism_of_the_memory_is_at_work_in_the_committed_baseline() -> None:
    cases = read_baseline(ROOT / "benchmarks" / "gate.json")
    for counter in COUNTERS:
        assert any(case.counters[counter.name] > 0 for case in cases), counter.name
    for case in cases:
        is_ample = case.scenario == "sharegpt-lengths-ample"
        assert (case.counters["memory_blocked_steps"] == 0) == is_ample, case.key


def step_record(number: int, usage: KVUsage, **counts: int) -> StepRecord:
    zeros = {field.name: 0 for field in fields(StepRecord) if field.name not in ("is_memory_blocked", "usage")}
    values = zeros | {"step": number} | counts
    return StepRecord(**values, is_memory_blocked=number > 0, usage=usage)


def test_counters_are_what_a_reader_counts_by_hand() -> None:
    first = KVUsage(token_state=30, reserved=5, internal=3, external=2, cached=20, free=40, shared_saved=10)
    second = KVUsage(token_state=60, reserved=0, internal=0, external=0, cached=0, free=40, shared_saved=20)
    steps = [
        step_record(0, first, num_running=1, num_prefill_tokens=7, num_preempted=1, num_copied_blocks=2),
        step_record(1, second, num_running=2, num_prefill_tokens=1, num_finished=2, num_output_tokens=3),
        step_record(2, second, num_running=2, num_forks=4, num_swapped_out_blocks=5, num_moved_slots=6),
    ]
    assert count(steps) == {counter.name: 0 for counter in COUNTERS} | {
        "finished_requests": 2,
        "output_tokens": 3,
        "steps": 3,
        "prefill_tokens": 8,
        "peak_running": 2,
        "mean_running": 1.6667,
        "peak_held_slots": 60,
        "held_slot_steps": 38 + 60 + 60,
        "waste_pct": 3.3333,  # 10 of 300
        "shared_saved_pct": 25.0,  # 50 of 200
        "forks": 4,
        "copied_blocks": 2,
        "preemptions": 1,
        "swapped_blocks": 5,
        "moved_slots": 6,
        "memory_blocked_steps": 2,
    }


@pytest.mark.parametrize("metric_name", ["peak_running", "mean_running", "waste_pct", "preemptions"])
def test_a_counter_that_is_a_metric_is_judged_as_the_metric(metric_name: str) -> None:
    (counter,) = (counter for counter in COUNTERS if counter.name == metric_name)
    (metric,) = (metric for metric in METRICS if metric.name == metric_name)
    assert counter.is_higher_better is metric.is_higher_better is not None


def test_unchanged_code_passes(baseline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(baseline) == 0
    assert f"passed: {3 * len(COUNTERS)} counters of 3 cases are those of the baseline" in capsys.readouterr().out


def test_recording_twice_writes_the_same_bytes(baseline: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.json"
    assert main(["gate", "record", "--out", str(again)]) == 0
    assert again.read_bytes() == baseline.read_bytes()


def test_an_allocator_that_uses_more_blocks_fails(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hoard(monkeypatch)
    capsys.readouterr()
    assert checked(baseline, "--format", "json") == 1
    differences = json.loads(capsys.readouterr().out)["differences"]
    assert {one["engine"] for one in differences} == {"paged"}
    for scenario in ("chat", "lengths"):
        worse = {one["counter"] for one in differences if (one["scenario"], one["verdict"]) == (scenario, WORSE)}
        assert worse >= {"held_slot_steps", "waste_pct"}


def test_an_allocator_that_uses_fewer_blocks_passes_as_better(
    tmp_path: Path, small_scenarios: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gate.json"
    with monkeypatch.context() as patch:
        hoard(patch)
        assert main(["gate", "record", "--out", str(path)]) == 0
    result = check(read_baseline(path), [case for scenario in SMALL for case in play(scenario)], 0.0)
    judged = {(one.scenario, one.counter): one.verdict for one in result.differences}
    assert judged["chat", "held_slot_steps"] == judged["lengths", "waste_pct"] == BETTER


@pytest.mark.parametrize(
    ("name", "now", "allowed_pct", "verdict"),
    [
        ("steps", 101, 0, WORSE),
        ("steps", 99, 0, BETTER),
        ("mean_running", 99.9999, 0, WORSE),
        ("mean_running", 100.0001, 0, BETTER),
        ("prefix_hit_tokens", 99, 0, WORSE),
        ("steps", 105, 5, ALLOWED),
        ("steps", 106, 5, WORSE),
        ("peak_running", 95, 5, ALLOWED),
        ("peak_running", 94, 5, WORSE),
        ("forks", 101, 0, CHANGED),
        ("forks", 99, 0, CHANGED),
    ],
)
def test_the_direction_and_the_allowance_judge_a_counter(
    name: str, now: float, allowed_pct: float, verdict: str
) -> None:
    result = check([CASE], [with_counter(name, now)], allowed_pct)
    assert [(one.counter, one.verdict) for one in result.differences] == [(name, verdict)]
    assert result.has_passed == (verdict != WORSE)


def test_no_allowance_covers_what_was_zero() -> None:
    result = check([with_counter("preemptions", 0)], [with_counter("preemptions", 1)], 1e9)
    assert [(one.verdict, one.change_pct) for one in result.differences] == [(WORSE, None)]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (replace(CASE, workload_sha256="cd" * 32), "workload sha256 cdcdcdcdcdcd in the baseline, abababababab now"),
        (replace(CASE, workload_seed=1), "workload seed 1 in the baseline, 0 now"),
        (replace(CASE, settings={"block_size": 32}), "setting block_size 32 in the baseline, 16 now"),
        (replace(CASE, settings={}), "setting block_size absent in the baseline, 16 now"),
        (replace(CASE, counters={**CASE.counters, "dreams": 1}), "counter dreams in the baseline only"),
        (replace(CASE, engine="contiguous:max"), "chat, contiguous:max: in the baseline only"),
    ],
)
def test_what_is_of_something_else_is_refused_and_told(other: Case, reason: str) -> None:
    with pytest.raises(IncomparableError) as refusal:
        check([other], [CASE], 0.0)
    assert reason in str(refusal.value)
    assert "pbench gate record" in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda document: document["cases"][0].update(workload_sha256="cd" * 32), "chat, paged: workload sha256"),
        (lambda document: document.update(schema_version=99), "schema version 99"),
        (lambda document: document["cases"].pop(), "lengths, paged: not in the baseline"),
    ],
)
def test_an_incomparable_baseline_ends_with_4(
    baseline: Path, change: Callable[[dict[str, Any]], object], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(baseline, change)
    assert checked(baseline) == 4
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "does not exist; make it with `pbench gate record`"),
        ("{", "is not JSON"),
        ("[]", "has no schema_version"),
        ('{"schema_version": "1"}', "has no schema_version"),
        ('{"schema_version": true}', "has no schema_version"),
        ('{"schema_version": 1}', "cases is not a list"),
        ('{"schema_version": 1, "cases": [3]}', "cases[0] is not an object"),
        ('{"schema_version": 1, "cases": [{}]}', "cases[0]: scenario is missing"),
    ],
)
def test_a_broken_baseline_ends_with_2_and_one_line(
    tmp_path: Path, text: str | None, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gate.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert checked(path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


@pytest.mark.parametrize("value", [math.nan, "1", True, None])
def test_a_counter_that_is_no_number_is_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "gate.json"
    case = {"scenario": "a", "engine": "b", "workload_sha256": "c", "workload_seed": 0, "settings": {}}
    path.write_text(json.dumps({"schema_version": 1, "cases": [case | {"counters": {"steps": value}}]}))
    with pytest.raises(ResultError, match=r"cases\[0\]: counters.steps is .*, not a number"):
        read_baseline(path)


def test_a_baseline_reads_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    write_baseline(path, [CASE, replace(CASE, engine="static")])
    assert read_baseline(path) == (CASE, replace(CASE, engine="static"))
    write_baseline(path, [CASE, CASE])
    with pytest.raises(ResultError, match="chat, paged twice"):
        read_baseline(path)


def test_a_folder_that_is_not_there_is_refused_before_anything_is_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate_scenarios, "play", lambda scenario: pytest.fail("played"))
    assert main(["gate", "record", "--out", str(tmp_path / "no" / "gate.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err


RESULT = check(
    [CASE, replace(CASE, engine="static")],
    [replace(CASE, counters={**CASE.counters, "steps": 110, "forks": 99}), replace(CASE, engine="static")],
    0.0,
)


def written(format_name: str) -> str:
    stream = StringIO()
    WRITERS[format_name](RESULT, stream)
    return stream.getvalue()


def test_the_table_and_the_markdown_show_every_difference_and_the_way_out() -> None:
    for format_name in ("table", "markdown"):
        text = written(format_name)
        (steps,) = (line for line in text.splitlines() if "| steps" in line or "steps " in line)
        for part in ("chat", "paged", "100", "110", "+10.00 %", WORSE):
            assert part in steps
        (forks,) = (line for line in text.splitlines() if " forks " in line)
        assert CHANGED in forks
        assert "failed: of 38 counters of 2 cases, 2 differ, 1 worse" in text
        assert "pbench gate record" in text


def test_junit_fails_the_case_that_is_worse_and_no_other() -> None:
    suite = ElementTree.fromstring(written("junit").encode())
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    failing, passing = suite.findall("testcase")
    assert (failing.get("classname"), failing.get("name")) == ("pbench.gate.chat", "paged")
    assert failing.findtext("failure") == "steps: 100 -> 110 (+10.00 %), worse"
    assert "forks: 100 -> 99 (-1.00 %), changed" in (failing.findtext("system-out") or "")
    assert list(passing) == []


def test_a_result_in_a_file_leaves_one_line_on_the_terminal(
    baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert checked(baseline, "--format", "markdown", "--out", str(tmp_path / "comment.md")) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line in (tmp_path / "comment.md").read_text(encoding="utf-8")


def test_json_has_every_difference_and_every_counter(baseline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(baseline, lambda document: document["cases"][0]["counters"].update(preemptions=-1))
    capsys.readouterr()
    assert checked(baseline, "--format", "json") == 1
    document = json.loads(capsys.readouterr().out)
    (difference,) = document["differences"]
    assert (difference["counter"], difference["baseline"], difference["verdict"]) == ("preemptions", -1, WORSE)
    assert [case["counters"].keys() for case in document["cases"]] == [CASE.counters.keys()] * 3
