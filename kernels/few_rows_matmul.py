"""Linear layers for the few rows of a decode step.

::

    out[m, n] = sum_k x[m, k] weight[n, k] + bias[n]
    parts[p, m, n] = sum_k x[m, k] weight[n, k],    k in the p-th part of the depth

A step with few tokens does little more than read the weights. Where a layer has few columns, there are too few tiles of
the product to keep every multiprocessor reading, so several programs share the depth of one tile ("split-K"). Instead
of waiting for one another to sum up, they leave their parts to the kernel that reads the product next, which has to
read it anyway (rms_norm.py). The parts and their order depend on shapes alone, so the bits of a result do too.

Tiles are loaded by the tensor memory accelerator of Hopper. Each launch takes its place while the kernel before it
still runs, and waits there: in a chain of such kernels that saves half a microsecond for each; behind a library's
kernel, which lets nothing start before it ends, it costs as much. So all of a layer's products are of this kind, or
none. On a Hopper GPU parts of little depth are made by hopper_few_rows.py, which has the weight loaded by then.
"""

from typing import NamedTuple

import torch

from pbench.kernels.compiler import HAS_TRITON, jit, let_next_launch, tl, wait_for_previous
from pbench.kernels.launch import (
    can_launch_early,
    ceil_div,
    check_product,
    device_limits,
    next_power_of_2,
    runs_on_hopper,
    runs_on_triton,
)

if HAS_TRITON:
    from triton.tools.tensor_descriptor import TensorDescriptor

MAX_PARTS = 8
PROGRAMS_PER_SM = 2
MIN_WGMMA_ROWS = 64
NUM_PARTS_HELD = 4  # by hopper_few_rows.py
HELD_COLUMNS = 64
HELD_DEPTH = 1024  # at most


class FewRowsTiling(NamedTuple):
    """How a product is cut up."""

    tile_rows: int
    tile_columns: int
    tile_depth: int
    num_stages: int


@jit()
def first_row_of(tile: tl.tensor, num_rows: tl.tensor, TILE_ROWS: tl.constexpr) -> tl.tensor:
    """Where a tile of rows begins: the last one ends with the rows, so it may share some with the one before it.

    Both write the same there. Tiles that reach over the end took longer to load than whole ones.
    """
    return tl.maximum(tl.minimum(tile * TILE_ROWS, num_rows - TILE_ROWS), 0)


@jit(do_not_specialize=("num_rows",))
def _few_rows_matmul_kernel(
    x_descriptor: tl.tensor,  # (num_rows, DEPTH), in tiles (TILE_ROWS, TILE_DEPTH)
    weight_descriptor: tl.tensor,  # (NUM_COLUMNS, DEPTH), in tiles (TILE_COLUMNS, TILE_DEPTH)
    bias_ptr: tl.pointer_type,  # (NUM_COLUMNS,), with HAS_BIAS only
    out_ptr: tl.pointer_type,  # (NUM_PARTS, num_rows, NUM_COLUMNS)
    num_rows: tl.tensor,
    HAS_BIAS: tl.constexpr,
    NUM_COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    TILE_DEPTH: tl.constexpr,
    IS_TURNED: tl.constexpr,  # weight times x: the tensor cores want 64 rows of the first operand
    IS_EARLY: tl.constexpr,  # launched before the kernel before it is done
) -> None:
    """Grid: (row tiles, column tiles, NUM_PARTS)."""
    NUM_TILES: tl.constexpr = (DEPTH + TILE_DEPTH - 1) // TILE_DEPTH
    PART_DEPTH: tl.constexpr = (NUM_TILES + NUM_PARTS - 1) // NUM_PARTS * TILE_DEPTH
    first_row = first_row_of(tl.program_id(0), num_rows, TILE_ROWS)
    first_column = tl.program_id(1) * TILE_COLUMNS
    rows, columns = first_row + tl.arange(0, TILE_ROWS), first_column + tl.arange(0, TILE_COLUMNS)
    start = tl.program_id(2) * PART_DEPTH
    if IS_TURNED:
        acc = tl.zeros([TILE_COLUMNS, TILE_ROWS], tl.float32)
    else:
        acc = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float32)
    if IS_EARLY:
        let_next_launch()
        wait_for_previous()
    for place in range(start, tl.minimum(start + PART_DEPTH, DEPTH), TILE_DEPTH):  # zeros lie behind the end
        x = x_descriptor.load([first_row, place])
        weight = weight_descriptor.load([first_column, place])
        if IS_TURNED:
            acc = tl.dot(weight, x.T, acc, input_precision="ieee")
        else:
            acc = tl.dot(x, weight.T, acc, input_precision="ieee")
    if IS_TURNED:
        acc = acc.T
    if HAS_BIAS:
        acc += tl.load(bias_ptr + columns, mask=columns < NUM_COLUMNS, other=0.0).to(tl.float32)[None, :]
    out_rows = tl.program_id(2).to(tl.int64) * num_rows + rows
    mask = (rows < num_rows)[:, None] & (columns < NUM_COLUMNS)[None, :]
    out_ptrs = out_ptr + out_rows[:, None] * NUM_COLUMNS + columns[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=mask)


