"""Copy whole blocks of the pool, in all layers at once: what copy-on-write does.

For every pair (source, destination)::

    pool[:, destination] = pool[:, source]
"""

import torch

from pbench.kernels.compiler import jit, tl
from pbench.kernels.launch import (
    ceil_div,
    check_contiguous,
    check_dtype,
    check_num_dims,
    check_shape,
    runs_on_triton,
)

# One load of 16 bytes a thread: on an H200 so many small programs moved 4 % more than a quarter of them did.
TILE_SIZE = 2048


@jit(do_not_specialize_on_alignment=("pairs_ptr",))
def _copy_blocks_kernel(
    pool_ptr: tl.pointer_type,  # (num_layers, num_blocks, block_numel)
    pairs_ptr: tl.pointer_type,  # (num_pairs, 2)
    layer_stride: tl.tensor,
    BLOCK_NUMEL: tl.constexpr,
    TILE_SIZE: tl.constexpr,
) -> None:
    """Grid: (num_pairs, num_layers, tiles of a block)."""
    pair_ptr = pairs_ptr + tl.program_id(0).to(tl.int64) * 2
    source = tl.load(pair_ptr)
    destination = tl.load(pair_ptr + 1)
    layer_ptr = pool_ptr + tl.program_id(1).to(tl.int64) * layer_stride
    offsets = tl.program_id(2) * TILE_SIZE + tl.arange(0, TILE_SIZE)
    mask = offsets < BLOCK_NUMEL
    tile = tl.load(layer_ptr + source * BLOCK_NUMEL + offsets, mask=mask)
    tl.store(layer_ptr + destination * BLOCK_NUMEL + offsets, tile, mask=mask)


def copy_blocks(pool: torch.Tensor, pairs: torch.Tensor) -> None:
    """Copy block ``pairs[i, 0]`` over block ``pairs[i, 1]`` in every layer.

    Args:
        pool: ``(num_layers, num_blocks, 2, num_kv_heads, block_size, head_dim)``, contiguous, of any dtype.
        pairs: int64 ``(P, 2)``. The copies run side by side: destinations are distinct, and none is a source
            too.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    check_num_dims("pool", pool, 6, "(num_layers, num_blocks, 2, num_kv_heads, block_size, head_dim)")
    check_contiguous("pool", pool)
    check_num_dims("pairs", pairs, 2, "(num_pairs, 2)")
    check_shape("pairs", pairs, (pairs.shape[0], 2))
    check_dtype("pairs", pairs, torch.int64)
    check_contiguous("pairs", pairs)
    if runs_on_triton(pool):
        copy_blocks_triton(pool, pairs)
    else:
        copy_blocks_reference(pool, pairs)


def copy_blocks_triton(pool: torch.Tensor, pairs: torch.Tensor) -> None:
    """Launch the kernel on checked arguments (see ``copy_blocks``)."""
    num_pairs = pairs.shape[0]
    if num_pairs == 0:
        return
    block_numel = pool.stride(1)
    _copy_blocks_kernel[(num_pairs, pool.shape[0], ceil_div(block_numel, TILE_SIZE))](
        pool, pairs, pool.stride(0), BLOCK_NUMEL=block_numel, TILE_SIZE=TILE_SIZE, num_warps=8
    )


def copy_blocks_reference(pool: torch.Tensor, pairs: torch.Tensor) -> None:
    """``copy_blocks`` in plain torch."""
    memory = pool.view(torch.uint8)  # torch does not index 8-bit floats
    memory[:, pairs[:, 1]] = memory[:, pairs[:, 0]]
