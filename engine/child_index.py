"""ChildIndex: which blocks continue a block, for prompts that leave what is cached in the middle of a block."""

from array import array
from typing import Any

import numpy as np

MAX_CANDIDATES = 8  # continuations of a block that a lookup compares, newest first
_NONE = -1


class ChildIndex:
    """Knows the tokens of blocks that continue other blocks: full ones, and a prompt's last, unfinished one.

    A block's continuations are a list, newest first, linked through ``_next``. Nothing is unlinked: an entry counts
    only while its block has not been removed and its parent is what it was when the entry was made (``_generation``).
    Entries that were reused elsewhere end a walk, and ``MAX_CANDIDATES`` bounds it. So everything costs O(1) for each
    block that is touched; a lookup may overlook a continuation, and never finds a wrong one.

    A parent is a block, or one of the roots where sequences of one salt begin.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._tokens = np.zeros((num_blocks, block_size), np.int32)
        self._num_tokens = np.zeros(num_blocks, np.int32)
        self._is_here = bytearray(num_blocks)
        self._is_here_view = np.frombuffer(self._is_here, np.uint8)
        self._generation = np.zeros(num_blocks, np.int32)  # counts what the block has been
        self._parent = np.zeros(num_blocks, np.int64)
        self._parent_generation = np.zeros(num_blocks, np.int32)
        self._newest = np.full(num_blocks, _NONE, np.int32)  # continuation of each block
        self._next = np.full(num_blocks, _NONE, np.int32)
        self._step_added = np.zeros(num_blocks, np.int64)
        self._step = 0
        self._newest_of_root: dict[str, int] = {}
        self._roots: dict[str, int] = {}  # salt -> a parent below 0

    def add(self, parent: int | None, salt: str, block_ids: list[int], token_ids: "array[int]") -> None:
        """Enter blocks that continue one another, the first of them ``parent``; the last may be unfinished.

        What they hold is written by the step that is being planned: lookups find it from the next step on.

        Args:
            parent: the block before the first, None at the start of a sequence.
            salt: of the sequence.
            block_ids: at least one.
            token_ids: theirs, one after the other.
        """
        content, first = np.frombuffer(token_ids, np.int32), block_ids[0]
        if len(block_ids) == 1:  # a decode has filled one: in every step several do
            self._tokens[first, : len(content)] = content
            self._num_tokens[first] = len(content)
            self._is_here[first] = 1
            self._step_added[first] = self._step
        else:
            self._add_chain(np.array(block_ids, np.int64), content)
        if parent is None:
            root = self._roots.setdefault(salt, -1 - len(self._roots))
            self._parent[first], self._parent_generation[first] = root, 0
            self._next[first] = self._newest_of_root.get(salt, _NONE)
            self._newest_of_root[salt] = first
        else:
            self._parent[first], self._parent_generation[first] = parent, self._generation[parent]
            self._next[first] = self._newest[parent]
            self._newest[parent] = first

    def _add_chain(
        self, ids: "np.ndarray[Any, np.dtype[np.int64]]", content: "np.ndarray[Any, np.dtype[np.int32]]"
    ) -> None:
        """Enter blocks, and each but the first as a continuation of the one before."""
        block_size = self._tokens.shape[1]
        num_full, num_last = divmod(len(content), block_size)
        if num_full:
            self._tokens[ids[:num_full]] = content[: num_full * block_size].reshape(num_full, block_size)
            self._num_tokens[ids[:num_full]] = block_size
        if num_last:
            self._tokens[ids[-1], :num_last] = content[num_full * block_size :]
            self._num_tokens[ids[-1]] = num_last
        self._is_here_view[ids] = 1
        self._step_added[ids] = self._step
        inner = ids[:-1]  # each the parent of the next
        self._parent[ids[1:]] = inner
        self._parent_generation[ids[1:]] = self._generation[inner]
        self._next[ids[1:]] = self._newest[inner]
        self._newest[inner] = ids[1:]

    def knows(self, block_id: int) -> bool:
        """Whether the block is entered."""
        return bool(self._is_here[block_id])

    def remove(self, block_ids: list[int]) -> None:
        """Forget what blocks held, before they hold anything else."""
        ids = np.array(block_ids, np.int64)
        self._is_here_view[ids] = 0
        self._generation[ids] += 1
        self._newest[ids] = _NONE

    def end_step(self) -> None:
        """All that was entered so far will have been written before the next step begins."""
        self._step += 1

    def longest(self, parent: int | None, salt: str, token_ids: "array[int]") -> tuple[int, int]:
        """The continuation of ``parent`` that has most leading tokens of ``token_ids``, and how many; (-1, 0): none."""
        best, num_best = _NONE, 0
        if parent is None:
            if salt not in self._roots:
                return best, 0
            expected, generation, block_id = self._roots[salt], 0, self._newest_of_root[salt]
        else:
            expected, generation, block_id = parent, int(self._generation[parent]), int(self._newest[parent])
        for _ in range(MAX_CANDIDATES):
            if (
                block_id == _NONE
                or not self._is_here[block_id]
                or self._parent[block_id] != expected
                or self._parent_generation[block_id] != generation
            ):
                break
            if self._step_added[block_id] < self._step:
                num_common = _num_common(self._tokens[block_id, : self._num_tokens[block_id]].tolist(), token_ids)
                if num_common > num_best:
                    best, num_best = block_id, num_common
            block_id = int(self._next[block_id])
        return best, num_best


def _num_common(one: list[int], other: "array[int]") -> int:
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
