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

On Hopper most decodes without such runs go to the kernel of hopper_decode.py instead.

What is read before the kernel before is done
    A launch begins when every program of the kernel before it has let it (compiler.py). That one writes K and V of the
    step's tokens (project_write_kv.py, rotary_write_kv.py), or attends to shared runs, and lets the launch begin only
    after its own wait. So all kernels before that one are done, and nothing else writes the layer: copies, moves and
    swaps are made before a step's first layer, and the first launch of a plan waits before it reads anything.
    A later launch of the plan reads plan, lengths and table at once. So it does K and V of a program's first tiles,
    where no token of the step is among them: none is among what was written in earlier steps, and of the others each
    is the last of its own sequence, as far as the plan was told so (``is_kv_settled``), and in no tile that a program
    loads before its first is computed (``TILES_AHEAD``). Queries come after the wait, and so does all that is written.
"""

import math
from functools import cache, partial
from typing import Any

import torch

from pbench.kernels.compiler import jit, let_next_launch, tl, wait_and_let_next, wait_for_previous
from pbench.kernels.decode_plan import NUM_FIELDS, DecodePlan, plan_decode, tiles_start, window_start
from pbench.kernels.kv_layout import check_attention, gather_kv, load_block_ids
from pbench.kernels.kv_tiles import load_rows, query_parts, tile_dims_of, whole, zero_parts
from pbench.kernels.launch import (
    can_launch_early,
    check_contiguous,
    check_dtype,
    check_shape,
    device_limits,
    runs_on_hopper,
    runs_on_triton,
)
from pbench.kernels.launcher import Checked, Launch, Launcher
from pbench.kernels.online_softmax import attend_tile
from pbench.kernels.shared_attention import SharedRuns, merge_shared, shared_attention_triton
from pbench.kernels.tiling import MIN_ROWS, Operands, SharedTiling, program_bytes, row_tiles
from pbench.kernels.tuning_table import choose_decode_tiling, choose_shared_tiling

# Numbers of a row's pieces that a thread holds at once when it merges them; half as many where it has no registers for
# so many and their sums. On an H200 one sequence of 8192 tokens, in 32 pieces, took 16.5 us with 128 and about 20 with
# 64.
MERGE_NUMEL = 128
MERGE_REGISTERS = 240
# Most rows have no more pieces; to merge as many as threads can hold takes longer, however few there are.
FEW_PIECES = 8
LOG2_E = math.log2(math.e)


@jit()
def _merge_pieces(
    partial_ptr: tl.pointer_type,  # (num_programs, 2, TILE_ROWS, HEAD_DIM)
    log_sum_ptr: tl.pointer_type,  # (num_programs, 2, TILE_ROWS)
    first_program: tl.tensor,  # its piece lies at index 1, those of the programs after it at index 0
    num_pieces: tl.tensor,
    NUM_ABREAST: tl.constexpr,  # so far from one another lie the programs of a row's pieces
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
    for start in range(0, num_pieces, TILE_PIECES):
        pieces = start + tl.arange(0, TILE_PIECES)
        is_piece = pieces < num_pieces
        slots = (first_program + pieces * NUM_ABREAST) * 2 + (pieces == 0).to(tl.int32)
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


@jit()
def _row_heads(
    row: tl.tensor,  # of a sequence
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_ROW_TILES: tl.constexpr,
    TILE_ROWS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The query heads of a row: ``(ROWS,)``, and which of them there are."""
    places = tl.arange(0, ROWS)
    group_places = (row % NUM_ROW_TILES) * TILE_ROWS + places
    return row // NUM_ROW_TILES * GROUP + group_places, (places < TILE_ROWS) & (group_places < GROUP)


