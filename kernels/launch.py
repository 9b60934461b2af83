"""What every launcher needs: where to run, what the device allows, and checks of the arguments.

A launcher runs its Triton kernel on tensors of a GPU and its torch reference on all others. The GPU must be
torch's current device. All checks read metadata only: no launcher ever waits for the device.
"""

from functools import cache
from typing import NamedTuple

import torch

from pbench.kernels.compiler import HAS_TRITON, is_known_triton

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FP8 = torch.float8_e4m3fn  # of K and V only
FP8_MAX = 448.0
FP8_CAPABILITY = (8, 9)  # of the first GPUs that convert it
EARLY_LAUNCH_CAPABILITY = (9, 0)
HOPPER = (9, 0)


class DeviceLimits(NamedTuple):
    """What sizes a launch."""

    num_sms: int  # streaming multiprocessors
    shared_memory_bytes: int  # the most that one program can have
    capability: tuple[int, int] = (0, 0)  # (9, 0) of an H100; (0, 0) of no GPU


# Triton's interpreter has no such limits. These make it split the work as a small GPU would.
INTERPRETER_LIMITS = DeviceLimits(num_sms=8, shared_memory_bytes=100 * 1024)


def runs_on_triton(tensor: torch.Tensor) -> bool:
    """Whether work on ``tensor`` goes to a Triton kernel; to the torch reference otherwise."""
    return HAS_TRITON and tensor.is_cuda


def runs_on_hopper(tensor: torch.Tensor) -> bool:
    """Whether kernels in Gluon, of Hopper's own, may do that work: on such a GPU, by a Triton whose Gluon we know."""
    return is_known_triton() and runs_on_triton(tensor) and device_limits(tensor).capability == HOPPER


def device_limits(tensor: torch.Tensor) -> DeviceLimits:
    """Limits of the device that holds ``tensor``; asked of the driver once per device."""
    return _gpu_limits(tensor.get_device()) if tensor.is_cuda else INTERPRETER_LIMITS


@cache
def _gpu_limits(index: int) -> DeviceLimits:
    from triton.runtime import driver

    properties = driver.active.utils.get_device_properties(index)
    return DeviceLimits(
        properties["multiprocessor_count"], properties["max_shared_mem"], torch.cuda.get_device_capability(index)
    )


def can_launch_early(tensor: torch.Tensor) -> bool:
    """Whether a kernel on the device of ``tensor`` can be launched while the one before it still runs, and wait there.

    "Programmatic dependent launch", of compute capability 9.0 on: a launch then costs about a microsecond less.
    """
    return device_limits(tensor).capability >= EARLY_LAUNCH_CAPABILITY


def ceil_div(numerator: int, denominator: int) -> int:
    """Smallest integer not below ``numerator / denominator``."""
    return -(-numerator // denominator)


def next_power_of_2(number: int) -> int:
    """Smallest power of two not below ``number``, which is at least 1."""
    return 1 << (number - 1).bit_length()


def check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Check that the argument ``name`` has exactly ``shape``.

    Raises:
        ValueError: it has another one.
    """
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")


def check_num_dims(name: str, tensor: torch.Tensor, num_dims: int, layout: str) -> None:
    """Check that the argument ``name`` has the dimensions that ``layout`` names.

    Raises:
        ValueError: it has more or fewer.
    """
    if tensor.dim() != num_dims:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {layout}")


def check_dtype(name: str, tensor: torch.Tensor, *dtypes: torch.dtype) -> None:
    """Check that the argument ``name`` has one of ``dtypes``.

    Raises:
        ValueError: it has another one.
    """
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}; expected {expected}")


def check_rows(name: str, tensor: torch.Tensor) -> None:
    """Check that elements of the last dimension lie side by side, as kernels read them.

    Raises:
        ValueError: they do not.
    """
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{name} has strides {tensor.stride()}; its last dimension must be contiguous")


def check_contiguous(name: str, tensor: torch.Tensor) -> None:
    """Check that the argument ``name`` has no gaps and the standard order of dimensions.

    Raises:
        ValueError: it has strides of its own.
    """
    if not tensor.is_contiguous():
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} has strides {tensor.stride()}; it must be contiguous")


def check_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    x_name: str = "x",
    weight_name: str = "weight",
) -> None:
    """Check that ``x: (T, k)``, ``weight: (n, k)`` and ``bias: (n,)`` make a product, of one dtype and contiguous.

    Raises:
        ValueError: they do not, naming the argument.
    """
    check_num_dims(x_name, x, 2, "(num_tokens, k)")
    check_num_dims(weight_name, weight, 2, "(n, k)")
    check_shape(weight_name, weight, (weight.shape[0], x.shape[1]))
    check_dtype(x_name, x, *FLOAT_DTYPES)
    check_dtype(weight_name, weight, x.dtype)
    check_contiguous(x_name, x)
    check_contiguous(weight_name, weight)
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
        check_dtype("bias", bias, x.dtype)
        check_contiguous("bias", bias)
