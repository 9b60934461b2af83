"""What the engine says about itself: the only things that the harness reads.

All times are nanoseconds of ``time.monotonic_ns()`` in the engine's process.
All KV quantities are in slots (room for one token's K and V in every layer).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from pbench.engine.candidate import ScoredToken

FinishReason: TypeAlias = Literal["stop", "length"]  # a stop token or text, or max_tokens

NUM_SHARER_BINS = 6


def sharer_bin(num_sharers: int) -> int:
    """Where a held block counts in ``KVUsage.blocks_by_sharers``: 1, 2, 3-4, 5-8, 9-16, or more sequences hold it."""
    return min((num_sharers - 1).bit_length(), NUM_SHARER_BINS - 1)


@dataclass(frozen=True, slots=True)
class KVUsage:
    """An exact partition of the pool: the first six fields always sum to the number of slots of the pool.

    ``shared_saved`` stands beside the partition: logical minus physical token slots, what sharing saves. So does
    ``blocks_by_sharers``: held blocks by how many sequences hold them, in the bins of ``sharer_bin``; all 0 where
    memory has no blocks.
    """

    token_state: int  # hold KV of live tokens; a shared block counts once
    reserved: int  # held now, and the same sequence will fill them later
    internal: int  # held, and will never be filled
    external: int  # free, but the head of the queue cannot use them because they are not contiguous
    cached: int  # kept only for the prefix cache, evictable at once
    free: int  # the rest
    shared_saved: int
    blocks_by_sharers: tuple[int, ...] = (0,) * NUM_SHARER_BINS

    @property
    def pool(self) -> int:
        """Slots of the whole pool: the sum of the parts."""
        return self.token_state + self.reserved + self.internal + self.external + self.cached + self.free

    @property
    def waste(self) -> int:
        """Slots that hold nothing and serve nobody else: reserved + internal + external."""
        return self.reserved + self.internal + self.external


class TokenOutput(NamedTuple):
    """One token that a step gave out."""

    request_id: int
    sample_index: int  # which of the request's n samples, or hypotheses (best first)
    token_id: int
    # What is known of its text now, or "": a character may take several tokens, and what may begin a stop string is
    # held until it is known not to. The texts of a sequence's tokens, one after the other, are its text.
    text: str = ""
    score: ScoredToken | None = None  # its log-probabilities, where they were asked for
    finish_reason: FinishReason | None = None  # of a sequence's last token


@dataclass(frozen=True, slots=True)
class Completion:
    """All that came out of one sequence."""

    token_ids: list[int]
    text: str  # "" where the engine cannot decode, or nobody wanted text
    scores: list[ScoredToken]  # of every token; none where they were not asked for
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of the engine: when it ran, what it did, and how the pool stood at its end.

    Steps do not overlap: where the next one is launched while this one runs, it starts when this one ends. All that
    planning decides (what runs, waits, is preempted; the pool) stands as it was when the step was planned.
    """

    step: int
    start_ns: int  # planned, or the end of the step before it where that was later
    end_ns: int  # its tokens are known
    num_prefill_tokens: int  # prompt (or recomputed) tokens whose KV this step computed
    num_decode_tokens: int  # sequences that computed one further token
    num_output_tokens: int  # tokens that were sampled and given out
    num_prefix_hit_tokens: int  # prompt tokens whose KV came from the cache, of requests first admitted in this step
    num_near_miss_tokens: int  # further ones that the pool has, but in blocks that go on otherwise or are unfinished
    num_recomputed_tokens: int  # tokens computed once more because of an earlier preemption
    num_running: int  # requests that hold KV at the end of planning, before the finished ones leave
    num_waiting: int
    num_finished: int
    num_preempted: int
    num_forks: int
    num_copied_blocks: int
    num_evicted_blocks: int
    num_swapped_out_blocks: int  # to host memory
    num_swapped_in_blocks: int
    num_moved_slots: int  # of extents that moved to grow
    is_memory_blocked: bool  # a request waited, or was preempted, for no other reason than memory
    usage: KVUsage


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request that has left the engine."""

    request_id: int
    status: str  # "finished" | "aborted"
    arrival_ns: int  # when the request was meant to arrive
    added_ns: int  # when it was given to the engine
    first_scheduled_ns: int | None
    first_token_ns: int | None
    finished_ns: int
    num_prompt_tokens: int
    num_output_tokens: int  # over all its sequences
    num_sequences: int
    num_prefix_hit_tokens: int
    num_recomputed_tokens: int
    num_preemptions: int
    kv_byte_seconds: float  # KV memory it held, over time; a shared block is split among its holders
