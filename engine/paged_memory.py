"""PagedMemory: blocks on demand, block tables, prefix cache, copy-on-write.

Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", SOSP 2023.
"""

from collections import Counter
from collections.abc import Iterable

from pbench.engine.block_pool import BlockPool, num_blocks_for
from pbench.engine.child_index import ChildIndex
from pbench.engine.content_index import extend_digests
from pbench.engine.eviction import EVICTION_POLICIES
from pbench.engine.kv_cost import BlockCost
from pbench.engine.memory import MemoryCounters
from pbench.engine.plan import Swaps
from pbench.engine.pool_map import Holding, PoolMap, map_blocks
from pbench.engine.records import KVUsage
from pbench.engine.request import Request
from pbench.engine.sequence import Sequence
from pbench.engine.swap_space import SwapSpace


class _Table:
    """What one sequence holds: its blocks, the chained digests of those that are full, and its account."""

    __slots__ = ("block_ids", "digests", "paid_ns")

    def __init__(self, block_ids: list[int], digests: list[bytes], paid_ns: float = 0.0) -> None:
        self.block_ids = block_ids
        self.digests = digests  # of block_ids[: len(digests)]
        self.paid_ns = paid_ns  # block-nanoseconds, see BlockCost


class PagedMemory:
    """A ``KVMemory`` of fixed-size blocks.

    The prefix cache knows a full block by the SHA-256 of its parent's digest and its own tokens, so that a block
    stands for its whole prefix and no collision can hand out another prompt's KV. A block is registered when the
    step that fills it is planned: every layer writes the KV of the whole batch before attention reads it, so that
    requests of one step already share what another request of the same step computes.

    Sequences release their blocks last to first, so that a prefix is never evicted before what continues it.
    """

    can_fork = True

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        is_prefix_cached: bool = True,
        has_partial_hits: bool = False,
        watermark: float = 0.01,
        num_host_blocks: int = 0,
        eviction: str = "lru",
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_slots = num_blocks * block_size
        self.is_prefix_cached = is_prefix_cached
        self.has_partial_hits = has_partial_hits
        self.num_host_blocks = num_host_blocks
        self.eviction = eviction  # one of EVICTION_POLICIES
        self.watermark_blocks = int(watermark * num_blocks)  # kept back at admission whatever runs
        self.reset()

    def reset(self) -> None:
        """See ``KVMemory.reset``."""
        self._children = ChildIndex(self.num_blocks, self.block_size) if self.is_prefix_cached else None
        self._pool = BlockPool(self.num_blocks, EVICTION_POLICIES[self.eviction](), self._children)
        self._cost = BlockCost(self.num_blocks)
        self._spent_ns: dict[int, float] = {}  # block-nanoseconds by seq_id, until they are taken
        self._tables: dict[int, _Table] = {}
        self._sequences: dict[int, Sequence] = {}
        self._memo: tuple[int, list[bytes]] = (-1, [])  # digests of the sequence whose admission was tried last
        self._pending_copies: dict[int, int] = {}  # destination -> source; each holds a reference to its source
        self._num_pending_reads: Counter[int] = Counter()  # source -> how many of its references those are
        self._swap_space = SwapSpace(self.num_host_blocks)
        self._swapped: dict[int, _Table] = {}  # of sequences in host memory: host blocks
        self._host_refs: Counter[int] = Counter()  # swapped sequences that share a host block
        self._pending_swaps_out: list[tuple[int, int]] = []
        self._pending_swaps_in: dict[int, int] = {}  # pool block -> host block
        self._num_forks = 0
        self._num_copied = 0
        self._num_swapped_out = 0
        self._num_swapped_in = 0
        self._num_near_miss_tokens = 0

    def can_ever_hold(self, request: Request) -> bool:
        """See ``KVMemory.can_ever_hold``."""
        num_prompt, sampling = len(request.prompt_token_ids), request.sampling
        return (
            num_blocks_for(num_prompt, sampling.max_tokens, sampling.num_sequences, self.block_size) <= self.num_blocks
        )

    def foresee(self, waiting: Iterable[list[Sequence]]) -> None:
        """See ``KVMemory.foresee``: every sequence is admitted for itself."""

    def admit(self, seq: Sequence, num_tokens: int, num_running: int) -> int | None:
        """See ``KVMemory.admit``."""
        assert seq.seq_id not in self._tables, f"sequence {seq.seq_id} is admitted twice"
        pool = self._pool
        block_ids, digests = self._find_prefix(seq, num_tokens)
        num_wanted = -(-num_tokens // self.block_size) - len(block_ids)
        num_left = pool.num_available - sum(map(pool.is_cached_only, block_ids)) - self._num_kept_back(num_running)
        if num_wanted > num_left:
            return None
        num_hits = len(block_ids) * self.block_size
        partial, num_partial = self._find_part(seq, block_ids, num_tokens)
        # It is held until its copy has run: beside the copy, which is among the blocks wanted.
        if num_partial and self.has_partial_hits and num_wanted <= num_left - pool.is_cached_only(partial):
            block_ids.append(partial)
            num_hits += num_partial
        elif seq.max_computed_tokens == 0:  # what was here before a preemption is no near miss
            self._num_near_miss_tokens += num_partial
        paid_ns = self._cost.join(block_ids, pool.num_refs)
        pool.acquire(block_ids)
        self._tables[seq.seq_id] = _Table(block_ids, digests[: num_hits // self.block_size], paid_ns)
        self._sequences[seq.seq_id] = seq
        return num_hits

    def grow(self, seq: Sequence, num_new_tokens: int) -> int | None:
        """See ``KVMemory.grow``."""
        pool, table = self._pool, self._tables[seq.seq_id]
        block_ids = table.block_ids
        start, num_held = seq.num_computed_tokens, len(block_ids)
        first = start // self.block_size
        num_wanted = -(-(start + num_new_tokens) // self.block_size) - num_held
        is_copied = first < num_held and self._is_shared(block_ids[first])
        if not (num_wanted or is_copied):
            return num_held
        if num_wanted + is_copied > pool.num_available:
            return None
        if is_copied:
            source = block_ids[first]
            table.paid_ns += self._cost.leave([source], pool.num_refs)
            (block_ids[first],) = pool.allocate(1)
            self._cost.take(block_ids[first : first + 1])
            self._pending_copies[block_ids[first]] = source  # takes over this sequence's reference to the source
            self._num_pending_reads[source] += 1
            self._num_copied += 1
        if num_wanted:
            block_ids.extend(pool.allocate(num_wanted))
            self._cost.take(block_ids[num_held:])
        return first if is_copied else num_held

    def commit(self, seq: Sequence) -> None:
        """See ``KVMemory.commit``."""
        if not self.is_prefix_cached:
            return
        table = self._tables[seq.seq_id]
        num_known = len(table.digests)
        num_full = min(seq.num_computed_tokens, seq.num_known_tokens) // self.block_size
        if num_known < num_full:
            if self._memo[0] == seq.seq_id:  # its admission has looked further than it has found
                table.digests += self._memo[1][num_known:num_full]
            self._extend_digests(seq, table.digests, num_full)
            self._pool.register(table.block_ids[num_known:num_full], table.digests[num_known:])
        self._enter_children(seq, table, num_known, num_full)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """See ``KVMemory.fork``."""
        table = self._tables[parent.seq_id]
        paid_ns = self._cost.join(table.block_ids, self._pool.num_refs)
        self._pool.acquire(table.block_ids)
        self._tables[child.seq_id] = _Table(list(table.block_ids), list(table.digests), paid_ns)
        self._sequences[child.seq_id] = child
        self._num_forks += 1

    def free(self, seq: Sequence) -> None:
        """See ``KVMemory.free``."""
        del self._sequences[seq.seq_id]
        if seq.seq_id in self._swapped:
            self._release_host(self._swapped.pop(seq.seq_id).block_ids)
            return
        table = self._tables.pop(seq.seq_id)
        block_ids = table.block_ids
        paid_ns = table.paid_ns + self._cost.leave(block_ids, self._pool.num_refs)
        self._spent_ns[seq.seq_id] = self._spent_ns.get(seq.seq_id, 0.0) + paid_ns
        block_ids.reverse()
        if not (self._pending_copies or self._pending_swaps_in):
            self._pool.release(block_ids)
            return
        for block_id in block_ids:
            self._release(block_id)

    def tick(self, now_ns: int) -> None:
        """See ``KVMemory.tick``."""
        self._cost.now_ns = now_ns

    def take_cost(self, seq: Sequence) -> float:
        """See ``KVMemory.take_cost``."""
        return self._spent_ns.pop(seq.seq_id, 0.0) * self.block_size

    @property
    def num_held_slots(self) -> int:
        """Slots of the blocks that sequences hold, shared ones once."""
        return (self.num_blocks - self._pool.num_available) * self.block_size

    def num_slots_held(self, seq: Sequence) -> int:
        """See ``KVMemory.num_slots_held``."""
        return len(self._tables[seq.seq_id].block_ids) * self.block_size

    def holds(self, seq: Sequence) -> bool:
        """See ``KVMemory.holds``."""
        return seq.seq_id in self._sequences

    def swap_out(self, seqs: list[Sequence]) -> bool:
        """See ``Swapping.swap_out``.

        A copy-on-write that has not run yet is undone: what it was to copy is still in its source.
        """
        held: list[list[int]] = []  # of each sequence: the blocks that hold its tokens
        for seq in seqs:
            block_ids = self._tables[seq.seq_id].block_ids[: -(-seq.num_computed_tokens // self.block_size)]
            held.append([self._pending_copies.get(block_id, block_id) for block_id in block_ids])
        distinct = dict.fromkeys(block_id for block_ids in held for block_id in block_ids)
        if len(distinct) > self._swap_space.num_free:
            return False
        host_by_block = {block_id: self._swap_space.allocate() for block_id in distinct}
        self._pending_swaps_out.extend(host_by_block.items())
        self._num_swapped_out += len(host_by_block)
        for seq, block_ids in zip(seqs, held, strict=True):
            digests = self._tables[seq.seq_id].digests
            self.free(seq)
            host_ids = [host_by_block[block_id] for block_id in block_ids]
            self._host_refs.update(host_ids)
            self._swapped[seq.seq_id] = _Table(host_ids, digests)
            self._sequences[seq.seq_id] = seq
        return True

    def swap_in(self, seqs: list[Sequence], num_running: int) -> bool:
        """See ``Swapping.swap_in``. A block that the prefix cache still has is not copied, but shared."""
        pool = self._pool
        found: dict[int, int | None] = {}  # host block -> the block with the same content, or None
        digest_by_host: dict[int, bytes] = {}
        for seq in seqs:
            table = self._swapped[seq.seq_id]
            digest_by_host.update(zip(table.block_ids, table.digests, strict=False))
            for host_id in table.block_ids:
                digest = digest_by_host.get(host_id)
                found[host_id] = None if digest is None else pool.find(digest)
        cached = {block_id for block_id in found.values() if block_id is not None}
        num_wanted = sum(block_id is None for block_id in found.values()) + self._num_blocks_to_grow(seqs)
        num_available = pool.num_available - sum(map(pool.is_cached_only, cached))
        if num_wanted > num_available - self._num_kept_back(num_running):
            return False
        paid_ns_by_block = {block_id: self._cost.join([block_id], pool.num_refs) for block_id in cached}
        pool.acquire(cached)
        block_by_host: dict[int, int] = {}
        for host_id, found_id in found.items():
            block_id = pool.allocate(1)[0] if found_id is None else found_id
            if found_id is None:
                self._cost.take([block_id])
                self._pending_swaps_in[block_id] = host_id
                if host_id in digest_by_host:
                    pool.register([block_id], [digest_by_host[host_id]])
                self._num_swapped_in += 1
            block_by_host[host_id] = block_id
        owned: set[int] = set()
        for seq in seqs:
            table = self._swapped.pop(seq.seq_id)
            block_ids = [block_by_host[host_id] for host_id in table.block_ids]
            paid_ns = 0.0
            for block_id in block_ids:
                if block_id in owned:
                    paid_ns += self._cost.join([block_id], pool.num_refs)
                    pool.acquire([block_id])
                else:
                    paid_ns += paid_ns_by_block.get(block_id, 0.0)
                owned.add(block_id)
            self._tables[seq.seq_id] = _Table(block_ids, table.digests, paid_ns)
            self._release_host(table.block_ids)
        return True

    def take_swaps(self) -> Swaps:
        """See ``Swapping.take_swaps``."""
        assert not (self._pending_swaps_out and self._pending_swaps_in), "swaps both ways in one step"
        swaps = Swaps(self._pending_swaps_out, [(host, block) for block, host in self._pending_swaps_in.items()])
        self._pending_swaps_out = []
        self._pending_swaps_in = {}
        return swaps

    def table(self, seq: Sequence) -> list[int]:
        """See ``KVMemory.table``."""
        return self._tables[seq.seq_id].block_ids

    def take_moves(self) -> list[tuple[int, int, int]]:
        """See ``KVMemory.take_moves``: nothing moves."""
        return []

    def take_copies(self) -> list[tuple[int, int]]:
        """See ``KVMemory.take_copies``. A source stays held until here, so that no copy overwrites it."""
        copies = [(source, destination) for destination, source in self._pending_copies.items()]
        self._pending_copies.clear()
        self._num_pending_reads.clear()
        self._pool.release([source for source, _ in copies])
        if self._children is not None:
            self._children.end_step()
        return copies

    def usage(self, head: Sequence | None) -> KVUsage:
        """See ``KVMemory.usage``. O(sequences): only a sequence's last block can have an unfilled tail."""
        del head  # a free block is of use to everybody
        logical = reserved = internal = 0
        counted: set[int] = set()
        num_refs, block_size, sequences = self._pool.num_refs, self.block_size, self._sequences
        has_partial_hits = self.has_partial_hits
        for seq_id, table in self._tables.items():  # without calls: this runs for every sequence in every step
            seq, block_ids = sequences[seq_id], table.block_ids
            num_computed, num_slots = seq.num_computed_tokens, len(block_ids) * block_size
            tail = num_slots - num_computed
            if tail and has_partial_hits and self._is_part_of_cached(block_ids[-1]):
                tail = 0
            logical += num_slots - tail
            if tail:
                last = block_ids[-1]
                if num_refs[last] > 1:
                    if last in counted:
                        continue
                    counted.add(last)
                num_to_come = seq.final_kv_tokens - num_computed
                if num_to_come < tail:
                    internal += tail - num_to_come
                    reserved += num_to_come
                else:
                    reserved += tail
        num_held = self.num_blocks - self._pool.num_available
        token_state = num_held * block_size - reserved - internal
        return KVUsage(
            token_state=token_state,
            reserved=reserved,
            internal=internal,
            external=0,
            cached=self._pool.num_cached * block_size,
            free=self._pool.num_free * block_size,
            shared_saved=logical - token_state,
            blocks_by_sharers=tuple(self._pool.num_held_by_bin),
        )

    def pool_map(self) -> PoolMap:
        """See ``KVMemory.pool_map``."""
        return map_blocks(
            [self._holding(seq_id, table.block_ids) for seq_id, table in self._tables.items()],
            self._pool.num_refs,
            self._pool.cached_block_ids(),
            num_blocks=self.num_blocks,
            block_size=self.block_size,
        )

    def _holding(self, seq_id: int, block_ids: list[int]) -> Holding:
        seq = self._sequences[seq_id]
        num_tail_slots = self._num_tail_slots(seq, block_ids)
        num_reserved = min(num_tail_slots, seq.final_kv_tokens - seq.num_computed_tokens)
        return Holding(seq.request.request_id, block_ids, num_tail_slots, num_reserved)

    def counters(self) -> MemoryCounters:
        """See ``KVMemory.counters``."""
        return MemoryCounters(
            num_forks=self._num_forks,
            num_copied_blocks=self._num_copied,
            num_evicted_blocks=self._pool.num_evicted,
            num_swapped_out_blocks=self._num_swapped_out,
            num_swapped_in_blocks=self._num_swapped_in,
            num_near_miss_tokens=self._num_near_miss_tokens,
        )

    def check_integrity(self) -> None:
        """See ``KVMemory.check_integrity``."""
        owners = [block_id for table in self._tables.values() for block_id in table.block_ids]
        self._pool.check_integrity(owners + list(self._pending_copies.values()))
        assert self._tables.keys() | self._swapped.keys() == self._sequences.keys(), "a table without a sequence"
        assert self._tables.keys().isdisjoint(self._swapped), "a sequence in the pool and in host memory at once"
        host_owners = Counter(host_id for table in self._swapped.values() for host_id in table.block_ids)
        assert host_owners == self._host_refs, "host blocks are miscounted"
        self._swap_space.check_integrity(set(host_owners))
        for seq_id, table in self._tables.items():
            num_computed = self._sequences[seq_id].num_computed_tokens
            num_blocks = len(table.block_ids)
            assert len(set(table.block_ids)) == num_blocks, f"sequence {seq_id} holds a block twice"
            assert num_blocks == -(-num_computed // self.block_size), (
                f"sequence {seq_id} holds {num_blocks} blocks for {num_computed} tokens"
            )
            assert len(table.digests) <= num_computed // self.block_size, (
                f"sequence {seq_id}: an unfilled block is cached"
            )
        usage = self.usage(None)
        assert usage.pool == self.num_slots, f"{usage} does not sum to {self.num_slots}"
        assert min(usage.token_state, usage.reserved, usage.internal, usage.shared_saved) >= 0, (
            f"negative part: {usage}"
        )

    def _find_prefix(self, seq: Sequence, num_tokens: int) -> tuple[list[int], list[bytes]]:
        """The longest run of cached full blocks that leaves one of ``num_tokens`` tokens to compute."""
        if not self.is_prefix_cached:
            return [], []
        if self._memo[0] != seq.seq_id:
            self._memo = (seq.seq_id, [])
        digests = self._memo[1]
        num_wanted = (num_tokens - 1) // self.block_size
        block_ids = self._pool.find_first(digests[:num_wanted])
        while len(block_ids) == len(digests) < num_wanted:
            num_known = len(digests)  # in strides that double: a miss wastes no more than the hits before it cost
            self._extend_digests(seq, digests, min(2 * num_known + 1, num_wanted))
            block_ids += self._pool.find_first(digests[num_known:])
        return block_ids, digests

    def _find_part(self, seq: Sequence, block_ids: list[int], num_tokens: int) -> tuple[int, int]:
        """A block that begins as the sequence goes on after ``block_ids``, and with how many of ``num_tokens`` - 1."""
        start = len(block_ids) * self.block_size
        tokens = seq.token_ids[start : min(start + self.block_size, num_tokens - 1)]
        if self._children is None or not tokens:
            return -1, 0
        return self._children.longest(block_ids[-1] if block_ids else None, seq.request.cache_salt, tokens)

    def _enter_children(self, seq: Sequence, table: _Table, num_known: int, num_full: int) -> None:
        """Let others find parts of the blocks that are new in the cache, and of the last block of a whole prompt."""
        end = num_full * self.block_size
        if seq.num_computed_tokens == seq.num_prompt_tokens > end:
            end = seq.num_prompt_tokens
        start = num_known * self.block_size
        if start < end and self._children is not None:
            parent = table.block_ids[num_known - 1] if num_known else None
            block_ids = table.block_ids[num_known : -(-end // self.block_size)]
            self._children.add(parent, seq.request.cache_salt, block_ids, seq.token_ids[start:end])

    def _extend_digests(self, seq: Sequence, digests: list[bytes], num_blocks: int) -> None:
        """Append the digests of the sequence's next full blocks, until there are ``num_blocks``."""
        tokens = seq.token_ids[len(digests) * self.block_size : num_blocks * self.block_size]
        extend_digests(digests, tokens, self.block_size, seq.request.cache_salt)

    def _num_kept_back(self, num_running: int) -> int:
        """Blocks that admission leaves free, so that running sequences grow and are not preempted right away.

        Half a block for each of them: measured to cost least, between preempting often and running too few.
        """
        return self.watermark_blocks + num_running // 2 if num_running else 0

    def _num_blocks_to_grow(self, seqs: list[Sequence]) -> int:
        """Blocks that swapped sequences need for one further token each: new ones, and copies of shared last ones."""
        tails: Counter[int] = Counter()
        num_new = 0
        for seq in seqs:
            if seq.num_computed_tokens % self.block_size:
                tails[self._swapped[seq.seq_id].block_ids[-1]] += 1
            else:
                num_new += 1
        return num_new + sum(count - 1 for count in tails.values())

    def _is_shared(self, block_id: int) -> bool:
        """Whether a sequence must copy the block before it writes there: another one holds it, or the cache has it.

        Copies that are still to read a block are run before anybody writes: they do not share it.
        """
        if self._pool.num_refs[block_id] > 1 and self._num_owners(block_id) > 1:
            return True
        return self._is_part_of_cached(block_id)

    def _num_owners(self, block_id: int) -> int:
        """Sequences that hold the block, without the copies that are still to read it."""
        return self._pool.num_refs[block_id] - self._num_pending_reads[block_id]

    def _num_tail_slots(self, seq: Sequence, block_ids: list[int]) -> int:
        """Slots of a sequence's last block that hold nothing; of a block that is full for the cache there are none."""
        num_slots = len(block_ids) * self.block_size - seq.num_computed_tokens
        return num_slots if num_slots and not self._is_part_of_cached(block_ids[-1]) else 0

    def _is_part_of_cached(self, block_id: int) -> bool:
        return self.has_partial_hits and self._pool.is_registered(block_id)

    def _release(self, block_id: int) -> None:
        """Release a block; with its last owner goes the copy that was to fill it."""
        self._pool.release([block_id])
        if self._pool.num_refs[block_id]:
            return
        if self._pending_swaps_in.pop(block_id, None) is not None and self._pool.is_cached_only(block_id):
            self._pool.forget(block_id)
        if block_id in self._pending_copies:
            source = self._pending_copies.pop(block_id)
            self._num_pending_reads[source] -= 1
            self._num_copied -= 1
            self._release(source)

    def _release_host(self, host_ids: list[int]) -> None:
        for host_id in host_ids:
            self._host_refs[host_id] -= 1
            if not self._host_refs[host_id]:
                del self._host_refs[host_id]
                self._swap_space.release(host_id)
