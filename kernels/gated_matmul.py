"""The first half of a SwiGLU feed-forward layer for the few rows of a decode step, in one launch.

With gate and up the two halves of the weight's rows::

    out = silu(x gate^T) * (x up^T)

Both products are kept in float32 until the end, where silu_and_mul.py rounds them in between. Tiles are loaded by the
tensor memory accelerator of Hopper. On a Hopper GPU products of one tile of rows and little depth are left to
hopper_few_rows.py, which has the weight loaded before x is there.
"""

from typing import NamedTuple

import torch

from pbench.kernels.compiler import HAS_TRITON, jit, let_next_launch, tl, wait_for_previous
from pbench.kernels.few_rows_matmul import (
    HELD_COLUMNS,
    HELD_DEPTH,
    MIN_WGMMA_ROWS,
    PROGRAMS_PER_SM,
    check_few_rows,
    first_row_of,
    suits_hopper,
)
from pbench.kernels.launch import can_launch_early, ceil_div, device_limits, runs_on_triton
from pbench.kernels.silu_and_mul import silu_and_mul_reference

if HAS_TRITON:
    from triton.tools.tensor_descriptor import TensorDescriptor


class GatedTiling(NamedTuple):
    """How a product is cut up."""

    tile_rows: int
    tile_columns: int  # of each half
    tile_depth: int
    num_stages: int


@jit(do_not_specialize=("num_rows",))
def _gated_matmul_kernel(
    x_descriptor: tl.tensor,  # (num_rows, DEPTH), in tiles (TILE_ROWS, TILE_DEPTH)
    weight_descriptor: tl.tensor,  # (2 * NUM_COLUMNS, DEPTH), in tiles (TILE_COLUMNS, TILE_DEPTH)
    out_ptr: tl.pointer_type,  # (num_rows, NUM_COLUMNS)
    num_rows: tl.tensor,
    NUM_COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    TILE_DEPTH: tl.constexpr,
    IS_EARLY: tl.constexpr,  # launched before the kernel before it is done
) -> None:
    """Grid: (row tiles, column tiles)."""
    first_row = first_row_of(tl.program_id(0), num_rows, TILE_ROWS)
    first_column = tl.program_id(1) * TILE_COLUMNS
    rows, columns = first_row + tl.arange(0, TILE_ROWS), first_column + tl.arange(0, TILE_COLUMNS)
    gate = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    up = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    if IS_EARLY:
        let_next_launch()
        wait_for_previous()
    for place in range(0, DEPTH, TILE_DEPTH):  # zeros behind the end
        x = x_descriptor.load([first_row, place])
        gate_weight = weight_descriptor.load([first_column, place])
        up_weight = weight_descriptor.load([NUM_COLUMNS + first_column, place])
        gate = tl.dot(x, gate_weight.T, gate, input_precision="ieee")
        up = tl.dot(x, up_weight.T, up, input_precision="ieee")
    out = gate / (1.0 + tl.exp(-gate)) * up
    mask = (rows < num_rows)[:, None] & (columns < NUM_COLUMNS)[None, :]
    out_ptrs = out_ptr + rows.to(tl.int64)[:, None] * NUM_COLUMNS + columns[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask)


def gated_tiling(num_rows: int, num_columns: int, num_sms: int) -> GatedTiling:
    """How products of so many rows and columns of outputs were fastest on an H200."""
    if num_rows <= 32:
        return GatedTiling(16 if num_rows <= 16 else 32, 64, 128, 3)
    narrow, wide = GatedTiling(64, 32, 64, 5), GatedTiling(64, 64, 64, 4)
    num_narrow = ceil_div(num_rows, narrow.tile_rows) * ceil_div(num_columns, narrow.tile_columns)
    return narrow if num_narrow <= PROGRAMS_PER_SM * num_sms else wide


def num_gated_programs(num_rows: int, num_columns: int, num_sms: int) -> int:
    """Of a launch for ``num_rows`` tokens and outputs of ``num_columns``."""
    tiling = gated_tiling(num_rows, num_columns, num_sms)
    return ceil_div(num_rows, tiling.tile_rows) * ceil_div(num_columns, tiling.tile_columns)


def can_hold_gated(num_rows: int, num_columns: int, depth: int, num_sms: int) -> bool:
    """Whether all programs of hopper_few_rows.py run at once, each with its share of the weight in shared memory.

    With more rows than one tile of x has, the weight is not what takes time.
    """
    num_programs = ceil_div(num_columns, HELD_COLUMNS // 2)
    return num_rows <= MIN_WGMMA_ROWS and num_columns % 8 == 0 and depth <= HELD_DEPTH and num_programs <= num_sms


def gated_matmul(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``silu(x @ gate.T) * (x @ up.T)`` of ``weight = [gate; up]``: ``(T, n)`` of x's dtype, rounded once.

    Args:
        x: ``(T, k)``, float32, bfloat16 or float16, contiguous; its rows a multiple of 16 bytes.
        weight: ``(2 * n, k)`` of x's dtype, contiguous.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    check_few_rows(x, weight)
    if weight.shape[0] % 2:
        raise ValueError(f"weight has {weight.shape[0]} rows; expected an even number: gate, then up")
    if suits_hopper(x) and can_hold_gated(len(x), weight.shape[0] // 2, x.shape[1], device_limits(x).num_sms):
        from pbench.kernels.hopper_few_rows import hopper_gated

        return hopper_gated(x, weight)
    if runs_on_triton(x):
        return gated_matmul_triton(x, weight)
    return gated_matmul_reference(x, weight)


def gated_matmul_triton(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Launch the kernel on checked arguments (see ``gated_matmul``)."""
    (num_rows, depth), num_columns = x.shape, weight.shape[0] // 2
    tile_rows, tile_columns, tile_depth, num_stages = gated_tiling(num_rows, num_columns, device_limits(x).num_sms)
    is_early = can_launch_early(x)
    out = torch.empty((num_rows, num_columns), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    _gated_matmul_kernel[(ceil_div(num_rows, tile_rows), ceil_div(num_columns, tile_columns))](
        TensorDescriptor(x, [num_rows, depth], [depth, 1], [tile_rows, tile_depth]),
        TensorDescriptor(weight, [2 * num_columns, depth], [depth, 1], [tile_columns, tile_depth]),
        out,
        num_rows,
        NUM_COLUMNS=num_columns,
        DEPTH=depth,
        TILE_ROWS=tile_rows,
        TILE_COLUMNS=tile_columns,
        TILE_DEPTH=tile_depth,
        IS_EARLY=is_early,
        launch_pdl=is_early,
        num_warps=4,
        num_stages=num_stages,
    )
    return out


def gated_matmul_reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``gated_matmul`` in plain torch; float64 too."""
    compute_dtype = torch.promote_types(x.dtype, torch.float32)
    return silu_and_mul_reference(x.to(compute_dtype) @ weight.to(compute_dtype).T).to(x.dtype)
