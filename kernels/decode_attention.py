"""Attention of one new token per sequence over the sequence's KV in the pool.

For query head h of sequence b, whose KV head is g = h // (num_heads / num_kv_heads)::

    out[b, h] = sum_t softmax_t(scale * query[b, h] . K[b, g, t]) V[b, g, t],    t < context_lens[b]

perhaps within a window and with a soft cap (online_softmax.py). What lies before the window is not read.

A fixed number of programs share the work evenly (decode_plan.py), so a program may attend to a part of a row, a
(sequence, KV head) pair, only. Such a piece s yields its own softmax over its tokens, out_s, and the logarithm of its
sum of exponentials, l_s ("flash-decoding", Dao, Haziza, Massa, Sizov, 2023,
https://crfm.stanford.edu/2023/10/12/flashdecoding.html). The program that finishes a row's last piece merges them all:
out = sum_s 2^(l_s - l) out_s with l = log2 sum_s 2^l_s, always in the order of the tokens, so that who comes last
changes nothing. All query heads of a KV head share one tile, so that K and V are read once.

Where the plan has runs of KV that several sequences share (shared_attention.py), those are attended to first, and a
sequence's own tokens begin behind them; whoever completes a row merges what the runs gave for it.
"""

import math
from collections.abc import Hashable

import torch

from pbench.kernels.compiler import jit, tl
from pbench.kernels.decode_plan import ROW_UNITS, DecodePlan, plan_decode, row_tiles, window_start
from pbench.kernels.kv_layout import check_attention, gather_kv, load_block_ids
from pbench.kernels.kv_tiles import load_query, tile_dims_of, whole, zero_parts
from pbench.kernels.launch import (
    check_contiguous,
    check_dtype,
    check_shape,
    device_limits,
    runs_on_triton,
)
from pbench.kernels.launcher import Checked, Launch, Launcher, layout_of
from pbench.kernels.online_softmax import attend_tile
from pbench.kernels.shared_attention import SharedRuns, merge_shared, shared_attention_triton
from pbench.kernels.tiling import Operands, SharedTiling
from pbench.kernels.tuning_table import choose_decode_tiling, choose_shared_tiling

# Numbers that the merge of a row's pieces loads at once.
MERGE_NUMEL = 8192
LOG2_E = math.log2(math.e)


