"""Decode attention for Hopper: a warp that loads K and V, and four that compute.

What decode_attention.py computes, shared out by the same plan, for 16-bit K and V without windows, soft caps and shared
runs. Written in Gluon, Triton's lower layer, which leaves to the kernel what Triton decides by itself:

- One warp walks through the tiles of the program's chunk and has the tensor memory accelerator bring K and V into
  shared memory, block by block, across the ends of rows too. That takes fewer instructions than loads by all threads,
  and what is on its way does not depend on where the others are.
- The others let the matrix units take K and V where they lie. These multiply 64 rows at least, and a KV head has few
  query heads. So the tokens of K, then the dimensions of V, are the rows, and query heads the columns, 8 at least:
  scores ``(tokens, heads) = K . queries^T``, and sums ``(dimensions, heads) += V^T . weights``.

Slots behind the end of a sequence may have any contents, and 0 * NaN is NaN, so V there is zeroed in shared memory
before it is used.
"""

from functools import partial

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

from pbench.kernels.compiler import let_next_launch, wait_for_previous
from pbench.kernels.decode_plan import NUM_FIELDS, DecodePlan
from pbench.kernels.hopper_kv import GROUP_WARPS, LOADER_REGISTERS, PANEL_DIMS, SWIZZLED, kv_rows, wait_for_group
from pbench.kernels.launch import can_launch_early
from pbench.kernels.launcher import Launch, Launcher
from pbench.kernels.tiling import DecodeTiling

TILE_TOKENS = gl.constexpr(64)
MIN_COLUMNS = gl.constexpr(8)  # of a product of the matrix units
MAX_GROUP = 16  # query heads of a KV head, for whose sums threads have registers
# On an H200 two programs of two tiles on a multiprocessor were faster than other numbers from 1 to 3 and 1 to 6, one of
# three tiles only for the few rows of a sequence or two.
TILING = DecodeTiling(TILE_TOKENS.value, tiles_in_flight=2, num_warps=4, programs_per_sm=2, min_chunk=4)
TILING_OF_FEW = DecodeTiling(TILE_TOKENS.value, tiles_in_flight=3, num_warps=4, programs_per_sm=1, min_chunk=4)
FEW_ROWS = 16
MERGED_NUMEL = gl.constexpr(64)  # numbers of a row's pieces that a thread holds at once when it merges them
MAX_MERGED = gl.constexpr(16)
REGISTERS = 65536  # of a multiprocessor
NUM_THREADS = 256  # of a program: registers are given out to four warps at a time
LOWEST = gl.constexpr(-1.0e30)  # finite: a row may see nothing


@gluon.jit
def _next_row(
    sequence: gl.tensor,
    row: gl.tensor,
    context_len: gl.tensor,
    next_len: gl.tensor,
    context_lens_ptr: gl.tensor,
    num_sequences: gl.tensor,
    NUM_KV_HEADS: gl.constexpr,
    NUM_ABREAST: gl.constexpr,
) -> tuple[gl.tensor, gl.tensor, gl.tensor, gl.tensor]:
    """The row that a program goes on with, its context, and that of the sequence behind."""
    row += NUM_ABREAST
    if row >= NUM_KV_HEADS:
        row -= NUM_KV_HEADS
        sequence += 1
        context_len = next_len
        next_len = gl.load(context_lens_ptr + gl.minimum(sequence + 1, num_sequences - 1))
    return sequence, row, context_len, next_len


