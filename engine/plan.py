"""StepPlan: the only thing that the scheduler hands to the runner. Plain data, so that it can be broadcast."""

from array import array
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from pbench.engine.candidate import Candidate, ScoredToken

# What a step chooses for a sample: a token, with or without its score, or for a beam its candidates, most likely first.
Choice: TypeAlias = int | ScoredToken | list[Candidate]


class SampleOptions(NamedTuple):
    """What choosing a token takes beyond a temperature; see ``SamplingParams``."""

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_logprobs: int | None = None


class Sample(NamedTuple):
    """One token to choose from the last logits of what a sequence computes. ``seq_id`` receives it.

    The same in every step, but for ``history``, so that it need not be made anew.
    """

    seq_id: int
    temperature: float  # 0 is greedy
    seed: int
    num_candidates: int = 0  # more than 0: a beam, which wants its most likely tokens instead of one
    options: SampleOptions | None = None  # None for most
    history: "array[int] | None" = None  # all tokens so far, where the runner is to learn them for a penalty


class PlannedSequence(NamedTuple):
    """What one sequence does in a step."""

    seq_id: int
    start: int  # tokens whose KV is in the pool already
    token_ids: "array[int]"  # the tokens to compute, from position ``start`` on; negative: see ``placeholder``
    table_start: int  # the runner replaces its table of this sequence from this entry on ...
    table_entries: list[int]  # ... by these: physical block numbers, or the base slot of the one extent
    samples: tuple[Sample, ...]  # of the token at ``end``; empty when the prompt goes on in a later step

    @property
    def num_tokens(self) -> int:
        """Tokens to compute in this step."""
        return len(self.token_ids)

    @property
    def end(self) -> int:
        """The position of the token after them, which is what samples choose."""
        return self.start + len(self.token_ids)


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
    num_samples: int  # of all sequences
    has_one_each: bool  # whether every sequence has one sample
    is_greedy: bool  # whether every sample wants its most likely token and nothing else
    moves: list[tuple[int, int, int]]  # (source slot, destination slot, number of slots) of contiguous memory
    copies: list[tuple[int, int]]  # (source, destination) blocks, before anything is written
    swaps: Swaps
    released: list[int]  # seq_ids whose tables the runner forgets, before it reads the new ones
