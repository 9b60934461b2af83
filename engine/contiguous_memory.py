"""ContiguousMemory: one extent per sequence, reserved at admission, as engines did before PagedAttention."""

from collections.abc import Iterable
from typing import Protocol

from pbench.engine.extents import ExtentAllocator
from pbench.engine.memory import MemoryCounters
from pbench.engine.pool_map import HeldExtent, PoolMap, map_extents
from pbench.engine.records import KVUsage
from pbench.engine.request import Request
from pbench.engine.reservation import Reservation
from pbench.engine.sequence import Sequence


class Allocator(Protocol):
    """What hands out the pool's slots in contiguous runs."""

    num_free: int

    @property
    def largest_free(self) -> int:
        """Slots of the largest free extent."""
        ...

    def allocate(self, length: int) -> int | None:
        """Take an extent of ``length`` slots; returns its start, or None when no free one is long enough."""
        ...

    def free(self, start: int, length: int) -> None:
        """Give an extent back, and merge it with its free neighbours."""
        ...

    def check_integrity(self, held: list[tuple[int, int]]) -> None:
        """Audit against the (start, length) of every extent that is handed out; raises AssertionError."""
        ...


class Extent:
    """The slots that one sequence holds."""

    __slots__ = ("length", "paid_ns", "seq", "since_ns", "table")

    def __init__(self, seq: Sequence, start: int, length: int, now_ns: int) -> None:
        self.seq = seq
        self.since_ns = now_ns  # when it got its present length
        self.paid_ns = 0.0  # slot-nanoseconds before
        self.table = [start]  # as the runner wants it: the base slot is its only entry
        self.length = length

    @property
    def start(self) -> int:
        """The first slot."""
        return self.table[0]

    def resize(self, length: int, now_ns: int) -> None:
        """Change the length; what it had so far is paid for."""
        self.paid_ns += self.length * (now_ns - self.since_ns)
        self.since_ns = now_ns
        self.length = length