def few_rows_tiling(num_rows: int) -> FewRowsTiling:
    """How products of so many rows were fastest on an H200."""
    if num_rows <= MIN_WGMMA_ROWS // 2:
        return FewRowsTiling(16 if num_rows <= 16 else 32, 64, 128, 4)
    return FewRowsTiling(64, 32, 128, 4) if num_rows <= 128 else FewRowsTiling(64, 64, 128, 3)


def num_parts_for(num_rows: int, num_columns: int, depth: int, num_sms: int) -> int:
    """Into how many parts the depth is best cut, a power of two: as many as keep all multiprocessors busy."""
    tiling = few_rows_tiling(num_rows)
    num_tiles = ceil_div(num_rows, tiling.tile_rows) * ceil_div(num_columns, tiling.tile_columns)
    num_parts = 1
    while (
        num_parts < MAX_PARTS
        and 2 * num_parts * num_tiles <= PROGRAMS_PER_SM * num_sms
        and 4 * num_parts * tiling.tile_depth <= depth
    ):
        num_parts *= 2
    return num_parts


def suits_hopper(x: torch.Tensor) -> bool:
    """Whether the kernel of hopper_few_rows.py multiplies ``x``: on a Hopper GPU, of 16 bits."""
    return runs_on_hopper(x) and x.element_size() == 2


class HeldTile(NamedTuple):
    """Rows of x in a tile, for the kernel of hopper_few_rows.py: of two products, for which powers of two are asked."""

    first_rows: int
    more_rows: int  # 0: there is but one product

    @property
    def num_rows(self) -> int:
        """Of both."""
        return self.first_rows + self.more_rows


def held_tile(num_rows: int, *, is_gated: bool = False) -> HeldTile:
    """Up to 64 rows one tile; more are two alike, as long as there are no more than 256. Gated: of 64 at most."""
    if num_rows <= 64 or is_gated:
        return HeldTile(min(max(next_power_of_2(num_rows), 16), 64), 0)
    half = min(ceil_div(num_rows, 2), 128)
    first_rows = next_power_of_2(half + 1) // 2
    more_rows = max(next_power_of_2(half - first_rows), 16) if half > first_rows else 0
    return HeldTile(2 * first_rows, 0) if more_rows == first_rows else HeldTile(first_rows, more_rows)


