"""Repeats: their order, what is kept of each, what follows from all, and records of before there were any."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pbench.environment import own_process
from pbench.experiment import schedule
from pbench.results import (
    DEVICE_COLUMNS,
    STEP_COLUMNS,
    Check,
    EngineResult,
    Interval,
    Repeat,
    Run,
    RunResult,
    Sampling,
    SteadyState,
    WarmUp,
    read_result,
    write_result,
)
from pbench.salvage import has_worker, salvage
from pbench.settings import RunOptions
from pbench.summary.aggregation import aggregate

NEW_IN_3 = (
    *("repeat", "torch_inactive_bytes", "device_process_bytes", "num_foreign_processes"),
    *("host_used_bytes", "host_cpu_pct", "process_cpu_pct", "host_swapped_bytes"),
)


def repeat(number: int, speed: float | None, **fields: Any) -> Repeat:
    return Repeat(number, fields.pop("status", "complete"), summary={"output_tokens_per_s": speed}, **fields)


def engine_of(*repeats: Repeat) -> EngineResult:
    return aggregate(EngineResult("paged", "running"), repeats, num_repeats=len(repeats))


def test_two_engines_take_turns_abba() -> None:
    names = [f"{'AB'[place]}{number}" for place, number in schedule(2, 4)]
    assert names == ["A1", "B1", "B2", "A2", "A3", "B3", "B4", "A4"]
    assert sorted(schedule(3, 5)) == [(place, number) for place in range(3) for number in range(1, 6)]


def test_a_linear_drift_meets_both_engines_alike() -> None:
    order = schedule(2, 6)
    mean_position = [sum(at for at, (place, _) in enumerate(order) if place == wanted) / 6 for wanted in (0, 1)]
    assert mean_position[0] == mean_position[1]


def test_an_engine_is_the_mean_of_its_complete_repeats() -> None:
    engine = engine_of(
        repeat(1, 90.0), repeat(2, 5.0, status="failed", reason="killed"), repeat(3, 110.0), repeat(4, 100.0)
    )
    assert (engine.status, engine.reason) == ("failed", "repeat 2 of 4: killed")
    assert engine.summary["output_tokens_per_s"] == 100.0
    assert engine.values("output_tokens_per_s") == (90.0, 110.0, 100.0)
    assert engine.intervals["output_tokens_per_s"].spread_pct == pytest.approx(20.0)
    assert engine.typical_repeat == 4
    assert engine.summary["ttft_ms_p99"] is None
    assert "ttft_ms_p99" not in engine.intervals


def test_one_repeat_has_its_own_figures_and_no_interval() -> None:
    engine = engine_of(repeat(1, 90.0))
    assert engine.summary["output_tokens_per_s"] == 90.0
    assert engine.intervals == {}
    assert engine.typical_repeat == 1


def test_an_engine_without_a_complete_repeat_shows_what_there_is() -> None:
    engine = engine_of(repeat(1, 40.0, status="interrupted", reason="interrupted"))
    assert (engine.status, engine.reason) == ("interrupted", "interrupted")
    assert engine.summary["output_tokens_per_s"] == 40.0


def test_a_percentile_counts_as_supported_only_if_every_repeat_supports_it() -> None:
    plenty, few = {"ttft_ms_p99": 500, "ttft_ms_p50": 500}, {"ttft_ms_p99": 499, "ttft_ms_p50": 10}
    assert engine_of(repeat(1, 1.0, samples=plenty)).unsupported == ()
    assert engine_of(repeat(1, 1.0, samples=plenty), repeat(2, 1.0, samples=few)).unsupported == ("ttft_ms_p99",)


def test_notes_and_checks_say_of_which_repeat_they_are() -> None:
    good, bad = Check("memory", "pass", "fine", 1.0, "%"), Check("memory", "fail", "gone", 9.0, "%")
    engine = engine_of(
        repeat(1, 1.0, notes=("always", "once"), checks=(good,)), repeat(2, 1.0, notes=("always",), checks=(bad,))
    )
    assert engine.notes == ("always", "repeat 1 of 2: once")
    assert engine.checks[0] == replace(bad, detail="repeat 2 of 2: gone")
    assert [check.name for check in engine.checks] == ["memory", "repeats agree"]


def test_every_field_survives_the_file(tmp_path: Path) -> None:
    full = Repeat(
        repeat=1,
        status="complete",
        position=3,
        started_at="2026-01-01T00:00:00+00:00",
        memory={"peak": 1},
        summary={"duration_s": 1.5, "preemptions": None},
        samples={"ttft_ms_p50": 9},
        warm_up=WarmUp(1.5, None),
        steady=SteadyState(1, 2),
        sampling=Sampling(0.1, 5, 0.1, None),
        checks=(Check("name", "warn", "seen", 1.0, "%"),),
        notes=("note",),
    )
    bare = Repeat(2, "failed", "reason")
    engine = EngineResult(
        "paged",
        "complete",
        notes=("note",),
        intervals={"duration_s": Interval(1.0, 2.0, None)},
        unsupported=("ttft_ms_p50",),
        repeats=(full, bare),
        checks=(Check("name", "unknown", "seen"),),
    )
    checks = (Check("same", "pass", "alike"),)
    result = RunResult("id", "now", "complete", ("pbench",), {}, {}, {}, (engine,), checks)
    write_result(tmp_path, result)
    assert read_result(tmp_path) == result


def test_a_record_of_version_2_is_read_as_one_repeat(tmp_path: Path) -> None:
    engine = EngineResult("paged", "complete", summary={"output_tokens_per_s": 7.0})
    data = asdict(RunResult("id", "now", "complete", ("pbench",), {}, {}, {}, (engine,), schema_version=2))
    del data["checks"]
    for name in ("intervals", "unsupported", "repeats", "checks"):
        del data["engines"][0][name]
    (tmp_path / "run.json").write_text(json.dumps(data))
    row = {name: "paged" if name == "engine" else 1 for name in STEP_COLUMNS if name != "repeat"}
    pd.DataFrame([row]).to_parquet(tmp_path / "steps.parquet")
    run = Run(tmp_path)
    (read,) = run.result.engines
    assert read.values("output_tokens_per_s") == (7.0,)
    assert read.typical_repeat == 1
    assert run.steps()["repeat"].tolist() == [1]
    old = {name: kind for name, kind in DEVICE_COLUMNS.items() if name not in NEW_IN_3}
    pd.DataFrame([{"engine": "paged", "time_ns": 5, "source": "nvml"}], columns=list(old)).to_parquet(
        tmp_path / "device.parquet"
    )
    device = run.device()
    assert list(device.columns) == list(DEVICE_COLUMNS)
    assert device[[name for name in NEW_IN_3 if name != "repeat"]].isna().all(axis=None)
    assert run.tokens().empty


def test_a_repeated_run_keeps_every_repeat_and_its_rows(
    options: RunOptions, run_experiment: Callable[..., RunResult], tmp_path: Path
) -> None:
    result = run_experiment(options, num_repeats=2)
    run = Run(tmp_path / "run")
    assert result.status == "complete"
    assert run.result == result
    assert [path.name for path in (tmp_path / "run").iterdir() if path.suffix == ".log"] == []
    positions = {(engine.spec, each.repeat): each.position for engine in result.engines for each in engine.repeats}
    assert positions == {("paged", 1): 0, ("contiguous:max", 1): 1, ("contiguous:max", 2): 2, ("paged", 2): 3}
    steps = run.steps()
    for engine in result.engines:
        assert [each.status for each in engine.repeats] == ["complete", "complete"]
        for each in engine.repeats:
            assert each.warm_up is not None
            assert each.warm_up.duration_s > 0
            assert each.warm_up.num_steps
            rows = steps[(steps["engine"] == engine.spec) & (steps["repeat"] == each.repeat)]
            assert len(rows) == each.summary["num_steps"]
            rate = rows["num_output_tokens"].sum() / rows["end_ns"].max() * 1e9
            assert each.summary["output_tokens_per_s"] == pytest.approx(rate)
        interval = engine.intervals["output_tokens_per_s"]
        assert interval.low < (engine.summary["output_tokens_per_s"] or 0) < interval.high
    for table in (run.requests(), run.device(), run.prefixes(), run.pool_map()):
        owners = set(zip(table["engine"], table["repeat"], strict=True))
        assert owners == set(positions)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "running"),
        ({"created_s": 0.0}, "failed"),  # its id was given to a younger process
        ({"id": 2**22 + 1}, "failed"),  # beyond the largest that Linux gives
        ({"host": "elsewhere", "created_s": 0.0}, "running"),  # it cannot be seen from here
    ],
)
def test_a_record_that_says_running_is_believed_while_its_process_may_live(
    changes: dict[str, Any], status: str, tmp_path: Path
) -> None:
    engines = (EngineResult("paged", "complete"), EngineResult("static", "running"))
    process = own_process() | changes
    write_result(tmp_path, RunResult("id", "now", "running", ("pbench",), {}, {}, {}, engines, process=process))
    read = read_result(tmp_path)
    assert (read.status, [engine.status for engine in read.engines]) == (status, ["complete", status])
    (tmp_path / ".journal").mkdir()
    assert not salvage(tmp_path)  # a live run's journals are its own, and here a dead one left none
    assert (tmp_path / ".journal").exists()


def test_a_worker_that_still_writes_keeps_its_journal(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not has_worker(folder)
    job = folder / ".journal" / "paged" / "job.json"
    command = [sys.executable, "-c", "print(flush=True); input()", str(job)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()  # it has started: just after its birth the system does not tell its arguments yet
        assert has_worker(folder)
        assert not has_worker(tmp_path / "another")
        worker.kill()
    assert not has_worker(folder)
