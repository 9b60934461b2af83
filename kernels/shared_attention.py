"""Attention of one new token per sequence over runs of KV that several sequences share, each read once for all of them.

A *shared run* is a range of tokens whose blocks stand in the tables of several sequences, its *members*. Their queries
attend to it together, as the rows of one matrix product::

    out[run, b, h] = sum_t softmax_t(scale * query[b, h] . K[g, t]) V[g, t],    t in the run, b a member of it
    l[run, b, h] = log2 sum_t 2^(scale * log2(e) * query[b, h] . K[g, t])

What a member has for itself is attended to apart, and both are merged by their logarithms of sums
(decode_attention.py). The runs of a batch form a tree, as prefixes do: a sequence may be a member of one at each level,
and a run may be cut into parts that count as levels of their own ("Hydragen", Juravsky et al., 2024,
https://arxiv.org/abs/2402.05099, for one level; FlashInfer, Ye et al., 2025, https://arxiv.org/abs/2501.01005, for
several).

Sequences with a window have no runs: what they share lies at their start, which a window leaves first.

The grid is fixed and the work lies on the device, so one CUDA graph serves any tree.
"""

import math
from dataclasses import dataclass

import torch

from pbench.kernels.compiler import jit, let_next_launch, tl, wait_for_previous
from pbench.kernels.kv_layout import gather_kv, load_block_ids
from pbench.kernels.kv_tiles import load_query, tile_dims_of, whole, zero_parts
from pbench.kernels.launch import can_launch_early, device_limits
from pbench.kernels.launcher import Launch, Launcher, layout_of
from pbench.kernels.online_softmax import attend_tile
from pbench.kernels.tiling import SharedTiling

MAX_LEVELS = 8  # runs, or parts of runs, that one sequence can be a member of
MAX_TILES = 512
# A tile: the first of its members in ``SharedRuns.members``, their number, its first token, its end, its level.
TILE_FIELDS = 5


@dataclass(frozen=True, slots=True)
class SharedRuns:
    """The shared runs of a batch of B sequences, cut into tiles of members and of tokens; all on the device."""

    own_start: torch.Tensor  # int32 (B,): first token that a sequence attends to by itself, a multiple of block_size
    num_levels: torch.Tensor  # int32 (B,): up to there the runs hold something of the sequence
    members: torch.Tensor  # int32 (B,): sequences, such that the members of every run stand side by side
    num_tiles: torch.Tensor  # int32 (1,)
    tiles: torch.Tensor  # int32 (MAX_TILES, TILE_FIELDS), contiguous