@jit()
def _merge_pieces(
    partial_ptr: tl.pointer_type,  # (num_programs, 2, TILE_ROWS, HEAD_DIM)
    log_sum_ptr: tl.pointer_type,  # (num_programs, 2, TILE_ROWS)
    first_program: tl.tensor,  # its piece lies at index 1, those of the programs after it at index 0
    last_program: tl.tensor,
    HEAD_DIM: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_DIMS: tl.constexpr,
    TILE_PIECES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The row's attention ``(TILE_ROWS, TILE_DIMS)`` from its pieces, and the log2 of its sum of exponentials."""
    rows = tl.arange(0, TILE_ROWS)
    dims = tl.arange(0, TILE_DIMS)
    top = tl.full([TILE_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([TILE_ROWS], tl.float32)
    acc = tl.zeros([TILE_ROWS, TILE_DIMS], tl.float32)
    for start in range(first_program, last_program + 1, TILE_PIECES):
        programs = start + tl.arange(0, TILE_PIECES)
        is_piece = programs <= last_program
        slots = programs * 2 + (programs == first_program).to(tl.int32)
        piece_rows = slots[:, None] * TILE_ROWS + rows[None, :]
        # Other programs wrote these: only the second-level cache is sure to know.
        log_sums = tl.load(log_sum_ptr + piece_rows, mask=is_piece[:, None], other=float("-inf"), cache_modifier=".cg")
        partial = tl.load(
            partial_ptr + piece_rows[:, :, None] * HEAD_DIM + dims[None, None, :],
            mask=is_piece[:, None, None] & (dims < HEAD_DIM)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_top = tl.maximum(top, tl.max(log_sums, 0))  # finite: every piece has a token
        weights = tl.exp2(log_sums - new_top[None, :])
        decay = tl.exp2(top - new_top)
        total = total * decay + tl.sum(weights, 0)
        acc = acc * decay[:, None] + tl.sum(weights[:, :, None] * partial, 0)
        top = new_top
    return acc / total[:, None], top + tl.log2(total)


@jit(
    do_not_specialize=("table_stride", "num_slots", "num_sequences"),
    do_not_specialize_on_alignment=("table_ptr", "context_lens_ptr", "own_start_ptr", "num_levels_ptr"),
)
def _decode_attention_kernel(
    query_ptr: tl.pointer_type,  # (num_sequences, NUM_HEADS, HEAD_DIM)
    kv_ptr: tl.pointer_type,  # (num_blocks, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    table_ptr: tl.pointer_type,  # (num_sequences, width)
    context_lens_ptr: tl.pointer_type,  # (num_sequences,)
    out_ptr: tl.pointer_type,  # (num_sequences, NUM_HEADS, HEAD_DIM)
    schedule_ptr: tl.pointer_type,  # (1 + num_sequences + num_programs,): see decode_plan.py
    num_arrived_ptr: tl.pointer_type,  # (num_sequences * NUM_ROWS,)
    partial_ptr: tl.pointer_type,  # (num_programs, 2, TILE_ROWS, HEAD_DIM) float32: out_s
    log_sum_ptr: tl.pointer_type,  # (num_programs, 2, TILE_ROWS) float32: l_s
    own_start_ptr: tl.pointer_type,  # (num_sequences,): with HAS_SHARED only, as the three below; shared_attention.py
    num_levels_ptr: tl.pointer_type,  # (num_sequences,)
    shared_partial_ptr: tl.pointer_type,  # (MAX_LEVELS, num_sequences, NUM_HEADS, HEAD_DIM) float32
    shared_log_sum_ptr: tl.pointer_type,  # (MAX_LEVELS, num_sequences, NUM_HEADS) float32
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
    HAS_SHARED: tl.constexpr,
    NUM_ROWS: tl.constexpr,  # of a sequence: KV heads x tiles of their query heads
    ROW_UNITS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    DOT_ROWS: tl.constexpr,  # TILE_ROWS, padded to what a matrix product takes
    TILE_TOKENS: tl.constexpr,
    TILE_DIMS: tl.constexpr,
    TILE_PIECES: tl.constexpr,
    WINDOW: tl.constexpr,  # see attend_tile
    SOFT_CAP: tl.constexpr,
) -> None:
    """Grid: (num_programs,)."""
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    IS_FP8: tl.constexpr = kv_ptr.dtype.element_ty == tl.float8e4nv
    NUM_ROW_TILES: tl.constexpr = NUM_ROWS // NUM_KV_HEADS
    program = tl.program_id(0)
    chunk = tl.load(schedule_ptr)
    sequence = tl.load(schedule_ptr + 1 + num_sequences + program)
    unit = program * chunk
    chunk_end = unit + chunk
    head_stride = num_slots.to(tl.int64) * HEAD_DIM if IS_CONTIGUOUS else BLOCK_SIZE * HEAD_DIM
    value_offset = NUM_KV_HEADS * head_stride
    dims = tl.arange(0, TILE_DIMS)

    while (unit < chunk_end) & (sequence < num_sequences):
        # The row that holds this unit, and the row's tiles that are this program's.
        context_len = tl.load(context_lens_ptr + sequence)
        own_start = tl.load(own_start_ptr + sequence) if HAS_SHARED else 0
        first = own_start
        if WINDOW is not None:
            first = window_start(context_len, WINDOW)
            own_start = first // TILE_TOKENS * TILE_TOKENS
        num_tiles = (context_len - own_start + TILE_TOKENS - 1) // TILE_TOKENS
        sequence_start = tl.load(schedule_ptr + 1 + sequence) * NUM_ROWS
        row = (unit - sequence_start) // (num_tiles + ROW_UNITS)
        first_unit = sequence_start + row * (num_tiles + ROW_UNITS) + ROW_UNITS  # of the row's tiles
        first_tile = tl.maximum(unit - first_unit, 0)
        end_tile = tl.minimum(chunk_end - first_unit, num_tiles)

        rows = (row % NUM_ROW_TILES) * TILE_ROWS + tl.arange(0, DOT_ROWS)
        heads = row // NUM_ROW_TILES * GROUP + rows
        is_row = (tl.arange(0, DOT_ROWS) < TILE_ROWS) & (rows < GROUP)
        mask = is_row[:, None] & (dims < HEAD_DIM)[None, :]
        out_rows = sequence.to(tl.int64) * NUM_HEADS + heads
        if first_tile < end_tile:
            query_row_ptr = query_ptr + sequence.to(tl.int64) * query_stride_token + heads * query_stride_head
            query = load_query(query_row_ptr, is_row, HEAD_DIM, TILE_DIMS, IS_FP8)
            row_ptr = table_ptr + sequence.to(tl.int64) * table_stride
            key_ptr = kv_ptr + row // NUM_ROW_TILES * head_stride
            top = tl.full([DOT_ROWS], float("-inf"), tl.float32)
            total = tl.zeros([DOT_ROWS], tl.float32)
            sums = zero_parts(DOT_ROWS, TILE_DIMS, IS_FP8)
            first_token = own_start + first_tile * TILE_TOKENS
            next_ids = load_block_ids(row_ptr, first_token, context_len, BLOCK_SIZE, IS_CONTIGUOUS, TILE_TOKENS)
            for tile in range(first_tile, end_tile):
                start = own_start + tile * TILE_TOKENS
                block_ids = next_ids
                if not IS_CONTIGUOUS:  # a tile early, so that K and V never wait for the table
                    next_start = start + TILE_TOKENS
                    next_ids = load_block_ids(row_ptr, next_start, context_len, BLOCK_SIZE, False, TILE_TOKENS)
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
                    first,
                    context_len,
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
            acc = whole(sums, IS_FP8) / total[:, None] * value_scale
            log_sum = top + tl.log2(total)
            if end_tile - first_tile == num_tiles:
                if HAS_SHARED:
                    acc = merge_shared(
                        acc,
                        log_sum,
                        shared_partial_ptr,
                        shared_log_sum_ptr,
                        tl.load(num_levels_ptr + sequence),
                        num_sequences * NUM_HEADS,
                        out_rows,
                        mask,
                        is_row,
                        HEAD_DIM,
                        TILE_DIMS,
                    )
                out = acc.to(out_ptr.dtype.element_ty)
                tl.store(out_ptr + out_rows[:, None] * HEAD_DIM + dims[None, :], out, mask=mask)
            else:
                first_program = first_unit // chunk
                last_program = (first_unit + num_tiles - 1) // chunk
                slot = program * 2 + (program == first_program).to(tl.int32)
                piece_rows = slot * TILE_ROWS + tl.arange(0, DOT_ROWS)
                is_stored = (tl.arange(0, DOT_ROWS) < TILE_ROWS)[:, None] & (dims < HEAD_DIM)[None, :]
                tl.store(partial_ptr + piece_rows[:, None] * HEAD_DIM + dims[None, :], acc, mask=is_stored)
                tl.store(log_sum_ptr + piece_rows, log_sum, mask=tl.arange(0, DOT_ROWS) < TILE_ROWS)
                counter_ptr = num_arrived_ptr + sequence * NUM_ROWS + row
                tl.debug_barrier()  # all threads have stored their parts before one of them says so
                num_before = tl.atomic_add(counter_ptr, 1, sem="acq_rel")
                if num_before == last_program - first_program:
                    tl.store(counter_ptr, 0)  # for the next launch
                    merged, merged_log_sum = _merge_pieces(
                        partial_ptr,
                        log_sum_ptr,
                        first_program,
                        last_program,
                        HEAD_DIM,
                        TILE_ROWS,
                        TILE_DIMS,
                        TILE_PIECES,
                    )
                    merged_rows = (row % NUM_ROW_TILES) * TILE_ROWS + tl.arange(0, TILE_ROWS)
                    merged_heads = sequence.to(tl.int64) * NUM_HEADS + row // NUM_ROW_TILES * GROUP + merged_rows
                    is_merged = merged_rows < GROUP
                    merged_mask = is_merged[:, None] & (dims < HEAD_DIM)[None, :]
                    if HAS_SHARED:
                        merged = merge_shared(
                            merged,
                            merged_log_sum,
                            shared_partial_ptr,
                            shared_log_sum_ptr,
                            tl.load(num_levels_ptr + sequence),
                            num_sequences * NUM_HEADS,
                            merged_heads,
                            merged_mask,
                            is_merged,
                            HEAD_DIM,
                            TILE_DIMS,
                        )
                    tl.store(
                        out_ptr + merged_heads[:, None] * HEAD_DIM + dims[None, :],
                        merged.to(out_ptr.dtype.element_ty),
                        mask=merged_mask,
                    )
        elif num_tiles == 0:
            zeros = tl.zeros([DOT_ROWS, TILE_DIMS], out_ptr.dtype.element_ty)
            tl.store(out_ptr + out_rows[:, None] * HEAD_DIM + dims[None, :], zeros, mask=mask)
        unit = first_unit + num_tiles
        sequence += (row == NUM_ROWS - 1).to(tl.int32)


_launch = Launcher(_decode_attention_kernel)
_checked = Checked()


def decode_attention(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    scale: float,
    is_contiguous: bool = False,
    out: torch.Tensor | None = None,
    plan: DecodePlan | None = None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
    window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """Attend from one token per sequence to the sequence's KV, its own included: ``(B, H, D)``.

    Safe to capture in a CUDA graph: no synchronisation, and launches that depend on shapes only.

    Args:
        query: ``(B, H, D)``, float32, bfloat16 or float16; the last dimension contiguous.
        kv: one layer of the pool (kv_layout.py), of query's dtype or FP8, H a multiple of its KV heads.
        table: int32 ``(B, width)``: block tables, or in column 0 the first slots of extents.
        context_lens: int32 ``(B,)``, tokens to attend to. 0 (the padding of a CUDA graph) gives zeros and
            reads nothing.
        scale: positive factor of the scores, usually ``D ** -0.5``.
        is_contiguous: how the table addresses the pool.
        out: where to write, contiguous; a new tensor otherwise.
        plan: what ``plan_for`` made of the same context_lens, shapes and window, for all layers of a step; made anew
            otherwise. With shared runs in it, each of them is read once for all its members.
        key_scale: what K was divided by when it was written, where kv holds 8-bit floats.
        value_scale: likewise for V.
        window: how many tokens a query sees at most, its own included; None: all before it.
        soft_cap: c of c * tanh(scaled score / c); None: scores stay as they are.

    Raises:
        ValueError: a shape, dtype, stride or number that does not fit, naming the argument.
    """
    if out is None:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    layout = (layout_of(query, kv, table, context_lens, out), is_contiguous, window, soft_cap)
    if layout not in _checked:
        check_attention(query, kv, table, context_lens, is_contiguous, window, soft_cap)
        check_shape("query", query, (table.shape[0], *query.shape[1:]))
        check_shape("out", out, query.shape)
        check_dtype("out", out, query.dtype)
        check_contiguous("out", out)
        _checked.add(layout)
    if plan is not None and plan.window != window:
        raise ValueError(f"plan is for window {plan.window} and window is {window}; they must be equal")
    if not runs_on_triton(query):
        result = decode_attention_reference(
            query,
            kv,
            table,
            context_lens,
            scale=scale,
            is_contiguous=is_contiguous,
            key_scale=key_scale,
            value_scale=value_scale,
            window=window,
            soft_cap=soft_cap,
        )
        return out.copy_(result)
    plan = plan or _plan(query, kv, context_lens, window=window)
    return decode_attention_triton(
        query,
        kv,
        table,
        context_lens,
        out,
        scale=scale,
        is_contiguous=is_contiguous,
        plan=plan,
        key_scale=key_scale,
        value_scale=value_scale,
        soft_cap=soft_cap,
        layout=layout,
    )


def plan_for(
    query: torch.Tensor,
    kv: torch.Tensor,
    context_lens: torch.Tensor,
    shared: SharedRuns | None = None,
    window: int | None = None,
) -> DecodePlan | None:
    """The plan of all calls with these shapes and lengths, and either shared runs (paged only) or a window.

    None where no kernel runs.
    """
    return _plan(query, kv, context_lens, shared, window) if runs_on_triton(query) else None


def _plan(
    query: torch.Tensor,
    kv: torch.Tensor,
    context_lens: torch.Tensor,
    shared: SharedRuns | None = None,
    window: int | None = None,
) -> DecodePlan:
    return plan_decode(
        context_lens,
        shared,
        num_heads=query.shape[1],
        num_kv_heads=kv.shape[2],
        head_dim=kv.shape[4],
        tiling=choose_decode_tiling(device_limits(kv), Operands.of(query, kv)),
        window=window,
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
    plan: DecodePlan,
    shared_tiling: SharedTiling | None = None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
    soft_cap: float | None = None,
    layout: Hashable = None,
) -> torch.Tensor:
    """Launch the kernels on checked arguments (see ``decode_attention``), shared out as ``plan`` says."""
    layout = layout or (layout_of(query, kv, table, context_lens, out), is_contiguous, plan.window, soft_cap)
    if query.shape[0] == 0:
        return out
    runs = plan.shared
    if runs is not None:
        _check_plan(plan, query, kv.shape[2])
        shared_attention_triton(
            query,
            kv,
            table,
            runs,
            plan.shared_partial,
            plan.shared_log_sum,
            scale=scale * key_scale,
            value_scale=value_scale,
            soft_cap=soft_cap,
            tiling=shared_tiling or choose_shared_tiling(device_limits(kv), Operands.of(query, kv)),
        )
    _launch(
        (layout, plan.key),
        (query, kv, table, context_lens, out),
        (scale * key_scale * LOG2_E, float(value_scale)),
        lambda: _first_launch(query, kv, table, plan, is_contiguous, soft_cap),
        plan.scratch,
    )
    return out


def _check_plan(plan: DecodePlan, query: torch.Tensor, num_kv_heads: int) -> None:
    num_sequences, num_heads, head_dim = query.shape
    num_rows = num_kv_heads * row_tiles(num_heads // num_kv_heads)[1]
    if (plan.num_sequences, plan.num_rows, plan.partial.shape[-1]) != (num_sequences, num_rows, head_dim):
        raise ValueError(
            f"plan is for {plan.num_sequences} sequences of {plan.num_rows} rows; query has shape {tuple(query.shape)}"
        )


def _first_launch(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    plan: DecodePlan,
    is_contiguous: bool,
    soft_cap: float | None,
) -> Launch:
    num_sequences, num_heads, head_dim = query.shape
    num_kv_heads, num_slots = kv.shape[2], kv.shape[3]
    tiling, tile_dims = plan.tiling, tile_dims_of(kv)
    _check_plan(plan, query, num_kv_heads)
    options = {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": 1 if is_contiguous else num_slots,
        "IS_CONTIGUOUS": is_contiguous,
        "HAS_SHARED": plan.shared is not None,
        "NUM_ROWS": plan.num_rows,
        "ROW_UNITS": ROW_UNITS,
        "TILE_ROWS": plan.tile_rows,
        "DOT_ROWS": max(plan.tile_rows, 16),
        "TILE_TOKENS": tiling.tile_tokens,
        "TILE_DIMS": tile_dims,
        "TILE_PIECES": max(MERGE_NUMEL // (plan.tile_rows * tile_dims), 1),
        "WINDOW": plan.window,
        "SOFT_CAP": soft_cap,
        "num_warps": tiling.num_warps,
        "num_stages": tiling.tiles_in_flight + 1,
        "maxnreg": tiling.max_registers,
    }
    integers = (num_sequences, query.stride(0), query.stride(1), table.stride(0), num_slots)
    return Launch((plan.num_programs, 1, 1), integers, options)


def decode_attention_reference(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    scale: float,
    is_contiguous: bool = False,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
    window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """``decode_attention`` in plain torch, all sequences at once; float64 too."""
    num_sequences, num_heads, head_dim = query.shape
    num_kv_heads = kv.shape[2]
    max_context = int(context_lens.max()) if num_sequences else 0
    if max_context == 0:
        return torch.zeros_like(query)
    compute_dtype = torch.promote_types(query.dtype, torch.float32)
    key, value = gather_kv(kv, table, context_lens, max_context, is_contiguous, compute_dtype)
    grouped = (query.to(compute_dtype) * (scale * key_scale)).reshape(num_sequences, num_kv_heads, -1, head_dim)
    scores = grouped @ key.transpose(2, 3)  # (num_sequences, num_kv_heads, group, length)
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    lens, tokens = context_lens[:, None, None, None], torch.arange(key.shape[2], device=key.device)
    scores.masked_fill_(tokens >= lens, float("-inf"))
    if window is not None:
        is_before = tokens < lens - window
        scores.masked_fill_(is_before, float("-inf"))
        value.masked_fill_(is_before.mT, 0)  # 0 * NaN is NaN
    out = scores.softmax(dim=-1) @ value * value_scale
    out.masked_fill_(lens == 0, 0)
    return out.reshape(num_sequences, num_heads, head_dim).to(query.dtype)
