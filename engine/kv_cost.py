"""BlockCost: what holding blocks costs their owners, in block-nanoseconds, a shared block split among its owners."""

from collections.abc import Iterable, Sequence


class BlockCost:
    """For each held block b, the integral L_b of 1 / owners(b) over the time since it was taken.

    An owner that holds b from t1 to t2 pays L_b(t2) - L_b(t1), whoever else comes and goes in between. L_b is brought
    up to date whenever an owner comes or goes, so the account costs O(1) for each block that is touched, and the
    payments of all owners of a block sum to the time for which it was held.
    """

    def __init__(self, num_blocks: int) -> None:
        self.now_ns = 0
        self._since_ns = [0] * num_blocks  # when the block's level was last brought up to date
        self._level_ns = [0.0] * num_blocks  # 0 where nobody holds the block

    def take(self, block_ids: Iterable[int]) -> None:
        """Blocks get their first owner, who pays from now on."""
        since_ns, now_ns = self._since_ns, self.now_ns
        for block_id in block_ids:
            since_ns[block_id] = now_ns

    def join(self, block_ids: Iterable[int], num_owners: Sequence[int]) -> float:
        """Blocks get a further owner.

        Args:
            block_ids: the blocks.
            num_owners: by block, before the new owner; 0 for blocks that nobody holds.

        Returns:
            What the new owner's account starts with: minus what the others have paid for already.
        """
        since_ns, level_ns, now_ns = self._since_ns, self._level_ns, self.now_ns
        credit = 0.0
        for block_id in block_ids:
            if owners := num_owners[block_id]:
                level_ns[block_id] += (now_ns - since_ns[block_id]) / owners
                credit -= level_ns[block_id]
            since_ns[block_id] = now_ns
        return credit

    def leave(self, block_ids: Iterable[int], num_owners: Sequence[int]) -> float:
        """An owner leaves blocks; ``num_owners`` by block, the leaving one included. Returns what it pays."""
        since_ns, level_ns, now_ns = self._since_ns, self._level_ns, self.now_ns
        paid = 0.0
        for block_id in block_ids:
            owners = num_owners[block_id]
            level = level_ns[block_id] + (now_ns - since_ns[block_id]) / owners
            level_ns[block_id] = level if owners > 1 else 0.0
            since_ns[block_id] = now_ns
            paid += level
        return paid
