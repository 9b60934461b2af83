"""How many slots a contiguous memory keeps for a sequence.

The names are those of the baselines in Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention", SOSP 2023, section 6.1.
"""

from dataclasses import dataclass
from typing import Protocol

from pbench.engine.buddy import next_power_of_two


class Reservation(Protocol):
    """A rule for the length of a sequence's extent. All lengths are slots, of at least one token."""

    def first_slots(self, num_known_tokens: int, final_kv_tokens: int) -> int:
        """Slots of the extent at admission, when ``num_known_tokens`` tokens are to be computed at once.

        ``final_kv_tokens`` is how many tokens' KV the sequence will hold at its end, if no stop token ends it earlier.
        """
        ...

    def last_slots(self, final_kv_tokens: int) -> int:
        """Slots of the extent at the end of the sequence."""
        ...


@dataclass(frozen=True, slots=True)
class ReserveMax:
    """The longest sequence that the engine serves, whatever is asked for: nothing is known of the output."""

    max_length: int

    def first_slots(self, num_known_tokens: int, final_kv_tokens: int) -> int:
        """See ``Reservation.first_slots``."""
        del num_known_tokens, final_kv_tokens
        return self.max_length

    def last_slots(self, final_kv_tokens: int) -> int:
        """See ``Reservation.last_slots``."""
        del final_kv_tokens
        return self.max_length


@dataclass(frozen=True, slots=True)
class ReserveFinal:
    """Exactly what the sequence will hold at its end: an oracle, which no engine has.

    The oracle is ``max_tokens``: a workload asks for exactly the tokens that were generated when it was recorded. Where
    a stop token ends a sequence before that, the rest of its extent was reserved in vain.
    """

    def first_slots(self, num_known_tokens: int, final_kv_tokens: int) -> int:
        """See ``Reservation.first_slots``."""
        del num_known_tokens
        return final_kv_tokens

    def last_slots(self, final_kv_tokens: int) -> int:
        """See ``Reservation.last_slots``."""
        return final_kv_tokens


@dataclass(frozen=True, slots=True)
class ReservePowerOfTwo:
    """The power of two that holds the known tokens and one more, to be doubled when it is full."""

    def first_slots(self, num_known_tokens: int, final_kv_tokens: int) -> int:
        """See ``Reservation.first_slots``. The one more is left out where it would be the last, which gets no KV."""
        return next_power_of_two(min(num_known_tokens + 1, final_kv_tokens))

    def last_slots(self, final_kv_tokens: int) -> int:
        """See ``Reservation.last_slots``."""
        return next_power_of_two(final_kv_tokens)


def reservation_for(memory: str, max_length: int) -> Reservation:
    """The rule of the contiguous memory that the engine specification ``memory`` names."""
    if memory == "contiguous:max":
        return ReserveMax(max_length)
    if memory == "contiguous:pow2":
        return ReservePowerOfTwo()
    assert memory in ("contiguous:oracle", "static"), f"{memory} reserves nothing"
    return ReserveFinal()  # a static batch of one request is as long as the request
