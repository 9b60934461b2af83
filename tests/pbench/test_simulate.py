"""``pbench simulate``: run folders like those of a real run, in simulated time."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbench.__main__ import main
from pbench.engine.engine import Engine
from pbench.job import WorkloadChoice
from pbench.lazy_requests import PromptMaker
from pbench.live import LineView
from pbench.results import METRICS, Run, RunResult
from pbench.simulation import run as simulation
from pbench.simulation.capacity_sweep import CapacitySweep
from pbench.simulation.run import Simulation, SimulationPlan
from pbench.simulation.settings import SimulationOptions, resolve_simulation
from pbench.units import format_number
from pbench.workloads.request import Segment, WorkloadRequest
from pbench.workloads.tokens import prompt_token_ids

CHAT = WorkloadChoice("chat-shared-prompt", limit=40, overrides={"shared_tokens": "64", "output_max": "128"})
HEAVY = ("torch", "pandas", "plotly", "rich", "pyarrow", "triton", "transformers")

NO_VIEW = LineView(lambda line: None)


def plan_for(folder: Path, options: SimulationOptions, choice: WorkloadChoice = CHAT) -> SimulationPlan:
    resolved = resolve_simulation(options, choice)
    assert len(resolved.sizes) == 1
    folder.mkdir()
    return SimulationPlan(
        folder=folder,
        run_id="test",
        created_at="2026-01-01T00:00:00+00:00",
        command=("pbench", "simulate"),
        workload=resolved.sizes[0].workload,
        engines=resolved.sizes[0].engines,
        hardware=resolved.hardware,
        speed=resolved.speed,
        environment={"gpu": None, "is_simulated": True},
        notes=(resolved.note,),
    )


def simulate(
    folder: Path,
    options: SimulationOptions,
    choice: WorkloadChoice = CHAT,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunResult:
    return Simulation(plan_for(folder, options, choice), NO_VIEW, should_stop).run()


SMALL = SimulationOptions(kv_memory="1GiB")


def test_the_folder_is_that_of_a_run(tmp_path: Path) -> None:
    result = simulate(tmp_path / "run", SMALL)
    run = Run(tmp_path / "run")
    assert run.result == result
    assert sorted(path.name for path in run.path.iterdir()) == [
        "device.parquet",
        "pool_map.parquet",
        "prefixes.parquet",
        "requests.parquet",
        "run.json",
        "steps.parquet",
    ]
    assert result.status == "complete"
    assert result.config["hardware"]["gpu"] == "h200"
    assert result.config["device"] == "simulated h200"
    assert run.device().empty
    workload = CHAT.load()
    for engine in result.engines:
        assert set(engine.summary) == {metric.name for metric in METRICS}
        assert engine.notes[0].startswith("simulated, not measured")
        steps = run.steps().query("engine == @engine.spec")
        parts = steps[["token_state", "reserved", "internal", "external", "cached", "free"]].sum(axis=1)
        assert (parts == engine.pool["num_slots"]).all()
        assert (steps["end_ns"] > steps["start_ns"]).all()
        requests = run.requests().query("engine == @engine.spec")
        assert list(requests["status"]) == ["finished"] * 40
        assert requests["num_output_tokens"].sum() == workload.total_output_tokens
        assert requests["num_prompt_tokens"].sum() == workload.total_input_tokens
    paged, contiguous = result.engines
    assert contiguous.summary["peak_running"] == 2  # 8192 slots hold two reservations of 4096
    assert paged.summary["peak_running"] == 40
    assert paged.summary["output_tokens_per_s"] > 3 * contiguous.summary["output_tokens_per_s"]


def test_the_shared_part_of_a_common_prompt_is_held_once(tmp_path: Path) -> None:
    """Everybody who runs holds the one system prompt: sharing saves all but one of them."""
    result = simulate(
        tmp_path / "run",
        SimulationOptions(engines=("paged",), kv_memory="2GiB"),
        WorkloadChoice("chat-shared-prompt", limit=200),
    )
    summary = result.engines[0].summary
    running, sharers, saved_pct = (summary[name] for name in ("mean_running", "mean_sharers", "shared_part_saved_pct"))
    assert running is not None
    assert sharers is not None
    assert saved_pct is not None
    assert running > 20
    assert sharers == pytest.approx(running, rel=0.1)
    assert saved_pct == pytest.approx(100 * (1 - 1 / running), abs=1)
    off = simulate(
        tmp_path / "off",
        SimulationOptions(engines=("paged",), kv_memory="2GiB", no_prefix_cache=True),
        WorkloadChoice("chat-shared-prompt", limit=200),
    )
    assert off.engines[0].summary["shared_part_saved_pct"] is None


def test_the_same_simulation_is_the_same_to_the_byte(tmp_path: Path) -> None:
    for name in ("first", "again"):
        simulate(tmp_path / name, SMALL)
    for table in ("steps.parquet", "requests.parquet"):
        assert (tmp_path / "first" / table).read_bytes() == (tmp_path / "again" / table).read_bytes()


def test_idle_hours_cost_nothing_and_count_as_time(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [{"arrival_s": 3600 * i, "input_length": 50, "output_length": 4} for i in range(3)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start_s = time.monotonic()
    result = simulate(
        tmp_path / "run",
        replace(SMALL, engines=("paged",)),
        WorkloadChoice(str(trace), arrivals="recorded"),
    )
    assert time.monotonic() - start_s < 60
    duration_s = result.engines[0].summary["duration_s"]
    assert duration_s is not None
    assert 7200 < duration_s < 7201
    requests = Run(tmp_path / "run").requests()
    assert list(requests["arrival_ns"]) == list(requests["added_ns"]) == [0, 3600 * 10**9, 7200 * 10**9]


def test_a_closed_loop_never_has_more_users_than_it_says(tmp_path: Path) -> None:
    result = simulate(tmp_path / "run", replace(SMALL, engines=("paged",)), replace(CHAT, arrivals="closed:3"))
    steps = Run(tmp_path / "run").steps()
    assert (steps["num_running"] + steps["num_waiting"]).max() == 3
    assert result.engines[0].summary["num_finished"] == 40


def test_a_faster_gpu_changes_times_and_nothing_else(tmp_path: Path) -> None:
    slow = simulate(tmp_path / "slow", replace(SMALL, gpu="a100"))
    fast = simulate(tmp_path / "fast", SMALL)
    timed = [name for name in Run(tmp_path / "slow").steps() if name.endswith("_ns")]
    assert Run(tmp_path / "slow").steps().drop(columns=timed).equals(Run(tmp_path / "fast").steps().drop(columns=timed))
    for one, other in zip(slow.engines, fast.engines, strict=True):
        assert one.summary["duration_s"] > other.summary["duration_s"]


def test_the_papers_pool_holds_seven_reservations_of_opt_13b(tmp_path: Path) -> None:
    options = SimulationOptions(model="opt-13b", engines=("contiguous:max",), kv_memory=str(15728 * 800 * 1024))
    result = simulate(tmp_path / "run", options, WorkloadChoice("sharegpt-lengths", limit=40))
    engine = result.engines[0]
    assert engine.pool["num_slots"] == 15728
    assert engine.summary["peak_running"] == 7
    first = Run(tmp_path / "run").steps().iloc[0]
    assert (first["free"] + first["external"]) / 15728 == pytest.approx(0.0886, abs=0.0001)


def test_an_interrupted_simulation_keeps_what_it_came_to(tmp_path: Path) -> None:
    calls = iter(range(1000))
    result = simulate(tmp_path / "run", SMALL, should_stop=lambda: next(calls) > 30)
    assert result.status == "interrupted"
    assert [engine.status for engine in result.engines] == ["interrupted", "interrupted"]
    assert result.engines[1].reason == "not started"
    run = Run(tmp_path / "run")
    assert run.result == result
    assert 0 < len(run.steps()) < 31
    assert set(run.requests()["status"]) == {"unfinished"}


def test_an_engine_that_breaks_does_not_stop_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Engine.step

    def break_down(engine: Engine):  # type: ignore[no-untyped-def]
        if engine.config.memory == "paged" and engine.clock() > 0:
            raise RuntimeError("a bug of ours")
        return step(engine)

    monkeypatch.setattr(simulation.Engine, "step", break_down)
    result = simulate(tmp_path / "run", SMALL)
    paged, contiguous = result.engines
    assert (result.status, paged.status, contiguous.status) == ("failed", "failed", "complete")
    assert paged.reason == "RuntimeError: a bug of ours"
    assert paged.summary["num_steps"] == 1
    assert "Traceback" in (tmp_path / "run" / "paged.log").read_text()


# Prompts


@st.composite
def workload_requests(draw: st.DrawFn) -> WorkloadRequest:
    segments = tuple(
        Segment(draw(st.integers(0, 3)), draw(st.sampled_from([1, 7, 64]))) for _ in range(draw(st.integers(1, 4)))
    )
    return WorkloadRequest(0, 0.0, sum(segment.length for segment in segments), 1, segments)


@settings(deadline=None)
@given(
    requests=st.lists(workload_requests(), max_size=8),
    num_cached_tokens=st.sampled_from([0, 70, 10_000]),
    seed=st.integers(0, 2),
)
def test_lazy_prompts_are_those_of_a_run(requests: list[WorkloadRequest], num_cached_tokens: int, seed: int) -> None:
    prompts = PromptMaker(vocab_size=997, seed=seed, num_cached_tokens=num_cached_tokens)
    for request in requests:
        assert prompts.make(request).tolist() == prompt_token_ids(request, vocab_size=997, seed=seed)


def test_tokens_that_a_request_carries_are_played() -> None:
    request = WorkloadRequest(0, 0.0, 3, 1, (), prompt_token_ids=(5, 6, 7))
    assert PromptMaker(vocab_size=10, seed=0).make(request).tolist() == [5, 6, 7]


# Sweep


def test_a_sweep_prints_the_curve_and_keeps_a_run_for_each_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["simulate", "--workload", "chat-shared-prompt", "--limit", "60", "--engine", "paged"]
    arguments += ["--capacity-sweep", "1GiB,512MiB", "--jobs", "2", "--out", str(tmp_path / "sweep")]
    assert main(arguments) == 0
    small, large = (Run(tmp_path / "sweep" / name).result.engines[0] for name in ("512-MiB", "1-GiB"))
    table = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")] for line in table if "│" in line]
    for row, size, engine in zip(rows, ("512 MiB", "1 GiB"), (small, large), strict=True):
        assert row[:2] == [size, "paged"]
        assert row[6] == format_number(engine.summary["output_tokens_per_s"])
    assert small.summary["mean_running"] < large.summary["mean_running"]
    assert small.summary["num_finished"] == large.summary["num_finished"] == 60


@pytest.fixture
def sweep(tmp_path: Path) -> CapacitySweep:
    """A sweep of one size that takes minutes."""
    choice = WorkloadChoice("sharegpt-lengths", overrides={"num_requests": "20000"})
    return CapacitySweep([plan_for(tmp_path / "run", SimulationOptions(engines=("paged",)), choice)], 1)


def act_once_steps_are_journalled(folder: Path, act: Callable[[], object]) -> threading.Thread:
    def wait_and_act() -> None:
        journal = folder / ".journal" / "paged" / "steps.jsonl"
        while not (journal.exists() and journal.stat().st_size > 10_000):
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


def test_a_stopped_sweep_keeps_what_it_came_to(sweep: CapacitySweep, tmp_path: Path) -> None:
    thread = act_once_steps_are_journalled(tmp_path / "run", sweep.stop)
    (done,) = sweep.run()
    thread.join()
    assert done.result.status == "interrupted"
    assert len(Run(tmp_path / "run").steps()) > 0


def test_a_killed_size_is_a_failed_run(sweep: CapacitySweep, tmp_path: Path) -> None:
    def kill() -> None:
        for child in psutil.Process(os.getpid()).children():
            if any("spawn_main" in word for word in child.cmdline()):
                child.kill()

    thread = act_once_steps_are_journalled(tmp_path / "run", kill)
    (done,) = sweep.run()
    thread.join()
    assert done.result.status == "failed"
    assert done.result.engines[0].reason == "the simulating process ended with exit code -9"
    run = Run(tmp_path / "run")
    assert run.result == done.result
    assert 0 < len(run.steps()) == done.result.engines[0].summary["num_steps"]
    assert not (run.path / ".journal").exists()


# Command line


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import json, sys\n"
        "from pbench.__main__ import main\n"
        "code = main(['simulate', '--help'])\n"
        f"print(json.dumps([code, sorted(set({HEAVY!r}) & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]


def test_a_simulation_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pbench.__main__ import main\n"
        f"code = main(['simulate', '--workload', 'uniform', '--limit', '3', '--out', {str(tmp_path / 'run')!r}])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "h300"], "GPU 'h300' is unknown; known: h200, "),
        (["--kv-memory", "1GiB", "--capacity-sweep", "1GiB"], "exclude each other"),
        (["--capacity-sweep", "1GiB,x"], "--capacity-sweep 'x' is not a size"),
        (["--capacity-sweep", "1GiB,1024MiB"], "has 1 GiB twice"),
        (["--model", "opt-13b", "--gpu", "l4"], "model opt-13b has 23.9 GiB of weights, and a l4 has 22.4 GiB"),
        (["--engine", "page"], "engine 'page' is unknown"),
        (["--engine", "paged", "--engine", "paged"], "given twice"),
        (["--kv-memory", "1MiB"], "too small"),
        (["--efficiency", "0"], "--efficiency"),
        (["--max-length", "200000"], "131072 positions"),
        (["--workload", "chat-shared-promt"], "chat-shared-prompt"),
    ],
)
def test_what_cannot_work_is_refused_before_a_folder_is_made(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    assert main(["simulate", "--workload", "chat-shared-prompt", "--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not out.exists()


# The Azure trace


def test_the_azure_conversations_run_together_in_paged_memory_and_wait_in_reservations(tmp_path: Path) -> None:
    default = Path(__file__).parents[2] / ".." / "shared" / "traces"
    trace = Path(os.environ.get("PBENCH_TRACES", default)) / "AzureLLMInferenceTrace_conv.csv"
    if not trace.exists():
        pytest.skip("the Azure trace is neither in PBENCH_TRACES nor in ../shared/traces")
    choice = WorkloadChoice(str(trace), limit=200, max_length=4096)
    result = simulate(tmp_path / "run", replace(SMALL, kv_memory="8GiB"), choice)
    paged, contiguous = (engine.summary for engine in result.engines)
    assert contiguous["peak_running"] == 16  # 65 536 slots in reservations of 4096
    assert paged["peak_running"] > 2 * 16
    assert paged["waste_pct"] < 4
    assert contiguous["waste_pct"] > 50