@gluon.jit
def _load_tiles(
    kv: tma.tensor_descriptor,
    record_ptr: gl.tensor,
    table_ptr: gl.tensor,
    context_lens_ptr: gl.tensor,
    keys: gl.shared_memory_descriptor,
    values: gl.shared_memory_descriptor,
    full: gl.shared_memory_descriptor,
    empty: gl.shared_memory_descriptor,
    num_sequences: gl.tensor,
    table_stride: gl.tensor,
    num_slots: gl.tensor,
    is_settled: gl.tensor,
    NUM_KV_HEADS: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    IS_CONTIGUOUS: gl.constexpr,
    NUM_ABREAST: gl.constexpr,
    NUM_HELD: gl.constexpr,
    TILES_AHEAD: gl.constexpr,
) -> None:
    """Load K and V of the program's chunk, each tile once its place is empty.

    See decode_attention.py for what is read before the kernel before is done.
    """
    BOX: gl.constexpr = keys.shape[1]
    NUM_BOXES: gl.constexpr = TILE_TOKENS // BOX
    NUM_PANELS: gl.constexpr = HEAD_DIM // PANEL_DIMS
    if is_settled == 0:
        wait_for_previous()
    sequence = gl.load(record_ptr)
    row = gl.load(record_ptr + 1)
    start = gl.load(record_ptr + 2)
    context_len = gl.load(record_ptr + 3)
    num_tiles = gl.load(record_ptr + 4)
    next_len = gl.load(context_lens_ptr + gl.minimum(sequence + 1, num_sequences - 1))
    num_ahead = num_tiles * 0
    if TILES_AHEAD > 0:
        num_ahead = gl.minimum(gl.load(record_ptr + 8) * TILES_AHEAD, num_tiles)
    number = num_tiles * 0
    for index in range(num_tiles):
        if index == num_ahead:
            wait_for_previous()
            let_next_launch()
        if start < context_len:
            row_ptr = table_ptr + sequence.to(gl.int64) * table_stride
            rows = ()
            for j in gl.static_range(NUM_BOXES):
                token = start + j * BOX
                if IS_CONTIGUOUS:
                    rows += (gl.load(row_ptr) + token + row * num_slots,)  # type: ignore[assignment]
                else:
                    block_id = gl.load(row_ptr + gl.minimum(token, context_len - 1) // BLOCK_SIZE)
                    rows += ((block_id * 2 * NUM_KV_HEADS + row) * BLOCK_SIZE + token % BLOCK_SIZE,)  # type: ignore[assignment]
            plane_rows = NUM_KV_HEADS * num_slots if IS_CONTIGUOUS else num_slots * 0 + NUM_KV_HEADS * BLOCK_SIZE
            place = number % NUM_HELD
            mbarrier.wait(empty.index(place), (number // NUM_HELD) & 1 ^ 1)
            mbarrier.expect(full.index(place), 2 * TILE_TOKENS * HEAD_DIM * 2)
            for plane in gl.static_range(2):
                tiles = keys if plane == 0 else values
                for j in gl.static_range(NUM_BOXES):
                    for panel in gl.static_range(NUM_PANELS):
                        box = tiles.index((place * NUM_PANELS + panel) * NUM_BOXES + j)
                        first = rows[j] + plane * plane_rows
                        tma.async_copy_global_to_shared(kv, [first, panel * PANEL_DIMS], full.index(place), box)
            number += 1
        start += TILE_TOKENS
        if start >= context_len:
            start = start * 0
            sequence, row, context_len, next_len = _next_row(
                sequence, row, context_len, next_len, context_lens_ptr, num_sequences, NUM_KV_HEADS, NUM_ABREAST
            )
    if num_ahead == num_tiles:
        wait_for_previous()
        let_next_launch()


@gluon.jit
def _queries_of(
    query_ptr: gl.tensor,
    sequence: gl.tensor,
    row: gl.tensor,
    num_sequences: gl.tensor,
    stride_token: gl.tensor,
    stride_head: gl.tensor,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    NUM_COLUMNS: gl.constexpr,
) -> gl.tensor:
    """The heads of a row, and zeros behind them: (NUM_COLUMNS, HEAD_DIM)."""
    THREADS: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [GROUP_WARPS, 1], [1, 0])
    rows = gl.arange(0, NUM_COLUMNS, layout=gl.SliceLayout(1, THREADS))
    dims = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, THREADS))
    base = query_ptr + sequence.to(gl.int64) * stride_token + row * GROUP * stride_head
    pointers = base + (gl.expand_dims(rows * stride_head, 1) + gl.expand_dims(dims, 0))
    return gl.load(pointers, mask=gl.expand_dims((rows < GROUP) & (sequence < num_sequences), 1), other=0.0)


