"""What the paged memory's operations cost, in pools of different sizes: they should cost what they touch, not the pool.

Every pool is filled with sequences, and a random few of them are freed again. Then operations on one long prompt are
timed, in all pools in turns, by the processor time that they take, and the fastest of several repeats counts. There are
two ways to fill a pool:

    fresh   sequence after sequence: blocks that are held together lie together
    aged    all sequences grow by a block in turns: every block of a sequence lies elsewhere, and what is free too

The same operations run in both. In an aged pool every block that is touched is a cache miss as soon as the pool's
bookkeeping outgrows the processor's caches, whatever the algorithm: a fresh pool shows what the algorithm costs.
"""

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pbench.engine.paged_memory import PagedMemory
from pbench.engine.request import Request, SamplingParams
from pbench.engine.sequence import Sequence as TokenSequence
from pbench.errors import UsageError

# Blocks of every sequence that fills the pool: in a million blocks there are ten thousand of them.
RESIDENT_BLOCKS = 99
NUM_GROWTHS = 64  # of the long prompt by a block each
_LONGEST_OUTPUT = 1 << 30

OPERATIONS = {
    "allocate": "admit a prompt and take its blocks",
    "grow": "take one block more",
    "fork": "share all blocks with a second sequence",
    "free shared": "give back shared blocks",
    "free": "give back blocks that nobody else holds",
    "evict": "admit a prompt and take its blocks from the prefix cache, which forgets them",
    "publish": "hash blocks and enter them into the prefix cache",
    "free cached": "give back blocks that stay in the prefix cache",
    "look up": "hash a prompt and find all its blocks in the prefix cache",
}


LAYOUTS = ("fresh", "aged")


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What is timed."""

    pool_sizes: tuple[int, ...] = (10_000, 1_000_000)  # blocks, the smallest first
    prompt_tokens: int = 131_072
    block_size: int = 16
    num_repeats: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        num_needed = self.num_prompt_blocks + NUM_GROWTHS + 2 * RESIDENT_BLOCKS
        if min(self.pool_sizes) < num_needed:
            raise UsageError(
                f"a pool of {min(self.pool_sizes)} blocks is too small for a prompt of {self.prompt_tokens} tokens;"
                f" use at least {num_needed} blocks, or a shorter prompt"
            )

    @property
    def num_prompt_blocks(self) -> int:
        """Full blocks of the long prompt."""
        return self.prompt_tokens // self.block_size


@dataclass(frozen=True, slots=True)
class OperationCost:
    """The cost of one operation in every pool."""

    layout: str  # one of LAYOUTS
    operation: str  # of OPERATIONS
    ns_per_block: tuple[float, ...]  # in the order of the plan's pool sizes

    @property
    def ratio(self) -> float:
        """The cost in the last pool over that in the first."""
        return self.ns_per_block[-1] / self.ns_per_block[0]


def bench_memory(plan: BenchPlan, layout: str) -> list[OperationCost]:
    """Time every operation of OPERATIONS in every pool, in this process, with Python's cycle collector off."""
    assert layout in LAYOUTS, f"layout {layout}"
    best: dict[tuple[str, int], float] = {}
    with _no_cycle_collection():
        for is_cached, cycle in ((False, _uncached_cycle), (True, _cached_cycle)):
            pools = [_filled_pool(size, plan, layout, is_prefix_cached=is_cached) for size in plan.pool_sizes]
            # Twice as many turns as repeats, the first half to warm up: a cache must first be full to evict.
            for turn in range(2 * plan.num_repeats):
                for index, memory in enumerate(pools):
                    for operation, ns in cycle(memory, plan, turn):
                        if turn >= plan.num_repeats:
                            key = operation, index
                            best[key] = min(ns, best.get(key, ns))
            for memory in pools:
                memory.check_integrity()
    sizes = range(len(plan.pool_sizes))
    return [OperationCost(layout, name, tuple(best[name, index] for index in sizes)) for name in OPERATIONS]