def can_hold_parts(num_rows: int, num_columns: int, depth: int, num_sms: int) -> bool:
    """Whether all programs run at once, each with its share of the weight in shared memory."""
    num_tiles = ceil_div(num_rows, held_tile(num_rows).num_rows) * ceil_div(num_columns, HELD_COLUMNS)
    depths = range(HELD_DEPTH // 4 * NUM_PARTS_HELD, HELD_DEPTH * NUM_PARTS_HELD + 1)
    return num_tiles * NUM_PARTS_HELD <= num_sms and depth in depths


def few_rows_matmul(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``: ``(T, n)``, summed in float32 and rounded once.

    Args:
        x: ``(T, k)``, float32, bfloat16 or float16, contiguous; its rows a multiple of 16 bytes.
        weight: ``(n, k)`` of x's dtype, contiguous.
        bias: ``(n,)`` of x's dtype, contiguous; None for none.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    check_few_rows(x, weight, bias)
    if runs_on_triton(x):
        return few_rows_matmul_triton(x, weight, bias)
    return few_rows_matmul_reference(x, weight, bias)


def few_rows_parts(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Parts whose sum is ``x @ weight.T``: float32 ``(num_parts, T, n)``. See ``few_rows_matmul``."""
    check_few_rows(x, weight)
    limits = device_limits(x)
    if suits_hopper(x) and can_hold_parts(len(x), weight.shape[0], weight.shape[1], limits.num_sms):
        from pbench.kernels.hopper_few_rows import hopper_parts

        return hopper_parts(x, weight, NUM_PARTS_HELD)
    num_parts = num_parts_for(len(x), weight.shape[0], weight.shape[1], limits.num_sms)
    if runs_on_triton(x):
        return few_rows_parts_triton(x, weight, num_parts)
    return few_rows_parts_reference(x, weight, num_parts)


def check_few_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """Check the arguments of a product of few rows (see ``few_rows_matmul``)."""
    check_product(x, weight, bias)
    if x.shape[1] * x.element_size() % 16:
        raise ValueError(f"x has shape {tuple(x.shape)}; its rows must be a multiple of 16 bytes")


def few_rows_matmul_triton(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Launch the kernel on checked arguments (see ``few_rows_matmul``)."""
    out = torch.empty((1, x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    _launch(x, weight, bias, out)
    return out[0]


def few_rows_parts_triton(x: torch.Tensor, weight: torch.Tensor, num_parts: int) -> torch.Tensor:
    """Launch the kernel on checked arguments (see ``few_rows_parts``)."""
    parts = torch.empty((num_parts, x.shape[0], weight.shape[0]), dtype=torch.float32, device=x.device)
    _launch(x, weight, None, parts)
    return parts


def few_rows_matmul_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``few_rows_matmul`` in plain torch; float64 too."""
    compute_dtype = torch.promote_types(x.dtype, torch.float32)
    out = x.to(compute_dtype) @ weight.to(compute_dtype).T
    return (out if bias is None else out + bias).to(x.dtype)


def few_rows_parts_reference(x: torch.Tensor, weight: torch.Tensor, num_parts: int) -> torch.Tensor:
    """``few_rows_parts`` in plain torch; float64 too."""
    tile_depth = few_rows_tiling(x.shape[0]).tile_depth
    part_depth = ceil_div(ceil_div(x.shape[1], tile_depth), num_parts) * tile_depth
    compute_dtype = torch.promote_types(x.dtype, torch.float32)
    x, weight = x.to(compute_dtype), weight.to(compute_dtype)
    slices = [slice(part * part_depth, (part + 1) * part_depth) for part in range(num_parts)]
    return torch.stack([x[:, depth] @ weight[:, depth].T for depth in slices])


def _launch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    (num_rows, depth), num_columns, num_parts = x.shape, weight.shape[0], out.shape[0]
    if out.numel() == 0:
        return
    tile_rows, tile_columns, tile_depth, num_stages = few_rows_tiling(num_rows)
    is_early = can_launch_early(x)
    _few_rows_matmul_kernel[(ceil_div(num_rows, tile_rows), ceil_div(num_columns, tile_columns), num_parts)](
        TensorDescriptor(x, [num_rows, depth], [depth, 1], [tile_rows, tile_depth]),
        TensorDescriptor(weight, [num_columns, depth], [depth, 1], [tile_columns, tile_depth]),
        weight if bias is None else bias,
        out,
        num_rows,
        HAS_BIAS=bias is not None,
        NUM_COLUMNS=num_columns,
        DEPTH=depth,
        NUM_PARTS=num_parts,
        TILE_ROWS=tile_rows,
        TILE_COLUMNS=tile_columns,
        TILE_DEPTH=tile_depth,
        IS_TURNED=tile_rows < MIN_WGMMA_ROWS,
        IS_EARLY=is_early,
        launch_pdl=is_early,
        num_warps=4,
        num_stages=num_stages,
    )
