"""Whole runs with the tiny engine on the CPU: complete ones, and those that end badly."""

import errno
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pbench.results import METRICS, EngineResult, Run, RunResult
from pbench.settings import RunOptions, resolve
from pbench.tables import read_journal

RunExperiment = Callable[..., RunResult]


def live_workers() -> list[psutil.Process]:
    """Worker processes of this test that still run; other tests leave helpers of multiprocessing behind."""
    return [child for child in psutil.Process().children() if "pbench.worker" in child.cmdline()]


def check_what_was_measured(folder: Path, engine: EngineResult) -> None:
    """Tables and summary of an engine agree with each other and account for every slot."""
    steps = Run(folder).steps().query("engine == @engine.spec")
    assert len(steps) == engine.summary["num_steps"]
    assert len(steps) > 0
    assert list(steps["step"]) == list(range(len(steps)))
    parts = steps[["token_state", "reserved", "internal", "external", "cached", "free"]].sum(axis=1)
    assert (parts == engine.pool["num_slots"]).all()
    assert (steps["end_ns"] > steps["start_ns"]).all()


def test_a_complete_run_keeps_everything_and_cleans_up(
    options: RunOptions, run_experiment: RunExperiment, tmp_path: Path
) -> None:
    result = run_experiment(options)
    folder = tmp_path / "run"
    assert result.status == "complete"
    assert Run(folder).result == result
    assert sorted(path.name for path in folder.iterdir()) == [
        "device.parquet",
        "pool_map.parquet",
        "prefixes.parquet",
        "requests.parquet",
        "run.json",
        "steps.parquet",
        "tokens.parquet",
    ]
    workload = resolve(options).workload
    requests, device = Run(folder).requests(), Run(folder).device()
    for engine in result.engines:
        check_what_was_measured(folder, engine)
        assert set(engine.summary) == {metric.name for metric in METRICS}
        own = requests.query("engine == @engine.spec")
        assert list(own["status"]) == ["finished"] * 12
        assert own["num_prompt_tokens"].sum() == workload.total_input_tokens
        assert own["num_output_tokens"].sum() == workload.total_output_tokens
        assert (own["arrival_ns"] == 0).all()
        assert own["added_ns"].lt(own["first_token_ns"]).all()
        samples = device.query("engine == @engine.spec")
        assert set(samples["source"]) == {"process"}
        assert samples["time_ns"].max() >= own["finished_ns"].max()
        assert engine.summary["peak_process_rss_bytes"] == samples["process_rss_bytes"].max()
    paged, contiguous = result.engines
    assert paged.pool["pool_bytes"] == contiguous.pool["pool_bytes"] == 400 * 1024
    assert {key for key in paged.config if paged.config[key] != contiguous.config[key]} == {"memory"}
    assert contiguous.summary["peak_running"] == 3  # 800 slots hold three reservations of 256
    assert paged.summary["peak_running"] == 12


def test_the_record_says_whether_an_engine_was_batch_invariant(
    options: RunOptions, run_experiment: RunExperiment
) -> None:
    result = run_experiment(replace(options, engines=("paged",), batch_invariant=True))
    assert result.status == "complete"
    assert result.config["is_batch_invariant"] is result.engines[0].config["is_batch_invariant"] is True


def test_without_a_sampler_the_rest_is_measured(options: RunOptions, run_experiment: RunExperiment) -> None:
    result = run_experiment(replace(options, engines=("paged",), sample_interval=0.0))
    assert result.status == "complete"
    assert result.engines[0].summary["peak_process_rss_bytes"] is None
    assert result.engines[0].summary["num_finished"] == 12


