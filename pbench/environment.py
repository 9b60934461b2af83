"""What this machine and this installation are, as the run record keeps it."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pbench.nvml import NvmlDevice
from pbench.version import __version__

if TYPE_CHECKING:
    import torch

PACKAGES = (
    *("torch", "triton", "transformers", "tokenizers", "safetensors", "huggingface-hub"),
    *("numpy", "pandas", "pyarrow", "plotly", "jinja2", "click", "rich", "psutil", "nvidia-ml-py"),
    *("flash-attn", "flashinfer-python", "vllm"),  # peers, where they are installed
)

GIT_TIMEOUT_S = 10


def host_environment() -> dict[str, Any]:
    """The machine without its GPU, the software, and the state of the project's checkout. Imports nothing heavy."""
    return {
        "pbench": {"version": __version__} | git_state(Path(__file__).resolve().parent.parent),
        "cpu": {
            "model": _cpu_model(),
            "num_cores": psutil.cpu_count(logical=False),
            "num_logical_cores": psutil.cpu_count(),
            "num_usable_cores": len(usable_cores()),
            "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        },
        "memory_bytes": psutil.virtual_memory().total,
        "container": container_limits(Path("/sys/fs/cgroup")),
        "os": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def gpu_environment(device: "torch.device", nvml: NvmlDevice | None) -> dict[str, Any]:
    """The GPU that ``device`` is. Figures of NVML are None where it is missing or does not know them.

    Starts CUDA in this process, which takes GPU memory: for processes that run an engine, or run nothing.
    """
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "uuid": str(properties.uuid),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "num_multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda_version": torch.version.cuda,
        "driver_version": nvml.driver_version() if nvml else None,
        "is_mig_enabled": nvml.is_mig_enabled() if nvml else None,
        "is_ecc_enabled": nvml.is_ecc_enabled() if nvml else None,
        "slowdown_temperature_c": nvml.slowdown_temperature_c() if nvml else None,
        "power_limit_w": nvml.power_limit_w() if nvml else None,
        "max_sm_clock_mhz": nvml.max_sm_clock_mhz() if nvml else None,
        "max_memory_clock_mhz": nvml.max_memory_clock_mhz() if nvml else None,
        "sm_clock_mhz": nvml.sm_clock_mhz() if nvml else None,
        "memory_clock_mhz": nvml.memory_clock_mhz() if nvml else None,
    }


def own_process() -> dict[str, Any]:
    """The process that calls, so that a reader of its record can tell whether it still lives."""
    process = psutil.Process()
    return {"host": platform.node(), "id": process.pid, "created_s": process.create_time()}


def container_limits(root: Path) -> dict[str, float | int | None]:
    """What the control groups mounted at ``root`` (version 2, else 1) let this process have; None: no limit."""
    cores: float | None = None
    quota, _, period = (_first_line(root / "cpu.max") or "").partition(" ")
    if not quota:
        quota = _first_line(root / "cpu" / "cpu.cfs_quota_us") or ""
        period = _first_line(root / "cpu" / "cpu.cfs_period_us") or ""
    if quota.isdecimal() and period.isdecimal():  # neither "max" nor -1
        cores = int(quota) / int(period)
    memory = _first_line(root / "memory.max") or _first_line(root / "memory" / "memory.limit_in_bytes") or ""
    # Version 1 says "no limit" as the largest multiple of a page.
    is_limited = memory.isdecimal() and int(memory) < psutil.virtual_memory().total
    return {"num_cores": cores, "memory_bytes": int(memory) if is_limited else None}


def _first_line(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").partition("\n")[0].strip()
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> list[int]:
    """The cores that this process may run on; containers and taskset leave fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(psutil.cpu_count() or 1))


def git_state(root: Path) -> dict[str, Any]:
    """Commit of the project's checkout and whether files differ from it; empty for an installed package."""
    if not (root / ".git").exists():
        return {}
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain")
    return {"git_commit": commit or None, "is_git_dirty": None if status is None else bool(status)}


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command; None when git is missing or refuses (no commit yet, another user's checkout)."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
