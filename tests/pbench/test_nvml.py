import os
from types import SimpleNamespace
from typing import Any

import pytest

from pbench.nvml import NvmlDevice, NvmlUnavailableError
from pbench.sampler import DeviceProbe

GPU_FIELDS = (
    *("device_used_bytes", "gpu_utilization_pct", "power_w", "energy_j", "sm_clock_mhz", "memory_clock_mhz"),
    *("temperature_c", "throttle_reasons"),
)


class FakeNvml:
    """NVML with GPUs in the bus's order; ``broken`` maps a function to the error that it raises."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU, NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1, 2, 0, 1

    class NVMLError(Exception):
        pass

    class NVMLError_NotFound(NVMLError):  # noqa: N801, N818
        pass

    class NVMLError_NotSupported(NVMLError):  # noqa: N801, N818
        pass

    class NVMLError_NoPermission(NVMLError):  # noqa: N801, N818
        pass

    class NVMLError_FunctionNotFound(NVMLError):  # noqa: N801, N818
        pass

    class NVMLError_InvalidArgument(NVMLError):  # noqa: N801, N818
        pass

    class NVMLError_GpuIsLost(NVMLError):  # noqa: N801, N818
        pass

    def __init__(self, uuids: tuple[str, ...] = ("GPU-aaaa",)) -> None:
        self.uuids = uuids
        self.broken: dict[str, Exception] = {}
        self.energy_mj = 5_000_000
        self.calls: list[str] = []
        self.processes = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=700)]

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise self.broken[name]

    def nvmlInit(self) -> None:  # noqa: N802
        self._call("nvmlInit")

    def nvmlShutdown(self) -> None:  # noqa: N802
        self._call("nvmlShutdown")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        if uuid not in self.uuids:
            raise self.NVMLError_NotFound("Not Found")
        return self.uuids.index(uuid)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        self._call("nvmlDeviceGetMemoryInfo")
        return SimpleNamespace(used=1000 + handle, total=9000)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        self._call("nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=87, memory=40)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        self._call("nvmlDeviceGetPowerUsage")
        return 350_500

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        self._call("nvmlDeviceGetTotalEnergyConsumption")
        self.energy_mj += 35_000
        return self.energy_mj

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        self._call("nvmlDeviceGetClockInfo")
        return {self.NVML_CLOCK_SM: 1980, self.NVML_CLOCK_MEM: 3201}[kind]

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        self._call("nvmlDeviceGetTemperature")
        return 61

    def nvmlDeviceGetTemperatureThreshold(self, handle: int, kind: int) -> int:  # noqa: N802
        self._call("nvmlDeviceGetTemperatureThreshold")
        return 89

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:  # noqa: N802
        self._call("nvmlDeviceGetMigMode")
        return [0, 1]  # now, and after the next reset

    def nvmlDeviceGetEccMode(self, handle: int) -> list[int]:  # noqa: N802
        self._call("nvmlDeviceGetEccMode")
        return [1, 1]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:  # noqa: N802
        self._call("nvmlDeviceGetComputeRunningProcesses")
        return self.processes

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:  # noqa: N802
        self._call("nvmlDeviceGetCurrentClocksThrottleReasons")
        return 4


@pytest.mark.parametrize("uuid", ["bbbb", "GPU-bbbb"])
def test_the_device_is_found_by_its_uuid_whatever_its_index(uuid: str) -> None:
    """torch's device 0 under CUDA_VISIBLE_DEVICES=1 is NVML's device 1: only the UUID says so."""
    library = FakeNvml(("GPU-aaaa", "GPU-bbbb"))
    assert NvmlDevice.open(uuid, library).used_bytes() == 1001


def test_a_mig_instance_is_found_under_its_own_prefix() -> None:
    library = FakeNvml(("GPU-aaaa", "MIG-cccc"))
    assert NvmlDevice.open("cccc", library).used_bytes() == 1001


def test_an_unknown_uuid_is_said_to_be_so() -> None:
    with pytest.raises(NvmlUnavailableError, match=r"zzzz.*Not Found"):
        NvmlDevice.open("zzzz", FakeNvml())


def test_a_missing_driver_is_said_to_be_so() -> None:
    library = FakeNvml()
    library.broken["nvmlInit"] = library.NVMLError("Driver Not Loaded")
    with pytest.raises(NvmlUnavailableError, match="Driver Not Loaded"):
        NvmlDevice.open("aaaa", library)


def test_a_sample_has_every_quantity_in_its_unit() -> None:
    probe = DeviceProbe(NvmlDevice.open("aaaa", FakeNvml()), None)
    first, second = probe(0), probe(100)
    assert first.source == "nvml"
    assert first.device_used_bytes == 1000
    assert first.gpu_utilization_pct == 87.0
    assert first.power_w == 350.5
    assert first.energy_j == 0.0
    assert second.energy_j == pytest.approx(35.0)  # since the first sample, not since the driver was loaded
    assert first.sm_clock_mhz == 1980.0
    assert first.memory_clock_mhz == 3201.0
    assert first.temperature_c == 61.0
    assert first.throttle_reasons == 4
    assert (first.device_process_bytes, first.num_foreign_processes) == (700, 0)


def test_what_does_not_change_in_a_run_is_read_in_its_unit() -> None:
    device = NvmlDevice.open("aaaa", FakeNvml())
    assert device.slowdown_temperature_c() == 89.0
    assert device.is_mig_enabled() is False
    assert device.is_ecc_enabled() is True


@pytest.mark.parametrize(
    ("processes", "own_bytes", "num_foreign"),
    [
        ([(1, 50), ("own", 700)], 700, 1),
        ([(4711, 700)], 700, 0),  # in a container: its own number is not the driver's, but it is there
        ([(4711, 700), (4712, 50)], None, 1),  # which of them is not known
        ([("own", None)], None, 0),  # the driver does not tell how much
        ([], None, None),  # the driver shows nothing here
    ],
)
def test_foreign_processes_are_those_beside_this_one(
    processes: list[tuple[int | str, int | None]], own_bytes: int | None, num_foreign: int | None
) -> None:
    library = FakeNvml()
    library.processes = [
        SimpleNamespace(pid=os.getpid() if pid == "own" else pid, usedGpuMemory=used) for pid, used in processes
    ]
    sample = DeviceProbe(NvmlDevice.open("aaaa", library), None)(0)
    assert (sample.device_process_bytes, sample.num_foreign_processes) == (own_bytes, num_foreign)


def test_processes_are_listed_once_a_second_and_sooner_at_first() -> None:
    library = FakeNvml()
    probe = DeviceProbe(NvmlDevice.open("aaaa", library), None)
    samples = [probe(time_ms * 10**6) for time_ms in range(0, 4000, 100)]
    listed_at = [index / 10 for index, sample in enumerate(samples) if sample.num_foreign_processes is not None]
    assert listed_at == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 2.6, 3.6]
    assert library.calls.count("nvmlDeviceGetComputeRunningProcesses") == len(listed_at)


@pytest.mark.parametrize(
    ("function", "field"),
    [
        ("nvmlDeviceGetMemoryInfo", "device_used_bytes"),
        ("nvmlDeviceGetUtilizationRates", "gpu_utilization_pct"),
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetTotalEnergyConsumption", "energy_j"),
        ("nvmlDeviceGetTemperature", "temperature_c"),
        ("nvmlDeviceGetCurrentClocksThrottleReasons", "throttle_reasons"),
    ],
)
def test_an_unsupported_quantity_is_missing_alone_and_asked_for_once(function: str, field: str) -> None:
    library = FakeNvml()
    library.broken[function] = library.NVMLError_NotSupported("Not Supported")
    probe = DeviceProbe(NvmlDevice.open("aaaa", library), None)
    for sample in (probe(0), probe(1)):
        assert sample.source == "nvml"
        assert {name for name in GPU_FIELDS if getattr(sample, name) is None} == {field}
    assert library.calls.count(function) == 1
    assert probe.lost_note is None


def test_nvml_lost_midway_stops_that_source_and_is_noted() -> None:
    library = FakeNvml()
    probe = DeviceProbe(NvmlDevice.open("aaaa", library), None)
    assert probe(0).power_w == 350.5
    library.broken["nvmlDeviceGetPowerUsage"] = library.NVMLError_GpuIsLost("GPU is lost")
    half = probe(1)
    assert (half.device_used_bytes, half.power_w, half.temperature_c) == (1000, None, None)
    num_calls = len(library.calls)
    after = probe(2)
    assert after.source == "process"
    assert after.process_rss_bytes is not None
    assert after.device_used_bytes is None
    assert len(library.calls) == num_calls
    assert probe.lost_note is not None
    assert "GPU is lost" in probe.lost_note


def test_the_real_library_has_every_name_that_is_used() -> None:
    import pynvml

    used = {name for name in dir(FakeNvml) if name.startswith(("nvml", "NVML"))}
    extra = {
        "nvmlDeviceGetEnforcedPowerLimit",
        "nvmlDeviceGetMaxClockInfo",
        "nvmlSystemGetDriverVersion",
    }
    assert not {name for name in used | extra if not hasattr(pynvml, name)}