def test_recorded_arrivals_are_waited_for(options: RunOptions, run_experiment: RunExperiment, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "".join(
            f'{{"arrival_s": {arrival_s}, "input_length": 20, "output_length": 3}}\n' for arrival_s in (10, 10.3, 10.9)
        )
    )
    result = run_experiment(replace(options, engines=("paged",), workload=str(path), arrivals="recorded", overrides=()))
    requests = Run(tmp_path / "run").requests()
    assert result.status == "complete"
    assert list(requests["arrival_ns"]) == pytest.approx([0, 0.3e9, 0.9e9])  # since the first request
    lateness_ns = requests["added_ns"] - requests["arrival_ns"]
    assert (lateness_ns >= 0).all()
    assert (requests["first_token_ns"] > requests["arrival_ns"]).all()
    duration_s = result.engines[0].summary["duration_s"]
    assert duration_s is not None
    assert duration_s > 0.9


def test_a_closed_loop_keeps_its_concurrency(options: RunOptions, run_experiment: RunExperiment) -> None:
    result = run_experiment(replace(options, engines=("paged",), arrivals="closed:2"))
    assert result.status == "complete"
    assert result.engines[0].summary["peak_running"] == 2


@pytest.mark.usefixtures("fake_engines_path")
def test_a_worker_killed_half_way_fails_alone_and_keeps_what_it_measured(
    options: RunOptions, run_experiment: RunExperiment, tmp_path: Path
) -> None:
    progress: list[Mapping[str, Any]] = []

    def kill(engine: str, event: Mapping[str, Any]) -> None:
        if engine == "paged" and event["event"] == "progress":
            progress.append(event)
            if len(progress) == 8:
                (worker,) = live_workers()
                worker.kill()

    result = run_experiment(options, on_event=kill, engine_factory="fake_engines:slow")
    killed, other = result.engines
    assert result.status == "failed"
    assert killed.status == "failed"
    assert killed.reason is not None
    assert "signal 9 (SIGKILL)" in killed.reason
    check_what_was_measured(tmp_path / "run", killed)
    steps = Run(tmp_path / "run").steps().query("engine == 'paged'")
    # What was heard of half a second before the kill is on the disk.
    assert steps["end_ns"].max() >= progress[2]["elapsed_ns"]
    requests = Run(tmp_path / "run").requests().query("engine == 'paged'")
    assert len(requests) == 12
    assert "unfinished" in set(requests["status"])
    assert other.status == "complete"
    assert other.summary["num_finished"] == 12


@pytest.mark.usefixtures("fake_engines_path")
@pytest.mark.parametrize(
    ("engine", "reasons"),
    [
        ("out_of_memory", ["out of GPU memory (torch.cuda.OutOfMemoryError)", "Tried to allocate 2.00 GiB"]),
        ("killed", ["signal 9 (SIGKILL)", "the last words\\x1b[31m of the worker", "paged.log"]),
        ("exiting", ["exit code 7"]),
    ],
)
def test_an_engine_that_dies_is_failed_with_its_reason_and_the_other_runs(
    options: RunOptions, run_experiment: RunExperiment, tmp_path: Path, engine: str, reasons: list[str]
) -> None:
    result = run_experiment(options, engine_factory=f"fake_engines:{engine}")
    failed, other = result.engines
    assert (result.status, failed.status, other.status) == ("failed", "failed", "complete")
    assert failed.reason is not None
    for reason in reasons:
        assert reason in failed.reason
    assert not (tmp_path / "run" / ".journal").exists()
    if engine == "out_of_memory":  # the worker itself still lived and wrote its journal to the end
        assert failed.summary["num_steps"] == 5
        check_what_was_measured(tmp_path / "run", failed)
        assert "Traceback" in (tmp_path / "run" / "paged.log").read_text()


@pytest.mark.usefixtures("fake_engines_path")
def test_an_engine_that_hangs_is_killed_at_its_timeout(options: RunOptions, run_experiment: RunExperiment) -> None:
    result = run_experiment(replace(options, engines=("paged",)), engine_factory="fake_engines:hanging", timeout_s=8.0)
    assert result.engines[0].status == "failed"
    assert result.engines[0].reason == "timed out after 8 s (--timeout) and was killed"
    assert not live_workers()


