"""K and V as Hopper's tensor memory accelerator brings them into shared memory, in boxes of a block's tokens."""

from typing import NamedTuple

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

PANEL_DIMS = gl.constexpr(64)  # so many 16-bit elements are the 128 bytes that shared memory is swizzled by
SWIZZLED = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))
GROUP_WARPS = gl.constexpr(4)  # an instruction of the matrix units is of four
LOADER_REGISTERS = gl.constexpr(40)  # of a thread that does not compute
wait_for_group = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # renamed in Triton 3.7


class _Memory(NamedTuple):
    """All that a descriptor asks of its tensor, which it would keep from being freed."""

    address: int
    dtype: torch.dtype

    def data_ptr(self) -> int:
        return self.address


def kv_rows(address: int, dtype: torch.dtype, shape: torch.Size, box: int) -> TensorDescriptor:
    """K and V of a layer of the pool as rows, of which ``box`` are loaded together, and PANEL_DIMS of each."""
    num_blocks, _, num_kv_heads, block_size, head_dim = shape
    return TensorDescriptor(
        _Memory(address, dtype),
        shape=[num_blocks * 2 * num_kv_heads * block_size, head_dim],
        strides=[head_dim, 1],
        block_shape=[box, PANEL_DIMS.value],
        layout=SWIZZLED.value,
    )
