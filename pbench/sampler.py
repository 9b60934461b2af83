"""The sampler: a thread that looks at the device about ten times a second while the engine runs.

Samples lie on an absolute schedule, start + k x interval: a late sample does not push the following ones back, and the
moments that it covered are left out rather than caught up with.
"""

import os
import threading
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import psutil

from pbench.environment import usable_cores
from pbench.journal import DeviceSample
from pbench.nvml import NvmlDevice

if TYPE_CHECKING:
    import torch


# What is slow to read and slow to change is read so often; sooner at first, so that short runs have it too.
SLOW_INTERVAL_NS = 1_000_000_000
FIRST_SLOW_INTERVAL_NS = 100_000_000


class Probe(Protocol):
    """Takes one sample now."""

    def __call__(self, time_ns: int) -> DeviceSample:
        """The sample, stamped with ``time_ns``."""


class DeviceProbe:
    """Reads NVML where there is one, the torch allocator where the engine is on a GPU, this process and the machine."""

    def __init__(self, nvml: NvmlDevice | None, torch_device: "torch.device | None") -> None:
        self._nvml = nvml
        self._torch_device = torch_device
        self._process = psutil.Process()
        self._first_energy_j: float | None = None
        self._next_slow_ns = 0
        self._first_swapped_bytes = _swapped_bytes()
        self._cores = usable_cores()
        self._cpu_pct()  # shares are since the call before: this one begins the first

    def __call__(self, time_ns: int) -> DeviceSample:
        """One sample. After NVML was lost its fields are None and the source says ``process``."""
        is_first, is_slow_due = self._next_slow_ns == 0, time_ns >= self._next_slow_ns
        if is_slow_due:
            self._next_slow_ns = time_ns + min(max(time_ns, FIRST_SLOW_INTERVAL_NS), SLOW_INTERVAL_NS)
        host_cpu_pct, process_cpu_pct = self._cpu_pct() if is_slow_due and not is_first else (None, None)
        memory = psutil.virtual_memory()
        allocated_bytes, reserved_bytes, inactive_bytes = self._torch_bytes()
        sample = DeviceSample(
            time_ns,
            "process",
            process_rss_bytes=self._process.memory_info().rss,
            torch_allocated_bytes=allocated_bytes,
            torch_reserved_bytes=reserved_bytes,
            torch_inactive_bytes=inactive_bytes,
            host_used_bytes=memory.total - memory.available,
            host_cpu_pct=host_cpu_pct,
            process_cpu_pct=process_cpu_pct,
            host_swapped_bytes=self._swapped_bytes() if is_slow_due else None,
        )
        nvml = self._nvml
        if nvml is None or nvml.lost is not None:
            return sample
        process_bytes, num_foreign = self._processes(nvml) if is_slow_due else (None, None)
        # When NVML is lost between two of the fields, what was read before that is still right.
        return sample._replace(
            source="nvml",
            device_used_bytes=nvml.used_bytes(),
            gpu_utilization_pct=nvml.utilization_pct(),
            power_w=nvml.power_w(),
            energy_j=self._energy_j(nvml),
            sm_clock_mhz=nvml.sm_clock_mhz(),
            memory_clock_mhz=nvml.memory_clock_mhz(),
            temperature_c=nvml.temperature_c(),
            throttle_reasons=nvml.throttle_reasons(),
            device_process_bytes=process_bytes,
            num_foreign_processes=num_foreign,
        )

    @property
    def lost_note(self) -> str | None:
        """What a reader of the samples must know when NVML failed on the way; None when it did not."""
        if self._nvml is None or self._nvml.lost is None:
            return None
        return f"NVML failed while the engine ran ({self._nvml.lost}): later samples have no GPU figures"

    def _energy_j(self, nvml: NvmlDevice) -> float | None:
        counter_j = nvml.energy_j()
        if counter_j is None:
            return None
        if self._first_energy_j is None:
            self._first_energy_j = counter_j
        return counter_j - self._first_energy_j

    def _torch_bytes(self) -> tuple[int | None, int | None, int | None]:
        """Bytes that torch's allocator has given out, holds, and holds in free pieces of blocks that it split."""
        if self._torch_device is None:
            return None, None, None
        import torch

        # One call for all: memory_allocated() and memory_reserved() each build the whole dictionary.
        stats = torch.cuda.memory_stats(self._torch_device)
        allocated, reserved, inactive = (
            int(stats.get(f"{name}_bytes.all.current", 0)) for name in ("allocated", "reserved", "inactive_split")
        )
        return allocated, reserved, inactive

    def _processes(self, nvml: NvmlDevice) -> tuple[int | None, int | None]:
        """The memory of this process on the GPU, and how many others compute there; None where it cannot be told.

        In a container a process may bear another number for the driver than for itself. It computes on the GPU, so
        one of those that the driver sees is this one.
        """
        processes = nvml.compute_processes()
        if not processes:
            return None, None
        own = [process for process in processes if process.process_id == os.getpid()]
        if not own and len(processes) == 1:
            own = processes
        return own[0].used_bytes if own else None, len(processes) - 1

    def _cpu_pct(self) -> tuple[float, float]:
        """Since the call before, in %: of the cores that we may run on, by everybody; of one core, by this process."""
        by_core = psutil.cpu_percent(percpu=True)
        ours = [by_core[core] for core in self._cores if core < len(by_core)] or by_core
        return sum(ours) / len(ours), self._process.cpu_percent()

    def _swapped_bytes(self) -> int | None:
        swapped_bytes = _swapped_bytes()
        if swapped_bytes is None or self._first_swapped_bytes is None:
            return None
        return swapped_bytes - self._first_swapped_bytes