class ContiguousMemory:
    """A ``KVMemory`` that reserves all that a sequence will ever hold when it is admitted. First fit.

    With ``ReserveMax`` it is the paper's "Orca (Max)", with ``ReserveFinal`` its "Orca (Oracle)". Nothing is shared,
    nothing ever moves, and a running sequence always finishes.

    The paper's Orca lays its extents out with a buddy allocator under every rule. First fit loses nothing to rounding,
    so this baseline is stronger than the paper's. Where the longest sequence is a power of two, both lay it out alike.
    """

    can_fork = False

    def __init__(self, num_slots: int, reservation: Reservation) -> None:
        self.num_slots = num_slots
        self.reservation = reservation
        self.reset()

    def reset(self) -> None:
        """See ``KVMemory.reset``."""
        self._allocator: Allocator = ExtentAllocator(self.num_slots)
        self._extents: dict[int, Extent] = {}  # by seq_id
        self._now_ns = 0
        self._spent_ns: dict[int, float] = {}  # slot-nanoseconds by seq_id, until they are taken

    def can_ever_hold(self, request: Request) -> bool:
        """See ``KVMemory.can_ever_hold``."""
        sampling = request.sampling
        final_kv_tokens = len(request.prompt_token_ids) + sampling.max_tokens - 1
        return sampling.n <= self.num_slots // self.reservation.last_slots(final_kv_tokens)

    def foresee(self, waiting: Iterable[list[Sequence]]) -> None:
        """See ``KVMemory.foresee``: every sequence is admitted for itself."""

    def admit(self, seq: Sequence, num_tokens: int, num_running: int) -> int | None:
        """See ``KVMemory.admit``."""
        del num_running  # nothing has to be kept back for others
        assert seq.seq_id not in self._extents, f"sequence {seq.seq_id} is admitted twice"
        length = self.reservation.first_slots(num_tokens, seq.final_kv_tokens)
        start = self._allocator.allocate(length)
        if start is None:
            return None
        self._extents[seq.seq_id] = Extent(seq, start, length, self._now_ns)
        return 0

    def grow(self, seq: Sequence, num_new_tokens: int) -> int | None:
        """See ``KVMemory.grow``. The extent holds the whole sequence, so there is always room."""
        assert seq.num_computed_tokens + num_new_tokens <= self._extents[seq.seq_id].length
        return 1

    def commit(self, seq: Sequence) -> None:
        """See ``KVMemory.commit``: nobody else can find what a sequence holds."""

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """See ``KVMemory.fork``."""
        raise AssertionError(f"contiguous memory cannot share: fork of {parent.seq_id} to {child.seq_id}")

    def free(self, seq: Sequence) -> None:
        """See ``KVMemory.free``."""
        extent = self._extents.pop(seq.seq_id)
        self._pay(extent)
        self._allocator.free(extent.start, extent.length)

    def tick(self, now_ns: int) -> None:
        """See ``KVMemory.tick``."""
        self._now_ns = now_ns

    def take_cost(self, seq: Sequence) -> float:
        """See ``KVMemory.take_cost``."""
        return self._spent_ns.pop(seq.seq_id, 0.0)

    def num_slots_held(self, seq: Sequence) -> int:
        """See ``KVMemory.num_slots_held``."""
        return self._extents[seq.seq_id].length

    def holds(self, seq: Sequence) -> bool:
        """See ``KVMemory.holds``."""
        return seq.seq_id in self._extents

    def table(self, seq: Sequence) -> list[int]:
        """See ``KVMemory.table``: the base slot of the extent."""
        return self._extents[seq.seq_id].table

    def take_moves(self) -> list[tuple[int, int, int]]:
        """See ``KVMemory.take_moves``: nothing moves."""
        return []

    def take_copies(self) -> list[tuple[int, int]]:
        """See ``KVMemory.take_copies``: there are none."""
        return []

    def usage(self, head: Sequence | None) -> KVUsage:
        """See ``KVMemory.usage``. O(sequences).

        Free slots are external when they would be enough for the head of the queue if only they lay together.
        """
        token_state = reserved = 0
        for extent in self._extents.values():
            seq = extent.seq
            token_state += seq.num_computed_tokens
            reserved += min(extent.length, seq.final_kv_tokens) - seq.num_computed_tokens
        num_free = self._allocator.num_free
        is_shredded = False
        if head is not None:
            num_wanted = self.reservation.first_slots(head.num_tokens, head.final_kv_tokens)
            is_shredded = self._allocator.largest_free < num_wanted <= num_free
        return KVUsage(
            token_state=token_state,
            reserved=reserved,
            internal=self.num_slots - num_free - token_state - reserved,
            external=num_free if is_shredded else 0,
            cached=0,
            free=0 if is_shredded else num_free,
            shared_saved=0,
        )

    def pool_map(self) -> PoolMap:
        """See ``KVMemory.pool_map``. What is held but by no running sequence is internal, as in ``usage``."""
        return map_extents(self._mapped(), num_slots=self.num_slots)

    def _mapped(self) -> list[HeldExtent]:
        return [_map_extent(extent) for extent in self._extents.values()]

    def counters(self) -> MemoryCounters:
        """See ``KVMemory.counters``: nothing is ever forked, copied or evicted."""
        return MemoryCounters(0, 0, 0)

    def check_integrity(self) -> None:
        """See ``KVMemory.check_integrity``."""
        self._allocator.check_integrity(self._held())
        for seq_id, extent in self._extents.items():
            num_computed = extent.seq.num_computed_tokens
            assert num_computed <= extent.length, (
                f"sequence {seq_id} has {num_computed} tokens in an extent of {extent.length} slots"
            )
        usage = self.usage(None)
        assert usage.pool == self.num_slots, f"{usage} does not sum to {self.num_slots}"
        assert min(usage.token_state, usage.reserved, usage.internal, usage.free) >= 0, f"negative part: {usage}"

    def _held(self) -> list[tuple[int, int]]:
        """(start, length) of all that is not free."""
        return [(extent.start, extent.length) for extent in self._extents.values()]

    def _pay(self, extent: Extent) -> None:
        """Charge the sequence for its extent up to now."""
        extent.resize(extent.length, self._now_ns)
        seq_id = extent.seq.seq_id
        self._spent_ns[seq_id] = self._spent_ns.get(seq_id, 0.0) + extent.paid_ns
        extent.paid_ns = 0.0


def _map_extent(extent: Extent) -> HeldExtent:
    seq = extent.seq
    num_computed = seq.num_computed_tokens
    num_reserved = min(extent.length, seq.final_kv_tokens) - num_computed
    return HeldExtent(extent.start, extent.length, seq.request.request_id, 1, num_computed, num_reserved)
