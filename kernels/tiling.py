"""How launches of attention are cut up: the numbers, and rules that fit any GPU.

The rules go by what a multiprocessor's memory holds. Where something faster was measured on a kind of GPU, it stands in
the table of tuning_table.py.
"""

from typing import NamedTuple, TypeAlias

import torch

from pbench.kernels.launch import HOPPER, DeviceLimits, ceil_div, next_power_of_2

SYSTEM_BYTES = 1024  # of shared memory, that each program costs beside its own; a multiprocessor has as many more
MIN_ROWS = 16  # of a product of the matrix units
MAX_ROWS = 64  # of a tile of decodes


class DecodeTiling(NamedTuple):
    """Of decode_attention.py and decode_plan.py."""

    tile_tokens: int
    tiles_in_flight: int  # loaded ahead of the one being computed
    num_warps: int
    programs_per_sm: int
    min_chunk: int  # tiles: a chunk is not made shorter, to be worth its own start and merge

    @property
    def max_registers(self) -> int:
        """Of a thread, such that so many programs fit a multiprocessor's 65536."""
        return min(65536 // (self.programs_per_sm * self.num_warps * 32) // 8 * 8, 255)


class PrefillTiling(NamedTuple):
    """Of prefill_attention.py."""

    tile_rows: int  # (query, head of the group) pairs of a program
    tile_tokens: int
    num_warps: int
    tiles_in_flight: int  # loaded ahead of the one being computed


class SharedTiling(NamedTuple):
    """Of shared_attention.py."""

    tile_rows: int  # (member, head of the group) pairs
    tile_tokens: int
    num_warps: int
    tiles_in_flight: int  # loaded ahead of the one being computed


Tiling: TypeAlias = DecodeTiling | PrefillTiling | SharedTiling


class Operands(NamedTuple):
    """What of queries and of a pool decides how a launch is best cut up."""

    head_dim: int
    group: int  # query heads of a KV head
    query_bytes: int  # of an element
    kv_bytes: int

    @classmethod
    def of(cls, query: torch.Tensor, kv: torch.Tensor) -> "Operands":
        """Of queries ``(num_tokens, num_heads, head_dim)`` over one layer of the pool (kv_layout.py)."""
        return cls(query.shape[2], query.shape[1] // kv.shape[2], query.element_size(), kv.element_size())

    @property
    def token_bytes(self) -> int:
        """Of K and V of a token in a tile."""
        return 2 * next_power_of_2(self.head_dim) * self.kv_bytes


def row_tiles(group: int) -> tuple[int, int]:
    """Query heads in a tile of decodes, a power of two, for the ``group`` of one KV head, and how many such tiles."""
    tile_rows = min(next_power_of_2(group), MAX_ROWS)
    return tile_rows, ceil_div(group, tile_rows)


def decode_rule(limits: DeviceLimits, operands: Operands, num_rows: int = 0) -> DecodeTiling:
    """As much in flight as a multiprocessor's memory holds; for many (sequence, KV head) pairs by more programs."""
    # On an H200 four of half the size took 1 to 2 us less for more rows than there are programs of the others, and a
    # tenth less where KV is found in the second-level cache; for fewer rows they have too many pieces to merge.
    tiling = DecodeTiling(32, 2, 2, 4, 8)
    is_suited = num_rows > 2 * limits.num_sms and operands.token_bytes == 512 and operands.group <= 16
    if is_suited and programs_fit(tiling, limits, operands):
        return tiling
    # On an H100 two on a multiprocessor were as fast as three for large batches, and faster by up to a fifth for small.
    candidates = [(64, 2), (32, 3), (32, 2), (16, 2), (64, 1), (32, 1), (16, 1)]
    if row_tiles(operands.group)[0] == MAX_ROWS:
        # Pieces of so many query heads take long to merge, and fewer programs leave fewer: on an H200 one of 64 tokens
        # took 46 us instead of 66 for 64 sequences of 2048 tokens, and 1 to 5 % more than two of 32 for 256 sequences.
        candidates.sort(key=lambda candidate: -candidate[0])
    for tile_tokens, programs_per_sm in candidates:
        tiling = DecodeTiling(tile_tokens, 2, 4, programs_per_sm, 256 // tile_tokens)
        if programs_fit(tiling, limits, operands):
            break
    return tiling


def programs_fit(tiling: DecodeTiling, limits: DeviceLimits, operands: Operands) -> bool:
    """Whether a multiprocessor's memory holds as many programs as are meant to be there together.

    One that does not fit waits until another ends: the last ones then run with less of their KV on its way.
    """
    tiles_bytes = tiling.tiles_in_flight * tiling.tile_tokens * operands.token_bytes
    return tiles_bytes + _scratch_bytes(limits, operands) <= program_bytes(tiling, limits)


def program_bytes(tiling: DecodeTiling, limits: DeviceLimits) -> int:
    """The shared memory that each program can have, if so many are to fit a multiprocessor."""
    return (limits.shared_memory_bytes + SYSTEM_BYTES) // tiling.programs_per_sm - SYSTEM_BYTES


def _scratch_bytes(limits: DeviceLimits, operands: Operands) -> int:
    """What a decode program has beside its tiles at most, as Triton 3.6 and 3.7 lay it out: sums on their way.

    Products of whole warpgroups need more: they take weights and queries from there.
    """
    rows = max(row_tiles(operands.group)[0], MIN_ROWS)
    has_wgmma = rows == MAX_ROWS and limits.capability == HOPPER and operands.kv_bytes == 2
    return rows * next_power_of_2(operands.head_dim) * (8 if has_wgmma else 4)


def prefill_rule(limits: DeviceLimits, operands: Operands, num_rows: int) -> PrefillTiling:
    """The largest tiles that fit, of no more rows than the ``num_rows`` that each KV head has."""
    row_bytes = next_power_of_2(operands.head_dim) * operands.query_bytes
    # Without tensor cores, which float32 does not use, a large tile only spills registers.
    max_rows, max_tokens = (32, 32) if operands.query_bytes == 4 else (128, 64)
    tile_rows = min(next_power_of_2(max(num_rows, 16)), max_rows)
    budget = limits.shared_memory_bytes * 15 // 16  # the rest is for the reductions
    for tile_tokens, tiles_in_flight in ((64, 2), (32, 2), (16, 2)):
        kv_rows = 2 * tile_tokens * (tiles_in_flight + 1)
        if tile_tokens <= max_tokens and (tile_rows + kv_rows) * row_bytes <= budget:
            break
    else:
        tile_rows, tile_tokens, tiles_in_flight = min(tile_rows, 64), 16, 1
    num_warps = 8 if tile_rows == 128 else 4
    return PrefillTiling(tile_rows, tile_tokens, num_warps, tiles_in_flight)


def shared_rule(limits: DeviceLimits, operands: Operands) -> SharedTiling:
    """As many rows as a matrix unit is fast with, if they fit a multiprocessor's memory."""
    row_bytes = next_power_of_2(operands.head_dim) * operands.query_bytes
    if operands.query_bytes == 2:  # see prefill_rule
        for tiling in (SharedTiling(128, 64, 8, 2), SharedTiling(64, 64, 4, 2), SharedTiling(64, 32, 4, 2)):
            num_rows = tiling.tile_rows + 2 * tiling.tile_tokens * (tiling.tiles_in_flight + 1)
            if num_rows * row_bytes <= limits.shared_memory_bytes * 15 // 16:
                return tiling
    return SharedTiling(32, 16, 4, 1)
