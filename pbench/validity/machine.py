"""The checks of the machine that a repeat ran on: whether it was as fast as it can be, and nobody else there."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pbench.results import Check
from pbench.units import format_bytes, format_number, format_quantity

if TYPE_CHECKING:
    import pandas as pd

# NVML's bit mask of reasons for a lower clock (nvml.h, nvmlClocksEventReason*)
_POWER_CAP = 0x4
_THERMAL = 0x20 | 0x40
_SLOWDOWNS = {0x8: "hardware slowdown", 0x20: "thermal", 0x40: "thermal (hardware)", 0x80: "power brake"}

_BUSY_PCT = 50.0  # utilization from which a clock should be at its highest
_STEADY_CLOCK_PCT, _FALLEN_CLOCK_PCT = 95.0, 80.0  # of the highest
_MARGIN_C = 5.0  # below the temperature at which the GPU slows itself down
_OTHERS_WARN_PCT, _OTHERS_FAIL_PCT = 10.0, 50.0  # of our cores

Floats = npt.NDArray[np.float64]


def check_gpu(device: "pd.DataFrame", gpu: Mapping[str, Any]) -> Iterator[Check]:
    """The checks of the GPU, from its samples and its description in the environment."""
    masks = _measured(device, "throttle_reasons").astype(np.int64)
    yield _unthrottled(masks)
    yield _clocks_held(device)
    yield _cool(device, masks, gpu.get("slowdown_temperature_c"))
    yield _gpu_alone(_measured(device, "num_foreign_processes"))


def check_host(device: "pd.DataFrame", num_cores: int) -> Iterator[Check]:
    """The checks of the host, from the samples and the number of cores that the worker might run on."""
    yield _not_swapping(_measured(device, "host_swapped_bytes"))
    yield _cpu_alone(device, num_cores)


def _unthrottled(masks: npt.NDArray[np.int64]) -> Check:
    name = "GPU not slowed down"
    if not len(masks):
        return Check(name, "unknown", "NVML does not tell")
    found = [(100 * float(np.mean(masks & bit != 0)), reason) for bit, reason in _SLOWDOWNS.items()]
    share_pct, reason = max(found)
    if share_pct:
        return Check(name, "fail", f"{reason} in {format_quantity(share_pct, '%')} of the samples", share_pct, "%")
    share_pct = 100 * float(np.mean(masks & _POWER_CAP != 0))
    if share_pct:
        detail = f"held at its power limit in {format_quantity(share_pct, '%')} of the samples"
        return Check(name, "warn", detail, share_pct, "%")
    return Check(name, "pass", f"no reason for a lower clock in {format_number(len(masks))} samples", 0.0, "%")


def _clocks_held(device: "pd.DataFrame") -> Check:
    """The SM clock of the busy samples: the twentieth lowest of a hundred against the highest."""
    name = "clocks held"
    is_busy = device["gpu_utilization_pct"].fillna(0.0) >= _BUSY_PCT
    clocks = _measured(device[is_busy], "sm_clock_mhz")
    if not len(clocks):
        return Check(name, "unknown", "no sample of a busy GPU has a clock")
    low, high = float(np.percentile(clocks, 5)), float(clocks.max())
    share_pct = 100 * low / high
    outcome = "pass" if share_pct >= _STEADY_CLOCK_PCT else "warn" if share_pct >= _FALLEN_CLOCK_PCT else "fail"
    detail = f"SM clock {format_number(low)} to {format_number(high)} MHz while the GPU was busy (p5 to highest)"
    return Check(name, outcome, detail, share_pct, "%")


def _cool(device: "pd.DataFrame", masks: npt.NDArray[np.int64], slowdown_c: float | None) -> Check:
    name, temperatures = "GPU cool enough", _measured(device, "temperature_c")
    if not len(temperatures):
        return Check(name, "unknown", "NVML does not tell")
    first, highest = float(temperatures[0]), float(temperatures.max())
    detail = f"{format_number(first)} °C at the start, at most {format_number(highest)} °C"
    if slowdown_c is not None:
        detail = f"{detail}; slows down at {format_number(slowdown_c)} °C"
    is_hot = slowdown_c is not None and highest > slowdown_c - _MARGIN_C
    outcome = "fail" if (masks & _THERMAL).any() else "warn" if is_hot else "pass"
    return Check(name, outcome, detail, highest, "°C")


def _gpu_alone(numbers: Floats) -> Check:
    name = "GPU to itself"
    if not len(numbers):
        return Check(name, "unknown", "the driver does not show the GPU's processes here")
    most = int(numbers.max())
    detail = "no other process computed on the GPU" if not most else f"up to {most} other processes computed on the GPU"
    return Check(name, "fail" if most else "pass", detail, most)


def _not_swapping(swapped: Floats) -> Check:
    name = "host not swapping"
    if not len(swapped):
        return Check(name, "unknown", "the system does not tell")
    num_bytes = float(swapped.max())
    return Check(name, "warn" if num_bytes else "pass", f"{format_bytes(num_bytes)} swapped", num_bytes, "bytes")


def _cpu_alone(device: "pd.DataFrame", num_cores: int) -> Check:
    """What of our cores others used, on average: a benchmark next to a compilation measures the compilation."""
    name = "CPU to itself"
    used = device[["host_cpu_pct", "process_cpu_pct"]].dropna()
    if used.empty:
        return Check(name, "unknown", "it was not sampled: the repeat was too short")
    by_all, by_us = (_measured(used, column).mean() for column in ("host_cpu_pct", "process_cpu_pct"))
    others_pct = max(0.0, float(by_all) - float(by_us) / num_cores)
    outcome = "pass" if others_pct <= _OTHERS_WARN_PCT else "warn" if others_pct <= _OTHERS_FAIL_PCT else "fail"
    detail = f"other processes used {format_quantity(others_pct, '%')} of the {num_cores} cores on average"
    return Check(name, outcome, detail, others_pct, "%")


def _measured(table: "pd.DataFrame", column: str) -> Floats:
    return np.asarray(table[column].dropna().to_numpy(dtype=np.float64), dtype=np.float64)
