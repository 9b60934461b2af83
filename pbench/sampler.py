"""The sampler: a thread that looks at the device about ten times a second while the engine runs.

Samples lie on an absolute schedule, start + k x interval: a late sample does not push the following ones back, and the
moments that it covered are left out rather than caught up with.
"""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import psutil

from pbench.journal import DeviceSample
from pbench.nvml import NvmlDevice

if TYPE_CHECKING:
    import torch


class Probe(Protocol):
    """Takes one sample now."""

    def __call__(self, time_ns: int) -> DeviceSample:
        """The sample, stamped with ``time_ns``."""


class DeviceProbe:
    """Reads NVML where there is one, the torch allocator where the engine is on a GPU, and this process's memory."""

    def __init__(self, nvml: NvmlDevice | None, torch_device: "torch.device | None") -> None:
        self._nvml = nvml
        self._torch_device = torch_device
        self._process = psutil.Process()
        self._first_energy_j: float | None = None

    def __call__(self, time_ns: int) -> DeviceSample:
        """One sample. After NVML was lost its fields are None and the source says ``process``."""
        allocated_bytes, reserved_bytes = self._torch_bytes()
        rss_bytes = self._process.memory_info().rss
        nvml = self._nvml
        if nvml is None or nvml.lost is not None:
            return DeviceSample(
                time_ns,
                "process",
                process_rss_bytes=rss_bytes,
                torch_allocated_bytes=allocated_bytes,
                torch_reserved_bytes=reserved_bytes,
            )
        # When NVML is lost between two of the fields, what was read before that is still right.
        return DeviceSample(
            time_ns,
            "nvml",
            nvml.used_bytes(),
            rss_bytes,
            allocated_bytes,
            reserved_bytes,
            nvml.utilization_pct(),
            nvml.power_w(),
            self._energy_j(nvml),
            nvml.sm_clock_mhz(),
            nvml.memory_clock_mhz(),
            nvml.temperature_c(),
            nvml.throttle_reasons(),
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

    def _torch_bytes(self) -> tuple[int | None, int | None]:
        if self._torch_device is None:
            return None, None
        import torch

        # One call for both: memory_allocated() and memory_reserved() each build the whole dictionary.
        stats = torch.cuda.memory_stats(self._torch_device)
        return int(stats.get("allocated_bytes.all.current", 0)), int(stats.get("reserved_bytes.all.current", 0))


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
    ) -> None:
        self._probe = probe
        self._sink = sink
        self._start_ns = start_ns
        self._interval_ns = max(1, round(interval_s * 1e9))
        self._clock_ns = clock_ns
        self._stopped = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._loop, name="pbench-sampler", daemon=True)

    def start(self) -> None:
        """Take the first sample now and start the thread."""
        self.sample()
        self._thread.start()

    def sample(self) -> None:
        """Take one sample in the calling thread."""
        self._sink(self._probe(self._clock_ns() - self._start_ns))

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