@jit()
def _store_row(
    acc: tl.tensor,  # (ROWS, TILE_DIMS), ROWS at least TILE_ROWS: attention over the sequence's own tokens
    log_sum: tl.tensor,  # (ROWS,)
    sequence: tl.tensor,
    row: tl.tensor,
    out_ptr: tl.pointer_type,
    num_levels_ptr: tl.pointer_type,
    shared_partial_ptr: tl.pointer_type,
    shared_log_sum_ptr: tl.pointer_type,
    num_sequences: tl.tensor,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HAS_SHARED: tl.constexpr,
    NUM_ROW_TILES: tl.constexpr,
    TILE_ROWS: tl.constexpr,
) -> None:
    """Store a row of which all own tokens are done, merged with what the shared runs gave for it."""
    dims = tl.arange(0, acc.shape[1])
    heads, is_row = _row_heads(row, acc.shape[0], GROUP, NUM_ROW_TILES, TILE_ROWS)
    out_rows = sequence.to(tl.int64) * NUM_HEADS + heads
    mask = is_row[:, None] & (dims < HEAD_DIM)[None, :]
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
            acc.shape[1],
        )
    out = acc.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_rows[:, None] * HEAD_DIM + dims[None, :], out, mask=mask)


@jit(
    do_not_specialize=("table_stride", "num_slots", "num_sequences", "is_settled"),
    do_not_specialize_on_alignment=("table_ptr", "context_lens_ptr", "own_start_ptr", "num_levels_ptr"),
)
def _decode_attention_kernel(
    query_ptr: tl.pointer_type,  # (num_sequences, NUM_HEADS, HEAD_DIM)
    kv_ptr: tl.pointer_type,  # (num_blocks, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    table_ptr: tl.pointer_type,  # (num_sequences, width)
    context_lens_ptr: tl.pointer_type,  # (num_sequences,)
    out_ptr: tl.pointer_type,  # (num_sequences, NUM_HEADS, HEAD_DIM)
    schedule_ptr: tl.pointer_type,  # (num_programs, NUM_FIELDS): see decode_plan.py
    num_arrived_ptr: tl.pointer_type,  # (num_programs,)
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
    is_settled: tl.tensor,  # whether a launch before this one read the same schedule, table and lengths
    scale_log2: tl.tensor,  # scale * key_scale * log2(e)
    value_scale: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,  # paged addressing only
    IS_CONTIGUOUS: tl.constexpr,
    HAS_SHARED: tl.constexpr,
    NUM_ROWS: tl.constexpr,  # of a sequence: KV heads x tiles of their query heads
    NUM_ABREAST: tl.constexpr,  # rows side by side, each with programs of its own: see decode_plan.py
    NUM_FIELDS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    DOT_ROWS: tl.constexpr,  # TILE_ROWS, padded to what a matrix product takes
    TILE_TOKENS: tl.constexpr,
    TILE_DIMS: tl.constexpr,
    TILE_PIECES: tl.constexpr,  # merged at once where a row has more than FEW_PIECES
    FEW_PIECES: tl.constexpr,
    WINDOW: tl.constexpr,  # see attend_tile
    SOFT_CAP: tl.constexpr,
    IS_EARLY: tl.constexpr,  # launched before the kernel before it is done
    READS_AHEAD: tl.constexpr,  # and may read K and V before, where the plan, which is settled, says so
) -> None:
    """Grid: (num_programs,)."""
    # Before it waits, a launch of a settled plan reads what was there when the first launch of the plan began. That one
    # waited for what was before it, and only then let other kernels begin.
    if IS_EARLY and is_settled == 0:
        wait_for_previous()
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    IS_FP8: tl.constexpr = kv_ptr.dtype.element_ty == tl.float8e4nv
    NUM_ROW_TILES: tl.constexpr = NUM_ROWS // NUM_KV_HEADS
    LOWEST: tl.constexpr = -3.4028234663852886e38  # finite: a row may see nothing
    program = tl.program_id(0)
    record_ptr = schedule_ptr + program * NUM_FIELDS
    sequence = tl.load(record_ptr)
    row = tl.load(record_ptr + 1)
    start = tl.load(record_ptr + 2)
    context_len = tl.load(record_ptr + 3)
    num_tiles = tl.load(record_ptr + 4)
    first_program = tl.load(record_ptr + 5)
    num_continued_pieces = tl.load(record_ptr + 6)
    num_begun_pieces = tl.load(record_ptr + 7)
    num_ahead = tl.load(record_ptr + 8) if READS_AHEAD else 0
    continued_sequence, continued_row = sequence, row
    is_continued = num_continued_pieces > 0
    head_stride = num_slots.to(tl.int64) * HEAD_DIM if IS_CONTIGUOUS else BLOCK_SIZE * HEAD_DIM
    value_offset = NUM_KV_HEADS * head_stride
    dims = tl.arange(0, TILE_DIMS)
    dot_rows = tl.arange(0, DOT_ROWS)

    # One loop over the tiles of all rows, so that K and V of the next row are on their way before the last one is
    # done. What it takes to load a tile is there a tile earlier: block ids, queries, and the length of the sequence
    # that follows.
    is_next = sequence + 1 < num_sequences
    next_len = tl.load(context_lens_ptr + sequence + 1, mask=is_next, other=0)
    if HAS_SHARED:
        own_start = tl.load(own_start_ptr + sequence, mask=sequence < num_sequences, other=0)
        next_own_start = tl.load(own_start_ptr + sequence + 1, mask=is_next, other=0)
    table_row_ptr = table_ptr + sequence.to(tl.int64) * table_stride
    # What its first rounds load, a loop asks for before it begins. So that this is before the wait where K and V may be
    # read then, the loop has a round with no tile before the others, which waits and loads queries.
    ids_end = tl.where(num_ahead > 0, 0, context_len)
    next_ids = load_block_ids(table_row_ptr, start, ids_end, BLOCK_SIZE, IS_CONTIGUOUS, TILE_TOKENS)
    if IS_EARLY and num_ahead == 0:
        wait_for_previous()
        let_next_launch()
    heads, is_row = _row_heads(row, DOT_ROWS, GROUP, NUM_ROW_TILES, TILE_ROWS)
    query_row_ptr = query_ptr + sequence.to(tl.int64) * query_stride_token + heads * query_stride_head
    is_loaded = is_row & (sequence < num_sequences) & (num_ahead == 0)
    next_query = load_rows(query_row_ptr, is_loaded, HEAD_DIM, TILE_DIMS)
    start -= num_ahead * TILE_TOKENS
    top = tl.full([DOT_ROWS], LOWEST, tl.float32)
    total = tl.zeros([DOT_ROWS], tl.float32)
    sums = zero_parts(DOT_ROWS, TILE_DIMS, IS_FP8)
    for index in range(-num_ahead, num_tiles):
        block_ids, query = next_ids, query_parts(next_query, IS_FP8)
        tile_start, tile_end, tile_sequence, tile_row = start, context_len, sequence, row
        if READS_AHEAD:
            tile_end = tl.where(index < 0, start, context_len)
        first = window_start(context_len, WINDOW) if WINDOW is not None else 0

        start += TILE_TOKENS
        is_row_end = start >= context_len
        if READS_AHEAD:
            is_row_end &= index >= 0
        row += is_row_end.to(tl.int32) * NUM_ABREAST
        is_sequence_end = row >= NUM_ROWS
        row = tl.where(is_sequence_end, row - NUM_ROWS, row)
        sequence += is_sequence_end.to(tl.int32)
        context_len = tl.where(is_sequence_end, next_len, context_len)
        is_next = sequence + 1 < num_sequences
        next_len = tl.load(context_lens_ptr + sequence + 1, mask=is_next, other=0)
        if HAS_SHARED:
            own_start = tl.where(is_sequence_end, next_own_start, own_start)
            next_own_start = tl.load(own_start_ptr + sequence + 1, mask=is_next, other=0)
            start = tl.where(is_row_end, own_start, start)
        else:
            start = tl.where(is_row_end, tiles_start(context_len, WINDOW, TILE_TOKENS), start)
        table_row_ptr = table_ptr + sequence.to(tl.int64) * table_stride
        next_ids = load_block_ids(table_row_ptr, start, context_len, BLOCK_SIZE, IS_CONTIGUOUS, TILE_TOKENS)
        heads, is_row = _row_heads(row, DOT_ROWS, GROUP, NUM_ROW_TILES, TILE_ROWS)
        query_row_ptr = query_ptr + sequence.to(tl.int64) * query_stride_token + heads * query_stride_head
        if READS_AHEAD:
            query_row_ptr += wait_and_let_next(index < 0)
        next_query = load_rows(query_row_ptr, is_row & (sequence < num_sequences), HEAD_DIM, TILE_DIMS)

        top, total, sums = attend_tile(
            query,
            None,
            top,
            total,
            sums,
            kv_ptr + tile_row // NUM_ROW_TILES * head_stride,
            value_offset,
            block_ids,
            tile_start,
            first,
            tile_end,
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
        if is_row_end | (index == num_tiles - 1):
            total = tl.where(total == 0, 1.0, total)  # of no tokens: zeros
            acc = whole(sums, IS_FP8) / total[:, None] * value_scale
            log_sum = top + tl.log2(total)
            if is_row_end & (not is_continued):
                _store_row(
                    acc,
                    log_sum,
                    tile_sequence,
                    tile_row,
                    out_ptr,
                    num_levels_ptr,
                    shared_partial_ptr,
                    shared_log_sum_ptr,
                    num_sequences,
                    NUM_HEADS,
                    GROUP,
                    HEAD_DIM,
                    HAS_SHARED,
                    NUM_ROW_TILES,
                    TILE_ROWS,
                )
            else:
                piece_rows = (program * 2 + tl.where(is_continued, 0, 1)) * TILE_ROWS + dot_rows
                is_stored = (dot_rows < TILE_ROWS)[:, None] & (dims < HEAD_DIM)[None, :]
                tl.store(partial_ptr + piece_rows[:, None] * HEAD_DIM + dims[None, :], acc, mask=is_stored)
                tl.store(log_sum_ptr + piece_rows, log_sum, mask=dot_rows < TILE_ROWS)
            is_continued = index < 0  # never again
            top = tl.full([DOT_ROWS], LOWEST, tl.float32)
            total = tl.zeros([DOT_ROWS], tl.float32)
            sums = zero_parts(DOT_ROWS, TILE_DIMS, IS_FP8)

    # The row that another program began, and the one that others go on with: whoever comes last merges the pieces.
    places = tl.arange(0, 2)
    num_pieces = tl.where(places == 0, num_continued_pieces, num_begun_pieces)
    counter_ptrs = num_arrived_ptr + tl.where(places == 0, first_program, program)
    tl.debug_barrier()  # all threads have stored their parts before one of them says so
    num_before = tl.atomic_add(counter_ptrs, 1, mask=num_pieces > 0, sem="acq_rel")
    is_last = (num_pieces > 0) & (num_before == num_pieces - 1)
    tl.store(counter_ptrs, 0, mask=is_last)  # for the next launch
    for place in range(2):
        if tl.sum((is_last & (places == place)).to(tl.int32), 0) > 0:
            piece_sequence, piece_row, piece_program, count = sequence, row, program, num_begun_pieces
            if place == 0:
                piece_sequence, piece_row = continued_sequence, continued_row
                piece_program, count = first_program, num_continued_pieces
            if count <= FEW_PIECES:
                merged, merged_log_sum = _merge_pieces(
                    partial_ptr,
                    log_sum_ptr,
                    piece_program,
                    count,
                    NUM_ABREAST,
                    HEAD_DIM,
                    TILE_ROWS,
                    TILE_DIMS,
                    FEW_PIECES,
                )
            else:
                merged, merged_log_sum = _merge_pieces(
                    partial_ptr,
                    log_sum_ptr,
                    piece_program,
                    count,
                    NUM_ABREAST,
                    HEAD_DIM,
                    TILE_ROWS,
                    TILE_DIMS,
                    TILE_PIECES,
                )
            _store_row(
                merged,
                merged_log_sum,
                piece_sequence,
                piece_row,
                out_ptr,
                num_levels_ptr,
                shared_partial_ptr,
                shared_log_sum_ptr,
                num_sequences,
                NUM_HEADS,
                GROUP,
                HEAD_DIM,
                HAS_SHARED,
                NUM_ROW_TILES,
                TILE_ROWS,
            )


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
            otherwise. With shared runs in it, each of them is read once for all its members. From the second launch
            with the same plan and table on, these and context_lens are read before the kernel before it is done, which
            must not write them, and must not let it begin before its own wait.
        key_scale: what K was divided by when it was written, where kv holds 8-bit floats.
        value_scale: likewise for V.
        window: how many tokens a query sees at most, its own included; None: all before it.
        soft_cap: c of c * tanh(scaled score / c); None: scores stay as they are.

    Raises:
        ValueError: a shape, dtype, stride or number that does not fit, naming the argument.
    """
    if out is None:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
    if plan is not None and plan.window != window:
        raise ValueError(f"plan is for window {plan.window} and window is {window}; they must be equal")
    if not runs_on_triton(query):
        _check(query, kv, table, context_lens, out, is_contiguous, window, soft_cap)
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
    if plan is None:
        _check(query, kv, table, context_lens, out, is_contiguous, window, soft_cap)
        plan = _plan(query, kv, context_lens, window=window)
    return _attend(query, kv, table, context_lens, out, plan, scale * key_scale, value_scale, is_contiguous, soft_cap)


def _check(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    context_lens: torch.Tensor,
    out: torch.Tensor,
    is_contiguous: bool,
    window: int | None,
    soft_cap: float | None,
) -> None:
    check_attention(query, kv, table, context_lens, is_contiguous, window, soft_cap)
    check_shape("query", query, (table.shape[0], *query.shape[1:]))
    check_shape("out", out, query.shape)
    check_dtype("out", out, query.dtype)
    check_contiguous("out", out)


def plan_for(
    query: torch.Tensor,
    kv: torch.Tensor,
    context_lens: torch.Tensor,
    shared: SharedRuns | None = None,
    window: int | None = None,
    is_kv_settled: torch.Tensor | None = None,
) -> DecodePlan | None:
    """The plan of all calls with these shapes and lengths, and either shared runs (paged only) or a window.

    ``is_kv_settled``, int32 ``(1,)``: 1 where the kernel before each of those calls writes of the KV that they read
    nothing but the last token of each sequence, which then needs no waiting for; 0 or None: it may write any.

    None where no kernel runs.
    """
    return _plan(query, kv, context_lens, shared, window, is_kv_settled) if runs_on_triton(query) else None


def _plan(
    query: torch.Tensor,
    kv: torch.Tensor,
    context_lens: torch.Tensor,
    shared: SharedRuns | None = None,
    window: int | None = None,
    is_kv_settled: torch.Tensor | None = None,
) -> DecodePlan:
    num_rows = query.shape[0] * kv.shape[2]
    box = _hopper().box_for(query, kv) if shared is None and window is None and runs_on_hopper(query) else 0
    if box:
        tiling = _hopper().tiling_for(num_rows)
    else:
        tiling = choose_decode_tiling(device_limits(kv), Operands.of(query, kv), num_rows)
    return plan_decode(
        context_lens,
        shared,
        is_kv_settled,
        num_heads=query.shape[1],
        num_kv_heads=kv.shape[2],
        head_dim=kv.shape[4],
        tiling=tiling,
        box=box,
        window=window,
    )


@cache
def _hopper() -> Any:
    """Imported where it may be launched: its language comes with some versions of Triton only."""
    from pbench.kernels import hopper_decode

    return hopper_decode


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
) -> torch.Tensor:
    """Launch the kernels (see ``decode_attention``), the work shared out as ``plan`` says."""
    return _attend(
        query,
        kv,
        table,
        context_lens,
        out,
        plan,
        scale * key_scale,
        value_scale,
        is_contiguous,
        soft_cap,
        shared_tiling,
    )


def _attend(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    context_lens: torch.Tensor,
    out: torch.Tensor,
    plan: DecodePlan,
    scale: float,
    value_scale: float,
    is_contiguous: bool,
    soft_cap: float | None,
    shared_tiling: SharedTiling | None = None,
) -> torch.Tensor:
    """What every layer of every step calls: arguments are looked at once for each layout that they have."""
    step = plan.step
    is_settled = step.knows(table, context_lens)
    key = (
        query.get_device(),
        query.dtype,
        query.shape,
        query.stride(),
        kv.dtype,
        kv.shape,
        kv.is_contiguous(),
        out.dtype,
        out.shape,
        out.is_contiguous(),
        plan.key,
        step.layout_of(table, context_lens),
        is_settled,
        is_contiguous,
        soft_cap,
    )  # all that checks look at, spelled out: layout_of the three tensors takes the host half as long again
    if plan.num_sequences == 0 or (plan.shared is not None and key not in _checked):
        _check_all(query, kv, table, context_lens, out, plan, is_contiguous, soft_cap)
        _checked.add(key)
    if plan.num_sequences == 0:
        return out
    if plan.shared is not None:
        shared_attention_triton(
            query,
            kv,
            table,
            plan.shared,
            plan.shared_partial,
            plan.shared_log_sum,
            scale=scale,
            value_scale=value_scale,
            soft_cap=soft_cap,
            tiling=shared_tiling or choose_shared_tiling(device_limits(kv), Operands.of(query, kv)),
        )
    scales = (scale * LOG2_E, float(value_scale))
    if plan.box and soft_cap is None and (is_contiguous or kv.shape[3] % plan.box == 0):
        hopper = _hopper()
        addresses: tuple[int, ...] = (query.data_ptr(), *step.addresses, out.data_ptr())
        if not hopper.launch.again(key, addresses, scales, plan.scratch, kv.data_ptr()):
            first = partial(_first_on_hopper, query, kv, table, context_lens, out, plan, is_settled, is_contiguous)
            hopper.launch(key, (query, table, context_lens, out), scales, first, plan.scratch, kv.data_ptr())
        return out
    addresses = (query.data_ptr(), kv.data_ptr(), *step.addresses, out.data_ptr())
    if not _launch.again(key, addresses, scales, plan.scratch):
        first = partial(_first_launch, query, kv, table, context_lens, out, plan, is_settled, is_contiguous, soft_cap)
        _launch(key, (query, kv, table, context_lens, out), scales, first, plan.scratch)
    return out


def _check_all(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    context_lens: torch.Tensor,
    out: torch.Tensor,
    plan: DecodePlan,
    is_contiguous: bool,
    soft_cap: float | None,
) -> None:
    _check(query, kv, table, context_lens, out, is_contiguous, plan.window, soft_cap)
    _check_plan(plan, query, kv.shape[2])


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
    context_lens: torch.Tensor,
    out: torch.Tensor,
    plan: DecodePlan,
    is_settled: bool,
    is_contiguous: bool,
    soft_cap: float | None,
) -> Launch:
    _check_all(query, kv, table, context_lens, out, plan, is_contiguous, soft_cap)
    num_sequences, num_heads, head_dim = query.shape
    num_kv_heads, num_slots = kv.shape[2], kv.shape[3]
    tiling, tile_dims = plan.tiling, tile_dims_of(kv)
    is_early = can_launch_early(kv)
    thread_numel = MERGE_NUMEL if tiling.max_registers >= MERGE_REGISTERS else MERGE_NUMEL // 2
    tile_pieces = max(tiling.num_warps * 32 * thread_numel // (plan.tile_rows * tile_dims), 1)
    if plan.tile_rows > MIN_ROWS:  # the pieces of so many rows Triton 3.6 adds up through shared memory
        most = program_bytes(tiling, device_limits(kv)) // (plan.tile_rows * tile_dims * 4)
        tile_pieces = min(tile_pieces, 1 << (max(most, 1).bit_length() - 1))
    options = {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": 1 if is_contiguous else num_slots,
        "IS_CONTIGUOUS": is_contiguous,
        "HAS_SHARED": plan.shared is not None,
        "NUM_ROWS": plan.num_rows,
        "NUM_ABREAST": plan.num_abreast,
        "NUM_FIELDS": NUM_FIELDS,
        "TILE_ROWS": plan.tile_rows,
        "DOT_ROWS": max(plan.tile_rows, MIN_ROWS),
        "TILE_TOKENS": tiling.tile_tokens,
        "TILE_DIMS": tile_dims,
        "TILE_PIECES": tile_pieces,
        "FEW_PIECES": min(FEW_PIECES, tile_pieces),
        "WINDOW": plan.window,
        "SOFT_CAP": soft_cap,
        "IS_EARLY": is_early,
        "READS_AHEAD": is_early and is_settled and plan.may_be_settled,
        "launch_pdl": is_early,
        "num_warps": tiling.num_warps,
        "num_stages": tiling.tiles_in_flight + 1,
        "maxnreg": tiling.max_registers,
    }
    integers = (num_sequences, query.stride(0), query.stride(1), table.stride(0), num_slots, int(is_settled))
    return Launch((plan.num_programs, 1, 1), integers, options)


def _first_on_hopper(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    context_lens: torch.Tensor,
    out: torch.Tensor,
    plan: DecodePlan,
    is_settled: bool,
    is_contiguous: bool,
) -> Launch:
    _check_all(query, kv, table, context_lens, out, plan, is_contiguous, None)
    launch: Launch = _hopper().first_launch(query, kv, table, plan, is_settled, is_contiguous)
    return launch


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
