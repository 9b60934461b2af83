"""Projection, head norms, rotation and writing of K and V for the few rows of a decode step, in one launch on Hopper.

What project_write_kv.py says, for heads of 64 or 128 numbers of 16 bits. A program computes one head of a tile of
tokens. Written in Gluon, Triton's lower layer, which leaves to the kernel when a load begins: weights, angles and slots
are there before the step begins, so as many tiles of weights as have a place in shared memory, and all angles, are
loaded before the kernel waits for the one before it; the other weights are brought into the second-level cache.

The matrix units multiply weights by tokens: of the first they take 64 rows at a time, of the second as few as eight.
Between the product and what follows, shared memory turns the tile, so that a thread has neighbours of both halves of a
token's head, and stores 16 bytes at once.
"""

from typing import NamedTuple

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
from pbench.kernels.launch import FP8, FP8_MAX, ceil_div
from pbench.kernels.rotary_write_kv import Rotation, norm_halves, rotate_halves, store_halves

BOX_DEPTH = gl.constexpr(64)  # so many 16-bit elements are the 128 bytes that shared memory is swizzled by
NUM_BOXES = gl.constexpr(2)  # of a tile
wait_for_program = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # renamed in Triton 3.7
SWIZZLED = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))


class ProjectTiling(NamedTuple):
    """How a projection is cut up."""

    tile_rows: int  # tokens
    weights_held: int  # tiles of weights in shared memory, of heads of 128
    rows_held: int  # tiles of tokens
    num_warps: int


@gluon.jit
def _load_tile(
    rows: tma.tensor_descriptor,
    tiles: gl.shared_memory_descriptor,
    full: gl.shared_memory_descriptor,
    first_row: gl.tensor,
    index: gl.tensor,
    is_there: gl.tensor,
) -> None:
    """The tile of this index along the depth, into its place."""
    NUM_PLACES: gl.constexpr = full.shape[0]
    place = index % NUM_PLACES
    mbarrier.expect(full.index(place), NUM_BOXES * tiles.shape[1] * BOX_DEPTH * 2, pred=is_there)
    for j in gl.static_range(NUM_BOXES):
        box = tiles.index(place * NUM_BOXES + j)
        depth = (index * NUM_BOXES + j) * BOX_DEPTH  # zeros lie behind the end
        tma.async_copy_global_to_shared(rows, [first_row, depth], full.index(place), box, pred=is_there)


