"""ExtentAllocator: contiguous runs of slots, first fit, coalescing on free."""

from bisect import bisect_left


class ExtentAllocator:
    """Hands out extents ``[start, start + length)`` of a pool of ``num_slots`` slots.

    First fit by address (Knuth, The Art of Computer Programming, vol. 1, 2.5). The free extents are kept sorted by
    start and never touch each other.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.num_free = num_slots
        self._starts = [0] if num_slots else []
        self._lengths = [num_slots] if num_slots else []

    @property
    def largest_free(self) -> int:
        """Slots of the largest free extent."""
        return max(self._lengths, default=0)

    def allocate(self, length: int) -> int | None:
        """Take the first free run of ``length`` slots; returns its start, or None when no run is long enough."""
        for index, free_length in enumerate(self._lengths):
            if free_length >= length:
                start = self._starts[index]
                if free_length == length:
                    del self._starts[index], self._lengths[index]
                else:
                    self._starts[index] += length
                    self._lengths[index] -= length
                self.num_free -= length
                return start
        return None

    def free(self, start: int, length: int) -> None:
        """Give an extent back, and merge it with free neighbours."""
        index = bisect_left(self._starts, start)
        end = start + length
        if index > 0:
            previous_end = self._starts[index - 1] + self._lengths[index - 1]
            assert previous_end <= start, f"extent [{start}, {end}) is free already"
        if index < len(self._starts):
            assert end <= self._starts[index], f"extent [{start}, {end}) is free already"
            if end == self._starts[index]:
                length += self._lengths[index]
                del self._starts[index], self._lengths[index]
        if index > 0 and previous_end == start:
            self._lengths[index - 1] += length
        else:
            self._starts.insert(index, start)
            self._lengths.insert(index, length)
        self.num_free += end - start

    def check_integrity(self, held: list[tuple[int, int]]) -> None:
        """Audit against the (start, length) of every extent that is handed out.

        Raises:
            AssertionError: when the free and held extents do not tile the pool, or free neighbours were not merged.

        """
        free = list(zip(self._starts, self._lengths, strict=True))
        assert sum(length for _, length in free) == self.num_free, "free slots are miscounted"
        extents = sorted([(*extent, True) for extent in free] + [(*extent, False) for extent in held])
        position, was_free = 0, False
        for start, length, is_free in extents:
            assert length > 0, f"extent at {start} is empty"
            assert start == position, f"slots [{min(start, position)}, {max(start, position)}) are lost or held twice"
            assert not (is_free and was_free), f"free neighbours at {start} were not merged"
            position, was_free = start + length, is_free
        assert position == self.num_slots, f"extents end at {position}, the pool at {self.num_slots}"
