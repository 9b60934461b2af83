"""Prefill attention for Hopper: warps that load, and warps that compute out of step with one another.

What prefill_attention.py computes, without 8-bit K and V, for blocks of 16 tokens or a larger power of two. Written in
Gluon, Triton's lower layer, which leaves to the kernel what Triton decides by itself:

- One warp loads. It has the tensor memory accelerator bring K and V into shared memory, block by block and up to two
  tiles ahead, which takes no registers and few instructions.
- Two groups of four warps have 64 rows each. One computes weights while the other multiplies.
- Within a group the scores of a tile are asked for before the weighted values of the tile before it, so that matrix
  units multiply while weights are computed.

The last two are FlashAttention-3's (Shah et al., 2024, https://arxiv.org/abs/2407.08608). Tiles are taken from the last
to the first: those that need a mask come first. Slots that no row sees may have any contents, and 0 * NaN is NaN, so V
beyond the end of the sequence, and before all windows, is zeroed in shared memory before it is used.
"""

import math
from collections.abc import Hashable
from functools import lru_cache
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

from pbench.kernels.launcher import MAX_KEYS, Launch, Launcher, layout_of

TILE_ROWS = gl.constexpr(128)  # (query, head of the group) pairs of a program
NUM_ROWS = gl.constexpr(64)  # of each of its two groups of warps
TILE_TOKENS = gl.constexpr(128)
NUM_TILES_HELD = gl.constexpr(2)  # of K, and as many of V
PANEL_DIMS = gl.constexpr(64)  # so many 16-bit elements are the 128 bytes that shared memory is swizzled by
GROUP_WARPS = gl.constexpr(4)  # an instruction of the matrix units is of four
GROUP_REGISTERS = gl.constexpr(240)  # of a thread that computes
LOADER_REGISTERS = gl.constexpr(24)
wait_for_group = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # renamed in Triton 3.7
LOWEST = gl.constexpr(-1.0e30)  # finite: a row may see nothing of the first tile
SWIZZLED = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))


