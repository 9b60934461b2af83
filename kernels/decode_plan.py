"""How the work of decode attention is shared out evenly among programs, whatever the lengths of the sequences.

The KV of a sequence is cut into tiles of tokens. Every (sequence, KV head) pair, a *row*, has so many tiles; one with
nothing in it where the sequence has no tokens, for the program that writes its zeros. Laid end to end, the tiles of all
rows form one line. It is cut into equal chunks, one for a program ("Stream-K", Osama, Merrill, Cecka, Garland, Owens,
2023, https://arxiv.org/abs/2301.03598). A row that a boundary cuts has several *pieces*; the program that finishes the
last of them merges all.

As many rows as divide both a sequence's and the programs go *abreast*: each has programs of its own, which walk through
the tokens side by side. For a block holds what it has of all heads in one stretch, and memory that is read in one
stretch is read faster. So the line is of one row of each such set, and a chunk of it is for a *team* of as many
programs.

Everything is computed on the device, from the lengths, once for a step: all layers with the same window attend to the
same lengths. The launches depend on shapes alone, so one CUDA graph serves all lengths.
"""

import math
from dataclasses import dataclass

import torch

from pbench.kernels.compiler import jit, tl
from pbench.kernels.launch import device_limits
from pbench.kernels.launcher import Launch, Launcher, SameTensors, Scratch, layout_of, short_key
from pbench.kernels.shared_attention import MAX_LEVELS, SharedRuns
from pbench.kernels.tiling import DecodeTiling, row_tiles

TILE_SEQUENCES = 1024

# What the schedule says of a program, so that it can begin at once:
#   0 the sequence, 1 the row of it, 2 the first token of the tile that its chunk begins with; 3 the sequence's context
#   4 how many tiles its chunk has
#   5 the first program, 6 the number of the pieces of the row that it goes on with; 6 is 0 where it begins a row. The
#     pieces of a row are of programs that lie as far from one another as there are rows abreast
#   7 the number of the pieces of the row that it begins and others go on with; 0: there is none
#   8 whether K and V of its first tiles are settled, 0 or 1: nothing of the step writes them
NUM_FIELDS = 9


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """Chunks for one batch of lengths, and room for the pieces of rows. Serves one launch at a time."""

    tiling: DecodeTiling
    box: int  # tokens that the kernel of hopper_decode.py loads together; 0: the plan is not for that one
    window: int | None
    num_sequences: int
    num_rows: int  # of a sequence
    tile_rows: int  # query heads of a row, padded to a power of two
    num_programs: int
    num_abreast: int  # rows of a sequence that programs walk through side by side
    schedule: torch.Tensor  # int32 (num_programs, NUM_FIELDS)
    num_arrived: torch.Tensor  # int32 (num_programs,): pieces finished of the row that it began; zero between launches
    partial: torch.Tensor  # float32 (num_programs, 2, tile_rows, head_dim): see decode_attention.py
    log_sum: torch.Tensor  # float32 (num_programs, 2, tile_rows)
    shared: SharedRuns | None  # that the chunks leave out
    shared_partial: torch.Tensor  # float32 (MAX_LEVELS, num_sequences, num_heads, head_dim), or empty without runs
    shared_log_sum: torch.Tensor  # float32 (MAX_LEVELS, num_sequences, num_heads), or empty
    may_be_settled: bool  # whether the schedule was told if KV is
    key: int  # equal keys mean launches of equal size, but for what query and kv say
    scratch: Scratch  # what the attention reads of all this, in the order of its parameters
    step: SameTensors  # the table and lengths of the launches that it serves


