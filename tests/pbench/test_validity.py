"""Every check against tables in which it must be passed, and against those in which it must not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from pbench.comparison.engines import print_comparison
from pbench.results import (
    DEVICE_COLUMNS,
    REQUEST_COLUMNS,
    STEP_COLUMNS,
    Check,
    EngineResult,
    Interval,
    Run,
    RunResult,
    Sampling,
    SteadyState,
)
from pbench.settings import RunOptions
from pbench.tables import Tables
from pbench.validity.repeat import Evidence, Watching, check_repeat
from pbench.validity.run import check_run, check_spread

SECOND = 10**9
GPU = {"slowdown_temperature_c": 90.0}


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> pd.DataFrame:
    owner = {"engine": "paged", "repeat": 1}
    zeros = {name: False if kind == "bool" else 0 for name, kind in columns.items() if kind in ("int64", "bool")}
    return pd.DataFrame([zeros | owner | row for row in rows], columns=list(columns)).astype(columns)


def steps(*rows: dict[str, Any]) -> pd.DataFrame:
    common = {"free": 60, "token_state": 40, "is_memory_blocked": True}
    return table(
        [common | {"start_ns": at * SECOND, "end_ns": (at + 1) * SECOND} | row for at, row in enumerate(rows)],
        STEP_COLUMNS,
    )


def requests(number: int = 500, **values: Any) -> pd.DataFrame:
    times = {"arrival_ns": 0, "added_ns": 1000}
    return table(
        [times | {"status": "finished", "kv_byte_seconds": 0.0} | values for _ in range(number)], REQUEST_COLUMNS
    )


def device(*rows: dict[str, Any]) -> pd.DataFrame:
    common = {
        "source": "nvml",
        "throttle_reasons": 0,
        "gpu_utilization_pct": 99.0,
        "sm_clock_mhz": 1980.0,
        "temperature_c": 60.0,
        "num_foreign_processes": 0,
        "host_swapped_bytes": 0,
        "host_cpu_pct": 0.0,
        "process_cpu_pct": 0.0,
    }
    return table([common | {"time_ns": at * SECOND} | row for at, row in enumerate(rows)], DEVICE_COLUMNS)


def evidence(**changes: Any) -> Evidence:
    """Of a sound repeat, but for the changes; ``steps``, ``requests`` and ``device`` are its tables."""
    tables = {"steps": steps({}, {}), "requests": requests(), "device": device({}, {}, {})}
    tables |= {name: changes.pop(name) for name in tuple(tables) if name in changes}
    sound = Evidence(
        tables=Tables(**tables),
        pool={"num_slots": 100},
        workload={"num_requests": 500, "concurrency": None},
        duration_s=2.0,
        steady=SteadyState(0, 2 * SECOND),
        sampling=Sampling(0.1, 20, 0.1, 0.12),
        gpu=GPU,
        num_cached_slots=0,
        watching=Watching(0.01, 0.0),
    )
    return replace(sound, **changes)


def outcomes(seen: Evidence) -> dict[str, str]:
    checks = check_repeat(seen)
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    return {check.name: check.outcome for check in checks}


def test_a_sound_repeat_passes_every_check() -> None:
    assert set(outcomes(evidence()).values()) == {"pass"}


@pytest.mark.parametrize(
    ("name", "changes", "outcome"),
    [
        ("every request finished", {"requests": requests(499)}, "fail"),
        ("every request finished", {"requests": requests(500, status="unfinished")}, "fail"),
        ("every slot accounted for", {"steps": steps({}, {"free": 61})}, "fail"),
        ("every slot accounted for", {"steps": steps()}, "unknown"),
        ("enough requests", {"requests": requests(499)}, "warn"),
        ("enough requests", {"requests": requests(9)}, "fail"),
        ("memory was the limit", {"steps": steps({"is_memory_blocked": False})}, "warn"),
        ("offered rate reached", {"requests": requests(2, arrival_ns=0, added_ns=SECOND)}, "pass"),
        ("cache cold at start", {"num_cached_slots": 16}, "fail"),
        ("cache cold at start", {"num_cached_slots": None}, "unknown"),
        ("throughput was steady", {"steady": None}, "warn"),
        ("throughput was steady", {"steady": None, "duration_s": None}, "unknown"),
        ("GPU not slowed down", {"device": device({"throttle_reasons": 0x1})}, "pass"),  # idle
        ("GPU not slowed down", {"device": device({"throttle_reasons": 0x4}, {})}, "warn"),
        ("GPU not slowed down", {"device": device({"throttle_reasons": 0x8}, {})}, "fail"),
        ("GPU not slowed down", {"device": device({"throttle_reasons": 0x40}, {})}, "fail"),
        ("GPU not slowed down", {"device": device({"throttle_reasons": None})}, "unknown"),
        ("clocks held", {"device": device({"sm_clock_mhz": 1800.0}, {}, {})}, "warn"),
        ("clocks held", {"device": device({"sm_clock_mhz": 900.0}, {}, {})}, "fail"),
        ("clocks held", {"device": device({"sm_clock_mhz": 345.0, "gpu_utilization_pct": 0.0}, {})}, "pass"),
        ("clocks held", {"device": device({"gpu_utilization_pct": 0.0})}, "unknown"),
        ("GPU cool enough", {"device": device({"temperature_c": 86.0})}, "warn"),
        ("GPU cool enough", {"device": device({"temperature_c": 86.0}), "gpu": {}}, "pass"),
        ("GPU cool enough", {"device": device({"throttle_reasons": 0x20})}, "fail"),
        ("GPU to itself", {"device": device({}, {"num_foreign_processes": 1})}, "fail"),
        ("GPU to itself", {"device": device({"num_foreign_processes": None})}, "unknown"),
        ("host not swapping", {"device": device({}, {"host_swapped_bytes": 4096})}, "warn"),
        ("host not swapping", {"device": device({"host_swapped_bytes": None})}, "unknown"),
        ("CPU to itself", {"device": device({"host_cpu_pct": 11.0})}, "warn"),
        ("CPU to itself", {"device": device({"host_cpu_pct": 51.0})}, "fail"),
        ("memory sampled throughout", {"sampling": Sampling(0.1, 20, 0.1, 0.31)}, "warn"),
        ("memory sampled throughout", {"sampling": None}, "unknown"),
        ("measured at little cost", {"watching": Watching(0.021, 0.0)}, "warn"),
        ("measured at little cost", {"watching": Watching(0.09, 0.05), "num_cores": 2}, "fail"),
        ("measured at little cost", {"watching": None}, "unknown"),
    ],
)
def test_what_is_wrong_is_found(name: str, changes: dict[str, Any], outcome: str) -> None:
    assert outcomes(evidence(**changes))[name] == outcome


@pytest.mark.parametrize(("last_late_s", "outcome"), [(0.0, "pass"), (0.3, "warn"), (1.0, "fail")])
def test_requests_offered_slower_than_they_were_meant_to_be_are_found(last_late_s: float, outcome: str) -> None:
    arrivals = [at * SECOND for at in range(11)]
    rows = [{"arrival_ns": at, "added_ns": at, "status": "finished", "kv_byte_seconds": 0.0} for at in arrivals]
    rows[-1]["added_ns"] = arrivals[-1] + round(last_late_s * SECOND)
    late = table(rows, REQUEST_COLUMNS)
    assert outcomes(evidence(requests=late))["offered rate reached"] == outcome
    closed = evidence(requests=late, workload={"num_requests": 11, "concurrency": 4})
    assert outcomes(closed)["offered rate reached"] == "pass"


def test_the_own_work_of_the_engine_is_not_others() -> None:
    busy = device({"host_cpu_pct": 50.0, "process_cpu_pct": 200.0})
    assert outcomes(evidence(device=busy, num_cores=4))["CPU to itself"] == "pass"
    assert outcomes(evidence(device=busy, num_cores=8))["CPU to itself"] == "warn"


def test_without_a_gpu_and_in_a_simulation_less_is_checked() -> None:
    assert not [name for name in outcomes(evidence(gpu=None)) if "GPU" in name or "clocks" in name]
    simulated = outcomes(evidence(is_simulated=True))
    assert list(simulated) == [
        *("every request finished", "every slot accounted for", "enough requests", "memory was the limit")
    ]


def engine(spec: str, *, status: str = "complete", pool_bytes: int = 100, **summary: float) -> EngineResult:
    counts = {"num_prompt_tokens": 10, "num_output_tokens": 20} | summary
    return EngineResult(spec, status, pool={"pool_bytes": pool_bytes}, summary=counts)


@pytest.mark.parametrize(
    ("name", "other", "dropped", "outcome"),
    [
        ("every engine ran to its end", engine("b"), 0, "pass"),
        ("every engine ran to its end", engine("b", status="failed"), 0, "fail"),
        ("same tokens in and out", engine("b"), 0, "pass"),
        ("same tokens in and out", engine("b", num_output_tokens=21), 0, "fail"),
        ("same tokens in and out", engine("b", status="failed"), 0, "unknown"),
        ("equal KV pools", engine("b"), 0, "pass"),
        ("equal KV pools", engine("b", pool_bytes=110), 0, "warn"),
        ("no request dropped", engine("b"), 3, "warn"),
        ("no request dropped", engine("b"), 0, "pass"),
    ],
)
def test_engines_are_held_against_each_other(name: str, other: EngineResult, dropped: int, outcome: str) -> None:
    checks = check_run([engine("a"), other], {"num_dropped_too_long": dropped})
    assert {check.name: check.outcome for check in checks}[name] == outcome


def test_repeats_that_lie_far_apart_are_a_warning_with_the_worst_first() -> None:
    single = engine("a")
    assert check_spread(single) is None
    near, far = Interval(1.0, 2.0, 9.0), Interval(1.0, 2.0, 40.0, is_wide=True)
    calm = check_spread(replace(single, intervals={"output_tokens_per_s": near, "waste_pct": far}))
    assert calm == Check("repeats agree", "pass", "output tokens/s within 9 %", 9.0, "%")
    wild = check_spread(replace(single, intervals={"output_tokens_per_s": near, "duration_s": far}))
    assert wild is not None
    assert (wild.outcome, wild.figure) == ("warn", 9.0)
    assert "duration 40 %" in wild.detail


def test_a_run_carries_its_checks_and_the_terminal_shows_those_not_passed(
    options: RunOptions, run_experiment: Callable[..., RunResult], tmp_path: Path
) -> None:
    result = run_experiment(replace(options, engines=("paged",)))
    (paged,) = Run(tmp_path / "run").result.engines
    made = {check.name: check for check in paged.checks}
    assert (made["every request finished"].outcome, made["every request finished"].figure) == ("pass", 12)
    assert made["cache cold at start"].outcome == "pass"
    assert made["enough requests"].outcome == "warn"
    assert made["measured at little cost"].figure is not None
    assert {check.name for check in result.checks} == {"every engine ran to its end", "no request dropped"}
    console = Console(width=200, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    print_comparison(result, console)
    console.file.close()
    text = (tmp_path / "out").read_text()
    assert "warn: enough requests: 12 finished" in text
    assert "every request finished" not in text
