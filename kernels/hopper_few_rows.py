"""Products of few rows on Hopper: the weight is there before what it multiplies.

The parts of few_rows_matmul.py and the gated product of gated_matmul.py, where a program's share of the weight fits
into shared memory whole. Nobody writes weights, so a program asks for all of its share before it waits for the kernel
before it: memory works while that one still computes. After the wait come tiles of x, a few ahead of the tensor cores.
Written in Gluon, Triton's lower layer, because Triton waits for each load that is outside of a loop.

The tensor cores take 64 rows of their first operand and any multiple of 8 of the second, so the weight is the first. Of
the gated product these are 8 rows of gate, 8 of up and so on: one thread holds the sums of rows i and i + 8, and so has
both of an output.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from pbench.kernels.compiler import let_next_launch, wait_for_previous
from pbench.kernels.few_rows_matmul import held_tile
from pbench.kernels.launch import ceil_div

WEIGHT_ROWS = gl.constexpr(64)  # of a program
GATED_COLUMNS = gl.constexpr(32)  # of a program's output: half of its rows of the weight are gate's
TURN_ROWS = gl.constexpr(8)  # of gate, then of up
TILE_DEPTH = gl.constexpr(128)
MAX_TILES, MAX_GATED_TILES = 4, 8  # of x at a time: more were no faster
MAX_SHARED_BYTES = 216 * 1024
NUM_WARPS = gl.constexpr(4)
wait_for_all = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # renamed in Triton 3.7
SWIZZLED = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))
SWIZZLED_TURNS = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4))


@gluon.jit
def _load_x(
    first_descriptor: tma.tensor_descriptor,
    more_descriptor: tma.tensor_descriptor,
    first_tiles: gl.shared_memory_descriptor,
    more_tiles: gl.shared_memory_descriptor,
    loaded: gl.shared_memory_descriptor,
    tile: gl.constexpr,
    first_row: gl.tensor,
    start: gl.tensor,
    MORE_ROWS: gl.constexpr,
) -> None:
    FIRST_ROWS: gl.constexpr = first_tiles.shape[1]
    place: gl.constexpr = tile % first_tiles.shape[0]
    depth = start + tile * TILE_DEPTH
    mbarrier.expect(loaded.index(place), (FIRST_ROWS + MORE_ROWS) * TILE_DEPTH * 2)
    tma.async_copy_global_to_shared(first_descriptor, [first_row, depth], loaded.index(place), first_tiles.index(place))
    if MORE_ROWS > 0:
        tma.async_copy_global_to_shared(
            more_descriptor, [first_row + FIRST_ROWS, depth], loaded.index(place), more_tiles.index(place)
        )


@gluon.jit
def _store_parts(
    sums: gl.tensor,  # (WEIGHT_ROWS, rows)
    out_ptr: gl.tensor,
    first_row: gl.tensor,
    num_rows: gl.tensor,
    column_tile: gl.tensor,
    part: gl.tensor,
    NUM_COLUMNS: gl.constexpr,
) -> None:
    SUMS: gl.constexpr = sums.type.layout
    # Offsets from the first place: these are small and mostly known when this is compiled.
    first_column = column_tile * WEIGHT_ROWS
    first_ptr = out_ptr + ((part.to(gl.int64) * num_rows + first_row) * NUM_COLUMNS + first_column)
    rows = gl.arange(0, sums.shape[1], layout=gl.SliceLayout(0, SUMS))
    columns = gl.arange(0, WEIGHT_ROWS, layout=gl.SliceLayout(1, SUMS))
    mask = gl.expand_dims(rows < num_rows - first_row, 0) & gl.expand_dims(columns < NUM_COLUMNS - first_column, 1)
    gl.store(first_ptr + (gl.expand_dims(rows * NUM_COLUMNS, 0) + gl.expand_dims(columns, 1)), sums, mask=mask)


@gluon.jit(do_not_specialize=("num_rows",))
def _hopper_few_rows_kernel(
    first_descriptor: tma.tensor_descriptor,  # of x, (num_rows, depth), in tiles (FIRST_ROWS, TILE_DEPTH)
    more_descriptor: tma.tensor_descriptor,  # of x, in tiles (MORE_ROWS, TILE_DEPTH), where there are any
    weight_descriptor: tma.tensor_descriptor,  # (NUM_COLUMNS, depth), in tiles (WEIGHT_ROWS, TILE_DEPTH);
    # gated: (NUM_COLUMNS / TURN_ROWS, 2, TURN_ROWS, depth), in tiles of as many rows
    out_ptr: gl.tensor,  # (num_parts, num_rows, NUM_COLUMNS) float32; gated: (num_rows, NUM_COLUMNS)
    num_rows: gl.tensor,
    IS_GATED: gl.constexpr,
    NUM_COLUMNS: gl.constexpr,
    NUM_TILES: gl.constexpr,  # of a part's depth
    FIRST_ROWS: gl.constexpr,  # of a tile
    MORE_ROWS: gl.constexpr,  # 0, or with parts only
    NUM_TILES_HELD: gl.constexpr,  # of x
) -> None:
    """Grid: (row tiles, column tiles, num_parts)."""
    FIRST_SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [NUM_WARPS, 1], [16, FIRST_ROWS, 16])
    MORE_SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [NUM_WARPS, 1], [16, MORE_ROWS, 16])
    TILE_ROWS: gl.constexpr = FIRST_ROWS + MORE_ROWS
    NUM_TURNS: gl.constexpr = WEIGHT_ROWS // (2 * TURN_ROWS)
    dtype: gl.constexpr = first_descriptor.dtype
    column_tile, part = gl.program_id(1), gl.program_id(2)
    first_row = gl.maximum(gl.minimum(gl.program_id(0) * TILE_ROWS, num_rows - TILE_ROWS), 0)  # as first_row_of
    start = part * (NUM_TILES * TILE_DEPTH)
    if not IS_GATED:  # that takes more shared memory: beside it the next kernel would only take what others need
        let_next_launch()
    weights = gl.allocate_shared_memory(dtype, [NUM_TILES, WEIGHT_ROWS, TILE_DEPTH], SWIZZLED)
    turns = weights._reinterpret(dtype, [NUM_TILES, NUM_TURNS, 2, TURN_ROWS, TILE_DEPTH], SWIZZLED_TURNS)
    xs = gl.allocate_shared_memory(dtype, [NUM_TILES_HELD, FIRST_ROWS, TILE_DEPTH], SWIZZLED)
    if MORE_ROWS > 0:
        more_xs = gl.allocate_shared_memory(dtype, [NUM_TILES_HELD, MORE_ROWS, TILE_DEPTH], SWIZZLED)
    else:
        more_xs = xs
    weight_loaded = gl.allocate_shared_memory(gl.int64, [NUM_TILES, 1], mbarrier.MBarrierLayout())
    x_loaded = gl.allocate_shared_memory(gl.int64, [NUM_TILES_HELD, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(NUM_TILES):
        mbarrier.init(weight_loaded.index(i), count=1)
    for i in gl.static_range(NUM_TILES_HELD):
        mbarrier.init(x_loaded.index(i), count=1)
    fence_async_shared()
    wait_for_all()
    for i in gl.static_range(NUM_TILES):
        place = start + i * TILE_DEPTH
        mbarrier.expect(weight_loaded.index(i), weight_descriptor.block_type.nbytes)
        if IS_GATED:
            first_turn = column_tile * NUM_TURNS
            tma.async_copy_global_to_shared(
                weight_descriptor, [first_turn, 0, 0, place], weight_loaded.index(i), turns.index(i)
            )
        else:
            first_column = column_tile * WEIGHT_ROWS
            tma.async_copy_global_to_shared(
                weight_descriptor, [first_column, place], weight_loaded.index(i), weights.index(i)
            )
    wait_for_previous()
    if IS_GATED:
        let_next_launch()
    for i in gl.static_range(NUM_TILES_HELD):
        _load_x(first_descriptor, more_descriptor, xs, more_xs, x_loaded, i, first_row, start, MORE_ROWS)
    sums = gl.zeros([WEIGHT_ROWS, FIRST_ROWS], gl.float32, layout=FIRST_SUMS)
    if MORE_ROWS > 0:
        more_sums = gl.zeros([WEIGHT_ROWS, MORE_ROWS], gl.float32, layout=MORE_SUMS)
    for i in gl.static_range(NUM_TILES):
        place = i % NUM_TILES_HELD
        mbarrier.wait(x_loaded.index(place), i // NUM_TILES_HELD & 1)
        mbarrier.wait(weight_loaded.index(i), 0)
        weight = weights.index(i)
        sums = warpgroup_mma(weight, xs.index(place).permute((1, 0)), sums, use_acc=i > 0, is_async=True)
        if MORE_ROWS > 0:
            more_x = more_xs.index(place).permute((1, 0))
            more_sums = warpgroup_mma(weight, more_x, more_sums, use_acc=i > 0, is_async=True)
        if i > 0 and i - 1 + NUM_TILES_HELD < NUM_TILES:
            if MORE_ROWS > 0:
                sums, more_sums = warpgroup_mma_wait(2, [sums, more_sums])
            else:
                sums = warpgroup_mma_wait(1, [sums])
            wait_for_all()  # all warps have read the tile before this one
            tile = i - 1 + NUM_TILES_HELD
            _load_x(first_descriptor, more_descriptor, xs, more_xs, x_loaded, tile, first_row, start, MORE_ROWS)
    if MORE_ROWS > 0:
        sums, more_sums = warpgroup_mma_wait(0, [sums, more_sums])
    else:
        sums = warpgroup_mma_wait(0, [sums])
    if IS_GATED:
        COLUMNS: gl.constexpr = gl.BlockedLayout([1, 8], [8, 4], [NUM_WARPS, 1], [1, 0])
        gate, up = sums.reshape((NUM_TURNS, 2, TURN_ROWS, FIRST_ROWS)).permute((0, 2, 3, 1)).split()
        out = (gate / (1.0 + gl.exp(-gate)) * up).to(dtype).reshape((GATED_COLUMNS, FIRST_ROWS)).permute((1, 0))
        out = gl.convert_layout(out, COLUMNS)
        rows = first_row + gl.arange(0, FIRST_ROWS, layout=gl.SliceLayout(1, COLUMNS))
        columns = column_tile * GATED_COLUMNS + gl.arange(0, GATED_COLUMNS, layout=gl.SliceLayout(0, COLUMNS))
        mask = gl.expand_dims(rows < num_rows, 1) & gl.expand_dims(columns < NUM_COLUMNS, 0)
        offsets = gl.expand_dims(rows.to(gl.int64) * NUM_COLUMNS, 1) + gl.expand_dims(columns, 0)
        gl.store(out_ptr + offsets, out, mask=mask)
    else:
        _store_parts(sums, out_ptr, first_row, num_rows, column_tile, part, NUM_COLUMNS)
        if MORE_ROWS > 0:
            _store_parts(more_sums, out_ptr, first_row + FIRST_ROWS, num_rows, column_tile, part, NUM_COLUMNS)


def hopper_parts(x: torch.Tensor, weight: torch.Tensor, num_parts: int) -> torch.Tensor:
    """Launch the kernel on checked arguments (see ``few_rows_parts``) of at most HELD_DEPTH a part."""
    (num_rows, depth), num_columns = x.shape, weight.shape[0]
    num_tiles = ceil_div(ceil_div(depth, TILE_DEPTH.value), num_parts)
    parts = torch.empty((num_parts, num_rows, num_columns), dtype=torch.float32, device=x.device)
    tile = [WEIGHT_ROWS.value, TILE_DEPTH.value]
    rows = TensorDescriptor(weight, [num_columns, depth], [depth, 1], tile, SWIZZLED.value)
    num_column_tiles = ceil_div(num_columns, WEIGHT_ROWS.value)
    _launch(x, rows, parts, num_column_tiles, num_parts, num_tiles, num_columns, is_gated=False)
    return parts


def hopper_gated(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Launch the kernel on checked arguments (see ``gated_matmul``) for which ``can_hold_gated``."""
    (num_rows, depth), num_columns = x.shape, weight.shape[0] // 2
    out = torch.empty((num_rows, num_columns), dtype=x.dtype, device=x.device)
    turn = TURN_ROWS.value
    turns = TensorDescriptor(
        weight,
        [num_columns // turn, 2, turn, depth],
        [turn * depth, num_columns * depth, depth, 1],
        [WEIGHT_ROWS.value // (2 * turn), 2, turn, TILE_DEPTH.value],
        SWIZZLED_TURNS.value,
    )
    num_column_tiles = ceil_div(num_columns, GATED_COLUMNS.value)
    _launch(x, turns, out, num_column_tiles, 1, ceil_div(depth, TILE_DEPTH.value), num_columns, is_gated=True)
    return out


def _launch(
    x: torch.Tensor,
    weight: TensorDescriptor,
    out: torch.Tensor,
    num_column_tiles: int,
    num_parts: int,
    num_tiles: int,
    num_columns: int,
    *,
    is_gated: bool,
) -> None:
    if out.numel() == 0:
        return
    num_rows, depth = x.shape
    tile = held_tile(num_rows, is_gated=is_gated)
    room = MAX_SHARED_BYTES - 2 * num_tiles * TILE_DEPTH.value * WEIGHT_ROWS.value
    num_held = min(
        num_tiles, MAX_GATED_TILES if is_gated else MAX_TILES, room // (2 * TILE_DEPTH.value * tile.num_rows)
    )
    descriptors = [
        TensorDescriptor(x, [num_rows, depth], [depth, 1], [rows, TILE_DEPTH.value], SWIZZLED.value)
        for rows in (tile.first_rows, tile.more_rows or tile.first_rows)
    ]
    _hopper_few_rows_kernel[(ceil_div(num_rows, tile.num_rows), num_column_tiles, num_parts)](
        *descriptors,
        weight,
        out,
        num_rows,
        IS_GATED=is_gated,
        NUM_COLUMNS=num_columns,
        NUM_TILES=num_tiles,
        FIRST_ROWS=tile.first_rows,
        MORE_ROWS=tile.more_rows,
        NUM_TILES_HELD=num_held,
        launch_pdl=True,
        num_warps=NUM_WARPS.value,
    )
