"""BuddyMemory: one extent per sequence, a power of two that is doubled when it is full."""

from typing import NamedTuple

from pbench.engine.buddy import BuddyAllocator, next_power_of_two
from pbench.engine.contiguous_memory import ContiguousMemory
from pbench.engine.memory import MemoryCounters
from pbench.engine.pool_map import NOBODY, HeldExtent
from pbench.engine.reservation import ReservePowerOfTwo
from pbench.engine.sequence import Sequence


class _Move(NamedTuple):
    """Where the KV of a sequence still lies, and how much of it: the extent stays held until it has moved."""

    start: int
    length: int
    num_tokens: int


class BuddyMemory(ContiguousMemory):
    """A ``KVMemory`` that reserves in powers of two, from a buddy allocator.

    A sequence gets the power of two that holds its known tokens and one more. When that is full it is doubled: in place
    where it is a left buddy and its right one is free, otherwise by moving to a new extent. When there is no such
    extent the sequence has no room, and the scheduler preempts the newest request, as for paged memory.

    The paper's "Orca (Pow2)" knows more: it reserves at admission, once and for all, the prompt and the power of two
    above the true output length ("if the true output length is 25, it reserves 32 positions"). An engine cannot know
    that power of two before it has generated the output, so here it is found by doubling, which costs moves and
    preemptions, keeps less reserved for short contexts, and rounds prompt and output together.

    A request that fits alone always finishes: the oldest request preempts all others before itself, and when it has to
    preempt itself it starts again, with one more token at least, in an empty pool. Alone there, one sequence lies at
    slot 0 and every doubling is in place.
    """

    def __init__(self, num_slots: int) -> None:
        super().__init__(num_slots, ReservePowerOfTwo())

    def reset(self) -> None:
        """See ``KVMemory.reset``."""
        super().reset()
        self._allocator = self._buddies = BuddyAllocator(self.num_slots)
        self._pending_moves: dict[int, _Move] = {}  # by seq_id
        self._num_moved_slots = 0

    def grow(self, seq: Sequence, num_new_tokens: int) -> int | None:
        """See ``KVMemory.grow``."""
        extent = self._extents[seq.seq_id]
        num_wanted = seq.num_computed_tokens + num_new_tokens
        if num_wanted <= extent.length:
            return 1
        new_length = next_power_of_two(num_wanted)
        if self._buddies.extend(extent.start, extent.length, new_length):
            extent.resize(new_length, self._now_ns)
            return 1
        new_start = self._buddies.allocate(new_length)
        if new_start is None:
            return None
        assert seq.seq_id not in self._pending_moves, f"sequence {seq.seq_id} moves twice in one step"
        # Held until the move is handed out, so that nobody writes there before.
        self._pending_moves[seq.seq_id] = _Move(extent.start, extent.length, seq.num_computed_tokens)
        self._num_moved_slots += seq.num_computed_tokens
        extent.table[0] = new_start
        extent.resize(new_length, self._now_ns)
        return 0

    def free(self, seq: Sequence) -> None:
        """See ``KVMemory.free``. A move that was not handed out yet will not be."""
        move = self._pending_moves.pop(seq.seq_id, None)
        if move is not None:
            self._num_moved_slots -= move.num_tokens
            self._buddies.free(move.start, move.length)
        super().free(seq)

    def take_moves(self) -> list[tuple[int, int, int]]:
        """See ``KVMemory.take_moves``."""
        moves = []
        for seq_id, move in self._pending_moves.items():
            moves.append((move.start, self._extents[seq_id].start, move.num_tokens))
            self._buddies.free(move.start, move.length)
        self._pending_moves.clear()
        return moves

    def counters(self) -> MemoryCounters:
        """See ``KVMemory.counters``."""
        return MemoryCounters(0, 0, 0, num_moved_slots=self._num_moved_slots)

    def _mapped(self) -> list[HeldExtent]:
        pending = (HeldExtent(move.start, move.length, NOBODY, 0, 0, 0) for move in self._pending_moves.values())
        return [*super()._mapped(), *pending]

    def _held(self) -> list[tuple[int, int]]:
        return super()._held() + [(move.start, move.length) for move in self._pending_moves.values()]