@pytest.mark.usefixtures("fake_engines_path")
def test_a_second_interruption_ends_an_engine_that_does_not_stop(
    options: RunOptions, run_experiment: RunExperiment, tmp_path: Path
) -> None:
    def interrupt_twice(engine: str, event: Mapping[str, Any]) -> None:
        if event.get("stage") == "running":
            for delay_s in (1.5, 2.5):
                threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT)).start()

    result = run_experiment(options, on_event=interrupt_twice, engine_factory="fake_engines:hanging")
    assert result.status == "interrupted"
    assert [engine.status for engine in result.engines] == ["interrupted", "interrupted"]
    assert result.engines[1].reason == "not started"
    assert len(Run(tmp_path / "run").steps()) == 5
    assert not live_workers()


@pytest.mark.usefixtures("fake_engines_path")
def test_what_an_engine_prints_is_no_event(options: RunOptions, run_experiment: RunExperiment, tmp_path: Path) -> None:
    result = run_experiment(replace(options, engines=("paged",)), engine_factory="fake_engines:chatty")
    assert result.status == "complete"
    assert "not an event" in (tmp_path / "run" / "paged.log").read_text()


def test_a_workload_that_changes_under_the_run_is_noticed(
    options: RunOptions, run_experiment: RunExperiment, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"input_length": 20, "output_length": 3}\n')

    def grow(engine: str, event: Mapping[str, Any]) -> None:
        if engine == "paged" and event.get("stage") == "running":
            path.write_text('{"input_length": 21, "output_length": 3}\n')

    result = run_experiment(replace(options, workload=str(path), overrides=()), on_event=grow)
    paged, contiguous = result.engines
    assert paged.status == "complete"
    assert contiguous.status == "failed"
    assert contiguous.reason is not None
    assert "changed since the run began" in contiguous.reason


@pytest.mark.usefixtures("fake_engines_path")
def test_nvml_that_is_lost_half_way_costs_its_figures_only(
    options: RunOptions, run_experiment: RunExperiment, tmp_path: Path
) -> None:
    result = run_experiment(replace(options, engines=("paged",)), engine_factory="fake_engines:without_nvml_half_way")
    (engine,) = result.engines
    assert (result.status, engine.summary["num_finished"]) == ("complete", 12)
    assert [note for note in engine.notes if "NVML failed while the engine ran (GPU is lost)" in note]
    device = Run(tmp_path / "run").device()
    assert list(device["source"].head(4)) == ["nvml"] * 4
    assert set(device["source"].iloc[4:]) == {"process"}
    assert device["process_rss_bytes"].notna().all()


def test_tables_that_cannot_be_written_fail_the_run_and_leave_the_journal(
    options: RunOptions, run_experiment: RunExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pbench.experiment.write_tables", refuse)
    result = run_experiment(options)
    paged, contiguous = result.engines
    assert Run(tmp_path / "run").result == result
    assert (result.status, paged.status) == ("failed", "failed")
    assert paged.reason is not None
    assert paged.reason.endswith("run cannot be written: No space left on device")
    assert (contiguous.status, contiguous.reason) == ("interrupted", "not started")
    assert paged.summary["num_finished"] == 12  # what it measured is summed up all the same
    assert len(read_journal(tmp_path / "run" / ".journal" / "paged", "paged").requests) == 12


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB where the run is to go."""
    folder = tmp_path / "run"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.usefixtures("fake_engines_path")
def test_a_disk_that_fills_up_leaves_a_readable_folder_with_the_true_status(
    options: RunOptions, run_experiment: RunExperiment, small_disk: Path
) -> None:
    progress: list[Mapping[str, Any]] = []

    def fill(engine: str, event: Mapping[str, Any]) -> None:
        progress.append(event)
        if len(progress) == 8:
            with (small_disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
                while True:
                    filler.write(bytes(512))

    result = run_experiment(options, on_event=fill, engine_factory="fake_engines:slow")
    read = Run(small_disk)
    assert read.result == result
    paged, contiguous = read.result.engines
    assert (result.status, paged.status, contiguous.status) == ("failed", "failed", "interrupted")
    assert paged.reason is not None
    assert "No space left on device" in paged.reason
    assert len(read_journal(small_disk / ".journal" / "paged", "paged").steps) > 0
