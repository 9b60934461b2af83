"""Which sequences of a batch share which blocks, and which of these runs are worth attending to together.

Two sequences share a run of tokens where their tables name the same blocks at the same places. All runs of a batch form
a tree: the sequences below a node agree on all blocks up to it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from pbench.kernels.launch import device_limits
from pbench.kernels.shared_attention import MAX_LEVELS, MAX_TILES, TILE_FIELDS, SharedRuns
from pbench.kernels.tiling import Operands
from pbench.kernels.tuning_table import choose_shared_tiling

Numbers: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

# A run is attended to together when that saves reading so many tokens; a launch, when its runs save so many together.
# A launch of its own costs some microseconds in every layer, and what is read again comes from the cache of the GPU.
MIN_SAVED_TOKENS = 512
MIN_SAVED_TOKENS_OF_LAUNCH = 16384
MIN_PART_TOKENS = 256  # a run is not cut into shorter parts


class RunLimits(NamedTuple):
    """How the kernel wants its work (pbench.kernels.shared_attention)."""

    members_per_tile: int
    num_kv_heads: int
    num_programs: int  # that run at once
    max_levels: int = MAX_LEVELS
    max_tiles: int = MAX_TILES


@dataclass(slots=True)
class _Run:
    """Sequences ``order[first : first + num_members]`` share the blocks ``start`` .. ``end`` of their tables."""

    parent: "_Run | None"
    first: int
    num_members: int
    start: int
    end: int
    level: int = 0  # of its first part
    num_parts: int = 1

    @property
    def depth(self) -> int:
        """Runs from the root to this one."""
        return 1 if self.parent is None else self.parent.depth + 1


class RunTiles(NamedTuple):
    """The chosen runs, as ``pbench.kernels.shared_attention.SharedRuns`` has them; int32 throughout."""

    own_start: Numbers  # (B,)
    num_levels: Numbers  # (B,)
    members: Numbers  # (B,)
    tiles: Numbers  # (num_tiles, 5)


def find_runs(tables: Numbers, num_full_blocks: Numbers, block_size: int, limits: RunLimits) -> RunTiles | None:
    """Find the shared runs of a batch that pay, and cut them up.

    Args:
        tables: int32 (B, width), the block tables; anything behind a sequence's full blocks.
        num_full_blocks: (B,), leading blocks of each that are full without the token being computed.
        block_size: slots in a block.
        limits: of the kernel.

    Returns:
        None when nothing is shared that would pay.
    """
    forest = _Forest(tables, num_full_blocks, block_size, limits.max_levels)
    runs = forest.runs
    if sum((run.num_members - 1) * (run.end - run.start) for run in runs) * block_size < MIN_SAVED_TOKENS_OF_LAUNCH:
        return None
    _cut(runs, block_size, limits)
    own_start = np.zeros(len(tables), np.int32)
    num_levels = np.zeros(len(tables), np.int32)
    tiles: list[tuple[int, int, int, int, int]] = []
    for run in runs:  # parents before their children
        members = forest.order[run.first : run.first + run.num_members]
        own_start[members] = run.end * block_size
        num_levels[members] = run.level + run.num_parts
        bounds = np.linspace(run.start, run.end, run.num_parts + 1).astype(int) * block_size
        for part in range(run.num_parts):
            for first in range(0, run.num_members, limits.members_per_tile):
                count = min(limits.members_per_tile, run.num_members - first)
                tiles.append((run.first + first, count, int(bounds[part]), int(bounds[part + 1]), run.level + part))
    if len(tiles) > limits.max_tiles:
        return None  # hundreds of small groups: no launch could be sized for them
    return RunTiles(own_start, num_levels, forest.order.astype(np.int32), np.array(tiles, np.int32))


def run_limits(kv: Tensor, num_heads: int, query_bytes: int) -> RunLimits | None:
    """What the kernel wants for queries of so many heads and bytes an element over ``kv``, a layer of the pool.

    None where it cannot attend for several sequences at once.
    """
    num_kv_heads, head_dim = kv.shape[2], kv.shape[4]
    limits = device_limits(kv)
    operands = Operands(head_dim, num_heads // num_kv_heads, query_bytes, kv.element_size())
    members_per_tile = choose_shared_tiling(limits, operands).tile_rows // operands.group
    return RunLimits(members_per_tile, num_kv_heads, limits.num_sms) if members_per_tile > 1 else None


def num_packed(num_sequences: int) -> int:
    """Numbers that ``pack_runs`` writes."""
    return 3 * num_sequences + 1 + MAX_TILES * TILE_FIELDS


def pack_runs(runs: RunTiles | None, numbers: Numbers, size: int) -> None:
    """Write the runs of a batch, or none, padded to ``size`` sequences, to int32 ``(num_packed(size),)``."""
    if runs is None:
        numbers[: 3 * size + 1] = 0
        return
    count = len(runs.members)
    columns = numbers[: 3 * size].reshape(3, size)
    columns[:, count:] = 0
    columns[0, :count], columns[1, :count], columns[2, :count] = runs.own_start, runs.num_levels, runs.members
    numbers[3 * size] = len(runs.tiles)
    numbers[3 * size + 1 : 3 * size + 1 + runs.tiles.size] = runs.tiles.ravel()


def unpack_runs(numbers: Tensor, size: int) -> SharedRuns:
    """What ``pack_runs`` has written, where it lies on the device."""
    own_start, num_levels, members = numbers[: 3 * size].view(3, size).unbind()
    tiles = numbers[3 * size + 1 : num_packed(size)].view(MAX_TILES, TILE_FIELDS)
    return SharedRuns(own_start, num_levels, members, numbers[3 * size : 3 * size + 1], tiles)


class RunFinder:
    """Finds the shared runs of one batch after the other; looks again only where they may have changed."""

    def __init__(self, block_size: int, limits: RunLimits) -> None:
        self._block_size = block_size
        self._limits = limits
        self._rows: Numbers | None = None  # of the batch that ``_found`` is of
        self._found: RunTiles | None = None

    def forget(self) -> None:
        """Tables have changed within full blocks, or a row of them is another sequence's now."""
        self._rows = None

    def find(self, tables: Numbers, rows: Numbers, starts: Numbers) -> RunTiles | None:
        """The runs of the sequences at ``rows`` of ``tables``, each about to compute the token ``starts``."""
        if self._rows is None or not np.array_equal(rows, self._rows):
            num_full_blocks = starts // self._block_size
            width = int(num_full_blocks.max(initial=0))
            self._rows = rows
            self._found = find_runs(tables[rows, :width], num_full_blocks, self._block_size, self._limits)
        return self._found


