"""Attention of one new token per sequence over the sequence's KV in the pool.

For query head h of sequence b, whose KV head is g = h // (num_heads / num_kv_heads)::

    out[b, h] = sum_t softmax_t(scale * query[b, h] . K[b, g, t]) V[b, g, t],    t < context_lens[b]

The context of a sequence is cut into splits that run side by side ("flash-decoding", Dao, Haziza, Massa,
Sizov, 2023, https://crfm.stanford.edu/2023/10/12/flashdecoding.html). Split s yields its own softmax over its
tokens, out_s, and the logarithm of its sum of exponentials, l_s; then out = sum_s 2^(l_s - l) out_s with l =
log2 sum_s 2^l_s. Within a split the softmax is computed online, tile by tile (Milakov and Gimelshein, 2018,
https://arxiv.org/abs/1805.02867). All query heads of a KV head share one tile, so that K and V are read once.

The launch depends on shapes alone; how many splits a sequence really uses is decided in the kernel from its
length. So one CUDA graph serves all lengths.
"""

import math
from typing import NamedTuple

import torch

from pbench.kernels.compiler import jit, tl
from pbench.kernels.kv_layout import check_attention, gather_kv, load_kv_tile, pipeline_stages
from pbench.kernels.launch import (
    DeviceLimits,
    ceil_div,
    check_contiguous,
    check_dtype,
    check_shape,
    device_limits,
    next_power_of_2,
    runs_on_triton,
)

MAX_SPLITS = 128


class DecodeTiling(NamedTuple):
    """How a launch is cut up."""

    num_splits: int  # programs over the context of one sequence and KV head, at most; up to MAX_SPLITS
    min_split_tiles: int  # a split is not made shorter than this, to be worth its own start and reduction
    tile_tokens: int
    tiles_in_flight: int  # loaded ahead of the one being computed


