"""GPUs as a roofline sees them: how fast their memory is, how fast they multiply, how much they hold."""

from dataclasses import dataclass

from pbench.engine.errors import ConfigError

# What a program reaches of the published figures, measured on one H200: a copy of 8.6 GB moved 4258 GB/s (read and
# write), a bfloat16 product of 8192 x 8192 matrices ran at 723 TFLOP/s. The other profiles are taken to reach the same
# shares; figures measured on the GPU itself are better.
BANDWIDTH_SHARE = 4258 / 4800
FLOPS_SHARE = 723 / 989.5


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """One GPU, by its vendor's data sheet. The rate is for dense matrices in bfloat16 or float16."""

    name: str
    bandwidth_bytes_per_s: float
    flops_per_s: float
    memory_bytes: int
    source: str


HARDWARE: dict[str, HardwareProfile] = {
    profile.name: profile
    for profile in (
        HardwareProfile("h200", 4.8e12, 989.5e12, 141 * 10**9, "NVIDIA H200 Tensor Core GPU data sheet, SXM"),
        HardwareProfile("h100", 3.35e12, 989.5e12, 80 * 10**9, "NVIDIA H100 Tensor Core GPU data sheet, SXM"),
        HardwareProfile("h100-pcie", 2.0e12, 756e12, 80 * 10**9, "NVIDIA H100 Tensor Core GPU data sheet, PCIe"),
        HardwareProfile("a100", 2.039e12, 312e12, 80 * 10**9, "NVIDIA A100 Tensor Core GPU data sheet, 80GB SXM"),
        HardwareProfile("a100-40gb", 1.555e12, 312e12, 40 * 10**9, "NVIDIA A100 Tensor Core GPU data sheet, 40GB"),
        HardwareProfile("l40s", 0.864e12, 362.05e12, 48 * 10**9, "NVIDIA L40S data sheet"),
        HardwareProfile("l4", 0.3e12, 121e12, 24 * 10**9, "NVIDIA L4 Tensor Core GPU data sheet"),
        HardwareProfile("a10", 0.6e12, 125e12, 24 * 10**9, "NVIDIA A10 Tensor Core GPU data sheet"),
        HardwareProfile("rtx-4090", 1.008e12, 165.2e12, 24 * 10**9, "NVIDIA Ada GPU architecture white paper, table 2"),
    )
}


def find_hardware(name: str) -> HardwareProfile:
    """The profile of that name, in any case.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    profile = HARDWARE.get(name.lower())
    if profile is None:
        raise ConfigError(
            f"GPU {name!r} is unknown; known: {', '.join(HARDWARE)}; for another one give --bandwidth and --flops"
        )
    return profile