def _filled_pool(num_blocks: int, plan: BenchPlan, layout: str, *, is_prefix_cached: bool) -> PagedMemory:
    """A pool full of sequences, with room for the long prompt."""
    memory = PagedMemory(num_blocks, plan.block_size, is_prefix_cached=is_prefix_cached, watermark=0.0)
    num_tokens = RESIDENT_BLOCKS * plan.block_size
    residents = [_sequence(-1 - i, [i] * num_tokens) for i in range(num_blocks // RESIDENT_BLOCKS)]
    for seq in residents:
        assert memory.admit(seq, plan.block_size, 0) is not None
        if layout == "fresh":
            _compute(memory, seq, num_tokens)
    if layout == "aged":
        for _ in range(RESIDENT_BLOCKS):
            for seq in residents:
                _compute(memory, seq, plan.block_size)
    num_wanted = plan.num_prompt_blocks + NUM_GROWTHS + RESIDENT_BLOCKS
    for seq in random.Random(plan.seed).sample(residents, -(-num_wanted // RESIDENT_BLOCKS) - 1):
        memory.free(seq)
    return memory


def _uncached_cycle(memory: PagedMemory, plan: BenchPlan, turn: int) -> Iterator[tuple[str, float]]:
    """Time one allocation, growth, fork and release; the pool is then as before. Yields (operation, ns per block)."""
    num_blocks, tokens = plan.num_prompt_blocks, _prompt(plan, turn)
    parent, child = (_sequence(2 * turn + i, tokens) for i in range(2))

    def allocate() -> None:
        assert memory.admit(parent, plan.prompt_tokens, 0) == 0
        _compute(memory, parent, plan.prompt_tokens)

    def grow() -> None:
        for _ in range(NUM_GROWTHS):
            _compute(memory, parent, plan.block_size)

    yield "allocate", _timed(allocate, num_blocks)
    parent.token_ids.extend([0] * NUM_GROWTHS * plan.block_size)
    yield "grow", _timed(grow, NUM_GROWTHS)
    num_blocks += NUM_GROWTHS
    yield "fork", _timed(lambda: memory.fork(parent, child), num_blocks)
    child.num_computed_tokens = parent.num_computed_tokens
    yield "free shared", _timed(lambda: memory.free(child), num_blocks)
    yield "free", _timed(lambda: memory.free(parent), num_blocks)


def _cached_cycle(memory: PagedMemory, plan: BenchPlan, turn: int) -> Iterator[tuple[str, float]]:
    """Time one allocation that evicts, and one prompt that is found again. Yields (operation, ns per block)."""
    num_blocks, tokens = plan.num_prompt_blocks, _prompt(plan, turn)
    first, again = (_sequence(2 * turn + i, tokens) for i in range(2))

    def evict() -> None:
        assert memory.admit(first, plan.prompt_tokens, 0) == 0
        assert memory.grow(first, plan.prompt_tokens) is not None

    def look_up() -> None:
        assert memory.admit(again, plan.prompt_tokens + 1, 0) == num_blocks * plan.block_size

    yield "evict", _timed(evict, num_blocks)
    first.num_computed_tokens = plan.prompt_tokens
    yield "publish", _timed(lambda: memory.commit(first), num_blocks)
    yield "free cached", _timed(lambda: memory.free(first), num_blocks)
    yield "look up", _timed(look_up, num_blocks)
    memory.free(again)


def _prompt(plan: BenchPlan, turn: int) -> list[int]:
    """A prompt that no other turn has, and no resident."""
    return [1 << 30 | turn] * (plan.prompt_tokens + 1)


def _sequence(seq_id: int, tokens: Sequence[int]) -> TokenSequence:
    return TokenSequence(seq_id, Request(seq_id, list(tokens), SamplingParams(max_tokens=_LONGEST_OUTPUT)))


def _compute(memory: PagedMemory, seq: TokenSequence, num_tokens: int) -> None:
    """Grow by so many tokens, as if they were computed."""
    assert memory.grow(seq, num_tokens) is not None, "the pool is full"
    seq.num_computed_tokens += num_tokens
    memory.commit(seq)


def _timed(operation: Callable[[], object], num_blocks: int) -> float:
    start_ns = time.thread_time_ns()
    operation()
    return (time.thread_time_ns() - start_ns) / num_blocks


@contextmanager
def _no_cycle_collection() -> Iterator[None]:
    """Looking for reference cycles takes time in proportion to all objects of the process, whoever made them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