@jit(
    do_not_specialize=("num_sequences", "table_stride"),
    do_not_specialize_on_alignment=("table_ptr", "members_ptr", "num_tiles_ptr", "tiles_ptr"),
)
def _shared_attention_kernel(
    query_ptr: tl.pointer_type,  # (num_sequences, NUM_HEADS, HEAD_DIM)
    kv_ptr: tl.pointer_type,  # (num_blocks, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    table_ptr: tl.pointer_type,  # (num_sequences, width)
    members_ptr: tl.pointer_type,  # (num_sequences,)
    num_tiles_ptr: tl.pointer_type,  # (1,)
    tiles_ptr: tl.pointer_type,  # (MAX_TILES, TILE_FIELDS)
    partial_ptr: tl.pointer_type,  # (MAX_LEVELS, num_sequences, NUM_HEADS, HEAD_DIM) float32
    log_sum_ptr: tl.pointer_type,  # (MAX_LEVELS, num_sequences, NUM_HEADS) float32
    num_sequences: tl.tensor,
    query_stride_token: tl.tensor,
    query_stride_head: tl.tensor,
    table_stride: tl.tensor,
    scale_log2: tl.tensor,  # scale * log2(e)
    value_scale: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_DIMS: tl.constexpr,
    TILE_FIELDS: tl.constexpr,
    SOFT_CAP: tl.constexpr,  # see attend_tile
    IS_EARLY: tl.constexpr,  # launched before the kernel before it is done
) -> None:
    """Grid: any number of programs; each takes every so-manieth (tile, KV head) pair."""
    if IS_EARLY:
        wait_for_previous()
        let_next_launch()
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    IS_FP8: tl.constexpr = kv_ptr.dtype.element_ty == tl.float8e4nv
    rows = tl.arange(0, TILE_ROWS)
    dims = tl.arange(0, TILE_DIMS)
    num_pairs = tl.load(num_tiles_ptr) * NUM_KV_HEADS
    for pair in range(tl.program_id(0), num_pairs, tl.num_programs(0)):
        kv_head = pair % NUM_KV_HEADS
        tile_ptr = tiles_ptr + pair // NUM_KV_HEADS * TILE_FIELDS
        first_member = tl.load(tile_ptr)
        num_members = tl.load(tile_ptr + 1)
        first_token = tl.load(tile_ptr + 2)
        end = tl.load(tile_ptr + 3)
        level = tl.load(tile_ptr + 4)

        is_row = rows // GROUP < num_members
        sequences = tl.load(members_ptr + first_member + rows // GROUP, mask=is_row, other=0).to(tl.int64)
        heads = kv_head * GROUP + rows % GROUP
        mask = is_row[:, None] & (dims < HEAD_DIM)[None, :]
        query_row_ptr = query_ptr + sequences * query_stride_token + heads * query_stride_head
        query = load_query(query_row_ptr, is_row, HEAD_DIM, TILE_DIMS, IS_FP8)

        any_member = tl.load(members_ptr + first_member).to(tl.int64)
        row_ptr = table_ptr + any_member * table_stride
        key_ptr = kv_ptr + kv_head * (BLOCK_SIZE * HEAD_DIM)
        value_offset = NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM
        full_end = first_token + (end - first_token) // TILE_TOKENS * TILE_TOKENS
        top = tl.full([TILE_ROWS], float("-inf"), tl.float32)
        total = tl.zeros([TILE_ROWS], tl.float32)
        sums = zero_parts(TILE_ROWS, TILE_DIMS, IS_FP8)
        next_ids = load_block_ids(row_ptr, first_token, end, BLOCK_SIZE, False, TILE_TOKENS)
        for start in range(first_token, full_end, TILE_TOKENS):
            block_ids = next_ids  # a tile early, so that K and V never wait for the table
            next_ids = load_block_ids(row_ptr, start + TILE_TOKENS, end, BLOCK_SIZE, False, TILE_TOKENS)
            top, total, sums = attend_tile(
                query,
                None,
                top,
                total,
                sums,
                key_ptr,
                value_offset,
                block_ids,
                start,
                first_token,
                end,
                scale_log2,
                HEAD_DIM,
                NUM_KV_HEADS,
                BLOCK_SIZE,
                False,
                TILE_TOKENS,
                TILE_DIMS,
                False,
                None,
                SOFT_CAP,
            )
        if full_end < end:
            top, total, sums = attend_tile(
                query,
                None,
                top,
                total,
                sums,
                key_ptr,
                value_offset,
                next_ids,
                full_end,
                first_token,
                end,
                scale_log2,
                HEAD_DIM,
                NUM_KV_HEADS,
                BLOCK_SIZE,
                False,
                TILE_TOKENS,
                TILE_DIMS,
                True,
                None,
                SOFT_CAP,
            )
        out_rows = (level.to(tl.int64) * num_sequences + sequences) * NUM_HEADS + heads
        acc = whole(sums, IS_FP8) / total[:, None] * value_scale
        tl.store(partial_ptr + out_rows[:, None] * HEAD_DIM + dims[None, :], acc, mask=mask)
        tl.store(log_sum_ptr + out_rows, top + tl.log2(total), mask=is_row)


@jit()
def merge_shared(
    acc: tl.tensor,  # (ROWS, TILE_DIMS) float32: attention over a sequence's own tokens
    log_sum: tl.tensor,  # (ROWS,) float32: log2 of its sum of exponentials
    partial_ptr: tl.pointer_type,  # (MAX_LEVELS, num_sequences, num_heads, HEAD_DIM)
    log_sum_ptr: tl.pointer_type,  # (MAX_LEVELS, num_sequences, num_heads)
    num_levels: tl.tensor,
    level_rows: tl.tensor,  # num_sequences * num_heads
    out_rows: tl.tensor,  # (ROWS,) int64: sequence * num_heads + head
    mask: tl.tensor,  # (ROWS, TILE_DIMS)
    is_row: tl.tensor,  # (ROWS,)
    HEAD_DIM: tl.constexpr,
    TILE_DIMS: tl.constexpr,
) -> tl.tensor:
    """Attention over all tokens of a sequence: its own, and those of its shared runs, in the order of the levels."""
    dims = tl.arange(0, TILE_DIMS)
    for level in range(num_levels):
        rows = level * level_rows + out_rows
        shared_log_sum = tl.load(log_sum_ptr + rows, mask=is_row, other=float("-inf"))
        shared = tl.load(partial_ptr + rows[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
        top = tl.maximum(log_sum, shared_log_sum)
        weight, shared_weight = tl.exp2(log_sum - top), tl.exp2(shared_log_sum - top)
        total = weight + shared_weight
        acc = (acc * weight[:, None] + shared * shared_weight[:, None]) / total[:, None]
        log_sum = top + tl.log2(total)
    return acc


_launch = Launcher(_shared_attention_kernel)


def shared_attention_triton(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    runs: SharedRuns,
    partial: torch.Tensor,
    log_sum: torch.Tensor,
    *,
    scale: float,
    tiling: SharedTiling,
    value_scale: float = 1.0,
    soft_cap: float | None = None,
) -> None:
    """Attend to the shared runs of a batch, on arguments that ``decode_attention`` has checked.

    Args:
        query: ``(B, H, D)``; the last dimension contiguous.
        kv: one layer of the pool (kv_layout.py), paged.
        table: int32 ``(B, width)``: block tables.
        runs: of these sequences, cut into tiles of at most ``tiling.tile_rows // (H / kv heads)`` members.
        partial: float32 ``(MAX_LEVELS, B, H, D)``: receives each level's attention, for its members only.
        log_sum: float32 ``(MAX_LEVELS, B, H)``: receives the base-2 logarithms of the sums of exponentials.
        scale: of the scores, key_scale included; as value_scale, see decode_attention.
        tiling: of ``choose_shared_tiling`` (tuning_table.py).
        value_scale: likewise.
        soft_cap: likewise.
    """
    if query.shape[0] == 0:
        return
    tensors = (query, kv, table, runs.members, runs.num_tiles, runs.tiles, partial, log_sum)
    _launch(
        (layout_of(*tensors), tiling, soft_cap),
        tensors,
        (scale * math.log2(math.e), float(value_scale)),
        lambda: _first_launch(query, kv, table, tiling, soft_cap),
    )


def _first_launch(
    query: torch.Tensor, kv: torch.Tensor, table: torch.Tensor, tiling: SharedTiling, soft_cap: float | None
) -> Launch:
    num_sequences, num_heads, head_dim = query.shape
    is_early = can_launch_early(kv)
    options = {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": kv.shape[2],
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": kv.shape[3],
        "TILE_ROWS": tiling.tile_rows,
        "TILE_TOKENS": tiling.tile_tokens,
        "TILE_DIMS": tile_dims_of(kv),
        "TILE_FIELDS": TILE_FIELDS,
        "SOFT_CAP": soft_cap,
        "IS_EARLY": is_early,
        "num_warps": tiling.num_warps,
        "num_stages": tiling.tiles_in_flight + 1,
        "launch_pdl": is_early,
    }
    integers = (num_sequences, query.stride(0), query.stride(1), table.stride(0))
    return Launch((device_limits(kv).num_sms, 1, 1), integers, options)


def shared_attention_reference(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    runs: SharedRuns,
    *,
    scale: float,
    soft_cap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``shared_attention_triton`` in plain torch, tile by tile; float64 too.

    Returns:
        ``partial`` and ``log_sum``; NaN and minus infinity where a sequence is no member.
    """
    num_sequences, num_heads, head_dim = query.shape
    partial = query.new_full((MAX_LEVELS, num_sequences, num_heads, head_dim), float("nan"))
    log_sum = query.new_full((MAX_LEVELS, num_sequences, num_heads), float("-inf"))
    for first_member, num_members, first, end, level in runs.tiles[: int(runs.num_tiles)].tolist():
        members = runs.members[first_member : first_member + num_members].long()
        one, length = table[members[:1]], torch.tensor([end], dtype=torch.int32, device=table.device)
        key, value = (tensor[0, :, first:end] for tensor in gather_kv(kv, one, length, end, False, query.dtype))
        grouped = query[members].reshape(num_members, kv.shape[2], -1, head_dim)
        scores = torch.einsum("mkgd,ktd->mkgt", grouped, key) * scale
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        out = torch.einsum("mkgt,ktd->mkgd", scores.softmax(dim=-1), value)
        partial[level, members] = out.reshape(num_members, num_heads, head_dim)
        log_sum[level, members] = scores.logsumexp(dim=-1).reshape(num_members, num_heads) * math.log2(math.e)
    return partial, log_sum
