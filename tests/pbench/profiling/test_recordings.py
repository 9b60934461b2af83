"""What torch records of a run, and where it lies afterwards."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pbench.errors import UsageError
from pbench.results import RunResult
from pbench.settings import RunOptions, resolve

RunExperiment = Callable[..., RunResult]


def ranges(path: Path) -> Counter[str]:
    """How often every named range is in a trace."""
    with gzip.open(path, "rt") as stream:
        trace = json.load(stream)
    return Counter(event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation")


def test_a_trace_names_the_phases_of_the_steps_of_its_window(
    options: RunOptions, run_experiment: RunExperiment, tmp_path: Path
) -> None:
    result = run_experiment(replace(options, profile=("torch",), profile_steps=(4, 3)))
    for engine, name in zip(result.engines, ("paged", "contiguous-max"), strict=True):
        named = ranges(tmp_path / "run" / f"trace-{name}.json.gz")
        assert {
            phase: named[phase] for phase in ("schedule", "launch", "forward", "wait", "complete")
        } == dict.fromkeys(("schedule", "launch", "forward", "wait", "complete"), 3)
        assert named["attention"] == named["mlp"] == 3 * 2  # layers
        assert any("recorded steps 4 to 6" in note for note in engine.notes)
        assert engine.phases == ()  # not of steps that a profiler slows down


def test_a_run_that_ends_before_the_window_says_so(
    options: RunOptions, run_experiment: RunExperiment, tmp_path: Path
) -> None:
    result = run_experiment(replace(options, engines=("paged",), profile=("torch",), profile_steps=(10_000, 3)))
    (engine,) = result.engines
    assert engine.status == "complete"
    assert any("use --profile-steps 0 3" in note for note in engine.notes)
    assert not list((tmp_path / "run").glob("trace-*"))


def test_memory_is_recorded_on_a_gpu_only(options: RunOptions) -> None:
    with pytest.raises(UsageError, match="--profile memory needs an NVIDIA GPU"):
        resolve(replace(options, profile=("memory",)))


def test_engines_of_others_are_not_recorded(options: RunOptions) -> None:
    with pytest.raises(UsageError, match="--profile torch records engines of pbench's own; add --engine paged"):
        resolve(replace(options, engines=("transformers",), profile=("torch",)))


@pytest.mark.gpu
def test_memory_and_kernels_are_recorded_on_a_gpu(
    options: RunOptions, run_experiment: RunExperiment, tmp_path: Path
) -> None:
    run_experiment(replace(options, engines=("paged",), device="cuda", kv_memory="8MiB", profile=("torch", "memory")))
    assert (tmp_path / "run" / "memory-paged.pickle").stat().st_size > 0
    with gzip.open(tmp_path / "run" / "trace-paged.json.gz", "rt") as stream:
        assert any(event.get("cat") == "kernel" for event in json.load(stream)["traceEvents"])