@gluon.jit(
    do_not_specialize=("num_rows", "block_size"),
    do_not_specialize_on_alignment=("positions_ptr", "slots_ptr"),
)
def _hopper_project_kernel(
    x_descriptor: tma.tensor_descriptor,  # (num_rows, DEPTH), in boxes (TILE_ROWS, BOX_DEPTH)
    weight_descriptor: tma.tensor_descriptor,  # of the weight, in boxes (HEAD_DIM, BOX_DEPTH)
    weight_ptr: gl.tensor,  # ((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM, DEPTH)
    bias_ptr: gl.tensor,  # as many numbers as the weight has rows, with HAS_BIAS only
    query_ptr: gl.tensor,  # (num_rows, NUM_HEADS, HEAD_DIM)
    kv_ptr: gl.tensor,  # (num_blocks, 2, NUM_KV_HEADS, block_size, HEAD_DIM)
    slots_ptr: gl.tensor,  # (num_rows,)
    cos_sin_ptr: gl.tensor,  # (max_positions, 2, HEAD_DIM / 2)
    positions_ptr: gl.tensor,  # (num_rows,)
    query_weight_ptr: gl.tensor,  # (HEAD_DIM,), with HAS_NORM only, as key_weight_ptr and eps
    key_weight_ptr: gl.tensor,
    num_rows: gl.tensor,
    block_size: gl.tensor,
    eps: gl.tensor,
    key_factor: gl.tensor,  # with IS_FP8 only, as the two below
    value_factor: gl.tensor,
    fp8_max: gl.tensor,
    HAS_BIAS: gl.constexpr,
    HAS_NORM: gl.constexpr,
    IS_FP8: gl.constexpr,
    NUM_HEADS: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    DEPTH: gl.constexpr,
    TILE_ROWS: gl.constexpr,
    NUM_WEIGHTS_HELD: gl.constexpr,  # tiles that there are places for
    NUM_ROWS_HELD: gl.constexpr,
    NUM_WARPS: gl.constexpr,
) -> None:
    """Grid: (NUM_HEADS + 2 * NUM_KV_HEADS, row tiles)."""
    HALF_DIM: gl.constexpr = HEAD_DIM // 2
    TILE_DEPTH: gl.constexpr = NUM_BOXES * BOX_DEPTH
    NUM_TILES: gl.constexpr = (DEPTH + TILE_DEPTH - 1) // TILE_DEPTH
    dtype: gl.constexpr = query_ptr.dtype.element_ty
    LANES: gl.constexpr = HALF_DIM // 8
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [32 // LANES, LANES], [NUM_WARPS, 1], [1, 0])
    DIM_WARPS: gl.constexpr = min(HEAD_DIM // 16, NUM_WARPS)
    ROW_WARPS: gl.constexpr = NUM_WARPS // DIM_WARPS
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [DIM_WARPS, ROW_WARPS], [16, TILE_ROWS // ROW_WARPS, 16])
    THREADS: gl.constexpr = gl.BlockedLayout([1], [32], [NUM_WARPS], [0])
    head = gl.program_id(0)
    # The last tile ends with the rows, as in few_rows_matmul.py.
    first_row = gl.maximum(gl.minimum(gl.program_id(1) * TILE_ROWS, num_rows - TILE_ROWS), 0)
    first_column = head * HEAD_DIM
    # What the loads below go by is asked for first: behind the weights it would wait for them.
    rows = first_row + gl.arange(0, TILE_ROWS, layout=gl.SliceLayout(1, ROWS))
    dims = gl.expand_dims(gl.arange(0, HALF_DIM, layout=gl.SliceLayout(0, ROWS)), 0)
    is_row = rows < num_rows
    is_query = head < NUM_HEADS
    is_rotated = head < NUM_HEADS + NUM_KV_HEADS
    positions = gl.load(positions_ptr + rows, mask=is_row & is_rotated, other=0)
    slots = gl.load(slots_ptr + rows, mask=is_row & (not is_query), other=-1)
    x_tiles = gl.allocate_shared_memory(dtype, [NUM_ROWS_HELD * NUM_BOXES, TILE_ROWS, BOX_DEPTH], SWIZZLED)
    weight_tiles = gl.allocate_shared_memory(dtype, [NUM_WEIGHTS_HELD * NUM_BOXES, HEAD_DIM, BOX_DEPTH], SWIZZLED)
    x_full = gl.allocate_shared_memory(gl.int64, [NUM_ROWS_HELD, 1], mbarrier.MBarrierLayout())
    weight_full = gl.allocate_shared_memory(gl.int64, [NUM_WEIGHTS_HELD, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(NUM_ROWS_HELD):
        mbarrier.init(x_full.index(i), count=1)
    for i in gl.static_range(NUM_WEIGHTS_HELD):
        mbarrier.init(weight_full.index(i), count=1)
    fence_async_shared()
    for i in gl.static_range(NUM_WEIGHTS_HELD):
        _load_tile(weight_descriptor, weight_tiles, weight_full, first_column, i, i < NUM_TILES)
    cos_ptrs = cos_sin_ptr + gl.expand_dims(positions * (2 * HALF_DIM), 1) + dims
    is_turned = gl.expand_dims(is_row & is_rotated, 1)
    cos = gl.load(cos_ptrs, mask=is_turned, other=0.0)
    sin = gl.load(cos_ptrs + HALF_DIM, mask=is_turned, other=0.0)
    head_stride = block_size.to(gl.int64) * HEAD_DIM
    block_ids = slots.to(gl.int32) // block_size  # no pool has so many slots that 64 bits would have to be divided
    places = slots.to(gl.int32) - block_ids * block_size
    offsets = block_ids.to(gl.int64) * (2 * NUM_KV_HEADS) * head_stride + places.to(gl.int64) * HEAD_DIM
    if HAS_NORM:
        norm_ptrs = query_weight_ptr + dims
        if not is_query:
            norm_ptrs = key_weight_ptr + dims
        first_weight, second_weight = gl.load(norm_ptrs), gl.load(norm_ptrs + HALF_DIM)
    if HAS_BIAS:
        columns = first_column + gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(1, SUMS))
        bias = gl.expand_dims(gl.load(bias_ptr + columns).to(gl.float32), 1)

    if NUM_WEIGHTS_HELD < NUM_TILES and gl.program_id(1) == 0:
        weight_rows = gl.arange(0, NUM_WARPS * 32, layout=THREADS) % HEAD_DIM
        rest_ptrs = weight_ptr + (first_column + weight_rows).to(gl.int64) * DEPTH + NUM_WEIGHTS_HELD * TILE_DEPTH
        NUM_BYTES: gl.constexpr = (DEPTH - NUM_WEIGHTS_HELD * TILE_DEPTH) * 2
        gl.inline_asm_elementwise(
            "cp.async.bulk.prefetch.L2.global [$1], $2; // dummy $0",
            "=r,l,r",
            [rest_ptrs.to(gl.int64), gl.full([NUM_WARPS * 32], NUM_BYTES, gl.int32, layout=THREADS)],
            dtype=gl.int32,
            is_pure=False,
            pack=1,
        )

    wait_for_previous()
    let_next_launch()
    for i in gl.static_range(NUM_ROWS_HELD):
        _load_tile(x_descriptor, x_tiles, x_full, first_row, i, i < NUM_TILES)
    sums = gl.zeros([HEAD_DIM, TILE_ROWS], gl.float32, layout=SUMS)
    for i in range(NUM_TILES):
        x_place = i % NUM_ROWS_HELD
        weight_place = i % NUM_WEIGHTS_HELD
        mbarrier.wait(weight_full.index(weight_place), (i // NUM_WEIGHTS_HELD) & 1)
        mbarrier.wait(x_full.index(x_place), (i // NUM_ROWS_HELD) & 1)
        for j in gl.static_range(NUM_BOXES):
            weight_tile = weight_tiles.index(weight_place * NUM_BOXES + j)
            x_tile = x_tiles.index(x_place * NUM_BOXES + j)
            sums = warpgroup_mma(weight_tile, x_tile.permute((1, 0)), sums, is_async=True)
        sums = warpgroup_mma_wait(NUM_BOXES, [sums])  # of the tile before this one nothing is read any more
        if (i > 0) & (i - 1 + min(NUM_ROWS_HELD, NUM_WEIGHTS_HELD) < NUM_TILES):
            wait_for_program()
            next_x = i - 1 + NUM_ROWS_HELD
            _load_tile(x_descriptor, x_tiles, x_full, first_row, next_x, next_x < NUM_TILES)
            next_weight = i - 1 + NUM_WEIGHTS_HELD
            _load_tile(weight_descriptor, weight_tiles, weight_full, first_column, next_weight, next_weight < NUM_TILES)
    sums = warpgroup_mma_wait(0, [sums])
    if HAS_BIAS:
        sums += bias
    # Turned, through shared memory, so that a thread has neighbours of a row of both halves.
    product = weight_tiles._reinterpret(dtype, [TILE_ROWS, HEAD_DIM], SWIZZLED)
    wait_for_program()
    product.store(gl.permute(sums.to(dtype), [1, 0]))
    halves = gl.reshape(product.load(ROWS), [TILE_ROWS, 2, HALF_DIM])
    first, second = gl.split(gl.permute(halves, [0, 2, 1]))
    first = gl.convert_layout(first, ROWS).to(gl.float32)
    second = gl.convert_layout(second, ROWS).to(gl.float32)
    if is_rotated:
        if HAS_NORM:
            first, second = norm_halves(first, second, first_weight, second_weight, eps, HALF_DIM, dtype)
        rounded_first, rounded_second = rotate_halves(first, second, cos, sin, dtype)
    else:
        rounded_first, rounded_second = first.to(dtype), second.to(dtype)
    if is_query:
        query_ptrs = query_ptr + gl.expand_dims((rows.to(gl.int64) * NUM_HEADS + head) * HEAD_DIM, 1) + dims
        store_halves(
            query_ptrs, rounded_first, rounded_second, gl.expand_dims(is_row, 1), 1.0, fp8_max, False, HALF_DIM
        )
    else:
        plane_head = head - NUM_HEADS  # K, then V
        kv_ptrs = kv_ptr + plane_head * head_stride + gl.expand_dims(offsets, 1) + dims
        factor = gl.where(is_rotated, key_factor, value_factor)
        store_halves(
            kv_ptrs, rounded_first, rounded_second, gl.expand_dims(slots >= 0, 1), factor, fp8_max, IS_FP8, HALF_DIM
        )


def project_tiling(num_rows: int) -> ProjectTiling:
    """How projections of so many rows were fastest on an H200."""
    if num_rows <= 16:
        return ProjectTiling(16, 4, 4, 4)
    if num_rows <= 128:
        return ProjectTiling(32, 4 if num_rows <= 64 else 3, 4, 4)
    return ProjectTiling(64, 3, 4, 8)


def hopper_project_write_kv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rotation: Rotation,
    kv: torch.Tensor,
    slots: torch.Tensor,
    query: torch.Tensor,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> torch.Tensor:
    """Launch the kernel on checked arguments (see ``project_write_kv``) that ``suits_hopper``; fill ``query``."""
    (num_rows, depth), num_columns = x.shape, weight.shape[0]
    num_kv_heads, block_size, head_dim = kv.shape[2:]
    if num_rows == 0:
        return query
    tile_rows, weights_held, rows_held, num_warps = project_tiling(num_rows)
    cos_sin, positions, norms = rotation
    query_weight, key_weight, eps = norms or (query, query, 0.0)
    box = [tile_rows, BOX_DEPTH.value]
    _hopper_project_kernel[(num_columns // head_dim, ceil_div(num_rows, tile_rows))](
        TensorDescriptor(x, [num_rows, depth], [depth, 1], box, SWIZZLED.value),
        TensorDescriptor(weight, [num_columns, depth], [depth, 1], [head_dim, BOX_DEPTH.value], SWIZZLED.value),
        weight,
        weight if bias is None else bias,
        query,
        kv,
        slots,
        cos_sin,
        positions,
        query_weight,
        key_weight,
        num_rows,
        block_size,
        float(eps),
        1 / key_scale,
        1 / value_scale,
        FP8_MAX,
        HAS_BIAS=bias is not None,
        HAS_NORM=norms is not None,
        IS_FP8=kv.dtype is FP8,
        NUM_HEADS=query.shape[1],
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        DEPTH=depth,
        TILE_ROWS=tile_rows,
        NUM_WEIGHTS_HELD=weights_held * (128 // head_dim),
        NUM_ROWS_HELD=rows_held,
        NUM_WARPS=num_warps,
        num_warps=num_warps,
        launch_pdl=True,
    )
    return query
