"""A few kilobytes of integers from the host to the device or back, by a kernel: ``destination[:] = source``.

A GPU reads and writes pinned memory of the host itself. A transfer by a copy engine takes longer than these numbers do,
for the engine and the kernels before and behind it wait for one another; and it costs the host several launches' time.
"""

import torch

from pbench.kernels.compiler import HAS_TRITON, jit, tl
from pbench.kernels.launch import ceil_div, check_contiguous, check_dtype, check_num_dims, check_shape
from pbench.kernels.launcher import Launch, Launcher

TILE_SIZE = 512


@jit(do_not_specialize=("size",))
def _copy_numbers_kernel(
    device_ptr: tl.pointer_type,  # (size,) int64
    host_ptr: tl.pointer_type,  # (size,) int64
    size: tl.tensor,
    IS_UPLOAD: tl.constexpr,
    TILE_SIZE: tl.constexpr,
) -> None:
    """Grid: (tiles,)."""
    places = tl.program_id(0) * TILE_SIZE + tl.arange(0, TILE_SIZE)
    mask = places < size
    if IS_UPLOAD:
        tl.store(device_ptr + places, tl.load(host_ptr + places, mask=mask), mask=mask)
    else:
        tl.store(host_ptr + places, tl.load(device_ptr + places, mask=mask), mask=mask)


_launch = Launcher(_copy_numbers_kernel)


def copy_numbers(destination: torch.Tensor, source: torch.Tensor) -> None:
    """Copy numbers to or from the device, behind what runs there, without waiting for it.

    Sizes should be few: for each a launch is worked out anew.

    Args:
        destination: int64 ``(n,)``, contiguous; on a GPU, or pinned on the host where the source is on a GPU.
        source: likewise.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, or host memory that is not pinned, naming the argument.
    """
    check_num_dims("destination", destination, 1, "(n,)")
    check_shape("source", source, tuple(destination.shape))
    for name, numbers in (("destination", destination), ("source", source)):
        check_dtype(name, numbers, torch.int64)
        check_contiguous(name, numbers)
    if not (HAS_TRITON and (source.is_cuda or destination.is_cuda)):
        destination.copy_(source)
        return
    for name, numbers in (("destination", destination), ("source", source)):
        if not (numbers.is_cuda or numbers.is_pinned()):
            raise ValueError(f"{name} is in host memory that is not pinned; a GPU cannot reach it")
    copy_numbers_triton(destination, source)


def copy_numbers_triton(destination: torch.Tensor, source: torch.Tensor) -> None:
    """Launch the kernel on checked arguments (see ``copy_numbers``)."""
    size, is_upload = len(source), destination.is_cuda
    if not size:
        return
    on_device, on_host = (destination, source) if is_upload else (source, destination)
    options = {"IS_UPLOAD": is_upload, "TILE_SIZE": TILE_SIZE}
    _launch(
        (on_device.get_device(), size, is_upload),
        (on_device, on_host),
        (),
        lambda: Launch((ceil_div(size, TILE_SIZE), 1, 1), (size,), options),
    )
