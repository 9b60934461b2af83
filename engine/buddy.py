"""BuddyAllocator: extents whose lengths are powers of two, each aligned to its length.

Knowlton, "A fast storage allocator", CACM 8(10), 1965; Knuth, The Art of Computer Programming, vol. 1, 2.5.
"""

from bisect import bisect_left, insort


def next_power_of_two(number: int) -> int:
    """The smallest power of two that is at least ``number``, which is at least 1."""
    return 1 << (number - 1).bit_length()


class BuddyAllocator:
    """Hands out extents ``[start, start + length)`` of a pool of ``num_slots`` slots, ``length`` a power of two.

    A pool that is no power of two is tiled by the binary digits of its size, the largest tile first. So every extent
    starts at a multiple of its length, the buddy of ``(start, length)`` is ``(start ^ length, length)``, and extents of
    two tiles never merge: what follows a tile is smaller than it.

    Leftmost first: of the free extents that are long enough, the one at the lowest address is taken, and its left half
    is split on. An operation costs O(log num_slots) list operations, on lists as long as the free extents of a length.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.num_free = num_slots
        # Of the free extents of length 1 << order, the starts, sorted.
        self._starts_by_order: list[list[int]] = [[] for _ in range(num_slots.bit_length())]
        start = 0
        for order in reversed(range(num_slots.bit_length())):
            if num_slots >> order & 1:
                self._starts_by_order[order].append(start)
                start += 1 << order

    @property
    def largest_free(self) -> int:
        """Slots of the largest free extent."""
        orders = (order for order, starts in enumerate(self._starts_by_order) if starts)
        return max((1 << order for order in orders), default=0)

    def allocate(self, length: int) -> int | None:
        """Take an extent of ``length`` slots, a power of two; returns its start, or None when none is long enough."""
        wanted = _order(length)
        candidates = [(starts[0], wanted + i) for i, starts in enumerate(self._starts_by_order[wanted:]) if starts]
        if not candidates:
            return None
        start, order = min(candidates)
        del self._starts_by_order[order][0]
        while order > wanted:
            order -= 1
            insort(self._starts_by_order[order], start + (1 << order))
        self.num_free -= length
        return start

    def extend(self, start: int, length: int, new_length: int) -> bool:
        """Lengthen a held extent where it stands; False, and nothing has changed, when it cannot be done.

        It can when the extent is a left buddy whose right buddy is free, and so on for every doubling up to
        ``new_length``.
        """
        orders = range(_order(length), _order(new_length))
        if start % new_length or not all(self._is_free(start + (1 << order), order) for order in orders):
            return False
        for order in orders:
            self._remove(start + (1 << order), order)
        self.num_free -= new_length - length
        return True

    def free(self, start: int, length: int) -> None:
        """Give an extent back, and merge it with its buddy for as long as that is free."""
        order = _order(length)
        for larger in range(order, len(self._starts_by_order)):
            enclosing = start >> larger << larger
            assert not self._is_free(enclosing, larger), f"extent [{start}, {start + length}) is free already"
        while self._is_free(start ^ (1 << order), order):
            self._remove(start ^ (1 << order), order)
            start &= ~(1 << order)
            order += 1
        insort(self._starts_by_order[order], start)
        self.num_free += length

    def check_integrity(self, held: list[tuple[int, int]]) -> None:
        """Audit against the (start, length) of every extent that is handed out.

        Raises:
            AssertionError: when the free and held extents do not tile the pool, one is not a buddy, or two free buddies
                were not merged.

        """
        free = [(start, 1 << order) for order, starts in enumerate(self._starts_by_order) for start in starts]
        for order, starts in enumerate(self._starts_by_order):
            assert starts == sorted(set(starts)), f"free extents of order {order} are out of order or doubled"
            for start in starts:
                assert not self._is_free(start ^ (1 << order), order), f"free buddies at {start} were not merged"
        assert sum(length for _, length in free) == self.num_free, "free slots are miscounted"
        position = 0
        for start, length in sorted(free + held):
            assert length & (length - 1) == 0 < length, f"extent at {start} has {length} slots"
            assert start % length == 0, f"extent at {start} is not aligned to its {length} slots"
            assert start == position, f"slots [{min(start, position)}, {max(start, position)}) are lost or held twice"
            position = start + length
        assert position == self.num_slots, f"extents end at {position}, the pool at {self.num_slots}"

    def _is_free(self, start: int, order: int) -> bool:
        if order >= len(self._starts_by_order):
            return False
        starts = self._starts_by_order[order]
        index = bisect_left(starts, start)
        return index < len(starts) and starts[index] == start

    def _remove(self, start: int, order: int) -> None:
        starts = self._starts_by_order[order]
        del starts[bisect_left(starts, start)]


def _order(length: int) -> int:
    assert length > 0, f"an extent of {length} slots"
    assert length & (length - 1) == 0, f"{length} is not a power of two"
    return length.bit_length() - 1
