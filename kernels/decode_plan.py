"""How the work of decode attention is shared out evenly among programs, whatever the lengths of the sequences.

The KV of a sequence is cut into tiles of tokens. Every (sequence, KV head) pair, a *row*, has so many tiles, and
beside them ROW_UNITS units for what a row costs whatever its length. Laid end to end, the units of all rows form one
line. It is cut into equal chunks, and program p takes chunk p ("Stream-K", Osama, Merrill, Cecka, Garland, Owens,
2023, https://arxiv.org/abs/2301.03598). A row that a boundary cuts has several pieces; the program that finishes the
last of them merges all.

Everything is computed on the device, from the lengths, once for a step: all layers with the same window attend to the
same lengths. The launches depend on shapes alone, so one CUDA graph serves all lengths.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from pbench.kernels.compiler import jit, tl
from pbench.kernels.launch import ceil_div, device_limits, next_power_of_2
from pbench.kernels.launcher import Scratch
from pbench.kernels.shared_attention import MAX_LEVELS, SharedRuns
from pbench.kernels.tiling import DecodeTiling

# What starting and ending a row costs, in tiles. At least 1, so that a row without tiles belongs to some chunk too:
# its program writes zeros.
ROW_UNITS = 1

TILE_SEQUENCES = 1024


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """Chunks for one batch of lengths, and room for the pieces of rows. Serves one launch at a time."""

    tiling: DecodeTiling
    window: int | None
    num_sequences: int
    num_rows: int  # of a sequence
    tile_rows: int  # query heads of a row, padded to a power of two
    num_programs: int
    schedule: torch.Tensor  # int32 (1 + num_sequences + num_programs,): chunk, starts of sequences, first sequences
    num_arrived: torch.Tensor  # int32 (num_sequences * num_rows,): pieces finished; zero between launches
    partial: torch.Tensor  # float32 (num_programs, 2, tile_rows, head_dim): see decode_attention.py
    log_sum: torch.Tensor  # float32 (num_programs, 2, tile_rows)
    shared: SharedRuns | None  # that the chunks leave out
    shared_partial: torch.Tensor  # float32 (MAX_LEVELS, num_sequences, num_heads, head_dim), or empty without runs
    shared_log_sum: torch.Tensor  # float32 (MAX_LEVELS, num_sequences, num_heads), or empty
    key: Hashable  # equal keys mean launches of equal size, but for what query and kv say
    scratch: Scratch  # what the attention reads of all this, in the order of its parameters


@jit(
    do_not_specialize=("num_sequences", "num_programs"),
    do_not_specialize_on_alignment=("context_lens_ptr", "own_start_ptr"),
)
def _decode_plan_kernel(
    context_lens_ptr: tl.pointer_type,  # (num_sequences,)
    own_start_ptr: tl.pointer_type,  # (num_sequences,), with HAS_SHARED only
    schedule_ptr: tl.pointer_type,  # (1 + num_sequences + num_programs,)
    num_arrived_ptr: tl.pointer_type,  # (num_sequences * NUM_ROWS,)
    num_sequences: tl.tensor,
    num_programs: tl.tensor,
    HAS_SHARED: tl.constexpr,
    WINDOW: tl.constexpr,  # tokens of a sequence that are attended to at most, its last; None: all
    NUM_ROWS: tl.constexpr,
    ROW_UNITS: tl.constexpr,
    MIN_CHUNK: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_SEQUENCES: tl.constexpr,
) -> None:
    """Grid: (num_programs,), the programs of the attention. All of them add up the lengths; each finds its start."""
    program = tl.program_id(0)
    total = 0
    for first in range(0, num_sequences, TILE_SEQUENCES):
        units = _row_units(
            context_lens_ptr,
            own_start_ptr,
            first,
            num_sequences,
            HAS_SHARED,
            WINDOW,
            ROW_UNITS,
            TILE_TOKENS,
            TILE_SEQUENCES,
        )
        total += tl.sum(units, 0) * NUM_ROWS
    chunk = tl.maximum((total + num_programs - 1) // num_programs, MIN_CHUNK)
    start = 0
    num_before = 0
    for first in range(0, num_sequences, TILE_SEQUENCES):
        units = _row_units(
            context_lens_ptr,
            own_start_ptr,
            first,
            num_sequences,
            HAS_SHARED,
            WINDOW,
            ROW_UNITS,
            TILE_TOKENS,
            TILE_SEQUENCES,
        )
        ends = start + tl.cumsum(units, 0)
        sequences = first + tl.arange(0, TILE_SEQUENCES)
        is_sequence = sequences < num_sequences
        num_before += tl.sum((is_sequence & (ends * NUM_ROWS <= program * chunk)).to(tl.int32), 0)
        if program == 0:
            tl.store(schedule_ptr + 1 + sequences, ends - units, mask=is_sequence)
        start += tl.sum(units, 0)
    tl.store(schedule_ptr + 1 + num_sequences + program, num_before)
    if program == 0:
        tl.store(schedule_ptr, chunk)
    for first in range(program * TILE_SEQUENCES, num_sequences * NUM_ROWS, num_programs * TILE_SEQUENCES):
        counters = first + tl.arange(0, TILE_SEQUENCES)
        tl.store(num_arrived_ptr + counters, 0, mask=counters < num_sequences * NUM_ROWS)


@jit()
def _row_units(
    context_lens_ptr: tl.pointer_type,
    own_start_ptr: tl.pointer_type,
    first: tl.tensor,
    num_sequences: tl.tensor,
    HAS_SHARED: tl.constexpr,
    WINDOW: tl.constexpr,
    ROW_UNITS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_SEQUENCES: tl.constexpr,
) -> tl.tensor:
    """Units of a row of each of the sequences from ``first`` on: int32 ``(TILE_SEQUENCES,)``."""
    sequences = first + tl.arange(0, TILE_SEQUENCES)
    is_sequence = sequences < num_sequences
    num_tokens = tl.load(context_lens_ptr + sequences, mask=is_sequence, other=0)
    if HAS_SHARED:
        num_tokens -= tl.load(own_start_ptr + sequences, mask=is_sequence, other=0)
    if WINDOW is not None:
        num_tokens -= window_start(num_tokens, WINDOW) // TILE_TOKENS * TILE_TOKENS
    return tl.where(is_sequence, (num_tokens + TILE_TOKENS - 1) // TILE_TOKENS + ROW_UNITS, 0)


@jit()
def window_start(context_len: tl.tensor, WINDOW: tl.constexpr) -> tl.tensor:
    """The first token of a context that its last one sees."""
    return tl.maximum(context_len - WINDOW, 0)


def plan_decode(
    context_lens: torch.Tensor,
    shared: SharedRuns | None = None,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    tiling: DecodeTiling,
    window: int | None = None,
) -> DecodePlan:
    """Share out the work for these lengths: one launch, safe to capture in a CUDA graph.

    Args:
        context_lens: int32 ``(num_sequences,)`` on the device; read by the launch, not afterwards.
        shared: runs that several sequences share and that are attended to apart; paged addressing only.
        num_heads: query heads.
        num_kv_heads: divides num_heads.
        head_dim: of every head.
        tiling: how the attention that follows the plan is cut up.
        window: last tokens of a sequence that are attended to at most; None: all. The tiles begin with the window's.

    Raises:
        ValueError: shared runs together with a window.
    """
    if shared is not None and window is not None:
        raise ValueError(f"window {window} cannot go with shared runs; plan with shared=None")
    num_sequences, device = context_lens.shape[0], context_lens.device
    tile_rows, num_row_tiles = row_tiles(num_heads // num_kv_heads)
    num_rows = num_kv_heads * num_row_tiles
    num_programs = tiling.programs_per_sm * device_limits(context_lens).num_sms
    num_levels = MAX_LEVELS if shared is not None else 0

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    schedule = empty(1 + num_sequences + num_programs, dtype=torch.int32)
    num_arrived = empty(num_sequences * num_rows, dtype=torch.int32)
    partial, log_sum = empty(num_programs, 2, tile_rows, head_dim), empty(num_programs, 2, tile_rows)
    shared_partial = empty(num_levels, num_sequences, num_heads, head_dim)
    shared_log_sum = empty(num_levels, num_sequences, num_heads)
    own_start, run_levels = (schedule, schedule) if shared is None else (shared.own_start, shared.num_levels)
    plan = DecodePlan(
        tiling,
        window,
        num_sequences,
        num_rows,
        tile_rows,
        num_programs,
        schedule,
        num_arrived,
        partial,
        log_sum,
        shared,
        shared_partial,
        shared_log_sum,
        (tiling, window, num_sequences, num_rows, head_dim, num_programs, shared is not None),
        Scratch(schedule, num_arrived, partial, log_sum, own_start, run_levels, shared_partial, shared_log_sum),
    )
    if num_sequences:
        _decode_plan_kernel[(num_programs,)](
            context_lens,
            context_lens if shared is None else shared.own_start,
            plan.schedule,
            plan.num_arrived,
            num_sequences,
            num_programs,
            HAS_SHARED=shared is not None,
            WINDOW=window,
            NUM_ROWS=num_rows,
            ROW_UNITS=ROW_UNITS,
            MIN_CHUNK=tiling.min_chunk,
            TILE_TOKENS=tiling.tile_tokens,
            TILE_SEQUENCES=TILE_SEQUENCES,
        )
    return plan


def row_tiles(group: int) -> tuple[int, int]:
    """Query heads in a tile, a power of two, for the ``group`` of one KV head, and how many such tiles."""
    tile_rows = min(next_power_of_2(group), 64)
    return tile_rows, ceil_div(group, tile_rows)
