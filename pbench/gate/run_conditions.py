"""What the machine did while a run ran, and the reasons, declared beforehand, for which a pair of runs does not count.

None of the reasons looks at what was measured: a pair must not be discarded for being slow. The rules are the same for
base and head.
"""

import os
import resource
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from pbench.nvml import NvmlDevice, NvmlUnavailableError

# NVML's bits: HW slowdown, SW thermal slowdown, HW thermal slowdown, HW power brake. Not the power cap, at which a
# busy GPU works by design, nor an idle GPU's.
THROTTLE_BITS = 0x08 | 0x20 | 0x40 | 0x80
CLOCK_DROP = 0.05
FOREIGN_CPU_SHARE = 0.25

BUSY = ("user", "nice", "system", "irq", "softirq", "steal")  # of what the time of a core is divided into
STAT = Path("/proc/stat")
STAT_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")  # proc(5)

THROTTLE, FOREIGN, CLOCK = "throttle", "foreign-process", "clock-drop"

DISCARD_RULES: Mapping[str, str] = {
    THROTTLE: "the GPU slowed down for its temperature or its power supply",
    FOREIGN: f"another process computed on the GPU, or others used more than {FOREIGN_CPU_SHARE:.0%} of the CPU",
    CLOCK: f"the GPU's median SM clock was more than {CLOCK_DROP:.0%} below that of the A/A check",
}


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is known of the machine during one run; None: cannot be seen here."""

    throttle_bits: int | None = None  # of THROTTLE_BITS, all that were set at any time
    sm_clock_mhz: float | None = None  # median
    num_foreign_gpu_processes: int | None = None  # the most at once
    foreign_cpu_share: float | None = None  # of the time of the cores that we may run on


def discard_reasons(conditions: Conditions, normal_clock_mhz: float | None, rules: Collection[str]) -> tuple[str, ...]:
    """Why the run does not count, of ``rules``: a figure in each. Empty: it counts."""
    reasons = []
    if THROTTLE in rules and conditions.throttle_bits:
        reasons.append(f"{THROTTLE}: NVML's reasons {conditions.throttle_bits:#x}")
    if FOREIGN in rules and conditions.num_foreign_gpu_processes:
        reasons.append(f"{FOREIGN}: {conditions.num_foreign_gpu_processes} on the GPU")
    if FOREIGN in rules and (conditions.foreign_cpu_share or 0) > FOREIGN_CPU_SHARE:
        reasons.append(f"{FOREIGN}: others used {conditions.foreign_cpu_share:.0%} of the CPU")
    clock = conditions.sm_clock_mhz
    if CLOCK in rules and clock and normal_clock_mhz and clock < (1 - CLOCK_DROP) * normal_clock_mhz:
        reasons.append(f"{CLOCK}: {clock:.0f} MHz, in the A/A check {normal_clock_mhz:.0f} MHz")
    return tuple(reasons)


class Watch:
    """Looks at the machine from outside while a run's processes run: those are ours, all others foreign."""

    def __init__(self, gpu: NvmlDevice | None) -> None:
        self._gpu = gpu
        self._gpu_before = self._num_gpu_processes()  # ours has not started
        self._gpu_during: list[int] = []
        self._started_s = time.monotonic()
        self._busy_s, self._own_s = _busy_s(), _own_s()

    def look(self) -> None:
        """Look at the GPU once more."""
        count = self._num_gpu_processes()
        if count is not None:
            self._gpu_during.append(count)

    def num_foreign_gpu_processes(self) -> int | None:
        """The most at once. None where not even our own was ever seen."""
        if self._gpu_before is None or not any(self._gpu_during):
            return None
        return max(self._gpu_before, max(self._gpu_during) - 1)

    def foreign_cpu_share(self) -> float:
        """Share of our cores' time that others used since the start. Call it after our processes were waited for."""
        foreign_s = (_busy_s() - self._busy_s) - (_own_s() - self._own_s)
        return max(0.0, foreign_s / (time.monotonic() - self._started_s) / len(_cores()))

    def _num_gpu_processes(self) -> int | None:
        processes = None if self._gpu is None else self._gpu.compute_processes()
        return None if processes is None else len(processes)


def open_gpu(uuid: str) -> NvmlDevice | None:
    """The GPU of that UUID; None where NVML does not give it."""
    try:
        return NvmlDevice.open(uuid)
    except NvmlUnavailableError:
        return None


def sampled_conditions(device_table: Path) -> tuple[int | None, float | None]:
    """Throttle bits and median SM clock of a run's samples; None where the table does not have them."""
    import pandas as pd
    import pyarrow as pa

    try:
        table = pd.read_parquet(device_table, columns=["throttle_reasons", "sm_clock_mhz"])
    except (OSError, ValueError, pa.ArrowException):
        return None, None
    reasons, clocks = table["throttle_reasons"].dropna(), table["sm_clock_mhz"].dropna()
    bits = None
    if len(reasons):
        bits = 0
        for value in reasons:
            bits |= int(value) & THROTTLE_BITS
    return bits, median(map(float, clocks)) if len(clocks) else None


def _cores() -> list[int]:
    """The cores that we may run on: of a large host a container often has only some."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(psutil.cpu_count() or 1))


def _busy_s() -> float:
    """CPU time that our cores spent on anybody since the machine started, in seconds."""
    by_core = _busy_by_core()
    return sum(by_core.get(core, 0.0) for core in _cores())


def _busy_by_core() -> dict[int, float]:
    """Seconds by the number of the core. psutil has places instead: on Linux, without the cores that are offline."""
    try:
        lines = STAT.read_text(encoding="ascii").splitlines()
    except OSError:  # no Linux
        return {
            core: sum(float(getattr(times, name, 0.0)) for name in BUSY)
            for core, times in enumerate(psutil.cpu_times(percpu=True))
        }
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    by_core = {}
    for line in lines:
        if line.startswith("cpu") and not line.startswith("cpu "):  # which is of all cores together
            label, *ticks = line.split()
            busy = sum(int(number) for number, name in zip(ticks, STAT_FIELDS, strict=False) if name in BUSY)
            by_core[int(label.removeprefix("cpu"))] = busy / ticks_per_s
    return by_core


def _own_s() -> float:
    """CPU time of this process and of all below it that were waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = os.times()
    return own.user + own.system + children.ru_utime + children.ru_stime
