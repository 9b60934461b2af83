"""One GPU through NVML.

The device is found by its UUID: indices differ from torch's as soon as CUDA_VISIBLE_DEVICES or CUDA_DEVICE_ORDER is
set.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

_Value = TypeVar("_Value")


class NvmlUnavailableError(Exception):
    """NVML is not installed, has no driver, or does not know the device; the message says which."""


class ComputeProcess(NamedTuple):
    """A process that computes on a GPU."""

    process_id: int  # of the machine, which need not be what a container calls it
    used_bytes: int | None  # None: the driver does not tell


class NvmlDevice:
    """Reads one GPU. A quantity that this GPU does not report is None; when NVML itself fails, ``lost`` says why.

    Nothing here raises after construction: a benchmark must not end because its thermometer did.
    """

    def __init__(self, library: ModuleType | Any, handle: object) -> None:
        self._library = library
        self._handle = handle
        self._unsupported: set[str] = set()
        self._unsupported_errors = tuple(
            getattr(library, name)
            for name in (
                "NVMLError_NotSupported",
                "NVMLError_NoPermission",
                "NVMLError_FunctionNotFound",
                "NVMLError_InvalidArgument",
            )
        )
        self.lost: str | None = None

    @classmethod
    def open(cls, uuid: str, library: ModuleType | Any | None = None) -> "NvmlDevice":
        """The device with CUDA's ``uuid`` (with or without NVML's ``GPU-`` or ``MIG-`` before it).

        Raises:
            NvmlUnavailableError: NVML cannot be loaded or does not know the device.

        """
        library = library or _load_library()
        bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
        try:
            library.nvmlInit()
            try:
                handle = library.nvmlDeviceGetHandleByUUID(f"GPU-{bare}")
            except (library.NVMLError_NotFound, library.NVMLError_InvalidArgument):
                handle = library.nvmlDeviceGetHandleByUUID(f"MIG-{bare}")
        except library.NVMLError as error:
            raise NvmlUnavailableError(f"NVML does not give the GPU with UUID {bare}: {error}") from error
        return cls(library, handle)

    def close(self) -> None:
        """Let NVML go. Without effect when NVML was lost."""
        if self.lost is None:
            try:
                self._library.nvmlShutdown()
            except self._library.NVMLError as error:
                self.lost = str(error)

    def used_bytes(self) -> int | None:
        """Memory in use on the GPU, by all processes, in bytes."""
        return self._read("memory", lambda: int(self._library.nvmlDeviceGetMemoryInfo(self._handle).used))

    def utilization_pct(self) -> float | None:
        """Share of the last sampling period in which a kernel ran, in %."""
        return self._read("utilization", lambda: float(self._library.nvmlDeviceGetUtilizationRates(self._handle).gpu))

    def power_w(self) -> float | None:
        """Power drawn now, in watts."""
        return self._read("power", lambda: self._library.nvmlDeviceGetPowerUsage(self._handle) / 1000)

    def power_limit_w(self) -> float | None:
        """The power limit in force, in watts."""
        return self._read("power limit", lambda: self._library.nvmlDeviceGetEnforcedPowerLimit(self._handle) / 1000)

    def energy_j(self) -> float | None:
        """Energy since the driver was loaded, in joules, from the GPU's own counter."""
        return self._read(
            "energy counter", lambda: self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000
        )

    def sm_clock_mhz(self) -> float | None:
        """Clock of the streaming multiprocessors now, in MHz."""
        return self._read("SM clock", lambda: float(self._clock("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM")))

    def memory_clock_mhz(self) -> float | None:
        """Clock of the memory now, in MHz."""
        return self._read("memory clock", lambda: float(self._clock("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM")))

    def max_sm_clock_mhz(self) -> float | None:
        """Highest clock of the streaming multiprocessors, in MHz."""
        return self._read("highest SM clock", lambda: float(self._clock("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_SM")))

    def max_memory_clock_mhz(self) -> float | None:
        """Highest clock of the memory, in MHz."""
        return self._read(
            "highest memory clock", lambda: float(self._clock("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_MEM"))
        )

    def temperature_c(self) -> float | None:
        """Temperature of the GPU, in degrees Celsius."""
        library = self._library
        return self._read(
            "temperature",
            lambda: float(library.nvmlDeviceGetTemperature(self._handle, library.NVML_TEMPERATURE_GPU)),
        )

    def throttle_reasons(self) -> int | None:
        """Bit mask of NVML: why the clocks are lower than they could be."""
        return self._read(
            "throttle reasons",
            lambda: int(self._library.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)),
        )

    def compute_processes(self) -> list[ComputeProcess] | None:
        """The processes that compute on the GPU now, as far as this container may see them."""
        return self._read(
            "compute processes",
            lambda: [
                ComputeProcess(process.pid, process.usedGpuMemory)
                for process in self._library.nvmlDeviceGetComputeRunningProcesses(self._handle)
            ],
        )

    def slowdown_temperature_c(self) -> float | None:
        """Temperature from which the GPU slows itself down, in degrees Celsius."""
        library = self._library
        return self._read(
            "slowdown temperature",
            lambda: float(
                library.nvmlDeviceGetTemperatureThreshold(self._handle, library.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
            ),
        )

    def is_mig_enabled(self) -> bool | None:
        """Whether the GPU is split into instances; None where it cannot be."""
        return self._read("MIG mode", lambda: bool(self._library.nvmlDeviceGetMigMode(self._handle)[0]))

    def is_ecc_enabled(self) -> bool | None:
        """Whether the GPU's memory corrects errors; None where it cannot."""
        return self._read("ECC mode", lambda: bool(self._library.nvmlDeviceGetEccMode(self._handle)[0]))

    def driver_version(self) -> str | None:
        """Version of the driver."""
        return self._read("driver version", lambda: str(self._library.nvmlSystemGetDriverVersion()))

    def _clock(self, function: str, kind: str) -> int:
        value: int = getattr(self._library, function)(self._handle, getattr(self._library, kind))
        return value

    def _read(self, quantity: str, read: Callable[[], _Value]) -> _Value | None:
        if self.lost is not None or quantity in self._unsupported:
            return None
        try:
            return read()
        except self._unsupported_errors:
            self._unsupported.add(quantity)
        except self._library.NVMLError as error:
            self.lost = str(error)
        return None


def _load_library() -> ModuleType:
    try:
        import pynvml
    except ImportError as error:
        raise NvmlUnavailableError(f"nvidia-ml-py is not installed: {error}") from error
    library: ModuleType = pynvml
    return library
