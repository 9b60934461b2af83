"""Prefill attention for Hopper: warps that load, and warps that compute out of step with one another.

What prefill_attention.py computes, without 8-bit K and V, for blocks of 16 tokens or a larger power of two. Written in
Gluon, Triton's lower layer, which leaves to the kernel what Triton decides by itself:

- One warp loads. It has the tensor memory accelerator bring K and V into shared memory, block by block and up to two
  tiles ahead, which takes few registers and instructions.
- Two groups of four warps have 64 rows each. One computes weights while the other multiplies.
- Within a group the scores of a tile are asked for before the weighted values of the tile before it, so that matrix
  units multiply while weights are computed.
- Programs stay for one tile of rows after the other, because with short prompts a tile starts and ends for as long as
  it computes. One more warp draws them from a counter that all programs share, and tells the others: while the groups
  compute a tile, the queries and the first K and V of the next are on their way.

The second and the third are FlashAttention-3's (Shah et al., 2024, https://arxiv.org/abs/2407.08608). Tiles are taken
from the last to the first: those that need a mask come first. Slots that no row sees may have any contents, and
0 * NaN is NaN, so V beyond the end of the sequence, and before all windows, is zeroed in shared memory before it is
used.
"""

import math
from collections.abc import Hashable
from functools import cache, partial

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from pbench.kernels.compiler import wait_for_previous
from pbench.kernels.hopper_kv import (
    GROUP_WARPS,
    LOADER_REGISTERS,
    PANEL_DIMS,
    SWIZZLED,
    kv_rows,
    wait_for_group,
)
from pbench.kernels.launch import can_launch_early, device_limits
from pbench.kernels.launcher import Launch, Launcher, Scratch, layout_of

TILE_ROWS = gl.constexpr(128)  # (query, head of the group) pairs of a program
NUM_ROWS = gl.constexpr(64)  # of each of its two groups of warps
HELD_TOKENS = gl.constexpr(256)  # of K and of V, in tiles of TILE_TOKENS
TILE_TOKENS = 128
SHORT_TILE_TOKENS = 64  # for short contexts: less is masked, and code that runs once for some rows is fetched faster
MAX_SHORT, MAX_SHORT_CONTEXT = 768, 2048  # tokens that a batch's prompts have on average, and that its tables reach to
GROUP_REGISTERS = gl.constexpr(232)  # of a thread that computes
NUM_FIELDS = gl.constexpr(6)  # that tell the other warps of a tile of rows, one at a time
NUM_QUERIES_HELD = gl.constexpr(2)  # of each group
TILE_SEQUENCES = gl.constexpr(32)  # that are looked at together
LOWEST = gl.constexpr(-1.0e30)  # finite: a row may see nothing of the first tile


@gluon.jit
def _draw(counter_ptr: gl.tensor, num_all: gl.tensor) -> gl.tensor:
    """The number of the next tile of rows that no program has; there is none from ``num_all`` on."""
    drawn = gl.atomic_add(counter_ptr, 1, sem="relaxed")
    if drawn == num_all - 1:  # each program draws until there is none, so nobody draws after this
        gl.store(counter_ptr, 0)
    return drawn + gl.num_programs(0)


