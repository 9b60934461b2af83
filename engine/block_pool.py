"""BlockPool: which blocks are free, held (and by how many), or kept only for the prefix cache."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pbench.engine.content_index import ContentIndex
from pbench.engine.eviction import EvictionPolicy, LeastRecentlyUsed
from pbench.engine.records import NUM_SHARER_BINS, sharer_bin

if TYPE_CHECKING:
    from pbench.engine.child_index import ChildIndex

# By the most sharers of a bin: the next bin.
_BIN_ABOVE = {2**index: index + 1 for index in range(NUM_SHARER_BINS - 1)}


class BlockPool:
    """Reference-counted blocks with a content cache on top. Every operation costs O(1) per block.

    A block is in exactly one of three states::

        free     num_refs == 0, not in the cache index       waits on a stack
        held     num_refs >= 1                               may be in the cache index as well
        cached   num_refs == 0, in the cache index           waits until the eviction policy gives it up
    """

    def __init__(
        self, num_blocks: int, eviction: EvictionPolicy | None = None, children: "ChildIndex | None" = None
    ) -> None:
        self.num_blocks = num_blocks
        self.num_refs = [0] * num_blocks
        self.num_held_by_bin = [0] * NUM_SHARER_BINS  # held blocks, see ``sharer_bin``
        self.children = children  # told of every block that stops being what it was
        self.num_evicted = 0
        self._free_block_ids = list(range(num_blocks - 1, -1, -1))
        self._evictable = LeastRecentlyUsed() if eviction is None else eviction
        self._index = ContentIndex(num_blocks)

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free_block_ids)

    @property
    def num_cached(self) -> int:
        """Blocks without an owner that the cache can still find."""
        return len(self._evictable)

    @property
    def num_available(self) -> int:
        """Blocks that ``allocate`` can hand out: free ones, then cached ones."""
        return len(self._free_block_ids) + len(self._evictable)

    def cached_block_ids(self) -> Iterator[int]:
        """All blocks without an owner that the cache can still find."""
        return iter(self._evictable)

    def allocate(self, count: int) -> list[int]:
        """Take blocks with one reference each: free ones, then cached ones, which are evicted.

        The caller has checked ``num_available``.
        """
        num_kept = max(len(self._free_block_ids) - count, 0)
        block_ids = self._free_block_ids[num_kept:]
        del self._free_block_ids[num_kept:]
        block_ids.reverse()
        block_ids += self._evict(count - len(block_ids))
        num_refs = self.num_refs
        for block_id in block_ids:
            num_refs[block_id] = 1
        self.num_held_by_bin[0] += len(block_ids)
        return block_ids

    def _evict(self, count: int) -> list[int]:
        """Give up cached blocks."""
        block_ids = self._evictable.pop(count)
        self._index.remove(block_ids)
        if self.children is not None and block_ids:
            self.children.remove(block_ids)
        self.num_evicted += count
        return block_ids

    def acquire(self, block_ids: Iterable[int]) -> None:
        """Add a reference to each, held or cached."""
        num_refs, num_held_by_bin, evictable = self.num_refs, self.num_held_by_bin, self._evictable
        for block_id in block_ids:
            count = num_refs[block_id]
            num_refs[block_id] = count + 1
            if count == 0:
                evictable.remove(block_id)
                num_held_by_bin[0] += 1
            elif count in _BIN_ABOVE:  # elsewhere one sharer more leaves a block in its bin
                above = _BIN_ABOVE[count]
                num_held_by_bin[above - 1] -= 1
                num_held_by_bin[above] += 1

    def release(self, block_ids: list[int]) -> None:
        """Drop a reference to each, in order; without any a block is cached, or free if the cache does not know it."""
        num_refs, digest_by_block = self.num_refs, self._index.digest_by_block
        num_held_by_bin, children, num_unheld = self.num_held_by_bin, self.children, 0
        is_cache_empty = self._index.is_empty
        cached: list[int] = []
        for block_id in block_ids:
            num_left = num_refs[block_id] - 1
            assert num_left >= 0, f"block {block_id} is released but not held"
            num_refs[block_id] = num_left
            if num_left == 0:
                num_unheld += 1
                if is_cache_empty or digest_by_block[block_id] is None:
                    self._free_block_ids.append(block_id)
                    if children is not None and children.knows(block_id):
                        children.remove([block_id])
                else:
                    cached.append(block_id)
            elif num_left in _BIN_ABOVE:
                above = _BIN_ABOVE[num_left]
                num_held_by_bin[above] -= 1
                num_held_by_bin[above - 1] += 1
        self._evictable.add(cached)
        num_held_by_bin[0] -= num_unheld

    def find(self, digest: bytes) -> int | None:
        """The block with this content, held or cached."""
        return self._index.find(digest)

    def find_first(self, digests: list[bytes]) -> list[int]:
        """The blocks with these contents, held or cached, up to the first content that none has."""
        return self._index.find_first(digests)

    def is_registered(self, block_id: int) -> bool:
        """Whether ``find`` can lead to the block."""
        return self._index.digest_by_block[block_id] is not None

    def is_cached_only(self, block_id: int) -> bool:
        """Whether the block has no owner and is kept for the cache."""
        return block_id in self._evictable

    def register(self, block_ids: list[int], digests: list[bytes]) -> None:
        """Let ``find`` know held, full blocks by their content, but for content that another block has already."""
        num_refs = self.num_refs
        for block_id in block_ids:
            assert num_refs[block_id] > 0, f"block {block_id} is registered but not held"
        self._index.add(block_ids, digests)
        self._evictable.register(block_ids)

    def forget(self, block_id: int) -> None:
        """Free a cached block: what it was to hold never came."""
        self._evictable.remove(block_id)
        self._index.remove([block_id])
        if self.children is not None:
            self.children.remove([block_id])
        self._free_block_ids.append(block_id)

    def check_integrity(self, owners: Iterable[int]) -> None:
        """Audit against ``owners``: one entry per reference, the block's number.

        Raises:
            AssertionError: naming the first block that is lost, doubled or miscounted.

        """
        expected = [0] * self.num_blocks
        for block_id in owners:
            expected[block_id] += 1
        for block_id, (num_refs, num_owners) in enumerate(zip(self.num_refs, expected, strict=True)):
            assert num_refs == num_owners, f"block {block_id} counts {num_refs} references and has {num_owners} owners"
        free = set(self._free_block_ids)
        assert len(free) == len(self._free_block_ids), "a block is twice on the free list"
        assert free.isdisjoint(self._evictable), "a block is both free and cached"
        for block_id in free | set(self._evictable):
            assert expected[block_id] == 0, f"block {block_id} is available and held at once"
        num_held = sum(count > 0 for count in expected)
        num_held_by_bin = [0] * NUM_SHARER_BINS
        for count in filter(None, expected):
            num_held_by_bin[sharer_bin(count)] += 1
        assert num_held_by_bin == self.num_held_by_bin, "blocks are miscounted by their sharers"
        if self.children is not None:
            assert not any(map(self.children.knows, free)), "the index of continuations knows a free block"
        assert len(free) + self.num_cached + num_held == self.num_blocks, "free + cached + held is not the pool"
        self._index.check_integrity()
        digest_by_block = self._index.digest_by_block
        assert all(digest_by_block[block_id] is None for block_id in free), "the cache index knows a free block"
        assert None not in map(digest_by_block.__getitem__, self._evictable), "a cached block is not in the cache index"


def num_blocks_for(num_prompt_tokens: int, max_tokens: int, n: int, block_size: int) -> int:
    """Blocks with which a request of ``n`` samples, alone, runs to its end. They share the prompt's full blocks."""
    num_shared = num_prompt_tokens // block_size
    num_blocks = -(-(num_prompt_tokens + max_tokens - 1) // block_size)
    return num_shared + n * (num_blocks - num_shared)
