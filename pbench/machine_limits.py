"""What is known of the machines that runs were made on: for the report's roofline."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pbench.engine.hardware import HARDWARE
from pbench.engine.roofline import Speed
from pbench.errors import UsageError
from pbench.kernel_bench.ceilings import read_ceilings
from pbench.reports.roofline import Bench, Ceilings, KernelFigure, device_name
from pbench.results import Run
from pbench.units import display_path

# How NVML and torch name GPUs, beginning with the most telling.
_PROFILES = (
    ("NVIDIA H200", "h200"),
    ("NVIDIA H100 PCIe", "h100-pcie"),
    ("NVIDIA H100", "h100"),
    ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
    ("NVIDIA A100", "a100"),
    ("NVIDIA L40S", "l40s"),
    ("NVIDIA L4", "l4"),
    ("NVIDIA A10", "a10"),
    ("NVIDIA GeForce RTX 4090", "rtx-4090"),
)


def known_limits(runs: Sequence[Run], kernels: Path | None = None) -> Bench:
    """Ceilings of the runs' GPUs by their data sheets; of the device of ``kernels``, those measured on it.

    Raises:
        UsageError: ``kernels`` is no file of ``pbench kernels --json``.
    """
    ceilings = {name: published for name in _devices(runs) if (published := _published(name)) is not None}
    if kernels is None:
        return Bench(ceilings)
    measured = read_ceilings(kernels, "--kernels")
    where = f"as measured by `pbench kernels` on {measured.device}"
    ceilings[measured.device] = Ceilings(measured.copy_bytes_per_s, measured.matrix_flops_per_s, where)
    return Bench(ceilings, tuple(_kernels(kernels)))


def _devices(runs: Sequence[Run]) -> list[str]:
    return [device_name(run.result.environment) for run in runs]


def _published(name: str) -> Ceilings | None:
    profile = next((HARDWARE[profile] for start, profile in _PROFILES if name.startswith(start)), None)
    if profile is None:
        return None
    speed = Speed.of(profile, 0)
    return Ceilings(
        speed.bandwidth_bytes_per_s,
        speed.flops_per_s,
        f"as the {profile.source} has them, less what an H200 was measured to miss of its own",
    )


def _kernels(path: Path) -> list[KernelFigure]:
    document: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    try:
        return [
            KernelFigure(
                str(one["kernel"]),
                str(one["shape"]),
                str(one["implementation"]),
                float(one["median_us"]),
                float(one["share_of_ceiling"]),
            )
            for one in document.get("measurements", ())
            if one["median_us"] is not None and one["share_of_ceiling"] is not None
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"--kernels {display_path(path)} has a measurement that cannot be read: {error}") from error