@gluon.jit
def _find(
    number: gl.tensor,  # that was drawn last
    batch: gl.tuple,
    NUM_KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
) -> tuple[gl.tensor, gl.tensor, gl.tensor, gl.tensor, gl.tensor, gl.tensor]:
    """The first tile that has rows, from ``number`` on; its head is negative when there is none."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    query_start_ptr, context_lens_ptr, counter_ptr, num_sequences, num_row_tiles = batch
    kv_head = num_sequences * 0 - 1  # numbers of the device, as the loop makes them
    sequence = num_sequences * 0
    first_query = sequence
    query_len = sequence
    context_len = sequence
    first_row = sequence
    while (kv_head < 0) & (number < num_row_tiles * NUM_KV_HEADS):
        # The last rows see the most tokens: started first in all heads, they do not end up running alone.
        tile = num_row_tiles - 1 - number // NUM_KV_HEADS
        # Sequence i begins at tile start[i] * GROUP // TILE_ROWS + i, which leaves each as many tiles as it can need.
        sequence = num_sequences * 0 - 1
        for i in range(0, num_sequences, TILE_SEQUENCES):
            indices = i + gl.arange(0, TILE_SEQUENCES, layout=LAYOUT)
            starts = gl.load(query_start_ptr + gl.minimum(indices, num_sequences))
            sequence += gl.sum((starts * GROUP // TILE_ROWS + indices <= tile).to(gl.int32), 0)
        sequence = gl.minimum(gl.maximum(sequence, 0), num_sequences - 1)
        first_query = gl.load(query_start_ptr + sequence)
        query_len = gl.load(query_start_ptr + sequence + 1) - first_query
        context_len = gl.load(context_lens_ptr + sequence)
        first_row = (tile - first_query * GROUP // TILE_ROWS - sequence) * TILE_ROWS
        if (first_row >= 0) & (first_row < query_len * GROUP):
            kv_head = number % NUM_KV_HEADS
        else:
            number = _draw(counter_ptr, num_row_tiles * NUM_KV_HEADS)
    return kv_head, sequence, first_query, query_len, context_len, first_row


@gluon.jit
def _extent(
    query_len: gl.tensor,
    context_len: gl.tensor,
    first_row: gl.tensor,
    GROUP: gl.constexpr,
    TILE_TOKENS: gl.constexpr,
    WINDOW: gl.constexpr,
) -> tuple[gl.tensor, gl.tensor, gl.tensor]:
    """The tokens first .. end that some row of a tile sees, and in how many tiles they lie."""
    prefix_len = context_len - query_len
    end = prefix_len + gl.minimum((first_row + TILE_ROWS - 1) // GROUP + 1, query_len)
    first = query_len * 0
    if WINDOW is not None:
        first = gl.maximum(prefix_len + first_row // GROUP - (WINDOW - 1), 0)
    return first, end, (end + TILE_TOKENS - 1) // TILE_TOKENS - first // TILE_TOKENS


@gluon.jit
def _tell(told: gl.shared_memory_descriptor, fields: gl.tuple) -> None:
    """Write numbers where other warps read them."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    for i in gl.static_range(NUM_FIELDS):
        told.index(i).store(gl.full([1], fields[i], gl.int32, layout=LAYOUT))