@gluon.jit
def _merge(
    partial_ptr: gl.tensor,
    log_sum_ptr: gl.tensor,
    out_ptr: gl.tensor,
    sequence: gl.tensor,
    row: gl.tensor,
    first_program: gl.tensor,
    num_pieces: gl.tensor,
    NUM_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    NUM_ABREAST: gl.constexpr,
    TILE_ROWS: gl.constexpr,
) -> None:
    """See decode_attention.py: store a row from its pieces."""
    PIECES: gl.constexpr = min(MERGED_NUMEL // TILE_ROWS, MAX_MERGED)
    ROW_WARPS: gl.constexpr = min(TILE_ROWS, GROUP_WARPS)
    LAYOUT: gl.constexpr = gl.BlockedLayout(
        [1, 1, HEAD_DIM // 32], [1, 1, 32], [GROUP_WARPS // ROW_WARPS, ROW_WARPS, 1], [2, 1, 0]
    )
    PAIRS: gl.constexpr = gl.SliceLayout(2, LAYOUT)
    SUMS: gl.constexpr = gl.SliceLayout(0, LAYOUT)
    pieces = gl.arange(0, PIECES, layout=gl.SliceLayout(1, PAIRS))
    rows = gl.arange(0, TILE_ROWS, layout=gl.SliceLayout(0, PAIRS))
    dims = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, SUMS))
    top = gl.full([TILE_ROWS], LOWEST, gl.float32, layout=gl.SliceLayout(1, SUMS))
    total = gl.zeros([TILE_ROWS], gl.float32, layout=gl.SliceLayout(1, SUMS))
    sums = gl.zeros([TILE_ROWS, HEAD_DIM], gl.float32, layout=SUMS)
    for start in range(0, num_pieces, PIECES):
        numbers = start + pieces
        places = (first_program + numbers * NUM_ABREAST) * 2 + (numbers == 0).to(gl.int32)
        piece_rows = gl.expand_dims(places * TILE_ROWS, 1) + gl.expand_dims(rows, 0)
        is_piece = gl.expand_dims(numbers < num_pieces, 1) & gl.expand_dims(rows >= 0, 0)
        # Other programs wrote these: only the second-level cache is sure to know.
        log_sums = gl.load(log_sum_ptr + piece_rows, mask=is_piece, other=float("-inf"), cache_modifier=".cg")
        pointers = partial_ptr + (gl.expand_dims(piece_rows * HEAD_DIM, 2) + gl.expand_dims(gl.expand_dims(dims, 0), 0))
        partial = gl.load(pointers, mask=gl.expand_dims(is_piece, 2), other=0.0, cache_modifier=".cg")
        tile_top = gl.convert_layout(gl.max(log_sums, 0), gl.SliceLayout(1, SUMS))
        new_top = gl.maximum(top, tile_top)
        shift = gl.convert_layout(new_top, gl.SliceLayout(0, PAIRS))
        weights = gl.exp2(log_sums - gl.expand_dims(shift, 0))
        fade = gl.exp2(top - new_top)
        total = total * fade + gl.convert_layout(gl.sum(weights, 0), gl.SliceLayout(1, SUMS))
        sums = sums * gl.expand_dims(fade, 1) + gl.sum(gl.expand_dims(weights, 2) * partial, 0)
        top = new_top
    out = sums / gl.expand_dims(total, 1)
    out_rows = gl.arange(0, TILE_ROWS, layout=gl.SliceLayout(1, SUMS))
    out_dims = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, SUMS))
    base = out_ptr + (sequence.to(gl.int64) * NUM_HEADS + row * GROUP) * HEAD_DIM
    offsets = gl.expand_dims(out_rows * HEAD_DIM, 1) + gl.expand_dims(out_dims, 0)
    gl.store(base + offsets, out.to(out_ptr.dtype.element_ty), mask=gl.expand_dims(out_rows < GROUP, 1))


