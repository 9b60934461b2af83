"""ContiguousMemory: one extent per sequence, reserved at admission, as engines did before PagedAttention."""

from pbench.engine.extents import ExtentAllocator
from pbench.engine.memory import MemoryCounters
from pbench.engine.records import KVUsage
from pbench.engine.request import Request
from pbench.engine.sequence import Sequence


class ContiguousMemory:
    """A ``KVMemory`` that reserves ``max_length`` slots for every sequence (policy max).

    This is "Orca (Max)" of the PagedAttention paper: the output length is unknown at admission, so the longest
    possible is reserved. Nothing is shared, nothing ever moves, and a running sequence always finishes.
    """

    can_fork = False

    def __init__(self, num_slots: int, max_length: int) -> None:
        self.num_slots = num_slots
        self.max_length = max_length
        self.reset()

    def reset(self) -> None:
        """See ``KVMemory.reset``."""
        self._extents = ExtentAllocator(self.num_slots)
        self._tables: dict[int, list[int]] = {}
        self._sequences: dict[int, Sequence] = {}

    def can_ever_hold(self, request: Request) -> bool:
        """See ``KVMemory.can_ever_hold``."""
        return request.sampling.n * self.max_length <= self.num_slots

    def admit(self, seq: Sequence, num_tokens: int, num_running: int) -> int | None:
        """See ``KVMemory.admit``."""
        del num_tokens, num_running  # the longest is reserved, whatever is known
        assert seq.seq_id not in self._tables, f"sequence {seq.seq_id} is admitted twice"
        start = self._extents.allocate(self.max_length)
        if start is None:
            return None
        self._tables[seq.seq_id] = [start]
        self._sequences[seq.seq_id] = seq
        return 0

    def grow(self, seq: Sequence, num_new_tokens: int) -> int | None:
        """See ``KVMemory.grow``. The extent holds the longest sequence, so there is always room."""
        assert seq.num_computed_tokens + num_new_tokens <= self.max_length
        return 1

    def commit(self, seq: Sequence) -> None:
        """See ``KVMemory.commit``: nobody else can find what a sequence holds."""

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """See ``KVMemory.fork``."""
        raise AssertionError(f"contiguous memory cannot share: fork of {parent.seq_id} to {child.seq_id}")

    def free(self, seq: Sequence) -> None:
        """See ``KVMemory.free``."""
        del self._sequences[seq.seq_id]
        self._extents.free(self._tables.pop(seq.seq_id)[0], self.max_length)

    def holds(self, seq: Sequence) -> bool:
        """See ``KVMemory.holds``."""
        return seq.seq_id in self._tables

    def table(self, seq: Sequence) -> list[int]:
        """See ``KVMemory.table``: the base slot of the extent."""
        return self._tables[seq.seq_id]

    def take_copies(self) -> list[tuple[int, int]]:
        """See ``KVMemory.take_copies``: there are none."""
        return []

    def usage(self, head: Sequence | None) -> KVUsage:
        """See ``KVMemory.usage``.

        Free slots are external when they would be enough for the head of the queue if only they lay together.
        """
        token_state = reserved = 0
        for seq in self._sequences.values():
            token_state += seq.num_computed_tokens
            reserved += seq.final_kv_tokens - seq.num_computed_tokens
        num_free = self._extents.num_free
        is_shredded = head is not None and self._extents.largest_free < self.max_length <= num_free
        return KVUsage(
            token_state=token_state,
            reserved=reserved,
            internal=self.num_slots - num_free - token_state - reserved,
            external=num_free if is_shredded else 0,
            cached=0,
            free=0 if is_shredded else num_free,
            shared_saved=0,
        )

    def counters(self) -> MemoryCounters:
        """See ``KVMemory.counters``: nothing is ever forked, copied or evicted."""
        return MemoryCounters(0, 0, 0)

    def check_integrity(self) -> None:
        """See ``KVMemory.check_integrity``."""
        self._extents.check_integrity([(table[0], self.max_length) for table in self._tables.values()])
        assert self._tables.keys() == self._sequences.keys(), "a table without a sequence"
        usage = self.usage(None)
        assert usage.pool == self.num_slots, f"{usage} does not sum to {self.num_slots}"
        assert min(usage.token_state, usage.reserved, usage.internal, usage.free) >= 0, f"negative part: {usage}"
