"""What only a GPU can prove: NVML against nvidia-smi, energy counted against integrated, what sampling costs."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pbench.environment import gpu_environment
from pbench.journal import DeviceSample
from pbench.nvml import NvmlDevice
from pbench.results import Run, RunResult
from pbench.sampler import DeviceProbe, Sampler
from pbench.settings import RunOptions
from pbench.summary.intervals import paired_ratio

pytestmark = pytest.mark.gpu

NUM_PAIRS = 6
LOAD_S = 8.0


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def nvml(device: torch.device) -> NvmlDevice:
    return NvmlDevice.open(str(torch.cuda.get_device_properties(device).uuid))


def nvidia_smi(device: torch.device, *fields: str) -> list[str]:
    """What the program of the driver says of the device."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [field.strip() for field in done.stdout.strip().split(",")]


def keep_busy(device: torch.device, seconds: float) -> None:
    matrix = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        for _ in range(20):
            torch.mm(matrix, matrix)
        torch.cuda.synchronize(device)


def test_memory_temperature_and_clocks_are_those_of_nvidia_smi(device: torch.device, nvml: NvmlDevice) -> None:
    held = torch.ones(1 << 30, device=device, dtype=torch.uint8)
    keep_busy(device, 1.0)
    fields = ("memory.used", "memory.reserved", "temperature.gpu", "clocks.sm", "clocks.mem", "power.draw.average")
    before = [float(value) for value in nvidia_smi(device, *fields)]
    used, temperature = nvml.used_bytes(), nvml.temperature_c()
    sm_clock, memory_clock, power = nvml.sm_clock_mhz(), nvml.memory_clock_mhz(), nvml.power_w()
    after = [float(value) for value in nvidia_smi(device, *fields)]
    low, high = np.minimum(before, after), np.maximum(before, after)
    assert used is not None
    # NVML's first version of this call counts what the driver keeps for itself as used; nvidia-smi tells it apart.
    used_mib = used / 2**20
    assert low[0] - 64 <= used_mib <= high[0] + high[1] + 64
    assert used_mib >= held.numel() / 2**20
    assert temperature is not None
    assert low[2] - 3 <= temperature <= high[2] + 3
    assert sm_clock is not None
    assert 0.8 * low[3] <= sm_clock <= 1.2 * high[3]
    assert memory_clock is not None
    assert 0.99 * low[4] <= memory_clock <= 1.01 * high[4]
    assert power is not None
    assert 0.5 * low[5] <= power <= 2 * high[5]


def test_what_does_not_change_is_as_nvidia_smi_says(device: torch.device, nvml: NvmlDevice) -> None:
    described = gpu_environment(device, nvml)
    driver, limit, max_sm, ecc, mig = nvidia_smi(
        device, "driver_version", "enforced.power.limit", "clocks.max.sm", "ecc.mode.current", "mig.mode.current"
    )
    assert described["driver_version"] == driver
    assert described["power_limit_w"] == pytest.approx(float(limit), abs=0.1)
    assert described["max_sm_clock_mhz"] == float(max_sm)
    words = {True: "Enabled", False: "Disabled"}
    for name, said in (("is_ecc_enabled", ecc), ("is_mig_enabled", mig)):
        assert described[name] is None or words[described[name]] == said
    slowdown_c = described["slowdown_temperature_c"]
    assert slowdown_c is None or 60 < slowdown_c < 120


def test_the_energy_counter_agrees_with_integrated_power(device: torch.device, nvml: NvmlDevice) -> None:
    samples: list[DeviceSample] = []
    keep_busy(device, 2.0)  # power has risen
    sampler = Sampler(DeviceProbe(nvml, device), samples.append, start_ns=time.monotonic_ns(), interval_s=0.05)
    sampler.start()
    keep_busy(device, LOAD_S)
    sampler.stop()
    assert samples[-1].energy_j is not None, "this GPU has no energy counter"
    watts = np.array([sample.power_w for sample in samples], dtype=np.float64)
    times_s = np.array([sample.time_ns for sample in samples], dtype=np.float64) / 1e9
    integrated_j = float((np.diff(times_s) * (watts[1:] + watts[:-1]) / 2).sum())
    assert samples[-1].energy_j == pytest.approx(integrated_j, rel=0.1)


def test_a_run_samples_everything_that_the_gpu_tells(
    options: RunOptions, run_experiment: Callable[..., RunResult], tmp_path: Path
) -> None:
    result = run_experiment(replace(options, engines=("paged",), device="cuda", kv_memory="64MiB"))
    (engine,) = result.engines
    assert result.status == "complete", engine.reason
    samples = Run(tmp_path / "run").device()
    for column in ("device_used_bytes", "torch_allocated_bytes", "torch_reserved_bytes", "torch_inactive_bytes"):
        assert samples[column].notna().all(), column
    for column in ("power_w", "sm_clock_mhz", "temperature_c", "throttle_reasons"):
        assert samples[column].notna().all(), column
    assert (samples["torch_allocated_bytes"] <= samples["torch_reserved_bytes"]).all()
    own = samples["device_process_bytes"].dropna()
    assert (own >= samples["torch_reserved_bytes"].max() * 0.9).all()
    num_tests = int(torch.cuda.is_initialized())  # this process computes there too, once an earlier test has
    assert (samples["num_foreign_processes"].dropna() == num_tests).all(), "another process computes on this GPU"
    assert {"GPU not slowed down", "clocks held", "GPU cool enough", "GPU to itself"} <= {
        check.name for check in engine.checks
    }


@pytest.mark.timeout(600)
def test_sampling_costs_less_than_one_percent_of_the_throughput(
    options: RunOptions, run_experiment: Callable[..., RunResult], tmp_path: Path
) -> None:
    """On against off in pairs, in ABBA order; the interval of the ratio must not lie below 0.99."""
    asked = replace(
        options,
        engines=("paged",),
        device="cuda",
        model="llama-1b",
        workload="uniform",
        overrides=(),
        kv_memory="8GiB",
        max_length=2048,
        max_running=256,
        max_batch_tokens=8192,
        limit=128,
    )
    speeds: dict[float, list[float]] = {0.0: [], 0.1: []}
    for pair in range(NUM_PAIRS):
        for interval_s in ((0.0, 0.1), (0.1, 0.0))[pair % 2]:
            (tmp_path / "run").mkdir(exist_ok=True)
            result = run_experiment(replace(asked, sample_interval=interval_s))
            speed = result.engines[0].summary["output_tokens_per_s"]
            assert speed is not None, result.engines[0].reason
            speeds[interval_s].append(speed)
            (tmp_path / "run").rename(tmp_path / f"run-{pair}-{interval_s}")
    bounds = paired_ratio(speeds[0.0], speeds[0.1])
    assert bounds is not None
    print(f"\ntok/s with sampling over without: {bounds[0]:.4f} to {bounds[1]:.4f}; {speeds}")
    assert bounds[1] >= 0.99
