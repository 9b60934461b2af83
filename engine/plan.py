"""StepPlan: the only thing that the scheduler hands to the runner. Plain data, so that it can be broadcast."""

from array import array
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from pbench.engine.beam_search import Candidate

# What a step chooses for a sample: a token, or for a beam its candidates, most likely first.
Choice: TypeAlias = int | list[Candidate]


class Sample(NamedTuple):
    """One token to choose from a sequence's last logits. ``seq_id`` receives it."""

    seq_id: int
    temperature: float  # 0 is greedy
    seed: int
    position: int  # of the token to be chosen, in its sequence
    num_candidates: int = 0  # more than 0: a beam, which wants its most likely tokens instead of one


class PlannedSequence(NamedTuple):
    """What one sequence does in a step."""

    seq_id: int
    start: int  # tokens whose KV is in the pool already
    token_ids: "array[int]"  # the tokens to compute, from position ``start`` on; negative: see ``placeholder``
    table_start: int  # the runner replaces its table of this sequence from this entry on ...
    table_entries: list[int]  # ... by these: physical block numbers, or the base slot of the one extent
    samples: tuple[Sample, ...]  # empty when the prompt goes on in a later step

    @property
    def num_tokens(self) -> int:
        """Tokens to compute in this step."""
        return len(self.token_ids)


def placeholder(sample_index: int) -> int:
    """What stands for a token that the step planned before is still choosing, as sample ``sample_index`` of its plan.

    Negative, so that no token id is one. It is its own inverse.
    """
    return ~sample_index


class Swaps(NamedTuple):
    """Blocks to copy between the pool and host memory, before anything else of a step."""

    out: list[tuple[int, int]]  # (pool block, host block); first
    back: list[tuple[int, int]]  # (host block, pool block)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: swaps out, swaps in, moves, copies, and then all sequences as one batch."""

    step: int
    sequences: list[PlannedSequence]  # those with one token to compute first
    num_decodes: int  # how many of the sequences compute one token
    moves: list[tuple[int, int, int]]  # (source slot, destination slot, number of slots) of contiguous memory
    copies: list[tuple[int, int]]  # (source, destination) blocks, before anything is written
    swaps: Swaps
    released: list[int]  # seq_ids whose tables the runner forgets, before it reads the new ones
