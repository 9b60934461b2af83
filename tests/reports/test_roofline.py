"""The roofline on the page: its arithmetic is the engine's, and its shares are of what is known of the machine."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbench.__main__ import main
from pbench.errors import UsageError
from pbench.machine_limits import known_limits
from pbench.reports.report import render_report
from pbench.reports.roofline import NOTHING_KNOWN, Bench, ceilings_of, step_loads
from pbench.reports.subjects import load_subjects
from pbench.results import Run

KERNELS = {
    "ceilings": {"device": "NVIDIA H200", "copy_bytes_per_s": 4e12, "matrix_flops_per_s": 7e14},
    "measurements": [
        {"kernel": "decode", "shape": "b8", "implementation": "pbench", "median_us": 12.5, "share_of_ceiling": 0.83},
        {"kernel": "decode", "shape": "b8", "implementation": "torch", "median_us": 40.0, "share_of_ceiling": 0.26},
        {
            "kernel": "decode",
            "shape": "b8",
            "implementation": "pbench, fp8",
            "median_us": 9.5,
            "share_of_ceiling": 0.55,
        },
        {"kernel": "copy", "shape": "x", "implementation": "pbench", "median_us": None, "share_of_ceiling": None},
        {"kernel": "host", "shape": "decode", "implementation": "pbench", "median_us": 8.0, "share_of_ceiling": None},
    ],
}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("simulated") / "run"
    arguments = "--workload chat-shared-prompt --limit 24 --model llama-1b --kv-memory 256MiB --step-overhead 200"
    assert main(["simulate", *arguments.split(), "--out", str(folder)]) == 0
    return Run(folder)


@pytest.fixture
def run(builder: Callable[..., Any]) -> Run:
    made = builder(num_requests=6).add_engine("paged").add_engine("contiguous:max")
    written: Run = made.write()
    return written


def test_of_a_simulated_step_that_only_generates_the_arithmetic_gives_its_very_time(simulated: Run) -> None:
    for subject in load_subjects([simulated]):
        loads, ceilings = step_loads(subject), ceilings_of(subject, NOTHING_KNOWN)
        assert loads is not None
        assert ceilings is not None
        least_s = np.maximum(loads.num_bytes / ceilings.bytes_per_s, loads.flops / ceilings.flops_per_s) + 200e-6
        generating = ~loads.has_prompts
        assert generating.sum() > 50
        assert loads.seconds[generating] == pytest.approx(least_s[generating], rel=1e-5)
        assert (loads.seconds[~generating] >= least_s[~generating] * (1 - 1e-5)).all()


def test_a_simulated_run_has_its_ceilings_with_it_and_its_marks_lie_below_the_roof(
    simulated: Run, render: Callable[..., Any]
) -> None:
    figures = render(simulated).figures()
    assert "roofline-time" in figures
    *marks, roof = figures["roofline-steps"]["data"]
    assert roof["name"] == "the roof"
    slope, flat = roof["y"][0] / roof["x"][0], roof["y"][-1]
    for trace in marks:
        for x, y in zip(trace["x"], trace["y"], strict=True):
            assert y <= min(slope * x, flat) * 1.001
    for parts in zip(*(bar["x"] for bar in figures["roofline-time"]["data"]), strict=True):
        assert sum(parts) == pytest.approx(100, abs=0.1)


def test_a_gpu_that_is_known_gets_the_ceilings_of_its_data_sheet(run: Run) -> None:
    bench = known_limits([run])
    assert bench.ceilings["NVIDIA H200"].bytes_per_s == pytest.approx(4.258e12)
    assert "data sheet" in bench.ceilings["NVIDIA H200"].source


def test_what_a_kernel_bench_measured_goes_before_the_data_sheet(
    run: Run, tmp_path: Path, read_page: Callable[[str], Any]
) -> None:
    (tmp_path / "kernels.json").write_text(json.dumps(KERNELS))
    stream = io.StringIO()
    render_report([run], stream, plotlyjs="directory", bench=known_limits([run], tmp_path / "kernels.json"))
    page = read_page(stream.getvalue())
    (bars,) = page.figures()["roofline-kernels"]["data"]
    assert (bars["x"], bars["y"]) == ([55, 83], ["decode, b8, fp8", "decode, b8"])
    summary = page.by_id("roofline-steps-summary").text
    assert "4\u202f000 GB/s and 700 TFLOP/s as measured by `pbench kernels` on NVIDIA H200" in summary


def test_without_ceilings_the_section_says_what_would_bring_them(run: Run, render: Callable[..., Any]) -> None:
    page = render(run)
    assert "pbench report --kernels" in page.by_id("roofline").text
    assert "roofline-time" not in page.figures()
    assert "roofline-steps" in page.figures()


def test_ceilings_of_another_machine_are_not_used(run: Run) -> None:
    other = replace(run.result, environment={"gpu": {"name": "NVIDIA Another"}})
    subject = replace(load_subjects([run])[0], run=other)
    assert ceilings_of(subject, known_limits([run])) is None
    assert ceilings_of(subject, Bench()) is None


@pytest.mark.parametrize("text", ["{", "{}", json.dumps(KERNELS | {"measurements": [{"median_us": "x"}]})])
def test_a_file_that_is_none_of_pbench_kernels_is_named(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "kernels.json").write_text(text)
    with pytest.raises(UsageError, match=r"--kernels .*kernels\.json"):
        known_limits([run], tmp_path / "kernels.json")