def _swapped_bytes() -> int | None:
    """Bytes that the machine has swapped in and out since it started; None where it does not say."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            swap = psutil.swap_memory()
        except (RuntimeWarning, OSError):
            return None
    return swap.sin + swap.sout


class Sampler:
    """Calls ``probe`` on the schedule in a thread of its own and gives every sample to ``sink``."""

    def __init__(
        self,
        probe: Probe,
        sink: Callable[[DeviceSample], None],
        *,
        start_ns: int,
        interval_s: float,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        cpu_clock_ns: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        self._probe = probe
        self._sink = sink
        self._start_ns = start_ns
        self._interval_ns = max(1, round(interval_s * 1e9))
        self._clock_ns = clock_ns
        self._stopped = threading.Event()
        self._error: Exception | None = None
        self._cpu_clock_ns = cpu_clock_ns
        self.busy_ns = (
            0  # of CPU, for all samples: the most that they kept from the engine. They wait for NVML besides.
        )
        self._thread = threading.Thread(target=self._loop, name="pbench-sampler", daemon=True)

    def start(self) -> None:
        """Take the first sample now and start the thread."""
        self.sample()
        self._thread.start()

    def sample(self) -> None:
        """Take one sample in the calling thread."""
        begin_ns = self._cpu_clock_ns()
        self._sink(self._probe(self._clock_ns() - self._start_ns))
        self.busy_ns += self._cpu_clock_ns() - begin_ns

    def wait_ns(self) -> int:
        """Nanoseconds until the next moment of the schedule that is still to come; at least one."""
        elapsed_ns = self._clock_ns() - self._start_ns
        return self._interval_ns - elapsed_ns % self._interval_ns

    def stop(self) -> None:
        """End the thread and take a last sample, so that the samples span the whole run.

        Raises:
            Exception: what ended the thread before its time.

        """
        self._stopped.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        self.sample()

    def _loop(self) -> None:
        try:
            while not self._stopped.wait(self.wait_ns() / 1e9):
                self.sample()
        except Exception as error:  # handed to stop(): a thread has nobody else to tell
            self._error = error
