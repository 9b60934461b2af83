"""The pool as it lies: which stretch of it holds what, and whose."""

from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Columns of a map. The last five are slots, and sum to ``length``.
SPAN_FIELDS = (
    "start",  # first slot
    "length",  # slots
    "request_id",  # the request that has held it longest; NOBODY where none holds it
    "num_sharers",  # sequences that hold it
    "token_state",
    "reserved",
    "internal",
    "cached",
    "free",
)
NOBODY = -1
MAX_CELLS = 4096

PoolMap = NDArray[np.int32]  # (num_spans, len(SPAN_FIELDS)), in order of address; the spans tile the pool

_LENGTH, _REQUEST, _SHARERS = (SPAN_FIELDS.index(name) for name in ("length", "request_id", "num_sharers"))
_TOKENS, _RESERVED, _INTERNAL, _CACHED, _FREE = range(4, 9)


class Holding(NamedTuple):
    """What one sequence holds of a pool of blocks."""

    request_id: int
    block_ids: list[int]  # all are full of tokens but the last
    num_tail_slots: int  # of the last block without a token
    num_reserved: int  # of those, slots that the sequence will fill


class HeldExtent(NamedTuple):
    """A held stretch of a contiguous pool, in slots."""

    start: int
    length: int
    request_id: int
    num_sharers: int
    token_state: int
    reserved: int


def map_blocks(
    holdings: Iterable[Holding],
    num_sharers: Iterable[int],
    cached_block_ids: Iterable[int],
    *,
    num_blocks: int,
    block_size: int,
    max_cells: int = MAX_CELLS,
) -> PoolMap:
    """Map a pool of blocks, in O(blocks).

    A cell is a block; where there are more than ``max_cells`` blocks it is as many neighbours as are needed, and stands
    for the first of them that is held: its request and sharers are that block's. Neighbouring cells that are alike and
    whole (full, cached or free) make one span.

    Args:
        holdings: of the sequences, first admitted first: a shared block is named after the first.
        num_sharers: references to each block, (num_blocks,); a held block is full but for its holder's tail.
        cached_block_ids: blocks without an owner that the prefix cache keeps.
        num_blocks: of the pool.
        block_size: slots of a block.
        max_cells: at least 1.
    """
    held = list(holdings)[::-1]  # of several entries for one block the last stands
    sizes = [len(holding.block_ids) for holding in held]
    owned = np.fromiter(chain.from_iterable(holding.block_ids for holding in held), np.int64, sum(sizes))
    blocks = np.zeros((num_blocks, len(SPAN_FIELDS)), np.int32)
    blocks[:, _LENGTH] = block_size
    blocks[:, _REQUEST] = NOBODY
    blocks[:, _SHARERS] = np.fromiter(num_sharers, np.int32, num_blocks)
    is_held = blocks[:, _SHARERS] > 0  # by a sequence, or until a copy of it has run
    blocks[is_held, _TOKENS] = block_size
    blocks[~is_held, _FREE] = block_size
    blocks[owned, _REQUEST] = np.repeat(np.array([holding.request_id for holding in held], np.int64), sizes)
    for holding in held:
        if holding.num_tail_slots:
            num_internal = holding.num_tail_slots - holding.num_reserved
            num_filled = block_size - holding.num_tail_slots
            blocks[holding.block_ids[-1], _TOKENS : _INTERNAL + 1] = (num_filled, holding.num_reserved, num_internal)
    cached = np.fromiter(cached_block_ids, np.int64)
    blocks[cached, _CACHED] = block_size
    blocks[cached, _FREE] = 0
    return _merge_alike(_cells(blocks, max_cells))


def map_extents(extents: Iterable[HeldExtent], *, num_slots: int) -> PoolMap:
    """Map a contiguous pool from all that is held; what lies between is free."""
    spans: list[tuple[int, ...]] = []
    position = 0
    for start, length, request_id, num_sharers, token_state, reserved in sorted(extents):
        if start > position:
            spans.append(_free_span(position, start))
        internal = length - token_state - reserved
        spans.append((start, length, request_id, num_sharers, token_state, reserved, internal, 0, 0))
        position = start + length
    if position < num_slots:
        spans.append(_free_span(position, num_slots))
    return np.array(spans, np.int32)


def _free_span(start: int, end: int) -> tuple[int, ...]:
    return (start, end - start, NOBODY, 0, 0, 0, 0, 0, end - start)


def _cells(blocks: PoolMap, max_cells: int) -> PoolMap:
    """Neighbouring blocks together, so many that there are at most ``max_cells``."""
    num_together = -(-len(blocks) // max_cells)
    if num_together <= 1:
        return blocks
    starts = np.arange(0, len(blocks), num_together)
    cells = np.add.reduceat(blocks, starts, axis=0)
    # argmax finds the first held block of a cell, or its first block where none is held.
    is_held = np.zeros(len(starts) * num_together, bool)
    is_held[: len(blocks)] = blocks[:, _SHARERS] > 0
    first = starts + is_held.reshape(-1, num_together).argmax(axis=1)
    for column in (_REQUEST, _SHARERS):
        cells[:, column] = blocks[first, column]
    return cells


def _merge_alike(cells: PoolMap) -> PoolMap:
    """Runs of cells of one owner and one kind as one span each, with its start."""
    is_whole = cells[:, [_TOKENS, _CACHED, _FREE]] == cells[:, [_LENGTH]]
    kind = np.where(is_whole.any(axis=1), is_whole.argmax(axis=1), -1)
    alike = np.column_stack([kind, cells[:, [_REQUEST, _SHARERS]]])
    is_begin = np.ones(len(cells), bool)
    is_begin[1:] = (kind[1:] < 0) | (alike[1:] != alike[:-1]).any(axis=1)
    begins = np.flatnonzero(is_begin)
    spans = np.add.reduceat(cells, begins, axis=0)
    for column in (_REQUEST, _SHARERS):
        spans[:, column] = cells[begins, column]
    spans[:, 0] = np.cumsum(spans[:, _LENGTH]) - spans[:, _LENGTH]
    return spans
