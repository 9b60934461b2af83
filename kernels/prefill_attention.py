"""Causal attention of several new tokens per sequence over the sequence's KV in the pool.

The queries of sequence i are rows query_start[i] .. query_start[i + 1] of ``query``, and they are the LAST of
the sequence's context_lens[i] tokens: what comes before them is a cached prefix, or an earlier chunk of the
prompt. Other rows of ``query`` belong to nobody here. For the query at position p of its sequence and query
head h, whose KV head is g = h // (num_heads / num_kv_heads)::

    out[h] = sum_t softmax_t(scale * query[h] . K[g, t]) V[g, t],    t <= p

perhaps within a window and with a soft cap (online_softmax.py).

Computed tile by tile with an online softmax (FlashAttention-2, Dao, 2023, https://arxiv.org/abs/2307.08691).
A tile of rows holds (query, head of the group) pairs, heads fastest, so that all heads of a group share the K
and V that they read. Tiles of K and V that every row sees whole are not masked; only those on the diagonal
are, and those where windows begin; what no row sees is not read. The grid depends on shapes alone, and a program
finds on the device whose tile is its own, so one CUDA graph serves any lengths. On Hopper most prompts go to the kernel
of hopper_prefill.py instead.
"""

import math
from collections.abc import Callable, Hashable
from functools import cache

import torch
from torch.nn.functional import scaled_dot_product_attention

from pbench.kernels.compiler import jit, tl
from pbench.kernels.kv_layout import check_attention, check_query_start, gather_kv, load_block_ids
from pbench.kernels.kv_tiles import load_query, tile_dims_of, whole, zero_parts
from pbench.kernels.launch import (
    ceil_div,
    check_contiguous,
    check_dtype,
    check_shape,
    device_limits,
    runs_on_hopper,
    runs_on_triton,
)
from pbench.kernels.launcher import Known, Launch, Launcher, layout_of, short_key
from pbench.kernels.online_softmax import attend_tile
from pbench.kernels.tiling import Operands, PrefillTiling
from pbench.kernels.tuning_table import choose_prefill_tiling

TILE_SEQUENCES = 64
MIN_HOPPER_ROWS = 128  # of a KV head: one tile of that kernel


