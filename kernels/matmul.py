"""A linear layer whose rows do not know of one another.

::

    out[m, n] = sum_k x[m, k] weight[n, k] + bias[n]

summed in float32 and rounded once. Libraries choose another kernel for another number of rows, and with it another
order of the sum, so the bits of a row depend on how many others there are. Here every row is summed in the same order,
however many there are and wherever it stands: over k in tiles of one depth, in tiles of one shape (He, "Defeating
Nondeterminism in LLM Inference", 2025, https://thinkingmachines.ai/blog/defeating-nondeterminism-in-llm-inference/).
"""

from typing import NamedTuple

import torch

from pbench.kernels.compiler import jit, tl
from pbench.kernels.launch import (
    ceil_div,
    check_product,
    runs_on_triton,
)


class MatmulTiling(NamedTuple):
    """How a product is cut up: by its dtype alone, never by the number of rows."""

    tile_rows: int
    tile_columns: int
    tile_depth: int
    num_warps: int
    num_stages: int


# Small, so that a few rows still give every multiprocessor columns of its own.
TILING_16_BIT = MatmulTiling(64, 64, 64, 4, 4)
TILING_32_BIT = MatmulTiling(32, 64, 32, 4, 3)  # without tensor cores, which float32 does not use
GROUP_ROW_TILES = 16  # next to one another they read the same columns of the weight, which stay in the L2 cache


@jit(do_not_specialize=("num_rows",))
def _matmul_kernel(
    x_ptr: tl.pointer_type,  # (num_rows, DEPTH)
    weight_ptr: tl.pointer_type,  # (NUM_COLUMNS, DEPTH)
    bias_ptr: tl.pointer_type,  # (NUM_COLUMNS,), with HAS_BIAS only
    out_ptr: tl.pointer_type,  # (num_rows, NUM_COLUMNS)
    num_rows: tl.tensor,
    HAS_BIAS: tl.constexpr,
    NUM_COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    TILE_DEPTH: tl.constexpr,
    GROUP_ROW_TILES: tl.constexpr,
) -> None:
    """Grid: (row tiles x column tiles,), in groups of row tiles that go through the columns together."""
    NUM_COLUMN_TILES: tl.constexpr = (NUM_COLUMNS + TILE_COLUMNS - 1) // TILE_COLUMNS
    num_row_tiles = (num_rows + TILE_ROWS - 1) // TILE_ROWS
    group = tl.program_id(0) // (GROUP_ROW_TILES * NUM_COLUMN_TILES)
    place = tl.program_id(0) % (GROUP_ROW_TILES * NUM_COLUMN_TILES)
    num_in_group = tl.minimum(num_row_tiles - group * GROUP_ROW_TILES, GROUP_ROW_TILES)
    row_tile = group * GROUP_ROW_TILES + place % num_in_group
    column_tile = place // num_in_group

    rows = row_tile.to(tl.int64) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    columns = column_tile.to(tl.int64) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    is_row, is_column = rows < num_rows, columns < NUM_COLUMNS
    places = tl.arange(0, TILE_DEPTH)
    x_ptrs = x_ptr + rows[:, None] * DEPTH + places[None, :]
    weight_ptrs = weight_ptr + columns[None, :] * DEPTH + places[:, None]
    acc = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    for start in range(0, DEPTH, TILE_DEPTH):
        if DEPTH % TILE_DEPTH == 0:
            x_mask, weight_mask = is_row[:, None], is_column[None, :]
        else:
            is_deep = start + places < DEPTH
            x_mask, weight_mask = is_row[:, None] & is_deep[None, :], is_column[None, :] & is_deep[:, None]
        x = tl.load(x_ptrs + start, mask=x_mask, other=0.0)
        weight = tl.load(weight_ptrs + start, mask=weight_mask, other=0.0)
        acc = tl.dot(x, weight, acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
    out_ptrs = out_ptr + rows[:, None] * NUM_COLUMNS + columns[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


def matmul(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``: ``(T, n)``, each row with the bits that it has alone.

    Args:
        x: ``(T, k)``, float32, bfloat16 or float16, contiguous.
        weight: ``(n, k)`` of x's dtype, contiguous.
        bias: ``(n,)`` of x's dtype, contiguous; None for none.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    check_product(x, weight, bias)
    return matmul_triton(x, weight, bias) if runs_on_triton(x) else matmul_reference(x, weight, bias)


def matmul_triton(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Launch the kernel on checked arguments (see ``matmul``)."""
    (num_rows, depth), num_columns = x.shape, weight.shape[0]
    out = torch.empty((num_rows, num_columns), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    tiling = TILING_32_BIT if x.dtype is torch.float32 else TILING_16_BIT
    num_tiles = ceil_div(num_rows, tiling.tile_rows) * ceil_div(num_columns, tiling.tile_columns)
    _matmul_kernel[(num_tiles,)](
        x,
        weight,
        weight if bias is None else bias,
        out,
        num_rows,
        HAS_BIAS=bias is not None,
        NUM_COLUMNS=num_columns,
        DEPTH=depth,
        TILE_ROWS=tiling.tile_rows,
        TILE_COLUMNS=tiling.tile_columns,
        TILE_DEPTH=tiling.tile_depth,
        GROUP_ROW_TILES=GROUP_ROW_TILES,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    return out


def matmul_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``matmul`` in plain torch, one row after the other, each by the very same call; float64 too."""
    compute_dtype = torch.promote_types(x.dtype, torch.float32)
    wide_weight = weight.to(compute_dtype)
    out = torch.empty((len(x), len(weight)), dtype=x.dtype, device=x.device)
    for row, out_row in zip(x.to(compute_dtype), out, strict=True):
        # A copy, for how a row lies in memory could matter to the library too.
        summed = torch.mv(wide_weight, row.clone())
        out_row.copy_(summed if bias is None else summed + bias)
    return out