def _cut(runs: list[_Run], block_size: int, limits: RunLimits) -> None:
    """Cut runs into parts such that every program has about as much to do, and number the levels."""
    num_tiles = {id(run): -(-run.num_members // limits.members_per_tile) for run in runs}
    total = sum(num_tiles[id(run)] * (run.end - run.start) for run in runs) * block_size * limits.num_kv_heads
    share = max(total / limits.num_programs, MIN_PART_TOKENS)
    most_parts = limits.max_levels // max(run.depth for run in runs)
    for run in runs:
        num_parts = round((run.end - run.start) * block_size / share)
        run.num_parts = min(max(num_parts, 1), most_parts, run.end - run.start)
        run.level = 0 if run.parent is None else run.parent.level + run.parent.num_parts


class _Forest:
    """Walks down the tree of shared prefixes, depth first, and chooses runs on the way."""

    def __init__(self, tables: Numbers, num_full_blocks: Numbers, block_size: int, max_depth: int) -> None:
        self.runs: list[_Run] = []
        self.order: Numbers = np.empty(len(tables), np.int64)  # sequences; those below a node stand side by side
        self._num_ordered = 0
        self._tables = tables
        self._num_full_blocks = num_full_blocks
        self._block_size = block_size
        self._max_depth = max_depth
        self._nodes = [_Node(np.arange(len(tables)), 0, 0, None)]  # still to be walked
        while self._nodes:
            self._walk(self._nodes.pop())

    def _walk(self, node: "_Node") -> None:
        rows, parent, start = node.rows, node.parent, node.start
        num_full_blocks = self._num_full_blocks[rows]
        if (len(rows) - 1) * (int(num_full_blocks.max()) - start) * self._block_size < MIN_SAVED_TOKENS:
            self._put(rows)
            return
        limit = int(num_full_blocks.min())
        differs = (self._tables[rows, node.depth : limit] != self._tables[rows[0], node.depth : limit]).any(axis=0)
        end = node.depth + int(differs.argmax()) if differs.any() else limit
        can_nest = parent is None or parent.depth < self._max_depth
        if (len(rows) - 1) * (end - start) * self._block_size >= MIN_SAVED_TOKENS and can_nest:
            parent, start = _Run(parent, self._num_ordered, len(rows), start, end), end
            self.runs.append(parent)
        has_next = num_full_blocks > end
        self._put(rows[~has_next])
        rows = rows[has_next]
        if not len(rows):
            return
        _, branches, sizes = np.unique(self._tables[rows, end], return_inverse=True, return_counts=True)
        is_alone = sizes[branches] == 1
        self._put(rows[is_alone])
        for branch in np.flatnonzero(sizes > 1):
            self._nodes.append(_Node(rows[branches == branch], end, start, parent))

    def _put(self, rows: Numbers) -> None:
        self.order[self._num_ordered : self._num_ordered + len(rows)] = rows
        self._num_ordered += len(rows)


class _Node(NamedTuple):
    """Sequences that agree on the blocks below ``depth``; those below ``start`` are in runs above."""

    rows: Numbers
    depth: int
    start: int
    parent: _Run | None