@gluon.jit
def _attend(
    query_ptr: gl.tensor,
    record_ptr: gl.tensor,
    context_lens_ptr: gl.tensor,
    out_ptr: gl.tensor,
    num_arrived_ptr: gl.tensor,
    partial_ptr: gl.tensor,
    log_sum_ptr: gl.tensor,
    query: gl.shared_memory_descriptor,  # (NUM_COLUMNS, HEAD_DIM)
    weighed: gl.shared_memory_descriptor,  # (NUM_COLUMNS, TILE_TOKENS)
    keys: gl.shared_memory_descriptor,
    values: gl.shared_memory_descriptor,
    full: gl.shared_memory_descriptor,
    empty: gl.shared_memory_descriptor,
    num_sequences: gl.tensor,
    stride_token: gl.tensor,
    stride_head: gl.tensor,
    is_settled: gl.tensor,
    scale_log2: gl.tensor,
    value_scale: gl.tensor,
    NUM_HEADS: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    NUM_ABREAST: gl.constexpr,
    TILE_ROWS: gl.constexpr,
    NUM_HELD: gl.constexpr,
) -> None:
    """Attend to the tiles of the program's chunk, and merge what others have parts of."""
    dtype: gl.constexpr = query_ptr.dtype.element_ty
    GROUP: gl.constexpr = NUM_HEADS // NUM_KV_HEADS
    NUM_COLUMNS: gl.constexpr = query.shape[0]
    PRODUCT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [GROUP_WARPS, 1], [16, NUM_COLUMNS, 16])
    HEADS: gl.constexpr = gl.SliceLayout(0, PRODUCT)
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [GROUP_WARPS, 1], [1, 0])
    key_tiles = keys._reinterpret(dtype, [NUM_HELD, TILE_TOKENS, HEAD_DIM], SWIZZLED)
    value_tiles = values._reinterpret(dtype, [NUM_HELD, TILE_TOKENS, HEAD_DIM], SWIZZLED)
    program = gl.program_id(0)
    if is_settled == 0:
        wait_for_previous()
    sequence = gl.load(record_ptr)
    row = gl.load(record_ptr + 1)
    start = gl.load(record_ptr + 2)
    context_len = gl.load(record_ptr + 3)
    num_tiles = gl.load(record_ptr + 4)
    first_program = gl.load(record_ptr + 5)
    num_continued_pieces = gl.load(record_ptr + 6)
    num_begun_pieces = gl.load(record_ptr + 7)
    next_len = gl.load(context_lens_ptr + gl.minimum(sequence + 1, num_sequences - 1))
    continued_sequence = sequence
    continued_row = row
    is_continued = num_continued_pieces > 0
    if is_settled != 0:
        wait_for_previous()
    next_queries = _queries_of(
        query_ptr, sequence, row, num_sequences, stride_token, stride_head, GROUP, HEAD_DIM, NUM_COLUMNS
    )
    tokens = gl.expand_dims(gl.arange(0, TILE_TOKENS, layout=gl.SliceLayout(1, PRODUCT)), 1)
    value_tokens = gl.arange(0, TILE_TOKENS, layout=gl.SliceLayout(1, LAYOUT))
    nothing = gl.zeros([TILE_TOKENS, NUM_COLUMNS], gl.float32, layout=PRODUCT)
    heads = gl.arange(0, NUM_COLUMNS, layout=HEADS)
    dims = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(1, PRODUCT))
    number = num_tiles * 0
    while num_tiles > 0:
        query.store(next_queries)
        fence_async_shared()
        wait_for_group()
        this_sequence = sequence
        this_row = row
        end = context_len
        row_tiles = gl.minimum(gl.maximum((end - start + TILE_TOKENS - 1) // TILE_TOKENS, 1), num_tiles)
        num_tiles -= row_tiles
        is_row_end = start + row_tiles * TILE_TOKENS >= end
        if is_row_end:
            sequence, row, context_len, next_len = _next_row(
                sequence, row, context_len, next_len, context_lens_ptr, num_sequences, NUM_KV_HEADS, NUM_ABREAST
            )
        next_queries = _queries_of(
            query_ptr, sequence, row, num_sequences, stride_token, stride_head, GROUP, HEAD_DIM, NUM_COLUMNS
        )
        top = gl.full([NUM_COLUMNS], LOWEST, gl.float32, layout=HEADS)
        totals = nothing
        sums = gl.zeros([HEAD_DIM, NUM_COLUMNS], gl.float32, layout=PRODUCT)
        if end == 0:
            row_tiles = row_tiles * 0
        for _ in range(row_tiles):
            place = number % NUM_HELD
            mbarrier.wait(full.index(place), (number // NUM_HELD) & 1)
            scores = warpgroup_mma(key_tiles.index(place), query.permute((1, 0)), nothing, use_acc=False, is_async=True)
            scores = warpgroup_mma_wait(0, [scores])
            if start + TILE_TOKENS > end:
                scores = gl.where(start + tokens < end, scores, float("-inf"))
                tile = value_tiles.index(place)
                tile.store(gl.where(gl.expand_dims(start + value_tokens < end, 1), tile.load(LAYOUT), 0.0))
            new_top = gl.maximum(top, gl.max(scores, 0) * scale_log2)
            weights = gl.exp2(scores * scale_log2 - gl.expand_dims(new_top, 0))
            fade = gl.expand_dims(gl.exp2(top - new_top), 0)
            top = new_top
            totals = totals * fade + weights
            weighed.store(gl.permute(weights.to(dtype), (1, 0)))
            fence_async_shared()
            wait_for_group()
            sums = warpgroup_mma(
                value_tiles.index(place).permute((1, 0)), weighed.permute((1, 0)), sums * fade, is_async=True
            )
            sums = warpgroup_mma_wait(0, [sums])
            wait_for_group()
            mbarrier.arrive(empty.index(place), count=1)
            number += 1
            start += TILE_TOKENS
        start = start * 0
        total = gl.sum(totals, 0)
        total = gl.where(total == 0, 1.0, total)  # of no tokens: zeros
        out = sums * gl.expand_dims(value_scale / total, 0)
        offsets = gl.expand_dims(dims, 1) + gl.expand_dims(heads * HEAD_DIM, 0)
        if is_row_end & (is_continued == 0):
            row_ptr = out_ptr + (this_sequence.to(gl.int64) * NUM_HEADS + this_row * GROUP) * HEAD_DIM
            gl.store(row_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=gl.expand_dims(heads < GROUP, 0))
        else:
            piece = program * 2 + 1 - is_continued.to(gl.int32)
            offsets += piece * TILE_ROWS * HEAD_DIM
            gl.store(partial_ptr + offsets, out, mask=gl.expand_dims(heads < TILE_ROWS, 0))
            gl.store(log_sum_ptr + piece * TILE_ROWS + heads, top + gl.log2(total), mask=heads < TILE_ROWS)
        is_continued = number < 0  # never again

    # The row that another program began, and the one that others go on with: whoever comes last merges the pieces.
    wait_for_group()  # all threads have stored their parts before one of them says so
    for place in range(2):
        num_pieces = num_continued_pieces
        counter = first_program
        piece_sequence = continued_sequence
        piece_row = continued_row
        if place == 1:
            num_pieces = num_begun_pieces
            counter = program
            piece_sequence = sequence
            piece_row = row
        if num_pieces > 0:
            num_before = gl.atomic_add(num_arrived_ptr + counter, 1, sem="acq_rel")
            if num_before == num_pieces - 1:
                gl.store(num_arrived_ptr + counter, 0)  # for the next launch
                _merge(
                    partial_ptr,
                    log_sum_ptr,
                    out_ptr,
                    piece_sequence,
                    piece_row,
                    counter,
                    num_pieces,
                    NUM_HEADS,
                    GROUP,
                    HEAD_DIM,
                    NUM_ABREAST,
                    TILE_ROWS,
                )


@gluon.jit(
    do_not_specialize=("num_sequences", "table_stride", "num_slots", "is_settled"),
    do_not_specialize_on_alignment=("table_ptr", "context_lens_ptr", "own_start_ptr", "num_levels_ptr"),
)
def _hopper_decode_kernel(
    query_ptr: gl.tensor,  # (num_sequences, NUM_HEADS, HEAD_DIM)
    table_ptr: gl.tensor,  # (num_sequences, width)
    context_lens_ptr: gl.tensor,  # (num_sequences,)
    out_ptr: gl.tensor,  # (num_sequences, NUM_HEADS, HEAD_DIM)
    schedule_ptr: gl.tensor,  # (num_programs, NUM_FIELDS): see decode_plan.py
    num_arrived_ptr: gl.tensor,  # (num_programs,)
    partial_ptr: gl.tensor,  # (num_programs, 2, TILE_ROWS, HEAD_DIM) float32
    log_sum_ptr: gl.tensor,  # (num_programs, 2, TILE_ROWS) float32
    own_start_ptr: gl.tensor,  # of shared runs, as those below: not read
    num_levels_ptr: gl.tensor,
    shared_partial_ptr: gl.tensor,
    shared_log_sum_ptr: gl.tensor,
    num_sequences: gl.tensor,
    query_stride_token: gl.tensor,
    query_stride_head: gl.tensor,
    table_stride: gl.tensor,
    num_slots: gl.tensor,  # of the pool; contiguous addressing only
    is_settled: gl.tensor,  # whether a launch before this one read the same schedule, table and lengths
    scale_log2: gl.tensor,
    value_scale: gl.tensor,
    kv: tma.tensor_descriptor,  # (num_blocks * 2 * NUM_KV_HEADS * BLOCK_SIZE, HEAD_DIM), boxes (BOX, PANEL_DIMS)
    NUM_HEADS: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    IS_CONTIGUOUS: gl.constexpr,
    NUM_ABREAST: gl.constexpr,
    NUM_FIELDS: gl.constexpr,
    TILE_ROWS: gl.constexpr,
    BOX: gl.constexpr,  # tokens that are loaded together: a block, or a tile of a larger one
    NUM_HELD: gl.constexpr,  # tiles of K and of V
    TILES_AHEAD: gl.constexpr,  # that may be loaded before the wait, where the plan, which is settled, says so
) -> None:
    """Grid: (programs of the plan,)."""
    NUM_BOXES: gl.constexpr = NUM_HELD * (HEAD_DIM // PANEL_DIMS) * (TILE_TOKENS // BOX)
    NUM_COLUMNS: gl.constexpr = max(TILE_ROWS, MIN_COLUMNS)
    dtype: gl.constexpr = query_ptr.dtype.element_ty
    query = gl.allocate_shared_memory(dtype, [NUM_COLUMNS, HEAD_DIM], SWIZZLED)
    weighed = gl.allocate_shared_memory(dtype, [NUM_COLUMNS, TILE_TOKENS], SWIZZLED)
    keys = gl.allocate_shared_memory(dtype, [NUM_BOXES, BOX, PANEL_DIMS], SWIZZLED)
    values = gl.allocate_shared_memory(dtype, [NUM_BOXES, BOX, PANEL_DIMS], SWIZZLED)
    full = gl.allocate_shared_memory(gl.int64, [NUM_HELD, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [NUM_HELD, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(NUM_HELD):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    fence_async_shared()
    record_ptr = schedule_ptr + gl.program_id(0) * NUM_FIELDS
    # fmt: off
    gl.warp_specialize(
        [
            (_attend, (query_ptr, record_ptr, context_lens_ptr, out_ptr, num_arrived_ptr, partial_ptr, log_sum_ptr,
                       query, weighed, keys, values, full, empty, num_sequences, query_stride_token,
                       query_stride_head, is_settled, scale_log2, value_scale, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM,
                       NUM_ABREAST, TILE_ROWS, NUM_HELD)),
            (_load_tiles, (kv, record_ptr, table_ptr, context_lens_ptr, keys, values, full, empty, num_sequences,
                           table_stride, num_slots, is_settled, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, IS_CONTIGUOUS,
                           NUM_ABREAST, NUM_HELD, TILES_AHEAD)),
        ],
        [1],
        [LOADER_REGISTERS],
    )
    # fmt: on


launch = Launcher(_hopper_decode_kernel)


def tiling_for(num_rows: int) -> DecodeTiling:
    """How a launch over ``num_rows`` (sequence, KV head) pairs is cut up."""
    return TILING if num_rows > FEW_ROWS else TILING_OF_FEW


def box_for(query: torch.Tensor, kv: torch.Tensor) -> int:
    """Tokens of K and V that are loaded together; 0 where the kernel does not know the layout.

    A tile is of whole blocks, or a block of whole tiles, or the pool is one block, in which extents lie anywhere.
    """
    head_dim, block_size = query.shape[2], kv.shape[3]
    is_known = (
        query.dtype == kv.dtype
        and query.element_size() == 2
        and head_dim in (64, 128)
        and query.shape[1] <= MAX_GROUP * kv.shape[2]
        and (block_size in (16, 32) or (block_size >= 64 and (block_size % 64 == 0 or kv.shape[0] == 1)))
        and kv.data_ptr() % 16 == 0
        and kv.numel() // head_dim < 2**31  # rows are counted in 32 bits
    )
    return min(block_size, TILE_TOKENS.value) if is_known else 0


def num_registers(tiling: DecodeTiling) -> int:
    """Of a thread, such that so many programs fit a multiprocessor."""
    return min(REGISTERS // (tiling.programs_per_sm * NUM_THREADS), 255)


def first_launch(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    plan: DecodePlan,
    is_settled: bool,
    is_contiguous: bool,
) -> Launch:
    """What launches on equal layouts have in common; kv is what is described."""
    num_sequences, num_heads, head_dim = query.shape
    num_kv_heads, num_slots = kv.shape[2:4]
    tiling = plan.tiling
    options = {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": 1 if is_contiguous else num_slots,
        "IS_CONTIGUOUS": is_contiguous,
        "NUM_ABREAST": plan.num_abreast,
        "NUM_FIELDS": NUM_FIELDS,
        "TILE_ROWS": plan.tile_rows,
        "BOX": plan.box,
        "NUM_HELD": tiling.tiles_in_flight * 2 * PANEL_DIMS.value // head_dim,  # as many bytes for small heads
        "TILES_AHEAD": tiling.tiles_in_flight if is_settled and plan.may_be_settled else 0,
        "num_warps": GROUP_WARPS.value,
        "maxnreg": num_registers(tiling),
        "launch_pdl": can_launch_early(query),
    }
    integers = (num_sequences, query.stride(0), query.stride(1), table.stride(0), num_slots, int(is_settled))
    describe = partial(kv_rows, dtype=kv.dtype, shape=kv.shape, box=plan.box)
    return Launch((plan.num_programs, 1, 1), integers, options, describe)
