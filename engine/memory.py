"""KVMemory: all that the scheduler and the engine know of a KV memory.

A memory decides which slots of the pool hold whose KV. It never touches tensors: it deals in numbers, and the
runner's kernels follow the tables that it hands out.

Life of a sequence in a memory::

    admit ──> (grow ──> commit) ──> (grow ──> commit) ──> ... ──> free
                           └──> fork: a second sequence with the same KV so far

Who holds what (all half-open, in tokens of one sequence)::

    [0, num_computed_tokens)                 written, or planned to be written in the current step
    [num_computed_tokens, slots it holds)    held for later: reserved if it will be filled, internal if not
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from pbench.engine.plan import Swaps
from pbench.engine.pool_map import PoolMap
from pbench.engine.records import KVUsage
from pbench.engine.request import Request
from pbench.engine.sequence import Sequence


class MemoryCounters(NamedTuple):
    """Running totals of a memory since its last reset."""

    num_forks: int
    num_copied_blocks: int
    num_evicted_blocks: int
    num_moved_slots: int = 0
    num_swapped_out_blocks: int = 0
    num_swapped_in_blocks: int = 0
    num_near_miss_tokens: int = 0

    def plus(self, other: "MemoryCounters") -> "MemoryCounters":
        """Each counter of both."""
        return MemoryCounters(*(mine + others for mine, others in zip(self, other, strict=True)))

    def minus(self, before: "MemoryCounters") -> "MemoryCounters":
        """What was counted since ``before``."""
        return MemoryCounters(*(mine - others for mine, others in zip(self, before, strict=True)))


class Swapping(Protocol):
    """What a memory adds that can keep preempted requests in host memory."""

    def swap_out(self, seqs: list[Sequence]) -> bool:
        """Move what the sequences of one request hold to host memory, shared blocks once.

        False, and nothing has changed, when there is no room for it. What grew for the step being planned is dropped.
        """
        ...

    def swap_in(self, seqs: list[Sequence], num_running: int) -> bool:
        """Bring swapped sequences back, with room to grow by a token each; shared blocks are shared again.

        False, and nothing has changed, when the pool has no room. ``num_running`` is as for ``admit``.
        """
        ...

    def take_swaps(self) -> Swaps:
        """The copies between pool and host memory that the next step begins with; each is handed out once."""
        ...


class KVMemory(Protocol):
    """The contract of every KV memory."""

    num_slots: int  # of the pool
    can_fork: bool  # whether sequences can share slots; without it every sample computes its own prompt

    def can_ever_hold(self, request: Request) -> bool:
        """Whether the request, alone in the pool, runs to its end."""
        ...

    def foresee(self, waiting: Iterable[list[Sequence]]) -> None:
        """Look ahead before the admissions of a step: the sequences of each waiting request, first come first."""
        ...

    def admit(self, seq: Sequence, num_tokens: int, num_running: int) -> int | None:
        """Take a sequence in: find its cached prefix, and make sure that its known tokens will fit.

        Args:
            seq: a sequence that holds nothing.
            num_tokens: its leading tokens that are to be computed now; at least one of them will be.
            num_running: sequences that hold KV already; when it is 0 no room is kept back for growth.

        Returns:
            Tokens whose KV is in the pool already (fewer than ``num_tokens``), or None: no room now.

        """
        ...

    def grow(self, seq: Sequence, num_new_tokens: int) -> int | None:
        """Make the slots of the next ``num_new_tokens`` tokens writable by this sequence alone.

        Returns:
            The first entry of its table that changed (its length when none did), or None: no room, nothing changed.

        """
        ...

    def commit(self, seq: Sequence) -> None:
        """The step that writes all tokens below ``num_computed_tokens`` is planned: others may find them now.

        Those that are known, that is: called again once a token is known that was planned as a placeholder.
        """
        ...

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Give ``child``, which holds nothing, the same KV as ``parent``, without a copy. Needs ``can_fork``.

        If the parent has grown in the step that is being planned, the child may grow from the next step on: copies
        run before writes.
        """
        ...

    def free(self, seq: Sequence) -> None:
        """Give back all that the sequence holds."""
        ...

    def tick(self, now_ns: int) -> None:
        """Tell the memory the time, before anything of a step: what sequences pay for what they hold runs on it."""
        ...

    def take_cost(self, seq: Sequence) -> float:
        """Hand out, once, what the sequence has paid for the slots that it gave back.

        Slot-nanoseconds; a shared slot is split among its holders.
        """
        ...

    def num_slots_held(self, seq: Sequence) -> int:
        """Tokens of the sequence that its blocks, or its extent, have room for."""
        ...

    def holds(self, seq: Sequence) -> bool:
        """Whether the sequence is admitted, or forked, and not freed."""
        ...

    def table(self, seq: Sequence) -> list[int]:
        """The live table of the sequence: physical block numbers, or the base slot of its extent. Do not change it."""
        ...

    def take_moves(self) -> list[tuple[int, int, int]]:
        """The (source slot, destination slot, number of slots) to move before the next copy and the next write.

        Each is handed out once. No destination overlaps any source.
        """
        ...

    def take_copies(self) -> list[tuple[int, int]]:
        """The (source, destination) blocks to copy before the next write; each is handed out once."""
        ...

    def usage(self, head: Sequence | None) -> KVUsage:
        """The partition of the pool now; ``head`` is the sequence that waits first in the queue."""
        ...

    def pool_map(self) -> PoolMap:
        """What lies where in the pool now, in O(pool). Between steps its columns sum to the parts of ``usage``.

        External slots are free ones in it: a slot is free by itself, and external only for who waits.
        """
        ...

    def counters(self) -> MemoryCounters:
        """Totals since the last reset."""
        ...

    def reset(self) -> None:
        """Forget everything, the prefix cache included. No sequence may hold anything."""
        ...

    def check_integrity(self) -> None:
        """Audit every invariant, in O(pool).

        Raises:
            AssertionError: naming the first that does not hold.

        """
        ...
