"""What an idealised prefix cache would hit: the yardstick for any real one."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from pbench.workloads.blocks import PromptBlocks, prompt_blocks
from pbench.workloads.table import RequestTable


class IdealHits(NamedTuple):
    """Hits of a cache of ``capacity`` blocks (None: of any number), of the blocks that all prompts have."""

    capacity: int | None
    num_hits: int
    num_blocks: int

    @property
    def rate(self) -> float:
        """Hits of a block looked up, 0..1; 0 when there are no blocks."""
        return self.num_hits / self.num_blocks if self.num_blocks else 0.0


def ideal_hits(
    requests: RequestTable, *, block_size: int, capacities: Sequence[int | None], is_partial_counted: bool
) -> list[IdealHits]:
    """What a prefix cache hits that knows no delay: one result a capacity.

    Requests are served one after the other in order of arrival. Each looks up the blocks of its prompt in order, and a
    block hits only while every earlier one of the request did; every block is then the most recently used one, and the
    least recently used one leaves a cache that is full. Outputs are not cached. ``is_partial_counted`` says whether a
    last block that the prompt does not fill is a block as well; an engine that caches full blocks only has none.
    """
    prompts = list(prompt_blocks(requests, block_size))
    if not is_partial_counted:
        prompts = [prompt.full() for prompt in prompts]
    num_blocks = sum(prompt.num_blocks for prompt in prompts)
    return [
        IdealHits(capacity, _unlimited_hits(prompts) if capacity is None else _lru_hits(prompts, capacity), num_blocks)
        for capacity in capacities
    ]


# Below, hits need not be counted from the front: whatever uses a block uses those before it first, so a block is never
# in the cache when one before it is not, nor stays there when that one comes back.


def _unlimited_hits(prompts: Sequence[PromptBlocks]) -> int:
    seen: set[int] = set()
    num_hits = 0
    for prompt in prompts:
        num_hits += len(seen.intersection(prompt.names))
        seen.update(prompt.names)
    return num_hits


def _lru_hits(prompts: Sequence[PromptBlocks], capacity: int) -> int:
    cache: OrderedDict[int, None] = OrderedDict()
    num_hits = 0
    for prompt in prompts:
        for names in (prompt.names, prompt.own_names):
            for name in names:
                if name in cache:
                    cache.move_to_end(name)
                    num_hits += 1
                else:
                    cache[name] = None
                    if len(cache) > capacity:
                        cache.popitem(last=False)
    return num_hits