@gluon.jit  # type: ignore[untyped-decorator]
def _load_tiles(
    kv: tma.tensor_descriptor,  # (num_blocks * 2 * NUM_KV_HEADS * BLOCK_SIZE, HEAD_DIM)
    row_ptr: gl.tensor,  # the sequence's block table
    keys: gl.shared_memory_descriptor,
    values: gl.shared_memory_descriptor,
    barriers: gl.tuple,
    kv_head: gl.tensor,
    num_tiles: gl.tensor,
    first: gl.tensor,  # tokens that some row sees: the table is read for no others
    end: gl.tensor,
    NUM_KV_HEADS: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    HEAD_DIM: gl.constexpr,
) -> None:
    """Load K and V, from the last tile to the first, each once its place is empty."""
    BOX: gl.constexpr = keys.shape[1]
    NUM_BOXES: gl.constexpr = TILE_TOKENS // BOX
    NUM_PANELS: gl.constexpr = HEAD_DIM // PANEL_DIMS
    key_full, value_full, key_empty, value_empty, _ = barriers
    last_tile = first // TILE_TOKENS + num_tiles - 1
    for i in range(num_tiles):
        start = (last_tile - i) * TILE_TOKENS
        place = i % NUM_TILES_HELD
        parity = (i // NUM_TILES_HELD) & 1
        for plane in gl.static_range(2):
            tiles = keys if plane == 0 else values
            full = (key_full if plane == 0 else value_full).index(place)
            empty = (key_empty if plane == 0 else value_empty).index(place)
            mbarrier.wait(empty, parity ^ 1)
            mbarrier.expect(full, TILE_TOKENS * HEAD_DIM * 2)
            for j in gl.static_range(NUM_BOXES):
                token = start + j * BOX
                block_id = gl.load(row_ptr + gl.minimum(gl.maximum(token, first), end - 1) // BLOCK_SIZE)
                row = ((block_id * 2 + plane) * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + token % BLOCK_SIZE
                for panel in gl.static_range(NUM_PANELS):
                    box = tiles.index((place * NUM_PANELS + panel) * NUM_BOXES + j)
                    tma.async_copy_global_to_shared(kv, [row, panel * PANEL_DIMS], full, box)


@gluon.jit  # type: ignore[untyped-decorator]
def _zero_unseen(
    values: gl.shared_memory_descriptor,
    place: gl.tensor,
    start: gl.tensor,
    first: gl.tensor,
    end: gl.tensor,
    HEAD_DIM: gl.constexpr,
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


@gluon.jit  # type: ignore[untyped-decorator]
def _bend(scores: gl.tensor, scale_log2: gl.tensor, SOFT_CAP: gl.constexpr) -> gl.tensor:
    """tanh(scaled score / SOFT_CAP) as in online_softmax.py; without a cap the scores as they are."""
    bent = scores
    if SOFT_CAP is not None:
        powers = gl.exp2(gl.minimum(scores * (scale_log2 * (2.0 / SOFT_CAP)), 64.0))
        bent = 1.0 - 2.0 / (1.0 + powers)
    return bent


@gluon.jit  # type: ignore[untyped-decorator]
def _mask(scores: gl.tensor, tokens: gl.tensor, positions: gl.tensor, WINDOW: gl.constexpr) -> gl.tensor:
    """The scores of what rows at these positions see of these tokens."""
    is_seen = tokens <= positions
    if WINDOW is not None:
        is_seen &= tokens > positions - WINDOW
    return gl.where(is_seen, scores, float("-inf"))


@gluon.jit  # type: ignore[untyped-decorator]
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


@gluon.jit  # type: ignore[untyped-decorator]
def _attend(
    PART: gl.constexpr,  # which of the two groups this is
    query_ptr: gl.tensor,
    out_ptr: gl.tensor,
    queries: gl.shared_memory_descriptor,
    keys: gl.shared_memory_descriptor,
    values: gl.shared_memory_descriptor,
    barriers: gl.tuple,
    sequence: gl.tuple,
    program: gl.tuple,
    strides: gl.tuple,
    scales: gl.tuple,
    NUM_HEADS: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    WINDOW: gl.constexpr,
    SOFT_CAP: gl.constexpr,
) -> None:
    """Attend from one group's rows to all tiles that some row of the program sees."""
    dtype: gl.constexpr = query_ptr.dtype.element_ty
    GROUP: gl.constexpr = NUM_HEADS // NUM_KV_HEADS
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [GROUP_WARPS, 1], [16, TILE_TOKENS, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [GROUP_WARPS, 1], [16, HEAD_DIM, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    THREADS: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [GROUP_WARPS, 1], [1, 0])
    key_full, value_full, key_empty, value_empty, zeroed = barriers
    first_query, query_len, prefix_len, context_len = sequence
    kv_head, first_row, first, num_tiles = program
    stride_token, stride_head = strides
    scale_log2, value_scale = scales
    factor = scale_log2  # of the scores as they are compared, to base 2
    if SOFT_CAP is not None:
        factor = SOFT_CAP * 1.4426950408889634  # log2(e)
    first_row += PART * NUM_ROWS

    rows = first_row + gl.arange(0, NUM_ROWS, layout=gl.SliceLayout(1, THREADS))
    dims = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, THREADS))
    offsets = (first_query + rows // GROUP).to(gl.int64) * stride_token + (kv_head * GROUP + rows % GROUP) * stride_head
    is_query = gl.expand_dims(rows // GROUP < query_len, 1)
    query = queries.index(PART)
    query.store(gl.load(query_ptr + gl.expand_dims(offsets, 1) + gl.expand_dims(dims, 0), mask=is_query, other=0.0))
    fence_async_shared()
    wait_for_group()

    key_tiles = keys._reinterpret(dtype, [NUM_TILES_HELD, TILE_TOKENS, HEAD_DIM], SWIZZLED)
    value_tiles = values._reinterpret(dtype, [NUM_TILES_HELD, TILE_TOKENS, HEAD_DIM], SWIZZLED)
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
    mbarrier.wait(key_full.index(0), 0)
    scores = warpgroup_mma(query, key_tiles.index(0).permute((1, 0)), no_scores, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, [scores])
    wait_for_group()  # one thread says for all of its group that it has read the tile
    mbarrier.arrive(key_empty.index(0), count=1)
    scores = _mask(_bend(scores, scale_log2, SOFT_CAP), start + tokens, positions, WINDOW)
    top, total, fade, weights = _weigh(scores, top, total, factor, WEIGHTS, dtype)
    mbarrier.wait(value_full.index(0), 0)
    if start + TILE_TOKENS > context_len:
        if PART == 0:
            _zero_unseen(values, 0, start, first, context_len, HEAD_DIM)
            mbarrier.arrive(zeroed.index(0), count=1)
        else:
            mbarrier.wait(zeroed.index(0), 0)
    mbarrier.wait(key_full.index(1 % NUM_TILES_HELD), (1 // NUM_TILES_HELD) & 1, pred=num_tiles > 1)
    for i in range(1, num_tiles):
        place = i % NUM_TILES_HELD
        place_before = (i - 1) % NUM_TILES_HELD
        scores = warpgroup_mma(query, key_tiles.index(place).permute((1, 0)), no_scores, use_acc=False, is_async=True)
        mbarrier.wait(value_full.index(place_before), ((i - 1) // NUM_TILES_HELD) & 1)
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
        # The next scores' tile is waited for here because ptxas moves the wait for the products up to the last branch,
        # before the weights, and then nothing would overlap.
        mbarrier.wait(key_full.index((i + 1) % NUM_TILES_HELD), ((i + 1) // NUM_TILES_HELD) & 1, pred=i + 1 < num_tiles)
        sums, weights = warpgroup_mma_wait(0, [sums, weights])
        wait_for_group()
        mbarrier.arrive(value_empty.index(place_before), count=1)
        sums *= gl.expand_dims(gl.convert_layout(fade, gl.SliceLayout(1, SUMS)), 1)
        weights = next_weights
    place = (num_tiles - 1) % NUM_TILES_HELD
    mbarrier.wait(value_full.index(place), ((num_tiles - 1) // NUM_TILES_HELD) & 1)
    if WINDOW is not None:  # noqa: SIM102 (one is known to the compiler, the other to the device)
        if start < first:
            if PART == 0:
                _zero_unseen(values, place, start, first, context_len, HEAD_DIM)
                mbarrier.arrive(zeroed.index(1), count=1)
            else:
                mbarrier.wait(zeroed.index(1), 0)
    sums = warpgroup_mma(weights, value_tiles.index(place), sums, is_async=True)
    sums = warpgroup_mma_wait(0, [sums])

    out = sums * gl.expand_dims(gl.convert_layout(value_scale / total, gl.SliceLayout(1, SUMS)), 1)
    # Through the place of the queries, so that each row goes out as a whole.
    wait_for_group()
    query.store(out.to(dtype))
    wait_for_group()
    out = query.load(THREADS)
    rows = first_row + gl.arange(0, NUM_ROWS, layout=gl.SliceLayout(1, THREADS))
    dims = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, THREADS))
    offsets = ((first_query + rows // GROUP).to(gl.int64) * NUM_HEADS + kv_head * GROUP + rows % GROUP) * HEAD_DIM
    is_query = gl.expand_dims(rows // GROUP < query_len, 1)
    gl.store(out_ptr + gl.expand_dims(offsets, 1) + gl.expand_dims(dims, 0), out, mask=is_query)


@gluon.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=("num_sequences", "table_stride"),
    do_not_specialize_on_alignment=("table_ptr", "query_start_ptr", "context_lens_ptr"),
)
def _hopper_prefill_kernel(
    query_ptr: gl.tensor,  # (num_tokens, NUM_HEADS, HEAD_DIM)
    table_ptr: gl.tensor,  # (num_sequences, width)
    query_start_ptr: gl.tensor,  # (num_sequences + 1,)
    context_lens_ptr: gl.tensor,  # (num_sequences,)
    out_ptr: gl.tensor,  # (num_tokens, NUM_HEADS, HEAD_DIM)
    num_sequences: gl.tensor,
    query_stride_token: gl.tensor,
    query_stride_head: gl.tensor,
    table_stride: gl.tensor,
    scale_log2: gl.tensor,  # scale * key_scale * log2(e)
    value_scale: gl.tensor,
    kv: tma.tensor_descriptor,  # (num_blocks * 2 * NUM_KV_HEADS * BLOCK_SIZE, HEAD_DIM), boxes (BOX, PANEL_DIMS)
    NUM_HEADS: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    BOX: gl.constexpr,  # tokens that are loaded together: a block, or a tile of a larger one
    WINDOW: gl.constexpr,  # tokens that a row sees at most; None: all before it
    SOFT_CAP: gl.constexpr,  # None: scores stay as they are
) -> None:
    """Grid: (KV heads, num_tokens * GROUP // TILE_ROWS + num_sequences)."""
    GROUP: gl.constexpr = NUM_HEADS // NUM_KV_HEADS
    NUM_BOXES: gl.constexpr = NUM_TILES_HELD * (HEAD_DIM // PANEL_DIMS) * (TILE_TOKENS // BOX)
    dtype: gl.constexpr = query_ptr.dtype.element_ty
    kv_head = gl.program_id(0)
    # The last rows see the most tokens: started first in all heads, they do not end up running alone.
    tile = gl.num_programs(1) - 1 - gl.program_id(1)
    # Sequence i begins at tile start[i] * GROUP // TILE_ROWS + i, which leaves each as many tiles as it can need.
    low = num_sequences * 0  # a number of the device, as the loop makes it
    high = num_sequences - 1
    while low < high:
        middle = (low + high + 1) // 2
        if gl.load(query_start_ptr + middle) * GROUP // TILE_ROWS + middle <= tile:
            low = middle
        else:
            high = middle - 1
    first_query = gl.load(query_start_ptr + low)
    query_len = gl.load(query_start_ptr + low + 1) - first_query
    first_row = (tile - first_query * GROUP // TILE_ROWS - low) * TILE_ROWS
    if (first_row >= 0) & (first_row < query_len * GROUP):
        context_len = gl.load(context_lens_ptr + low)
        prefix_len = context_len - query_len
        end = prefix_len + gl.minimum((first_row + TILE_ROWS - 1) // GROUP + 1, query_len)
        first = num_sequences * 0
        if WINDOW is not None:
            first = gl.maximum(prefix_len + first_row // GROUP - (WINDOW - 1), 0)
        num_tiles = (end + TILE_TOKENS - 1) // TILE_TOKENS - first // TILE_TOKENS
        queries = gl.allocate_shared_memory(dtype, [2, NUM_ROWS, HEAD_DIM], SWIZZLED)
        keys = gl.allocate_shared_memory(dtype, [NUM_BOXES, BOX, PANEL_DIMS], SWIZZLED)
        values = gl.allocate_shared_memory(dtype, [NUM_BOXES, BOX, PANEL_DIMS], SWIZZLED)
        key_full = gl.allocate_shared_memory(gl.int64, [NUM_TILES_HELD, 1], mbarrier.MBarrierLayout())
        value_full = gl.allocate_shared_memory(gl.int64, [NUM_TILES_HELD, 1], mbarrier.MBarrierLayout())
        key_empty = gl.allocate_shared_memory(gl.int64, [NUM_TILES_HELD, 1], mbarrier.MBarrierLayout())
        value_empty = gl.allocate_shared_memory(gl.int64, [NUM_TILES_HELD, 1], mbarrier.MBarrierLayout())
        zeroed = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
        for i in gl.static_range(2):
            mbarrier.init(zeroed.index(i), count=1)
        for i in gl.static_range(NUM_TILES_HELD):
            mbarrier.init(key_full.index(i), count=1)
            mbarrier.init(value_full.index(i), count=1)
            mbarrier.init(key_empty.index(i), count=2)
            mbarrier.init(value_empty.index(i), count=2)
        fence_async_shared()
        barriers = (key_full, value_full, key_empty, value_empty, zeroed)
        row_ptr = table_ptr + low.to(gl.int64) * table_stride
        sequence = (first_query, query_len, prefix_len, context_len)
        program = (kv_head, first_row, first, num_tiles)
        strides = (query_stride_token, query_stride_head)
        scales = (scale_log2, value_scale)
        # fmt: off
        gl.warp_specialize(
            [
                (_attend, (gl.constexpr(0), query_ptr, out_ptr, queries, keys, values, barriers, sequence, program,
                           strides, scales, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, WINDOW, SOFT_CAP)),
                (_attend, (gl.constexpr(1), query_ptr, out_ptr, queries, keys, values, barriers, sequence, program,
                           strides, scales, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, WINDOW, SOFT_CAP)),
                (_load_tiles, (kv, row_ptr, keys, values, barriers, kv_head, num_tiles, first, end,
                               NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)),
            ],
            [GROUP_WARPS, 1],
            [GROUP_REGISTERS, LOADER_REGISTERS],
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
    _launch(
        key,
        (query, table, query_start, context_lens, out),
        (scale * key_scale * math.log2(math.e), float(value_scale), _rows(kv.data_ptr(), kv.dtype, kv.shape)),
        lambda: _first_launch(query, kv, table, window, soft_cap),
    )
    return out


def _first_launch(
    query: torch.Tensor, kv: torch.Tensor, table: torch.Tensor, window: int | None, soft_cap: float | None
) -> Launch:
    num_sequences = table.shape[0]
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads, block_size = kv.shape[2:4]
    options = {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "BOX": min(block_size, TILE_TOKENS.value),
        "WINDOW": window,
        "SOFT_CAP": soft_cap,
        "num_warps": GROUP_WARPS.value,
    }
    num_row_tiles = num_tokens * (num_heads // num_kv_heads) // TILE_ROWS.value + num_sequences
    integers = (num_sequences, query.stride(0), query.stride(1), table.stride(0))
    return Launch((num_kv_heads, num_row_tiles, 1), integers, options)


class _Memory(NamedTuple):
    """All that a descriptor asks of its tensor, which it would keep from being freed."""

    address: int
    dtype: torch.dtype

    def data_ptr(self) -> int:
        return self.address


@lru_cache(MAX_KEYS)
def _rows(address: int, dtype: torch.dtype, shape: torch.Size) -> TensorDescriptor:
    """K and V of a layer as rows, of which one box is loaded at a time."""
    num_blocks, _, num_kv_heads, block_size, head_dim = shape
    return TensorDescriptor(
        _Memory(address, dtype),
        shape=[num_blocks * 2 * num_kv_heads * block_size, head_dim],
        strides=[head_dim, 1],
        block_shape=[min(block_size, TILE_TOKENS.value), PANEL_DIMS.value],
        layout=SWIZZLED.value,
    )
