"""``pbench env``: what this machine is, and what of it can be measured."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from pbench.units import format_bytes, printable


@click.command()
@click.option("--json", "is_json", is_flag=True, help="Print one JSON document.")
def env(is_json: bool) -> None:
    """Say what this machine is, and what of it can be measured."""
    from pbench.environment import host_environment

    gpu, measurable = _look_at_gpu()
    document = host_environment() | {"gpu": gpu, "measurable": measurable}
    if is_json:
        click.echo(json.dumps(document, indent=1))
        return
    for line in _lines(document):
        click.echo(line)


def _look_at_gpu() -> tuple[dict[str, Any] | None, dict[str, str]]:
    """The GPU that a run would use, and for every quantity "yes" or why not."""
    import torch

    from pbench.environment import gpu_environment
    from pbench.nvml import NvmlDevice, NvmlUnavailableError

    if not torch.cuda.is_available():
        why = "no: torch finds no NVIDIA GPU"
        return None, {"process memory": "yes", "torch allocator": why, "NVML": why}
    device = torch.device("cuda", torch.cuda.current_device())
    measurable = {"process memory": "yes", "torch allocator": "yes"}
    try:
        nvml = NvmlDevice.open(str(torch.cuda.get_device_properties(device).uuid))
    except NvmlUnavailableError as error:
        return gpu_environment(device, None), measurable | {"NVML": f"no: {error}"}
    gpu = gpu_environment(device, nvml)
    measurable["NVML"] = "yes"
    for quantity, read in {
        "GPU memory in use": nvml.used_bytes,
        "utilization": nvml.utilization_pct,
        "power": nvml.power_w,
        "energy counter": nvml.energy_j,
        "SM clock": nvml.sm_clock_mhz,
        "memory clock": nvml.memory_clock_mhz,
        "temperature": nvml.temperature_c,
        "throttle reasons": nvml.throttle_reasons,
        "processes": nvml.compute_processes,
    }.items():
        is_missing = read() is None
        measurable[quantity] = f"no: {nvml.lost or 'not supported by this GPU'}" if is_missing else "yes"
    nvml.close()
    return gpu, measurable


def _lines(document: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in document.items():
        label = key.removesuffix("_bytes").removeprefix("num_").replace("_", " ")
        if isinstance(value, Mapping):
            yield f"{indent}{label}"
            yield from _lines(value, indent + "  ")
        elif value is None:
            yield f"{indent}{label}: none"
        elif key.endswith("_bytes"):
            yield f"{indent}{label}: {format_bytes(value)}"
        else:
            yield f"{indent}{label}: {printable(str(value))}"
