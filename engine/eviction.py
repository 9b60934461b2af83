"""Which cached blocks to give up when new ones are needed."""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol


class EvictionPolicy(Protocol):
    """Keeps the cached blocks that nobody holds, and says which go first."""

    def register(self, block_ids: list[int]) -> None:
        """Note that the cache has just learnt what these blocks hold; somebody holds them."""
        ...

    def add(self, block_ids: list[int]) -> None:
        """Take blocks that their last owners have released, in this order."""
        ...

    def remove(self, block_id: int) -> None:
        """Let a block go that somebody holds again, or that is forgotten."""
        ...

    def pop(self, count: int) -> list[int]:
        """Let the ``count`` blocks go that are to be evicted; there are as many."""
        ...

    def __len__(self) -> int:
        """Blocks that could be evicted."""
        ...

    def __contains__(self, block_id: object) -> bool:
        """Whether the block could be evicted."""
        ...

    def __iter__(self) -> Iterator[int]:
        """All blocks that could be evicted."""
        ...


class LeastRecentlyUsed:
    """Evicts what was released longest ago. O(1) for a block."""

    def __init__(self) -> None:
        self._block_ids: OrderedDict[int, None] = OrderedDict()

    def register(self, block_ids: list[int]) -> None:
        """See ``EvictionPolicy``: when a block was learnt does not matter."""

    def add(self, block_ids: list[int]) -> None:
        """See ``EvictionPolicy``."""
        waiting = self._block_ids
        for block_id in block_ids:
            waiting[block_id] = None

    def remove(self, block_id: int) -> None:
        """See ``EvictionPolicy``."""
        del self._block_ids[block_id]

    def pop(self, count: int) -> list[int]:
        """See ``EvictionPolicy``."""
        block_ids = list(islice(self._block_ids, count))
        for block_id in block_ids:
            del self._block_ids[block_id]
        return block_ids

    def __len__(self) -> int:
        return len(self._block_ids)

    def __contains__(self, block_id: object) -> bool:
        return block_id in self._block_ids

    def __iter__(self) -> Iterator[int]:
        return iter(self._block_ids)


class FirstInFirstOut:
    """Evicts what the cache learnt longest ago, however often it was used since. O(log n) for a block."""

    def __init__(self) -> None:
        self._num_registered = 0
        self._age: dict[int, int] = {}  # of every block that was ever learnt: the smaller, the older
        self._block_ids: set[int] = set()
        self._heap: list[tuple[int, int]] = []  # (age, block); some entries no longer hold

    def register(self, block_ids: list[int]) -> None:
        """See ``EvictionPolicy``."""
        for block_id in block_ids:
            self._age[block_id] = self._num_registered
            self._num_registered += 1

    def add(self, block_ids: list[int]) -> None:
        """See ``EvictionPolicy``."""
        self._block_ids.update(block_ids)
        for block_id in block_ids:
            heapq.heappush(self._heap, (self._age[block_id], block_id))
        if len(self._heap) > 2 * len(self._block_ids) + 64:
            self._heap = [(self._age[block_id], block_id) for block_id in self._block_ids]
            heapq.heapify(self._heap)

    def remove(self, block_id: int) -> None:
        """See ``EvictionPolicy``. Its heap entry stays, and is passed over later."""
        self._block_ids.remove(block_id)

    def pop(self, count: int) -> list[int]:
        """See ``EvictionPolicy``."""
        block_ids: list[int] = []
        while len(block_ids) < count:
            age, block_id = heapq.heappop(self._heap)
            if block_id in self._block_ids and self._age[block_id] == age:
                self._block_ids.remove(block_id)
                block_ids.append(block_id)
        return block_ids

    def __len__(self) -> int:
        return len(self._block_ids)

    def __contains__(self, block_id: object) -> bool:
        return block_id in self._block_ids

    def __iter__(self) -> Iterator[int]:
        return iter(self._block_ids)


EVICTION_POLICIES: dict[str, Callable[[], EvictionPolicy]] = {"lru": LeastRecentlyUsed, "fifo": FirstInFirstOut}