@gluon.jit
def _hear(
    told: gl.shared_memory_descriptor, barriers: gl.tuple, row_tile: gl.tensor, NUM_WARPS: gl.constexpr
) -> gl.tuple:
    """What was told of the tile of rows that is this program's ``row_tile``-th."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [NUM_WARPS], [0])
    _, _, _, _, _, told_full, told_empty = barriers
    mbarrier.wait(told_full, row_tile & 1)
    fields = ()
    for i in gl.static_range(NUM_FIELDS):
        fields += (gl.max(told.index(i).load(LAYOUT), 0),)  # type: ignore[assignment]
    wait_for_group()  # one thread says for all of its group that it has read
    mbarrier.arrive(told_empty, count=1)
    return fields


@gluon.jit
def _load_tile(
    kv: tma.tensor_descriptor,
    row_ptr: gl.tensor,  # the sequence's block table
    keys: gl.shared_memory_descriptor,
    values: gl.shared_memory_descriptor,
    barriers: gl.tuple,
    kv_head: gl.tensor,
    start: gl.tensor,
    number: gl.tensor,  # of tiles before
    first: gl.tensor,  # tokens that some row sees: the table is read for no others
    end: gl.tensor,
    NUM_KV_HEADS: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    TILE_TOKENS: gl.constexpr,
) -> None:
    """Load K and V from token ``start`` on, each once its place is empty."""
    NUM_TILES_HELD: gl.constexpr = HELD_TOKENS // TILE_TOKENS
    BOX: gl.constexpr = keys.shape[1]
    NUM_BOXES: gl.constexpr = TILE_TOKENS // BOX
    NUM_PANELS: gl.constexpr = HEAD_DIM // PANEL_DIMS
    key_full, value_full, key_empty, value_empty, _, _, _ = barriers
    place = number % NUM_TILES_HELD
    parity = (number // NUM_TILES_HELD) & 1
    block_ids = ()
    for j in gl.static_range(NUM_BOXES):
        block_ids += (gl.load(row_ptr + gl.minimum(gl.maximum(start + j * BOX, first), end - 1) // BLOCK_SIZE),)  # type: ignore[assignment]
    for plane in gl.static_range(2):
        tiles = keys if plane == 0 else values
        full = (key_full if plane == 0 else value_full).index(place)
        empty = (key_empty if plane == 0 else value_empty).index(place)
        mbarrier.wait(empty, parity ^ 1)
        mbarrier.expect(full, TILE_TOKENS * HEAD_DIM * 2)
        for j in gl.static_range(NUM_BOXES):
            token = start + j * BOX
            row = ((block_ids[j] * 2 + plane) * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + token % BLOCK_SIZE
            for panel in gl.static_range(NUM_PANELS):
                box = tiles.index((place * NUM_PANELS + panel) * NUM_BOXES + j)
                tma.async_copy_global_to_shared(kv, [row, panel * PANEL_DIMS], full, box)


@gluon.jit
def _draw_tiles(
    batch: gl.tuple,
    told: gl.shared_memory_descriptor,
    barriers: gl.tuple,
    NUM_KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
) -> None:
    """Draw tiles of rows, and tell the other warps of them."""
    _, _, _, _, _, told_full, told_empty = barriers
    _, _, counter_ptr, _, num_row_tiles = batch
    wait_for_previous()
    drawn = gl.program_id(0)
    row_tile = num_row_tiles * 0
    kv_head = row_tile
    while kv_head >= 0:
        kv_head, sequence, first_query, query_len, context_len, first_row = _find(drawn, batch, NUM_KV_HEADS, GROUP)
        mbarrier.wait(told_empty, (row_tile & 1) ^ 1)
        _tell(told, (kv_head, sequence, first_query, query_len, context_len, first_row))
        wait_for_group()
        mbarrier.arrive(told_full, count=1)
        row_tile += 1
        if kv_head >= 0:
            drawn = _draw(counter_ptr, num_row_tiles * NUM_KV_HEADS)


@gluon.jit
def _load_tiles(
    kv: tma.tensor_descriptor,  # (num_blocks * 2 * NUM_KV_HEADS * BLOCK_SIZE, HEAD_DIM)
    table_ptr: gl.tensor,
    table_stride: gl.tensor,
    keys: gl.shared_memory_descriptor,
    values: gl.shared_memory_descriptor,
    told: gl.shared_memory_descriptor,
    barriers: gl.tuple,
    NUM_KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    TILE_TOKENS: gl.constexpr,
    WINDOW: gl.constexpr,
) -> None:
    """Load K and V for each tile of rows, from the last tile to the first."""
    wait_for_previous()
    row_tile = table_stride * 0
    number = row_tile  # of tiles of K and V so far
    kv_head = row_tile
    while kv_head >= 0:
        kv_head, sequence, _, query_len, context_len, first_row = _hear(told, barriers, row_tile, 1)
        row_tile += 1
        if kv_head >= 0:
            first, end, num_tiles = _extent(query_len, context_len, first_row, GROUP, TILE_TOKENS, WINDOW)
            row_ptr = table_ptr + sequence.to(gl.int64) * table_stride
            start = (first // TILE_TOKENS + num_tiles) * TILE_TOKENS
            for _ in range(num_tiles):
                start -= TILE_TOKENS
                _load_tile(
                    kv,
                    row_ptr,
                    keys,
                    values,
                    barriers,
                    kv_head,
                    start,
                    number,
                    first,
                    end,
                    NUM_KV_HEADS,
                    BLOCK_SIZE,
                    HEAD_DIM,
                    TILE_TOKENS,
                )
                number += 1


@gluon.jit
def _zero_unseen(
    values: gl.shared_memory_descriptor,
    place: gl.tensor,
    start: gl.tensor,
    first: gl.tensor,
    end: gl.tensor,
    HEAD_DIM: gl.constexpr,
    TILE_TOKENS: gl.constexpr,
) -> None:
    """Zero V of the tile that begins with token ``start``, but for the tokens ``first`` .. ``end``."""
    BOX: gl.constexpr = values.shape[1]
    NUM_BOXES: gl.constexpr = TILE_TOKENS // BOX
    NUM_PANELS: gl.constexpr = HEAD_DIM // PANEL_DIMS
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [GROUP_WARPS, 1], [1, 0])
    for j in range(NUM_BOXES):
        token = start + j * BOX
        if (token < first) | (token + BOX > end):
            tokens = token + gl.arange(0, BOX, layout=gl.SliceLayout(1, LAYOUT))
            is_seen = gl.expand_dims((tokens >= first) & (tokens < end), 1)
            for panel in gl.static_range(NUM_PANELS):
                box = values.index((place * NUM_PANELS + panel) * NUM_BOXES + j)
                box.store(gl.where(is_seen, box.load(LAYOUT), 0.0))
    fence_async_shared()
    wait_for_group()


@gluon.jit
def _zero_by_one(
    PART: gl.constexpr,
    values: gl.shared_memory_descriptor,
    zeroed: gl.shared_memory_descriptor,
    zero_parities: gl.tensor,  # a bit for each place, turned round with this
    place: gl.tensor,
    start: gl.tensor,
    first: gl.tensor,
    context_len: gl.tensor,
    HEAD_DIM: gl.constexpr,
    TILE_TOKENS: gl.constexpr,
) -> gl.tensor:
    """Let the first group zero what no row sees of a tile of V, while the other waits; both come here."""
    if PART == 0:
        _zero_unseen(values, place, start, first, context_len, HEAD_DIM, TILE_TOKENS)
        mbarrier.arrive(zeroed.index(place), count=1)
    else:
        mbarrier.wait(zeroed.index(place), (zero_parities >> place) & 1)
    return zero_parities ^ (1 << place)


@gluon.jit
def _bend(scores: gl.tensor, scale_log2: gl.tensor, SOFT_CAP: gl.constexpr) -> gl.tensor:
    """tanh(scaled score / SOFT_CAP) as in online_softmax.py; without a cap the scores as they are."""
    bent = scores
    if SOFT_CAP is not None:
        powers = gl.exp2(gl.minimum(scores * (scale_log2 * (2.0 / SOFT_CAP)), 64.0))
        bent = 1.0 - 2.0 / (1.0 + powers)
    return bent


@gluon.jit
def _mask(scores: gl.tensor, tokens: gl.tensor, positions: gl.tensor, WINDOW: gl.constexpr) -> gl.tensor:
    """The scores of what rows at these positions see of these tokens."""
    is_seen = tokens <= positions
    if WINDOW is not None:
        is_seen &= tokens > positions - WINDOW
    return gl.where(is_seen, scores, float("-inf"))


@gluon.jit
def _weigh(
    scores: gl.tensor,
    top: gl.tensor,
    total: gl.tensor,
    factor: gl.tensor,
    WEIGHTS: gl.constexpr,
    dtype: gl.constexpr,
) -> tuple[gl.tensor, gl.tensor, gl.tensor, gl.tensor]:
    """The online softmax over one more tile: the rows' new maxima and sums, what the old sums fade by, the weights."""
    new_top = gl.maximum(top, gl.max(scores, 1))
    weights = gl.exp2(scores * factor - gl.expand_dims(new_top * factor, 1))
    fade = gl.exp2((top - new_top) * factor)
    return new_top, total * fade + gl.sum(weights, 1), fade, gl.convert_layout(weights.to(dtype), WEIGHTS)


