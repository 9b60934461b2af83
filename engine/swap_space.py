"""SwapSpace: blocks of host memory, for what preempted requests will need again."""


class SwapSpace:
    """Hands out host blocks and takes them back. Every operation costs O(1) per block."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free_block_ids = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free_block_ids)

    def allocate(self) -> int:
        """Take a block; the caller has checked ``num_free``."""
        return self._free_block_ids.pop()

    def release(self, block_id: int) -> None:
        """Give a block back."""
        self._free_block_ids.append(block_id)

    def check_integrity(self, held: set[int]) -> None:
        """Audit against the blocks that are handed out.

        Raises:
            AssertionError: a block is lost, or free and held at once.
        """
        free = set(self._free_block_ids)
        assert len(free) == len(self._free_block_ids), "a host block is twice on the free list"
        assert free.isdisjoint(held), "a host block is free and held at once"
        assert len(free) + len(held) == self.num_blocks, "a host block is lost"