@jit()
def _find_row_tile(
    query_start_ptr: tl.pointer_type,  # (num_sequences + 1,)
    num_sequences: tl.tensor,
    tile: tl.tensor,  # among the row tiles of all sequences
    GROUP: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_SEQUENCES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The sequence that a row tile is of (num_sequences: of none), and its place among the sequence's own."""
    sequence = 0
    first_tile = 0
    num_before = 0
    for first in range(0, num_sequences, TILE_SEQUENCES):
        sequences = first + tl.arange(0, TILE_SEQUENCES)
        is_sequence = sequences < num_sequences
        starts = tl.load(query_start_ptr + sequences, mask=is_sequence, other=0)
        ends = tl.load(query_start_ptr + sequences + 1, mask=is_sequence, other=0)
        num_tiles = ((ends - starts) * GROUP + TILE_ROWS - 1) // TILE_ROWS
        end_tiles = num_before + tl.cumsum(num_tiles, 0)
        is_before = is_sequence & (end_tiles <= tile)
        sequence += tl.sum(is_before.to(tl.int32), 0)
        first_tile = tl.maximum(first_tile, tl.max(tl.where(is_before, end_tiles, 0), 0))
        num_before += tl.sum(num_tiles, 0)
    return sequence, tile - first_tile


@jit(
    do_not_specialize=("table_stride", "num_slots", "num_sequences"),
    do_not_specialize_on_alignment=("table_ptr", "query_start_ptr", "context_lens_ptr"),
)
def _prefill_attention_kernel(
    query_ptr: tl.pointer_type,  # (num_tokens, NUM_HEADS, HEAD_DIM)
    kv_ptr: tl.pointer_type,  # (num_blocks, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    table_ptr: tl.pointer_type,  # (num_sequences, width)
    query_start_ptr: tl.pointer_type,  # (num_sequences + 1,)
    context_lens_ptr: tl.pointer_type,  # (num_sequences,)
    out_ptr: tl.pointer_type,  # (num_tokens, NUM_HEADS, HEAD_DIM)
    num_sequences: tl.tensor,
    query_stride_token: tl.tensor,
    query_stride_head: tl.tensor,
    table_stride: tl.tensor,
    num_slots: tl.tensor,  # of the pool; contiguous addressing only
    scale_log2: tl.tensor,  # scale * key_scale * log2(e)
    value_scale: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,  # paged addressing only
    IS_CONTIGUOUS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_DIMS: tl.constexpr,
    TILE_SEQUENCES: tl.constexpr,
    WINDOW: tl.constexpr,  # see attend_tile
    SOFT_CAP: tl.constexpr,
    IS_MASKED_THROUGHOUT: tl.constexpr,
) -> None:
    """Grid: (KV heads, at least as many as there are row tiles of all sequences)."""
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    IS_FP8: tl.constexpr = kv_ptr.dtype.element_ty == tl.float8e4nv
    kv_head = tl.program_id(0)
    # The last rows see the most tokens: started first in all heads, they do not end up running alone.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    sequence, row_tile = _find_row_tile(query_start_ptr, num_sequences, tile, GROUP, TILE_ROWS, TILE_SEQUENCES)
    if sequence >= num_sequences:
        return
    sequence = sequence.to(tl.int64)
    first_query = tl.load(query_start_ptr + sequence)
    query_len = tl.load(query_start_ptr + sequence + 1) - first_query
    first_row = row_tile * TILE_ROWS
    prefix_len = tl.load(context_lens_ptr + sequence) - query_len

    rows = first_row + tl.arange(0, TILE_ROWS)
    queries = rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    dims = tl.arange(0, TILE_DIMS)
    mask = (queries < query_len)[:, None] & (dims < HEAD_DIM)[None, :]
    tokens = first_query.to(tl.int64) + queries
    query_row_ptr = query_ptr + tokens * query_stride_token + heads * query_stride_head
    query = load_query(query_row_ptr, queries < query_len, HEAD_DIM, TILE_DIMS, IS_FP8)

    row_ptr = table_ptr + sequence * table_stride
    head_stride = num_slots.to(tl.int64) * HEAD_DIM if IS_CONTIGUOUS else BLOCK_SIZE * HEAD_DIM
    key_ptr = kv_ptr + kv_head * head_stride
    value_offset = NUM_KV_HEADS * head_stride

    positions = prefix_len + queries
    end = prefix_len + tl.minimum((first_row + TILE_ROWS - 1) // GROUP + 1, query_len)
    full_end = (prefix_len + first_row // GROUP + 1) // TILE_TOKENS * TILE_TOKENS  # the first row sees all before this
    first = 0
    full_start = 0
    num_cut = 0
    lowest = float("-inf")
    if WINDOW is not None:
        first = tl.maximum(prefix_len + first_row // GROUP - (WINDOW - 1), 0)  # before it no row sees anything
        # The last row sees all from this on: the tokens before are in tiles that windows cut.
        full_start = (tl.maximum(end - WINDOW, 0) + TILE_TOKENS - 1) // TILE_TOKENS * TILE_TOKENS
        full_start = tl.minimum(full_start, full_end)
        num_cut = full_start - first // TILE_TOKENS * TILE_TOKENS
        lowest = -3.4e38  # finite: a row may see nothing of the first tile
        positions = tl.minimum(positions, end - 1)  # rows that are no query see something too
    if IS_MASKED_THROUGHOUT:
        full_start = first // TILE_TOKENS * TILE_TOKENS
        full_end = full_start
        num_cut = 0

    top = tl.full([TILE_ROWS], lowest, tl.float32)
    total = tl.zeros([TILE_ROWS], tl.float32)
    sums = zero_parts(TILE_ROWS, TILE_DIMS, IS_FP8)
    next_ids = load_block_ids(row_ptr, full_start, end, BLOCK_SIZE, IS_CONTIGUOUS, TILE_TOKENS)
    for start in range(full_start, full_end, TILE_TOKENS):
        block_ids = next_ids
        if not IS_CONTIGUOUS:  # a tile early, so that K and V never wait for the table
            next_ids = load_block_ids(row_ptr, start + TILE_TOKENS, end, BLOCK_SIZE, False, TILE_TOKENS)
        top, total, sums = attend_tile(
            query,
            positions,
            top,
            total,
            sums,
            key_ptr,
            value_offset,
            block_ids,
            start,
            first,
            end,
            scale_log2,
            HEAD_DIM,
            NUM_KV_HEADS,
            BLOCK_SIZE,
            IS_CONTIGUOUS,
            TILE_TOKENS,
            TILE_DIMS,
            False,
            WINDOW,
            SOFT_CAP,
        )
    for place in range(full_end - num_cut, end, TILE_TOKENS):
        start = place
        if WINDOW is not None:
            start = tl.where(place < full_end, place - (full_end - full_start), place)
        block_ids = load_block_ids(row_ptr, start, end, BLOCK_SIZE, IS_CONTIGUOUS, TILE_TOKENS)
        top, total, sums = attend_tile(
            query,
            positions,
            top,
            total,
            sums,
            key_ptr,
            value_offset,
            block_ids,
            start,
            first,
            end,
            scale_log2,
            HEAD_DIM,
            NUM_KV_HEADS,
            BLOCK_SIZE,
            IS_CONTIGUOUS,
            TILE_TOKENS,
            TILE_DIMS,
            True,
            WINDOW,
            SOFT_CAP,
        )
    out = (whole(sums, IS_FP8) / total[:, None] * value_scale).to(out_ptr.dtype.element_ty)
    out_rows = tokens * NUM_HEADS + heads
    tl.store(out_ptr + out_rows[:, None] * HEAD_DIM + dims[None, :], out, mask=mask)


_launch = Launcher(_prefill_attention_kernel)
_tilings: Known[PrefillTiling | None] = Known()  # of layouts of arguments that fit; None: Hopper's own kernel


def prefill_attention(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    scale: float,
    is_contiguous: bool = False,
    out: torch.Tensor | None = None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
    window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """Attend causally from the last tokens of every sequence to its KV, their own included: ``(T, H, D)``.

    Args:
        query: ``(T, H, D)``, float32, bfloat16 or float16, the sequences' queries one after the other, perhaps
            among others; the last dimension contiguous.
        kv: one layer of the pool (kv_layout.py), of query's dtype or FP8, H a multiple of its KV heads. It already
            holds the K and V of the queries' own tokens.
        table: int32 ``(B, width)``: block tables, or in column 0 the first slots of extents.
        query_start: int32 ``(B + 1,)``, rising, from 0 to T at most; a sequence may have no queries. Rows of out
            that are nobody's are left as they are.
        context_lens: int32 ``(B,)``, tokens of the sequence up to and including its last query.
        scale: positive factor of the scores, usually ``D ** -0.5``.
        is_contiguous: how the table addresses the pool.
        out: where to write, contiguous; a new tensor otherwise.
        key_scale: what K was divided by when it was written, where kv holds 8-bit floats.
        value_scale: likewise for V.
        window: how many tokens a query sees at most, its own included; None: all before it.
        soft_cap: c of c * tanh(scaled score / c); None: scores stay as they are.

    Raises:
        ValueError: a shape, dtype, stride or number that does not fit, naming the argument.
    """
    if out is None:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
    key = short_key(
        (
            query.get_device(),
            query.dtype,
            query.shape,
            query.stride(),
            kv.dtype,
            kv.shape,
            kv.stride(),
            (query.data_ptr() | kv.data_ptr()) & 15,
            table.dtype,
            table.shape,
            table.stride(),
            query_start.dtype,
            query_start.shape,
            query_start.stride(),
            context_lens.dtype,
            context_lens.shape,
            context_lens.stride(),
            out.dtype,
            out.shape,
            out.stride(),
            is_contiguous,
            window,
            soft_cap,
        )
    )  # what layout_of gives, spelled out, as it takes the host half as long again
    if key not in _tilings:
        check_attention(query, kv, table, context_lens, is_contiguous, window, soft_cap)
        check_query_start(query_start, table.shape[0])
        check_shape("out", out, query.shape)
        check_dtype("out", out, query.dtype)
        check_contiguous("out", out)
        _tilings[key] = None if suits_hopper(query, kv, is_contiguous) else _tiling(query, kv)
    tiling = _tilings[key]
    if not runs_on_triton(query):
        result = prefill_attention_reference(
            query,
            kv,
            table,
            query_start,
            context_lens,
            scale=scale,
            is_contiguous=is_contiguous,
            key_scale=key_scale,
            value_scale=value_scale,
            window=window,
            soft_cap=soft_cap,
        )
        rows = slice(int(query_start[0]), int(query_start[-1]))
        out[rows] = result[rows]
        return out
    if tiling is None:
        return _hopper_attention()(
            query,
            kv,
            table,
            query_start,
            context_lens,
            out,
            scale=scale,
            key_scale=key_scale,
            value_scale=value_scale,
            window=window,
            soft_cap=soft_cap,
            key=key,
        )
    return prefill_attention_triton(
        query,
        kv,
        table,
        query_start,
        context_lens,
        out,
        scale=scale,
        is_contiguous=is_contiguous,
        tiling=tiling,
        key_scale=key_scale,
        value_scale=value_scale,
        window=window,
        soft_cap=soft_cap,
        key=key,
    )


@cache
def _hopper_attention() -> Callable[..., torch.Tensor]:
    """Imported where it is launched: its language comes with some versions of Triton only."""
    from pbench.kernels.hopper_prefill import hopper_prefill_attention

    return hopper_prefill_attention


def suits_hopper(query: torch.Tensor, kv: torch.Tensor, is_contiguous: bool) -> bool:
    """Whether the kernel of hopper_prefill.py computes this: on a Hopper GPU, if it knows the layout."""
    num_heads, head_dim = query.shape[1:]
    num_kv_heads, block_size = kv.shape[2:4]
    return (
        runs_on_hopper(query)
        and not is_contiguous
        and query.dtype == kv.dtype
        and query.element_size() == 2
        and head_dim in (64, 128)
        and block_size >= 16
        and block_size.bit_count() == 1
        and query.shape[0] * num_heads >= MIN_HOPPER_ROWS * num_kv_heads
        and all(place % 16 == 0 for place in (kv.data_ptr(), query.data_ptr()))
        and all(stride % 8 == 0 for stride in query.stride()[:2])  # copied by 16 bytes
        and kv.numel() // head_dim < 2**31  # rows are counted in 32 bits
    )


def _tiling(query: torch.Tensor, kv: torch.Tensor) -> PrefillTiling:
    operands = Operands.of(query, kv)
    return choose_prefill_tiling(device_limits(query), operands, query.shape[0] * operands.group)


def prefill_attention_triton(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: float,
    is_contiguous: bool,
    tiling: PrefillTiling,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
    window: int | None = None,
    soft_cap: float | None = None,
    is_masked_throughout: bool = False,
    key: Hashable = None,
) -> torch.Tensor:
    """Launch the kernel on checked arguments (see ``prefill_attention``), cut up as ``tiling`` says.

    Where ``is_masked_throughout``, the very same instructions compute all tiles (invariant_attention.py). Equal
    ``key``s mean equal layouts of the tensors; it is made of them where the caller has none.
    """
    if table.shape[0] == 0 or query.shape[0] == 0:
        return out
    tensors = (query, kv, table, query_start, context_lens, out)
    _launch(
        (layout_of(*tensors) if key is None else key, tiling, is_contiguous, window, soft_cap, is_masked_throughout),
        tensors,
        (scale * key_scale * math.log2(math.e), float(value_scale)),
        lambda: _first_launch(query, kv, table, tiling, is_contiguous, window, soft_cap, is_masked_throughout),
    )
    return out


def _first_launch(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    tiling: PrefillTiling,
    is_contiguous: bool,
    window: int | None,
    soft_cap: float | None,
    is_masked_throughout: bool,
) -> Launch:
    num_sequences = table.shape[0]
    num_heads, head_dim = query.shape[1:]
    num_kv_heads, num_slots = kv.shape[2], kv.shape[3]
    # Each sequence may leave a tile unfinished.
    max_row_tiles = ceil_div(query.shape[0] * (num_heads // num_kv_heads), tiling.tile_rows) + num_sequences - 1
    options = {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": 1 if is_contiguous else num_slots,
        "IS_CONTIGUOUS": is_contiguous,
        "TILE_ROWS": tiling.tile_rows,
        "TILE_TOKENS": tiling.tile_tokens,
        "TILE_DIMS": tile_dims_of(kv),
        "TILE_SEQUENCES": TILE_SEQUENCES,
        "WINDOW": window,
        "SOFT_CAP": soft_cap,
        "IS_MASKED_THROUGHOUT": is_masked_throughout,
        "num_warps": tiling.num_warps,
        "num_stages": tiling.tiles_in_flight + 1,
    }
    integers = (num_sequences, query.stride(0), query.stride(1), table.stride(0), num_slots)
    return Launch((num_kv_heads, max_row_tiles, 1), integers, options)


def prefill_attention_reference(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    scale: float,
    is_contiguous: bool = False,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
    window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """``prefill_attention`` in plain torch, one sequence after the other; float64 too. Other rows are arbitrary."""
    num_heads, head_dim = query.shape[1:]
    num_kv_heads = kv.shape[2]
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    starts = query_start.tolist()
    for i, context_len in enumerate(context_lens.tolist()):
        first, last = starts[i], starts[i + 1]
        query_len = last - first
        if query_len == 0:
            continue
        key, value = gather_kv(kv, table[i : i + 1], context_lens[i : i + 1], context_len, is_contiguous, query.dtype)
        # The heads of a group stand in the batch dimension, over which K and V are expanded without a copy.
        grouped = query[first:last].reshape(query_len, num_kv_heads, -1, head_dim).permute(2, 1, 0, 3)
        positions = torch.arange(context_len - query_len, context_len, device=query.device)[:, None]
        first_token = 0 if window is None else max(context_len - query_len - window + 1, 0)
        tokens = torch.arange(first_token, context_len, device=query.device)
        mask = tokens <= positions
        if window is not None:
            mask &= tokens > positions - window
        attended = _attend(
            grouped,
            key[:, :, first_token:context_len].expand(grouped.shape[0], -1, -1, -1),
            value[:, :, first_token:context_len].expand(grouped.shape[0], -1, -1, -1),
            mask,
            scale * key_scale,
            soft_cap,
        )  # (group, num_kv_heads, query_len, head_dim)
        out[first:last] = attended.permute(2, 1, 0, 3).reshape(query_len, num_heads, head_dim) * value_scale
    return out


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    soft_cap: float | None,
) -> torch.Tensor:
    if soft_cap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    scores = soft_cap * torch.tanh(query @ key.mT * (scale / soft_cap))
    return scores.masked_fill_(~mask, float("-inf")).softmax(dim=-1) @ value