@jit()
def _splits_of(
    context_len: tl.tensor, num_splits: tl.tensor, MIN_SPLIT_TILES: tl.constexpr, TILE_TOKENS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Tokens per split of a sequence of this length, and how many splits have any."""
    num_tiles = (context_len + TILE_TOKENS - 1) // TILE_TOKENS
    split_tiles = tl.maximum((num_tiles + num_splits - 1) // num_splits, MIN_SPLIT_TILES)
    return split_tiles * TILE_TOKENS, (num_tiles + split_tiles - 1) // split_tiles


@jit()
def _attend_tile(
    query: tl.tensor,  # (TILE_ROWS, TILE_DIMS)
    top: tl.tensor,  # (TILE_ROWS,) float32: largest score so far, times scale_log2
    total: tl.tensor,  # (TILE_ROWS,) float32: sum of exponentials so far, over 2^top
    acc: tl.tensor,  # (TILE_ROWS, TILE_DIMS) float32: sum of exponentials times V so far, over 2^top
    key_ptr: tl.pointer_type,
    value_offset: tl.tensor,
    row_ptr: tl.pointer_type,
    start: tl.tensor,
    end: tl.tensor,
    scale_log2: tl.tensor,
    HEAD_DIM: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    IS_CONTIGUOUS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_DIMS: tl.constexpr,
    IS_MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """One step of the online softmax."""
    key, value = load_kv_tile(
        key_ptr,
        value_offset,
        row_ptr,
        start,
        end,
        HEAD_DIM,
        NUM_KV_HEADS,
        BLOCK_SIZE,
        IS_CONTIGUOUS,
        TILE_TOKENS,
        TILE_DIMS,
        IS_MASKED,
    )
    scores = tl.dot(query, tl.trans(key), input_precision="ieee")
    if IS_MASKED:
        scores = tl.where((start + tl.arange(0, TILE_TOKENS) < end)[None, :], scores, float("-inf"))
    # A tile has at least one token, so new_top is finite and no difference of infinities arises.
    new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
    weights = tl.exp2(scores * scale_log2 - new_top[:, None])
    decay = tl.exp2(top - new_top)
    total = total * decay + tl.sum(weights, 1)
    acc = tl.dot(weights.to(value.dtype), value, acc * decay[:, None], input_precision="ieee")
    return new_top, total, acc


@jit(
    do_not_specialize=("table_stride", "num_slots", "num_splits"),
    do_not_specialize_on_alignment=("table_ptr", "context_lens_ptr"),
)
def _decode_attention_kernel(
    query_ptr: tl.pointer_type,  # (num_sequences, NUM_HEADS, HEAD_DIM)
    kv_ptr: tl.pointer_type,  # (num_blocks, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    table_ptr: tl.pointer_type,  # (num_sequences, width)
    context_lens_ptr: tl.pointer_type,  # (num_sequences,)
    out_ptr: tl.pointer_type,  # (num_sequences, NUM_HEADS, HEAD_DIM)
    partial_ptr: tl.pointer_type,  # (num_sequences, NUM_HEADS, num_splits, HEAD_DIM) float32: out_s
    log_sum_ptr: tl.pointer_type,  # (num_sequences, NUM_HEADS, num_splits) float32: l_s
    query_stride_token: tl.tensor,
    query_stride_head: tl.tensor,
    table_stride: tl.tensor,
    num_slots: tl.tensor,  # of the pool; contiguous addressing only
    num_splits: tl.tensor,
    scale_log2: tl.tensor,  # scale * log2(e)
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,  # paged addressing only
    IS_CONTIGUOUS: tl.constexpr,
    MIN_SPLIT_TILES: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_DIMS: tl.constexpr,
) -> None:
    """Grid: (num_sequences, KV heads x row tiles, splits)."""
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    NUM_ROW_TILES: tl.constexpr = (GROUP + TILE_ROWS - 1) // TILE_ROWS
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1) // NUM_ROW_TILES
    split = tl.program_id(2)

    context_len = tl.load(context_lens_ptr + sequence)
    split_tokens, num_used_splits = _splits_of(context_len, num_splits, MIN_SPLIT_TILES, TILE_TOKENS)
    if split >= tl.maximum(num_used_splits, 1):  # without any context the first split still writes zeros
        return

    rows = (tl.program_id(1) % NUM_ROW_TILES) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    heads = kv_head * GROUP + rows
    dims = tl.arange(0, TILE_DIMS)
    mask = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    query_offsets = heads[:, None] * query_stride_head + dims[None, :]
    query = tl.load(query_ptr + sequence * query_stride_token + query_offsets, mask=mask, other=0.0)

    row_ptr = table_ptr + sequence * table_stride
    head_stride = num_slots.to(tl.int64) * HEAD_DIM if IS_CONTIGUOUS else BLOCK_SIZE * HEAD_DIM
    key_ptr = kv_ptr + kv_head * head_stride
    value_offset = NUM_KV_HEADS * head_stride

    first = split * split_tokens
    end = tl.minimum(first + split_tokens, context_len)
    full_end = end // TILE_TOKENS * TILE_TOKENS  # first is a multiple of TILE_TOKENS too

    top = tl.full([TILE_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([TILE_ROWS], tl.float32)
    acc = tl.zeros([TILE_ROWS, TILE_DIMS], tl.float32)
    for start in range(first, full_end, TILE_TOKENS):
        top, total, acc = _attend_tile(
            query,
            top,
            total,
            acc,
            key_ptr,
            value_offset,
            row_ptr,
            start,
            end,
            scale_log2,
            HEAD_DIM,
            NUM_KV_HEADS,
            BLOCK_SIZE,
            IS_CONTIGUOUS,
            TILE_TOKENS,
            TILE_DIMS,
            False,
        )
    if full_end < end:
        top, total, acc = _attend_tile(
            query,
            top,
            total,
            acc,
            key_ptr,
            value_offset,
            row_ptr,
            full_end,
            end,
            scale_log2,
            HEAD_DIM,
            NUM_KV_HEADS,
            BLOCK_SIZE,
            IS_CONTIGUOUS,
            TILE_TOKENS,
            TILE_DIMS,
            True,
        )
    total = tl.where(total > 0, total, 1.0)  # no context: zeros
    acc = acc / total[:, None]

    out_rows = sequence * NUM_HEADS + heads
    if num_used_splits <= 1:
        tl.store(
            out_ptr + out_rows[:, None] * HEAD_DIM + dims[None, :],
            acc.to(out_ptr.dtype.element_ty),
            mask=mask,
        )
    else:
        partial_rows = out_rows * num_splits + split
        tl.store(partial_ptr + partial_rows[:, None] * HEAD_DIM + dims[None, :], acc, mask=mask)
        tl.store(log_sum_ptr + partial_rows, top + tl.log2(total), mask=rows < GROUP)


@jit(do_not_specialize=("num_splits",), do_not_specialize_on_alignment=("context_lens_ptr",))
def _reduce_splits_kernel(
    partial_ptr: tl.pointer_type,  # (num_sequences, NUM_HEADS, num_splits, HEAD_DIM) float32
    log_sum_ptr: tl.pointer_type,  # (num_sequences, NUM_HEADS, num_splits) float32
    context_lens_ptr: tl.pointer_type,  # (num_sequences,)
    out_ptr: tl.pointer_type,  # (num_sequences, NUM_HEADS, HEAD_DIM)
    num_splits: tl.tensor,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MIN_SPLIT_TILES: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_DIMS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    TILE_SPLITS: tl.constexpr,
) -> None:
    """Grid: (num_sequences, NUM_HEADS)."""
    sequence = tl.program_id(0).to(tl.int64)
    context_len = tl.load(context_lens_ptr + sequence)
    _, num_used_splits = _splits_of(context_len, num_splits, MIN_SPLIT_TILES, TILE_TOKENS)
    if num_used_splits <= 1:  # its only split wrote the output
        return
    out_row = sequence * NUM_HEADS + tl.program_id(1)
    dims = tl.arange(0, TILE_DIMS)
    splits = tl.arange(0, MAX_SPLITS)
    log_sums = tl.load(log_sum_ptr + out_row * num_splits + splits, mask=splits < num_used_splits, other=float("-inf"))
    top = tl.max(log_sums, 0)
    total = tl.sum(tl.exp2(log_sums - top), 0)

    acc = tl.zeros([TILE_DIMS], tl.float32)
    for start in range(0, num_used_splits, TILE_SPLITS):
        tile = start + tl.arange(0, TILE_SPLITS)
        is_used = tile < num_used_splits
        rows = out_row * num_splits + tile
        weights = tl.exp2(tl.load(log_sum_ptr + rows, mask=is_used, other=float("-inf")) - top)
        partial = tl.load(
            partial_ptr + rows[:, None] * HEAD_DIM + dims[None, :],
            mask=is_used[:, None] & (dims < HEAD_DIM)[None, :],
            other=0.0,
        )
        acc += tl.sum(weights[:, None] * partial, 0)
    out = (acc / total).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_row * HEAD_DIM + dims, out, mask=dims < HEAD_DIM)


def decode_attention(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    scale: float,
    is_contiguous: bool = False,
    out: torch.Tensor | None = None,
    max_context: int | None = None,
) -> torch.Tensor:
    """Attend from one token per sequence to the sequence's KV, its own included: ``(B, H, D)``.

    Safe to capture in a CUDA graph: no synchronisation, and a launch that depends on shapes and
    ``max_context`` only.

    Args:
        query: ``(B, H, D)``, float32, bfloat16 or float16; the last dimension contiguous.
        kv: one layer of the pool (kv_layout.py), of query's dtype, H a multiple of its KV heads.
        table: int32 ``(B, width)``: block tables, or in column 0 the first slots of extents.
        context_lens: int32 ``(B,)``, tokens to attend to. 0 (the padding of a CUDA graph) gives zeros and
            reads nothing.
        scale: positive factor of the scores, usually ``D ** -0.5``.
        is_contiguous: how the table addresses the pool.
        out: where to write, contiguous; a new tensor otherwise.
        max_context: no context is longer; by default what the table or the pool has room for. Only tunes the
            launch.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    check_attention(query, kv, table, context_lens, is_contiguous)
    check_shape("query", query, (table.shape[0], *query.shape[1:]))
    if out is None:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    else:
        check_shape("out", out, query.shape)
        check_dtype("out", out, query.dtype)
        check_contiguous("out", out)
    if not runs_on_triton(query):
        result = decode_attention_reference(query, kv, table, context_lens, scale=scale, is_contiguous=is_contiguous)
        return out.copy_(result)
    if max_context is None:
        max_context = kv.shape[3] if is_contiguous else table.shape[1] * kv.shape[3]
    tiling = choose_tiling(query, kv, max_context)
    return decode_attention_triton(
        query, kv, table, context_lens, out, scale=scale, is_contiguous=is_contiguous, tiling=tiling
    )


def decode_attention_triton(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    context_lens: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: float,
    is_contiguous: bool,
    tiling: DecodeTiling,
) -> torch.Tensor:
    """Launch the kernel on checked arguments (see ``decode_attention``), cut up as ``tiling`` says."""
    num_sequences, num_heads, head_dim = query.shape
    if num_sequences == 0:
        return out
    num_kv_heads, num_slots = kv.shape[2], kv.shape[3]
    tile_rows, num_row_tiles = _row_tiles(num_heads // num_kv_heads)
    num_splits, min_split_tiles, tile_tokens, tiles_in_flight = tiling
    num_partials = num_splits if num_splits > 1 else 0  # a single split writes the output itself
    partial = torch.empty((num_sequences, num_heads, num_partials, head_dim), dtype=torch.float32, device=out.device)
    log_sum = torch.empty((num_sequences, num_heads, num_partials), dtype=torch.float32, device=out.device)
    tile_dims = next_power_of_2(head_dim)
    _decode_attention_kernel[(num_sequences, num_kv_heads * num_row_tiles, num_splits)](
        query,
        kv,
        table,
        context_lens,
        out,
        partial,
        log_sum,
        query.stride(0),
        query.stride(1),
        table.stride(0),
        num_slots,
        num_splits,
        scale * math.log2(math.e),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=1 if is_contiguous else num_slots,
        IS_CONTIGUOUS=is_contiguous,
        MIN_SPLIT_TILES=min_split_tiles,
        TILE_ROWS=tile_rows,
        TILE_TOKENS=tile_tokens,
        TILE_DIMS=tile_dims,
        num_warps=4,
        num_stages=pipeline_stages(tiles_in_flight, is_contiguous),
    )
    if num_splits > 1:
        _reduce_splits_kernel[(num_sequences, num_heads)](
            partial,
            log_sum,
            context_lens,
            out,
            num_splits,
            NUM_HEADS=num_heads,
            HEAD_DIM=head_dim,
            MIN_SPLIT_TILES=min_split_tiles,
            TILE_TOKENS=tile_tokens,
            TILE_DIMS=tile_dims,
            MAX_SPLITS=MAX_SPLITS,
            TILE_SPLITS=8,
            num_warps=2,
        )
    return out


def choose_tiling(query: torch.Tensor, kv: torch.Tensor, max_context: int) -> DecodeTiling:
    """How to cut up a launch on this device, from shapes alone."""
    limits = device_limits(query)
    tile_tokens, tiles_in_flight = _tile_shape(limits, 2 * next_power_of_2(kv.shape[4]) * kv.element_size())
    num_kv_heads = kv.shape[2]
    num_programs = query.shape[0] * num_kv_heads * _row_tiles(query.shape[1] // num_kv_heads)[1]
    # While the device is not full, even short splits help; once it is, only the sequences far longer than the
    # others need splitting, for balance.
    min_split_tokens = 256 if num_programs < 4 * limits.num_sms else 1024
    num_splits = min(
        ceil_div(max_context, min_split_tokens),
        ceil_div(32 * limits.num_sms, max(num_programs, 1)),
        MAX_SPLITS,
    )
    return DecodeTiling(max(num_splits, 1), min_split_tokens // tile_tokens, tile_tokens, tiles_in_flight)


def _row_tiles(group: int) -> tuple[int, int]:
    """Rows of a tile for the query heads of one KV head (tl.dot wants 16), and how many such tiles."""
    tile_rows = min(max(next_power_of_2(group), 16), 64)
    return tile_rows, ceil_div(group, tile_rows)


def _tile_shape(limits: DeviceLimits, token_bytes: int) -> tuple[int, int]:
    """Tokens of a tile and tiles in flight, such that three programs share a multiprocessor's memory."""
    for tile_tokens, tiles_in_flight in ((64, 2), (32, 2), (16, 2)):
        if tile_tokens * tiles_in_flight * token_bytes <= limits.shared_memory_bytes // 3:
            return tile_tokens, tiles_in_flight
    return 16, 1


def decode_attention_reference(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    scale: float,
    is_contiguous: bool = False,
) -> torch.Tensor:
    """``decode_attention`` in plain torch, all sequences at once; float64 too."""
    num_sequences, num_heads, head_dim = query.shape
    num_kv_heads = kv.shape[2]
    max_context = int(context_lens.max()) if num_sequences else 0
    if max_context == 0:
        return torch.zeros_like(query)
    compute_dtype = torch.promote_types(query.dtype, torch.float32)
    key, value = gather_kv(kv, table, context_lens, max_context, is_contiguous)
    grouped = (query.to(compute_dtype) * scale).reshape(num_sequences, num_kv_heads, -1, head_dim)
    scores = grouped @ key.to(compute_dtype).transpose(2, 3)  # (num_sequences, num_kv_heads, group, length)
    lens = context_lens[:, None, None, None]
    scores.masked_fill_(torch.arange(key.shape[2], device=key.device) >= lens, float("-inf"))
    out = scores.softmax(dim=-1) @ value.to(compute_dtype)
    out.masked_fill_(lens == 0, 0)
    return out.reshape(num_sequences, num_heads, head_dim).to(query.dtype)
