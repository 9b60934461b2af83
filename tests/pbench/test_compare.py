"""``pbench compare``: differences of set-up come first, what is not comparable is refused, no interval is invented."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from pbench.__main__ import main
from pbench.comparison.runs import (
    NO_INTERVAL,
    NO_NOISE,
    NOT_SIGNIFICANT,
    MetricRow,
    MetricSide,
    RunComparison,
    compare_runs,
)
from pbench.comparison.sides import LabelledRun
from pbench.comparison.view import FORCED, NOTHING_DIFFERS, WRITERS
from pbench.errors import IncomparableError, UsageError
from pbench.results import METRICS, EngineResult, Repeat, RunResult, write_result
from pbench.summary.aggregation import aggregate

GPU = {"name": "NVIDIA H200", "driver_version": "580.1", "uuid": "GPU-1"}
CONFIG = {"model": "llama-8b", "dtype": "bfloat16", "device": "cuda", "max_running": 256}


def run_result(
    *specs: str, workload: dict[str, Any] | None = None, gpu: dict[str, Any] | None = None, **config: Any
) -> RunResult:
    common = CONFIG | config
    engines = tuple(
        EngineResult(spec, "complete", config=common | {"memory": spec}, summary={"output_tokens_per_s": 100.0})
        for spec in specs or ("paged",)
    )
    return RunResult(
        run_id="test",
        created_at="2026-01-01T00:00:00+00:00",
        status="complete",
        command=("pbench", "run"),
        workload={"name": "chat", "sha256": "ab" * 32, "seed": 0} | (workload or {}),
        config=common,
        environment={"gpu": GPU | (gpu or {})},
        engines=engines,
    )


def with_summary(result: RunResult, **summary: float | None) -> RunResult:
    return replace(result, engines=tuple(replace(engine, summary=summary) for engine in result.engines))


def repeated(*speeds: float, preemptions: Sequence[int] = (), **fields: Any) -> RunResult:
    """A run of one engine and several repeats."""
    result = run_result(**fields)
    counts = preemptions or [0] * len(speeds)
    repeats = [
        Repeat(number, "complete", summary={"output_tokens_per_s": speed, "preemptions": count})
        for number, (speed, count) in enumerate(zip(speeds, counts, strict=True), start=1)
    ]
    (engine,) = result.engines
    return replace(result, engines=(aggregate(engine, repeats, len(repeats)),))


def verdict_on(first: RunResult, other: RunResult, name: str = "output_tokens_per_s") -> str:
    (engine,) = compared(first, other).engines
    (verdict,) = (row.verdicts[0] for row in engine.rows if row.metric.name == name)
    return verdict


def compared(*results: RunResult, is_forced: bool = False) -> RunComparison:
    runs = [LabelledRun(f"runs/{index}", result) for index, result in enumerate(results)]
    return compare_runs(runs, is_forced=is_forced)


def written(comparison: RunComparison, format_name: str) -> str:
    stream = StringIO()
    WRITERS[format_name](comparison, stream)
    return stream.getvalue()


def save(folder: Path, results: Sequence[RunResult]) -> list[str]:
    paths = []
    for index, result in enumerate(results):
        path = folder / f"run{index}"
        path.mkdir()
        write_result(path, result)
        paths.append(str(path))
    return paths


@pytest.mark.parametrize(
    ("name", "first", "other", "verdict"),
    [
        ("output_tokens_per_s", 100.0, 105.0, "1.05x faster"),
        ("output_tokens_per_s", 105.0, 100.0, "1.05x slower"),
        ("ttft_ms_p50", 100.0, 105.0, "1.05x slower"),
        ("duration_s", 105.0, 100.0, "1.05x faster"),
        ("output_tokens_per_s", 100.0, 100.4, "same"),
        ("output_tokens_per_s", 100.0, 100.6, "1.01x faster"),
        ("waste_pct", 2.0, 4.0, "2.00x more, worse"),
        ("mean_running", 2.0, 4.0, "2.00x more, better"),
        ("mean_running", 4.0, 2.0, "2.00x less, worse"),
        ("cached_pct", 2.0, 4.0, "2.00x more"),
        ("preemptions", 0, 3, "more, worse"),
        ("preemptions", 3, 0, "less, better"),
        ("preemptions", 0, 0, "same"),
        ("joules_per_output_token", None, 1.0, ""),
        ("joules_per_output_token", 1.0, None, ""),
    ],
)
def test_a_figure_is_put_into_words(name: str, first: float | None, other: float | None, verdict: str) -> None:
    (metric,) = (metric for metric in METRICS if metric.name == name)
    assert MetricRow(metric, (MetricSide(first), MetricSide(other))).verdicts == (verdict,)


def test_every_run_stands_against_the_first() -> None:
    results = [with_summary(run_result(), output_tokens_per_s=value) for value in (100.0, 200.0, 50.0, None)]
    ((row,),) = (engine.rows for engine in compared(*results).engines)
    assert [side.value for side in row.sides] == [100.0, 200.0, 50.0, None]
    assert row.ratios == (2.0, 0.5, None)
    assert row.verdicts == ("2.00x faster", "2.00x slower", "")


def test_a_ratio_to_zero_is_none() -> None:
    results = [with_summary(run_result(), preemptions=value) for value in (0, 5)]
    ((row,),) = (engine.rows for engine in compared(*results).engines)
    assert row.ratios == (None,)


def test_all_settings_that_differ_are_shown_and_no_other() -> None:
    first = run_result(max_running=256, hardware={"bandwidth": 1.0})
    other = run_result(max_running=128, hardware={"bandwidth": 2.0}, gpu={"uuid": "GPU-2"}, eviction="fifo")
    assert {one.name: one.values for one in compared(first, other).settings} == {
        "config.max_running": ("256", "128"),
        "config.hardware.bandwidth": ("1.0", "2.0"),
        "config.eviction": ("-", "fifo"),
        "environment.gpu.uuid": ("GPU-1", "GPU-2"),
    }


def test_a_setting_of_one_engine_alone_is_shown_with_its_engine() -> None:
    other = run_result("paged", "static")
    paged, static = other.engines
    other = replace(other, engines=(replace(paged, config={**paged.config, "block_size": 32}), static))
    (difference,) = compared(run_result("paged", "static"), other).settings
    assert (difference.name, difference.values) == ("paged: block_size", ("-", "32"))


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (run_result(workload={"sha256": "cd" * 32}), "workload.sha256"),
        (run_result(workload={"seed": 1}), "workload.seed"),
        (run_result(model="llama-1b"), "config.model"),
        (run_result(dtype="float16"), "config.dtype"),
        (run_result(device="cpu"), "config.device"),
        (run_result(hardware={"gpu": "h100"}), "config.hardware.gpu"),
        (run_result(gpu={"name": "NVIDIA H100"}), "environment.gpu.name"),
        (run_result(gpu={"driver_version": "590.1"}), "environment.gpu.driver_version"),
        (replace(run_result(), environment={"gpu": None}), "environment.gpu.name"),
    ],
)
def test_what_is_of_something_else_is_refused_and_said_when_forced(other: RunResult, name: str) -> None:
    with pytest.raises(IncomparableError, match=name):
        compared(run_result(), other)
    comparison = compared(run_result(), other, is_forced=True)
    assert name in [one.name for one in comparison.forbidding]
    for format_name in ("table", "markdown"):
        assert FORCED in written(comparison, format_name)
    assert json.loads(written(comparison, "json"))["is_forced"]
    assert "\nforced," in written(comparison, "csv")


def test_force_says_nothing_where_nothing_was_forced() -> None:
    comparison = compared(run_result(), run_result(), is_forced=True)
    assert comparison.forbidding == ()
    assert "FORCED" not in written(comparison, "table")
    assert NOTHING_DIFFERS in written(comparison, "table")


def test_engines_that_all_runs_have_are_compared_and_others_left_out_by_name() -> None:
    comparison = compared(run_result("contiguous:max", "paged"), run_result("paged", "static"))
    assert [engine.specs for engine in comparison.engines] == [("paged", "paged")]
    left_out = [note for note in comparison.notes if "left out" in note]
    assert left_out == [
        "A contiguous:max: left out, not all runs have it",
        "B static: left out, not all runs have it",
    ]


def test_runs_of_one_engine_each_compare_those() -> None:
    comparison = compared(run_result("paged"), run_result("contiguous:max"))
    assert [engine.specs for engine in comparison.engines] == [("paged", "contiguous:max")]
    assert [one.values for one in comparison.settings] == [("paged", "contiguous:max")]


def test_runs_without_a_common_engine_are_refused() -> None:
    with pytest.raises(UsageError, match="runs/0 has paged, static; runs/1 has contiguous:max"):
        compared(run_result("paged", "static"), run_result("contiguous:max"))


def test_one_run_each_has_no_interval_and_a_simulation_no_noise() -> None:
    assert compared(run_result(), run_result()).notes == (NO_INTERVAL,)
    simulated = replace(run_result(), environment={"is_simulated": True})
    assert compared(simulated, simulated).notes == (NO_NOISE,)


def test_a_difference_within_the_noise_is_not_significant_and_one_beyond_it_has_its_interval() -> None:
    base = repeated(100.0, 104.0, 96.0)
    assert verdict_on(base, repeated(97.0, 103.0, 106.0)) == NOT_SIGNIFICANT
    assert verdict_on(base, repeated(80.0, 84.0, 82.0)).startswith("1.22x slower [1.1")
    assert verdict_on(repeated(80.0, 84.0, 82.0), base).startswith("1.22x faster [1.1")


def test_counts_that_begin_at_zero_are_judged_by_their_difference() -> None:
    base = repeated(1.0, 1.0, 1.0, preemptions=(0, 0, 0))
    assert verdict_on(base, repeated(1.0, 1.0, 1.0, preemptions=(7, 8, 9)), "preemptions") == "more, worse"
    assert verdict_on(base, repeated(1.0, 1.0, 1.0, preemptions=(0, 0, 3)), "preemptions") == NOT_SIGNIFICANT
    assert verdict_on(base, base, "preemptions") == "same"


def test_repeats_on_one_side_only_have_no_interval() -> None:
    comparison = compared(repeated(100.0, 101.0), repeated(120.0))
    assert comparison.notes[0] == NO_INTERVAL
    (row, _) = comparison.engines[0].rows
    assert row.ratio_bounds == (None,)
    assert row.verdicts == ("1.19x faster",)


def test_intervals_and_flags_stand_in_every_format() -> None:
    comparison = compared(repeated(100.0, 101.0), repeated(100.0, 150.0))
    for format_name in ("table", "markdown"):
        assert "! the repeats lie more than 10 % apart" in written(comparison, format_name)
    assert "125 tok/s ±254% !" in written(comparison, "table")
    (metric, _) = json.loads(written(comparison, "json"))["engines"][0]["metrics"]
    assert metric["repeats"] == [[100.0, 101.0], [100.0, 150.0]]
    assert [interval["is_wide"] for interval in metric["intervals"]] == [False, True]
    low, high = metric["ratio_bounds"][0]
    assert low < metric["ratios"][0] < high
    (row, _) = (row for row in csv.DictReader(StringIO(written(comparison, "csv"))) if row["kind"] == "metric")
    assert (float(row["B/A low"]), float(row["B/A high"])) == (low, high)
    assert row["flags"] == "B: wide spread"


def test_a_folder_of_runs_is_one_run_with_their_repeats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, speeds in (("base", (100.0, 104.0, 96.0)), ("head", (80.0, 84.0, 82.0))):
        (tmp_path / name).mkdir()
        save(tmp_path / name, [with_summary(run_result(), output_tokens_per_s=speed) for speed in speeds])
    assert main(["compare", str(tmp_path / "base"), str(tmp_path / "head"), "--format", "json"]) == 0
    (metric,) = json.loads(capsys.readouterr().out)["engines"][0]["metrics"]
    assert metric["repeats"] == [[100.0, 104.0, 96.0], [80.0, 84.0, 82.0]]
    assert metric["verdicts"][0].startswith("1.22x slower [")


def test_a_folder_of_runs_of_different_things_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").mkdir()
    (one,) = save(tmp_path / "one", [run_result()])
    others = {
        "another workload": run_result(workload={"sha256": "cd" * 32}),
        "another configuration": run_result(max_running=8),
        "another set of engines": run_result("paged", "static"),
        "another GPU or driver": run_result(gpu={"driver_version": "590.1"}),
    }
    for reason, other in others.items():
        (tmp_path / reason).mkdir()
        save(
            tmp_path / reason,
            [run_result(gpu={"sm_clock_mhz": 345.0}), run_result(gpu={"sm_clock_mhz": 1980.0}), other],
        )
        assert main(["compare", one, str(tmp_path / reason)]) == 4
        assert f"run2 is no repeat of {tmp_path / reason}/run0: {reason}" in capsys.readouterr().err


def test_a_run_that_did_not_end_and_the_notes_of_each_are_told() -> None:
    (engine,) = run_result().engines
    failed = replace(engine, status="failed", reason="killed\x1b[2J", notes=("few requests",))
    notes = compared(run_result(), replace(run_result(), engines=(failed,))).notes
    assert "B paged: failed: killed\\x1b[2J" in notes
    assert "few requests (B paged)" in notes


def test_other_peoples_text_is_no_markup_in_any_format() -> None:
    other = run_result(workload={"name": "<b>x</b> | [red]y\x1b"})
    comparison = compared(run_result(), other)
    assert "\x1b" not in written(comparison, "table") + written(comparison, "markdown")
    assert "[red]y" in written(comparison, "table")
    assert r"\<b\>x\</b\> \| \[red\]y\\x1b" in written(comparison, "markdown")


def test_json_and_csv_carry_every_figure_unrounded() -> None:
    results = [with_summary(run_result(), output_tokens_per_s=value, preemptions=None) for value in (3.0, 1 / 3)]
    comparison = compared(*results)
    ((metric,),) = (engine["metrics"] for engine in json.loads(written(comparison, "json"))["engines"])
    assert (metric["name"], metric["values"], metric["ratios"]) == ("output_tokens_per_s", [3.0, 1 / 3], [1 / 9])
    (row,) = (row for row in csv.DictReader(StringIO(written(comparison, "csv"))) if row["kind"] == "metric")
    assert (float(row["A"]), float(row["B"]), row["B against A"]) == (3.0, 1 / 3, "9.00x slower")


def test_settings_come_before_figures() -> None:
    comparison = compared(run_result(), run_result(max_running=1))
    for format_name in WRITERS:
        text = written(comparison, format_name)
        assert text.index("config.max" if format_name != "markdown" else r"config.max\_running") < text.index("output")


def test_the_command_compares_refuses_and_forces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = save(tmp_path, [run_result(), run_result(max_running=8), run_result(model="llama-1b")])
    assert main(["compare", *paths[:2]]) == 0
    assert "config.max_running" in capsys.readouterr().out
    assert main(["compare", *paths]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "config.model: llama-8b | llama-8b | llama-1b" in captured.err
    assert main(["compare", "--force", "--format", "json", *paths]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 3
    assert main(["compare", *paths[:2], "--format", "csv", "--out", str(tmp_path / "out.csv")]) == 0
    assert (tmp_path / "out.csv").read_text(encoding="utf-8").startswith("kind,")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["run0"], "1 runs to compare"),
        (["run0", "run0"], "given twice"),
        (["run0", "nowhere"], "nowhere is not a run folder"),
        (["run0", "run0", "--out", "no/such/file"], "there is no folder"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path, [run_result()])
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
