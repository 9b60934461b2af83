"""Orca's memory as the PagedAttention paper reconstructed it: reservations at admission, laid out by buddies.

Kwon et al., SOSP 2023, section 6.1: "We implement our own version of Orca and assume Orca uses the buddy allocation
algorithm to determine the physical address to store KV cache", with three rules: Max, Pow2 and Oracle.
"""

from dataclasses import dataclass, replace

from pbench.engine.buddy import BuddyAllocator, next_power_of_two
from pbench.engine.contiguous_memory import ContiguousMemory
from pbench.engine.records import KVUsage
from pbench.engine.reservation import Reservation, ReserveFinal, ReserveMax
from pbench.engine.sequence import Sequence


class RoundingBuddyAllocator(BuddyAllocator):
    """A buddy allocator that takes any length and rounds it up to a power of two."""

    def __init__(self, num_slots: int) -> None:
        super().__init__(num_slots)
        self.num_rounded = 0  # slots handed out beyond those that were asked for

    def allocate(self, length: int) -> int | None:
        """Take an extent of at least ``length`` slots; returns its start, or None when there is none."""
        start = super().allocate(next_power_of_two(length))
        if start is not None:
            self.num_rounded += next_power_of_two(length) - length
        return start

    def free(self, start: int, length: int) -> None:
        """Give back the extent that was asked for with ``length``."""
        super().free(start, next_power_of_two(length))
        self.num_rounded -= next_power_of_two(length) - length

    def check_integrity(self, held: list[tuple[int, int]]) -> None:
        """See ``BuddyAllocator.check_integrity``; ``held`` has the lengths that were asked for."""
        rounded = [(start, next_power_of_two(length)) for start, length in held]
        super().check_integrity(rounded)
        num_asked = sum(length for _, length in held)
        assert self.num_rounded == sum(length for _, length in rounded) - num_asked, "rounded slots are miscounted"


@dataclass(frozen=True, slots=True)
class ReserveOutputPowerOfTwo:
    """The prompt, and the power of two above the true output length: "over-reserves by at most 2x".

    It is decided once, at admission, so the rule needs to know the output length, though not exactly. No reservation
    exceeds the longest sequence that is served.
    """

    max_length: int

    def first_slots(self, num_known_tokens: int, final_kv_tokens: int) -> int:
        """See ``Reservation.first_slots``: at admission the known tokens are the prompt."""
        num_output_tokens = final_kv_tokens + 1 - num_known_tokens
        return min(num_known_tokens + next_power_of_two(num_output_tokens), self.max_length)

    def last_slots(self, final_kv_tokens: int) -> int:
        """See ``Reservation.last_slots``: at most the longest, wherever the prompt ends."""
        return max(final_kv_tokens, self.max_length)


class OrcaMemory(ContiguousMemory):
    """A ``KVMemory`` that lays its reservations out with buddies."""

    def __init__(self, num_slots: int, reservation: Reservation) -> None:
        super().__init__(num_slots, reservation)

    def reset(self) -> None:
        """See ``KVMemory.reset``."""
        super().reset()
        self._allocator = self._buddies = RoundingBuddyAllocator(self.num_slots)

    def usage(self, head: Sequence | None) -> KVUsage:
        """See ``KVMemory.usage``, but what the buddies round up is external, as the paper counts it."""
        usage = super().usage(head)
        num_rounded = self._buddies.num_rounded
        return replace(usage, internal=usage.internal - num_rounded, external=usage.external + num_rounded)


def orca_memory(rule: str, num_slots: int, max_length: int) -> OrcaMemory:
    """Orca with the rule "max", "pow2" or "oracle"."""
    rules: dict[str, Reservation] = {
        "max": ReserveMax(max_length),
        "pow2": ReserveOutputPowerOfTwo(max_length),
        "oracle": ReserveFinal(),
    }
    return OrcaMemory(num_slots, rules[rule])