@jit(
    do_not_specialize=("num_sequences", "num_programs"),
    do_not_specialize_on_alignment=("context_lens_ptr", "own_start_ptr", "is_kv_settled_ptr"),
)
def _decode_plan_kernel(
    context_lens_ptr: tl.pointer_type,  # (num_sequences,)
    own_start_ptr: tl.pointer_type,  # (num_sequences,), with HAS_SHARED only
    is_kv_settled_ptr: tl.pointer_type,  # (1,), with MAY_BE_SETTLED only
    schedule_ptr: tl.pointer_type,  # (num_programs, NUM_FIELDS)
    num_arrived_ptr: tl.pointer_type,  # (num_programs,)
    num_sequences: tl.tensor,
    num_programs: tl.tensor,
    HAS_SHARED: tl.constexpr,
    MAY_BE_SETTLED: tl.constexpr,
    WINDOW: tl.constexpr,  # tokens of a sequence that are attended to at most, its last; None: all
    NUM_ROWS: tl.constexpr,
    NUM_ABREAST: tl.constexpr,  # divides NUM_ROWS and the number of programs
    MIN_CHUNK: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILES_AHEAD: tl.constexpr,  # that a program may load before it has computed anything
    TILE_SEQUENCES: tl.constexpr,
    NUM_FIELDS: tl.constexpr,
) -> None:
    """Grid: (num_programs,), the programs of the attention. All of them add up the lengths; each finds its chunk."""
    NUM_SETS: tl.constexpr = NUM_ROWS // NUM_ABREAST  # of rows abreast, in a sequence
    program = tl.program_id(0)
    team, place_in_team = program // NUM_ABREAST, program % NUM_ABREAST
    num_tiles = 0
    for first in range(0, num_sequences, TILE_SEQUENCES):
        tiles, _ = _row_tiles(
            first + tl.arange(0, TILE_SEQUENCES),
            context_lens_ptr,
            own_start_ptr,
            num_sequences,
            HAS_SHARED,
            WINDOW,
            TILE_TOKENS,
        )
        num_tiles += tl.sum(tiles, 0) * NUM_SETS
    num_teams = num_programs // NUM_ABREAST
    chunk = tl.maximum((num_tiles + num_teams - 1) // num_teams, MIN_CHUNK)
    begin = tl.minimum(team * chunk, num_tiles)
    end = tl.minimum(begin + chunk, num_tiles)
    # The sequences wholly before both ends of the chunk, and the tiles in a row of each of them together.
    begin_sequence, begin_tiles = 0, 0
    end_sequence, end_tiles = 0, 0
    tiles_so_far = 0
    for first in range(0, num_sequences, TILE_SEQUENCES):
        sequences = first + tl.arange(0, TILE_SEQUENCES)
        tiles, _ = _row_tiles(
            sequences, context_lens_ptr, own_start_ptr, num_sequences, HAS_SHARED, WINDOW, TILE_TOKENS
        )
        ends = (tiles_so_far + tl.cumsum(tiles, 0)) * NUM_SETS
        is_before = (sequences < num_sequences) & (ends <= begin)
        begin_sequence += tl.sum(is_before.to(tl.int32), 0)
        begin_tiles += tl.sum(tl.where(is_before, tiles, 0), 0)
        is_before = (sequences < num_sequences) & (ends <= end)
        end_sequence += tl.sum(is_before.to(tl.int32), 0)
        end_tiles += tl.sum(tl.where(is_before, tiles, 0), 0)
        tiles_so_far += tl.sum(tiles, 0)

    tiles, start = _row_tiles(
        begin_sequence, context_lens_ptr, own_start_ptr, num_sequences, HAS_SHARED, WINDOW, TILE_TOKENS
    )
    begun_set, tile, first_team, num_pieces = _place(begin - begin_tiles * NUM_SETS, begin, tiles, chunk)
    record_ptr = schedule_ptr + program * NUM_FIELDS
    tl.store(record_ptr, begin_sequence)
    tl.store(record_ptr + 1, begun_set * NUM_ABREAST + place_in_team)
    first_token = start + tile * TILE_TOKENS
    tl.store(record_ptr + 2, first_token)
    context_len = tl.load(context_lens_ptr + begin_sequence, mask=begin_sequence < num_sequences, other=0)
    tl.store(record_ptr + 3, context_len)
    tl.store(record_ptr + 4, end - begin)
    tl.store(record_ptr + 5, first_team * NUM_ABREAST + place_in_team)
    tl.store(record_ptr + 6, tl.where(tile > 0, num_pieces, 0))
    tiles, _ = _row_tiles(end_sequence, context_lens_ptr, own_start_ptr, num_sequences, HAS_SHARED, WINDOW, TILE_TOKENS)
    _, tile, first_team, num_pieces = _place(end - end_tiles * NUM_SETS, end, tiles, chunk)
    tl.store(record_ptr + 7, tl.where((tile > 0) & (first_team == team), num_pieces, 0))
    are_settled = 0
    if MAY_BE_SETTLED:
        is_without_last = first_token + TILES_AHEAD * TILE_TOKENS < context_len
        are_settled = tl.where(is_without_last, tl.load(is_kv_settled_ptr), 0)
    tl.store(record_ptr + 8, are_settled)
    tl.store(num_arrived_ptr + program, 0)


@jit()
def _row_tiles(
    sequences: tl.tensor,
    context_lens_ptr: tl.pointer_type,
    own_start_ptr: tl.pointer_type,
    num_sequences: tl.tensor,
    HAS_SHARED: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """How many tiles a row of each of the sequences has, and their first token; 0 of what is no sequence."""
    is_sequence = sequences < num_sequences
    context_lens = tl.load(context_lens_ptr + sequences, mask=is_sequence, other=0)
    if HAS_SHARED:
        start = tl.load(own_start_ptr + sequences, mask=is_sequence, other=0)
    else:
        start = tiles_start(context_lens, WINDOW, TILE_TOKENS)
    num_tiles = tl.maximum((context_lens - start + TILE_TOKENS - 1) // TILE_TOKENS, 1)
    return tl.where(is_sequence, num_tiles, 0), start


@jit()
def _place(
    tile: tl.tensor, place: tl.tensor, row_tiles: tl.tensor, chunk: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Where a tile of a sequence, which has this place in the line, lies.

    The set of rows, and which of their tiles it is; whose chunk the rows begin in, and how many have a piece of them.
    """
    row_tiles = tl.maximum(row_tiles, 1)  # 0 behind the last sequence
    row_set = tile // row_tiles
    tile -= row_set * row_tiles
    first_team = (place - tile) // chunk
    num_pieces = (place - tile + row_tiles - 1) // chunk - first_team + 1
    return row_set, tile, first_team, num_pieces


@jit()
def tiles_start(context_len: tl.tensor, WINDOW: tl.constexpr, TILE_TOKENS: tl.constexpr) -> tl.tensor:
    """The first token of the tiles of a context: that of the first one with something that the last token sees."""
    if WINDOW is None:
        return context_len * 0
    else:
        return window_start(context_len, WINDOW) // TILE_TOKENS * TILE_TOKENS


@jit()
def window_start(context_len: tl.tensor, WINDOW: tl.constexpr) -> tl.tensor:
    """The first token of a context that its last one sees."""
    return tl.maximum(context_len - WINDOW, 0)


_launch = Launcher(_decode_plan_kernel)


def plan_decode(
    context_lens: torch.Tensor,
    shared: SharedRuns | None = None,
    is_kv_settled: torch.Tensor | None = None,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    tiling: DecodeTiling,
    box: int = 0,
    window: int | None = None,
) -> DecodePlan:
    """Share out the work for these lengths: one launch, safe to capture in a CUDA graph.

    Args:
        context_lens: int32 ``(num_sequences,)`` on the device; read by the launch, not afterwards.
        shared: runs that several sequences share and that are attended to apart; paged addressing only.
        is_kv_settled: int32 ``(1,)`` on the device, 0 or 1: whether K and V of all but each sequence's last token were
            there before the launch. None: no.
        num_heads: query heads.
        num_kv_heads: divides num_heads.
        head_dim: of every head.
        tiling: how the attention that follows the plan is cut up.
        box: of hopper_decode.py's ``box_for``; 0 where another kernel follows, as for runs and windows.
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
    num_abreast = math.gcd(num_rows, num_programs)
    num_levels = MAX_LEVELS if shared is not None else 0
    may_be_settled = is_kv_settled is not None

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    schedule = empty(num_programs, NUM_FIELDS, dtype=torch.int32)
    num_arrived = empty(num_programs, dtype=torch.int32)
    partial, log_sum = empty(num_programs, 2, tile_rows, head_dim), empty(num_programs, 2, tile_rows)
    shared_partial = empty(num_levels, num_sequences, num_heads, head_dim)
    shared_log_sum = empty(num_levels, num_sequences, num_heads)
    own_start, run_levels = (schedule, schedule) if shared is None else (shared.own_start, shared.num_levels)
    plan = DecodePlan(
        tiling,
        box,
        window,
        num_sequences,
        num_rows,
        tile_rows,
        num_programs,
        num_abreast,
        schedule,
        num_arrived,
        partial,
        log_sum,
        shared,
        shared_partial,
        shared_log_sum,
        may_be_settled,
        short_key(
            (tiling, box, window, num_sequences, num_rows, head_dim, num_programs, shared is None, may_be_settled)
        ),
        Scratch(schedule, num_arrived, partial, log_sum, own_start, run_levels, shared_partial, shared_log_sum),
        SameTensors(),
    )
    if num_sequences:
        starts = context_lens if shared is None else shared.own_start
        settled = context_lens if is_kv_settled is None else is_kv_settled
        _launch(
            (layout_of(context_lens, starts, settled), plan.key),
            (context_lens, starts, settled),
            (),
            lambda: _first_launch(plan),
            Scratch(schedule, num_arrived),
        )
    return plan


def _first_launch(plan: DecodePlan) -> Launch:
    options = {
        "HAS_SHARED": plan.shared is not None,
        "MAY_BE_SETTLED": plan.may_be_settled,
        "WINDOW": plan.window,
        "NUM_ROWS": plan.num_rows,
        "NUM_ABREAST": plan.num_abreast,
        "MIN_CHUNK": plan.tiling.min_chunk,
        "TILE_TOKENS": plan.tiling.tile_tokens,
        "TILES_AHEAD": plan.tiling.tiles_in_flight,
        "TILE_SEQUENCES": TILE_SEQUENCES,
        "NUM_FIELDS": NUM_FIELDS,
    }
    return Launch((plan.num_programs, 1, 1), (plan.num_sequences, plan.num_programs), options)