@gluon.jit
def _load_queries(
    query_ptr: gl.tensor,
    query: gl.shared_memory_descriptor,
    first_query: gl.tensor,
    query_len: gl.tensor,
    first_row: gl.tensor,
    kv_head: gl.tensor,
    strides: gl.tuple,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
) -> None:
    """Ask for one group's rows."""
    THREADS: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [GROUP_WARPS, 1], [1, 0])
    stride_token, stride_head = strides
    rows = first_row + gl.arange(0, NUM_ROWS, layout=gl.SliceLayout(1, THREADS))
    dims = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, THREADS))
    first_token = first_row // GROUP
    base = (first_query + first_token).to(gl.int64) * stride_token + kv_head * GROUP * stride_head
    offsets = (rows // GROUP - first_token) * stride_token + rows % GROUP * stride_head
    is_query = gl.expand_dims((rows // GROUP < query_len) & (kv_head >= 0), 1)
    # Known to be at multiples of 16 bytes, they are copied by so many.
    pointers = query_ptr + gl.multiple_of(base, 8)
    pointers += gl.expand_dims(gl.multiple_of(offsets, 8), 1) + gl.expand_dims(dims, 0)
    async_copy.async_copy_global_to_shared(query, pointers, mask=is_query)
    async_copy.commit_group()


@gluon.jit
def _attend(
    PART: gl.constexpr,  # which of the two groups this is
    query_ptr: gl.tensor,
    out_ptr: gl.tensor,
    queries: gl.shared_memory_descriptor,
    keys: gl.shared_memory_descriptor,
    values: gl.shared_memory_descriptor,
    told: gl.shared_memory_descriptor,
    barriers: gl.tuple,
    strides: gl.tuple,
    scales: gl.tuple,
    NUM_HEADS: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    TILE_TOKENS: gl.constexpr,
    WINDOW: gl.constexpr,
    SOFT_CAP: gl.constexpr,
) -> None:
    """Attend from one group's rows of each tile that the program has to all tiles of K and V that some row sees."""
    dtype: gl.constexpr = query_ptr.dtype.element_ty
    GROUP: gl.constexpr = NUM_HEADS // NUM_KV_HEADS
    NUM_TILES_HELD: gl.constexpr = HELD_TOKENS // TILE_TOKENS
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [GROUP_WARPS, 1], [16, TILE_TOKENS, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [GROUP_WARPS, 1], [16, HEAD_DIM, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    THREADS: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [GROUP_WARPS, 1], [1, 0])
    key_full, value_full, key_empty, value_empty, zeroed, _, _ = barriers
    stride_token, _ = strides
    scale_log2, value_scale = scales
    factor = scale_log2  # of the scores as they are compared, to base 2
    if SOFT_CAP is not None:
        factor = SOFT_CAP * 1.4426950408889634  # log2(e)
    key_tiles = keys._reinterpret(dtype, [NUM_TILES_HELD, TILE_TOKENS, HEAD_DIM], SWIZZLED)
    value_tiles = values._reinterpret(dtype, [NUM_TILES_HELD, TILE_TOKENS, HEAD_DIM], SWIZZLED)
    row_tile = stride_token * 0  # how many this group was told of
    wait_for_previous()
    kv_head, _, first_query, query_len, context_len, first_row = _hear(told, barriers, row_tile, GROUP_WARPS)
    first_row += PART * NUM_ROWS
    query = queries.index(PART)
    _load_queries(query_ptr, query, first_query, query_len, first_row, kv_head, strides, GROUP, HEAD_DIM)
    row_tile += 1
    number = kv_head * 0  # of tiles of K and V so far
    zero_parities = number  # a bit for each place
    while kv_head >= 0:
        prefix_len = context_len - query_len
        first, _end, num_tiles = _extent(
            query_len, context_len, first_row - PART * NUM_ROWS, GROUP, TILE_TOKENS, WINDOW
        )
        query = queries.index((row_tile - 1) % NUM_QUERIES_HELD * 2 + PART)

        first_position = prefix_len + first_row // GROUP  # every row sees all tokens up to here, within its window
        last_position = prefix_len + (first_row + NUM_ROWS - 1) // GROUP
        rows = first_row + gl.arange(0, NUM_ROWS, layout=gl.SliceLayout(1, SCORES))
        positions = gl.expand_dims(prefix_len + rows // GROUP, 1)
        tokens = gl.expand_dims(gl.arange(0, TILE_TOKENS, layout=gl.SliceLayout(0, SCORES)), 0)
        no_scores = gl.zeros([NUM_ROWS, TILE_TOKENS], gl.float32, layout=SCORES)
        top = gl.full([NUM_ROWS], LOWEST, gl.float32, layout=gl.SliceLayout(1, SCORES))
        total = gl.zeros([NUM_ROWS], gl.float32, layout=gl.SliceLayout(1, SCORES))
        sums = gl.zeros([NUM_ROWS, HEAD_DIM], gl.float32, layout=SUMS)

        start = (first // TILE_TOKENS + num_tiles - 1) * TILE_TOKENS
        place = number % NUM_TILES_HELD
        async_copy.wait_group(0)
        fence_async_shared()
        wait_for_group()
        mbarrier.wait(key_full.index(place), (number // NUM_TILES_HELD) & 1)
        scores = warpgroup_mma(query, key_tiles.index(place).permute((1, 0)), no_scores, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(0, [scores])
        wait_for_group()
        mbarrier.arrive(key_empty.index(place), count=1)

        next_head, _, next_first_query, next_query_len, next_context_len, next_first_row = _hear(
            told, barriers, row_tile, GROUP_WARPS
        )
        next_first_row += PART * NUM_ROWS
        next_query = queries.index(row_tile % NUM_QUERIES_HELD * 2 + PART)
        _load_queries(
            query_ptr,
            next_query,
            next_first_query,
            next_query_len,
            next_first_row,
            next_head,
            strides,
            GROUP,
            HEAD_DIM,
        )
        row_tile += 1

        scores = _mask(_bend(scores, scale_log2, SOFT_CAP), start + tokens, positions, WINDOW)
        top, total, fade, weights = _weigh(scores, top, total, factor, WEIGHTS, dtype)
        mbarrier.wait(value_full.index(place), (number // NUM_TILES_HELD) & 1)
        if start + TILE_TOKENS > context_len:
            zero_parities = _zero_by_one(
                PART, values, zeroed, zero_parities, place, start, first, context_len, HEAD_DIM, TILE_TOKENS
            )
        number += 1
        mbarrier.wait(key_full.index(number % NUM_TILES_HELD), (number // NUM_TILES_HELD) & 1, pred=num_tiles > 1)
        for i in range(1, num_tiles):
            place_before = place
            place = number % NUM_TILES_HELD
            scores = warpgroup_mma(
                query, key_tiles.index(place).permute((1, 0)), no_scores, use_acc=False, is_async=True
            )
            mbarrier.wait(value_full.index(place_before), ((number - 1) // NUM_TILES_HELD) & 1)
            sums = warpgroup_mma(weights, value_tiles.index(place_before), sums, is_async=True)
            start -= TILE_TOKENS
            scores = warpgroup_mma_wait(1, [scores])
            wait_for_group()
            mbarrier.arrive(key_empty.index(place), count=1)
            scores = _bend(scores, scale_log2, SOFT_CAP)
            is_cut = start + TILE_TOKENS > first_position + 1
            if WINDOW is not None:
                is_cut |= start <= last_position - WINDOW
            if is_cut:
                scores = _mask(scores, start + tokens, positions, WINDOW)
            top, total, fade, next_weights = _weigh(scores, top, total, factor, WEIGHTS, dtype)
            # The next scores' tile is waited for here because ptxas moves the wait for the products up to the last
            # branch, before the weights, and then nothing would overlap.
            number += 1
            mbarrier.wait(
                key_full.index(number % NUM_TILES_HELD), (number // NUM_TILES_HELD) & 1, pred=i + 1 < num_tiles
            )
            sums, weights = warpgroup_mma_wait(0, [sums, weights])
            wait_for_group()
            mbarrier.arrive(value_empty.index(place_before), count=1)
            sums *= gl.expand_dims(gl.convert_layout(fade, gl.SliceLayout(1, SUMS)), 1)
            weights = next_weights
        mbarrier.wait(value_full.index(place), ((number - 1) // NUM_TILES_HELD) & 1)
        if WINDOW is not None:  # noqa: SIM102 (one is known to the compiler, the other to the device)
            if (start < first) & ((num_tiles > 1) | (start + TILE_TOKENS <= context_len)):
                zero_parities = _zero_by_one(
                    PART, values, zeroed, zero_parities, place, start, first, context_len, HEAD_DIM, TILE_TOKENS
                )
        sums = warpgroup_mma(weights, value_tiles.index(place), sums, is_async=True)
        sums = warpgroup_mma_wait(0, [sums])

        out = sums * gl.expand_dims(gl.convert_layout(value_scale / total, gl.SliceLayout(1, SUMS)), 1)
        # Through the place of the queries, so that each row goes out as a whole.
        wait_for_group()
        mbarrier.arrive(value_empty.index(place), count=1)
        query.store(out.to(dtype))
        wait_for_group()
        out = query.load(THREADS)
        rows = first_row + gl.arange(0, NUM_ROWS, layout=gl.SliceLayout(1, THREADS))
        dims = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, THREADS))
        first_token = first_row // GROUP
        base = ((first_query + first_token).to(gl.int64) * NUM_HEADS + kv_head * GROUP) * HEAD_DIM
        offsets = ((rows // GROUP - first_token) * NUM_HEADS + rows % GROUP) * HEAD_DIM
        is_query = gl.expand_dims(rows // GROUP < query_len, 1)
        gl.store(out_ptr + base + (gl.expand_dims(offsets, 1) + gl.expand_dims(dims, 0)), out, mask=is_query)

        first_query = next_first_query
        query_len = next_query_len
        context_len = next_context_len
        first_row = next_first_row
        kv_head = next_head


@gluon.jit(
    do_not_specialize=("num_sequences", "table_stride", "num_row_tiles"),
    do_not_specialize_on_alignment=("table_ptr", "query_start_ptr", "context_lens_ptr"),
)
def _hopper_prefill_kernel(
    query_ptr: gl.tensor,  # (num_tokens, NUM_HEADS, HEAD_DIM)
    table_ptr: gl.tensor,  # (num_sequences, width)
    query_start_ptr: gl.tensor,  # (num_sequences + 1,)
    context_lens_ptr: gl.tensor,  # (num_sequences,)
    out_ptr: gl.tensor,  # (num_tokens, NUM_HEADS, HEAD_DIM)
    counter_ptr: gl.tensor,  # (1,): zero between launches
    num_sequences: gl.tensor,
    query_stride_token: gl.tensor,
    query_stride_head: gl.tensor,
    table_stride: gl.tensor,
    num_row_tiles: gl.tensor,
    scale_log2: gl.tensor,  # scale * key_scale * log2(e)
    value_scale: gl.tensor,
    kv: tma.tensor_descriptor,  # (num_blocks * 2 * NUM_KV_HEADS * BLOCK_SIZE, HEAD_DIM), boxes (BOX, PANEL_DIMS)
    NUM_HEADS: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    TILE_TOKENS: gl.constexpr,  # of K and V
    BOX: gl.constexpr,  # tokens that are loaded together: a block, or a tile of a larger one
    WINDOW: gl.constexpr,  # tokens that a row sees at most; None: all before it
    SOFT_CAP: gl.constexpr,  # None: scores stay as they are
) -> None:
    """Grid: (programs,), at most one for each tile of rows and KV head."""
    GROUP: gl.constexpr = NUM_HEADS // NUM_KV_HEADS
    NUM_TILES_HELD: gl.constexpr = HELD_TOKENS // TILE_TOKENS
    NUM_BOXES: gl.constexpr = NUM_TILES_HELD * (HEAD_DIM // PANEL_DIMS) * (TILE_TOKENS // BOX)
    dtype: gl.constexpr = query_ptr.dtype.element_ty
    queries = gl.allocate_shared_memory(dtype, [NUM_QUERIES_HELD * 2, NUM_ROWS, HEAD_DIM], SWIZZLED)
    keys = gl.allocate_shared_memory(dtype, [NUM_BOXES, BOX, PANEL_DIMS], SWIZZLED)
    values = gl.allocate_shared_memory(dtype, [NUM_BOXES, BOX, PANEL_DIMS], SWIZZLED)
    told = gl.allocate_shared_memory(gl.int32, [NUM_FIELDS, 1], mbarrier.MBarrierLayout())
    key_full = gl.allocate_shared_memory(gl.int64, [NUM_TILES_HELD, 1], mbarrier.MBarrierLayout())
    value_full = gl.allocate_shared_memory(gl.int64, [NUM_TILES_HELD, 1], mbarrier.MBarrierLayout())
    key_empty = gl.allocate_shared_memory(gl.int64, [NUM_TILES_HELD, 1], mbarrier.MBarrierLayout())
    value_empty = gl.allocate_shared_memory(gl.int64, [NUM_TILES_HELD, 1], mbarrier.MBarrierLayout())
    zeroed = gl.allocate_shared_memory(gl.int64, [NUM_TILES_HELD, 1], mbarrier.MBarrierLayout())
    told_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    told_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(told_full, count=1)
    mbarrier.init(told_empty, count=3)  # both groups and the warp that loads
    for i in gl.static_range(NUM_TILES_HELD):
        mbarrier.init(zeroed.index(i), count=1)
        mbarrier.init(key_full.index(i), count=1)
        mbarrier.init(value_full.index(i), count=1)
        mbarrier.init(key_empty.index(i), count=2)
        mbarrier.init(value_empty.index(i), count=2)
    fence_async_shared()
    barriers = (key_full, value_full, key_empty, value_empty, zeroed, told_full, told_empty)
    batch = (query_start_ptr, context_lens_ptr, counter_ptr, num_sequences, num_row_tiles)
    strides = (query_stride_token, query_stride_head)
    scales = (scale_log2, value_scale)
    # fmt: off
    gl.warp_specialize(
        [
            (_attend, (gl.constexpr(0), query_ptr, out_ptr, queries, keys, values, told, barriers,
                       strides, scales, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, TILE_TOKENS, WINDOW, SOFT_CAP)),
            (_attend, (gl.constexpr(1), query_ptr, out_ptr, queries, keys, values, told, barriers,
                       strides, scales, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, TILE_TOKENS, WINDOW, SOFT_CAP)),
            (_draw_tiles, (batch, told, barriers, NUM_KV_HEADS, GROUP)),
            (_load_tiles, (kv, table_ptr, table_stride, keys, values, told, barriers, NUM_KV_HEADS, GROUP, BLOCK_SIZE,
                           HEAD_DIM, TILE_TOKENS, WINDOW)),
        ],
        [GROUP_WARPS, 1, 1],
        [GROUP_REGISTERS, LOADER_REGISTERS, LOADER_REGISTERS],
    )
    # fmt: on


_launch = Launcher(_hopper_prefill_kernel)


def hopper_prefill_attention(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: float,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
    window: int | None = None,
    soft_cap: float | None = None,
    key: Hashable = None,
) -> torch.Tensor:
    """Launch the kernel on checked arguments (see ``prefill_attention``) that ``suits_hopper``.

    Equal ``key``s mean equal layouts of the tensors, window and soft cap; it is made of them where the caller has none.
    """
    if table.shape[0] == 0 or query.shape[0] == 0:
        return out
    if key is None:
        key = (layout_of(query, kv, table, query_start, context_lens, out), window, soft_cap)
    are_short = query.shape[0] <= MAX_SHORT * table.shape[0] and table.shape[1] * kv.shape[3] <= MAX_SHORT_CONTEXT
    tile_tokens = SHORT_TILE_TOKENS if are_short else TILE_TOKENS
    _launch(
        (key, tile_tokens),
        (query, table, query_start, context_lens, out),
        (scale * key_scale * math.log2(math.e), float(value_scale)),
        lambda: _first_launch(query, kv, table, tile_tokens, window, soft_cap),
        _counter(query.device),
        described=kv.data_ptr(),
    )
    return out


def _first_launch(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    tile_tokens: int,
    window: int | None,
    soft_cap: float | None,
) -> Launch:
    num_sequences = table.shape[0]
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads, block_size = kv.shape[2:4]
    options = {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "TILE_TOKENS": tile_tokens,
        "BOX": min(block_size, tile_tokens),
        "WINDOW": window,
        "SOFT_CAP": soft_cap,
        "num_warps": GROUP_WARPS.value,
        "launch_pdl": can_launch_early(query),
    }
    num_row_tiles = num_tokens * (num_heads // num_kv_heads) // TILE_ROWS.value + num_sequences
    integers = (num_sequences, query.stride(0), query.stride(1), table.stride(0), num_row_tiles)
    num_programs = min(num_kv_heads * num_row_tiles, device_limits(query).num_sms)
    describe = partial(kv_rows, dtype=kv.dtype, shape=kv.shape, box=options["BOX"])
    return Launch((num_programs, 1, 1), integers, options, describe)


@cache
def _counter(device: torch.device) -> Scratch:
    """What programs draw tiles of rows by, which is zero between launches: no two of a device may run at once."""
    return Scratch(torch.zeros(1, dtype=torch.int32, device=device))
