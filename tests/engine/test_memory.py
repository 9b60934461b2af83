"""Every KV memory under random operations, against a shadow of what each slot holds."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pbench.engine.block_pool import BlockPool
from pbench.engine.buddy_memory import BuddyMemory
from pbench.engine.contiguous_memory import ContiguousMemory
from pbench.engine.extents import ExtentAllocator
from pbench.engine.memory import KVMemory
from pbench.engine.paged_memory import PagedMemory
from pbench.engine.pool_map import SPAN_FIELDS
from pbench.engine.records import KVUsage
from pbench.engine.request import Request, SamplingParams
from pbench.engine.reservation import ReserveFinal, ReserveMax
from pbench.engine.sequence import Sequence
from pbench.engine.static_memory import StaticMemory

MAX_LENGTH = 24


class MemoryMachine(RuleBasedStateMachine):
    """Drives a memory as a scheduler does: any number of admissions and growths, then one run of the step.

    The shadow holds for every slot the tokens up to and with the one whose KV it holds: KV depends on all of them.
    """

    slots_per_entry: int  # of a table

    def make_memory(self) -> KVMemory:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.memory = self.make_memory()
        self.live: list[Sequence] = []
        self.planned: dict[int, list[int]] = {}  # seq_id -> positions to write when the step runs
        self.unwritten: set[int] = set()  # seq_ids that share what the planned step is to write: they must wait for it
        self.shadow: dict[int, tuple[int, ...]] = {}
        self.next_id = 0

    def new_sequence(self, tokens: list[int]) -> Sequence:
        params = SamplingParams(max_tokens=MAX_LENGTH - len(tokens))
        seq = Sequence(self.next_id, Request(self.next_id, tokens, params))
        self.next_id += 1
        return seq

    def slot(self, seq: Sequence, position: int) -> int:
        entry, offset = divmod(position, self.slots_per_entry)
        table = self.memory.table(seq)
        return table[entry] * self.slots_per_entry + offset if self.memory.can_fork else table[0] + position

    @rule(
        family=st.integers(0, 1),
        length=st.integers(1, 16),
        twist=st.integers(0, 16),
        num_running=st.integers(0, 1),
    )
    def admit(self, family: int, length: int, twist: int, num_running: int) -> None:
        tokens = [family] * length
        if twist < length:
            tokens[twist] = 7
        seq = self.new_sequence(tokens)
        self.memory.foresee([[seq]])
        num_hits = self.memory.admit(seq, length, num_running)
        if num_hits is not None:
            assert 0 <= num_hits < length
            seq.num_computed_tokens = num_hits
            self.live.append(seq)
            self.planned[seq.seq_id] = []
            self.note_admission(seq)

    def note_admission(self, seq: Sequence) -> None:
        """A sequence has just been admitted, or forked."""

    @precondition(lambda self: self.live)
    @rule(data=st.data(), num_tokens=st.integers(1, 9), is_given_up=st.booleans())
    def grow(self, data: st.DataObject, num_tokens: int, is_given_up: bool) -> None:
        seq = data.draw(st.sampled_from(self.live))
        if self.planned[seq.seq_id] or seq.seq_id in self.unwritten:
            return  # one growth a step
        self.extend(seq, num_tokens, data.draw(st.integers(0, 2)), is_given_up)

    @precondition(lambda self: self.live)
    @rule(num_steps=st.integers(1, 6), token=st.integers(0, 2))
    def decode(self, num_steps: int, token: int) -> None:
        """Steps in which every sequence computes what it knows of itself, or one token more, if there is room."""
        for _ in range(num_steps):
            self.run_step()
            for seq in list(self.live):
                self.extend(seq, max(seq.num_tokens - seq.num_computed_tokens, 1), (token + seq.seq_id) % 3, False)

    def extend(self, seq: Sequence, num_tokens: int, token: int, is_given_up: bool) -> None:
        start = seq.num_computed_tokens
        end = min(start + num_tokens, seq.final_kv_tokens)
        if end == start:
            return
        while seq.num_tokens < end:
            seq.token_ids.append(token)
        before = list(self.memory.table(seq))
        changed_from = self.memory.grow(seq, end - start)
        if changed_from is None:
            assert self.memory.table(seq) == before, "a refused growth changed the table"
            return
        assert self.memory.table(seq)[:changed_from] == before[:changed_from]
        if is_given_up:  # preempted before the step was planned: nobody may ever find what was not written
            self.give_up(seq)
            return
        seq.num_computed_tokens = end
        self.memory.commit(seq)
        self.planned[seq.seq_id] = list(range(start, end))

    @precondition(lambda self: self.live and self.memory.can_fork)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from(self.live))
        child = self.new_sequence(parent.request.prompt_token_ids)
        child.token_ids = parent.token_ids[:]
        self.memory.fork(parent, child)
        child.num_computed_tokens = parent.num_computed_tokens
        self.live.append(child)
        self.planned[child.seq_id] = []
        if self.planned[parent.seq_id] or parent.seq_id in self.unwritten:
            self.unwritten.add(child.seq_id)
        self.note_admission(child)

    @precondition(lambda self: any(not p for p in self.planned.values()))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        idle = [seq for seq in self.live if not self.planned[seq.seq_id]]
        self.free(data.draw(st.sampled_from(idle)))

    def give_up(self, seq: Sequence) -> None:
        self.free(seq)

    def free(self, seq: Sequence) -> None:
        self.memory.free(seq)
        self.live.remove(seq)
        del self.planned[seq.seq_id]

    def begin_step(self) -> None:
        """What a step does before anything else."""

    @rule()
    def run_step(self) -> None:
        self.begin_step()
        moved: dict[int, tuple[int, ...]] = {}
        left: set[int] = set()
        for source, destination, num_slots in self.memory.take_moves():
            left.update(range(source, source + num_slots))
            for offset in range(num_slots):
                assert destination + offset not in moved, "two moves into one slot"
                moved[destination + offset] = self.shadow[source + offset]
        assert left.isdisjoint(moved), "a slot is moved from and into at once"
        self.shadow.update(moved)
        copies = self.memory.take_copies()
        sources, destinations = {s for s, _ in copies}, [d for _, d in copies]
        assert len(set(destinations)) == len(destinations), "two copies into one block"
        assert sources.isdisjoint(destinations), "a block is copied from and into at once"
        for source, destination in copies:
            for offset in range(self.slots_per_entry):
                self.shadow[destination * self.slots_per_entry + offset] = self.shadow.get(
                    source * self.slots_per_entry + offset, ()
                )
        written: dict[int, tuple[int, ...]] = {}
        for seq in self.live:
            for position in self.planned[seq.seq_id]:
                slot = self.slot(seq, position)
                assert slot not in written, "two sequences write one slot in one step"
                written[slot] = tuple(seq.token_ids[: position + 1])
            self.planned[seq.seq_id] = []
        self.unwritten.clear()
        self.shadow.update(written)
        for seq in self.live:
            for position in range(seq.num_computed_tokens):
                assert self.shadow[self.slot(seq, position)] == tuple(seq.token_ids[: position + 1])
        self.memory.check_integrity()
        usage = self.memory.usage(None)
        distinct = {self.slot(seq, position) for seq in self.live for position in range(seq.num_computed_tokens)}
        assert usage.token_state == len(distinct), "token_state is not the number of slots that live tokens occupy"
        assert usage.shared_saved == sum(seq.num_computed_tokens for seq in self.live) - len(distinct)
        self.check_map(usage)

    def check_map(self, usage: KVUsage) -> None:
        """The map tiles the pool, sums to the partition, and names a holder of every slot with a token."""
        spans = [dict(zip(SPAN_FIELDS, span, strict=True)) for span in self.memory.pool_map().tolist()]
        totals = {name: sum(span[name] for span in spans) for name in SPAN_FIELDS[4:]}
        assert totals == {name: getattr(usage, name) for name in totals}
        holders: dict[int, list[int]] = {}
        for seq in self.live:
            for position in range(seq.num_computed_tokens):
                holders.setdefault(self.slot(seq, position), []).append(seq.request.request_id)
        end = 0
        for span in spans:
            assert span["start"] == end, "the map has a hole or an overlap"
            end += span["length"]
            for slot in range(span["start"], end):
                if slot in holders:
                    assert span["request_id"] in holders[slot]
                    assert span["num_sharers"] >= len(holders[slot])
        assert end == self.memory.num_slots

    @invariant()
    def is_whole(self) -> None:
        assert self.memory.usage(None).pool == self.memory.num_slots
        if all(not positions for positions in self.planned.values()):
            self.memory.check_integrity()

    def teardown(self) -> None:
        self.run_step()
        for seq in list(self.live):
            self.free(seq)
        self.memory.check_integrity()
        usage = self.memory.usage(None)
        assert usage.free + usage.cached == self.memory.num_slots, "a freed pool still holds something"


class PagedMachine(MemoryMachine):
    slots_per_entry = 4

    def make_memory(self) -> KVMemory:
        return PagedMemory(num_blocks=14, block_size=4, watermark=0.1)


class PartialHitMachine(PagedMachine):
    """Who hits a part of a block grows in the same step, as the scheduler does it, and so copies the block."""

    def make_memory(self) -> KVMemory:
        return PagedMemory(num_blocks=14, block_size=4, watermark=0.1, has_partial_hits=True)

    def note_admission(self, seq: Sequence) -> None:
        num_hits = seq.num_computed_tokens
        if num_hits % self.slots_per_entry and num_hits < seq.num_prompt_tokens and seq.seq_id not in self.unwritten:
            self.extend(seq, seq.num_tokens - seq.num_computed_tokens, 0, False)
            if not self.planned[seq.seq_id]:
                self.free(seq)


class SwappingMachine(PagedMachine):
    """Sequences also go to host memory and come back: never both ways in one step, as the scheduler does it."""

    def make_memory(self) -> KVMemory:
        return PagedMemory(num_blocks=14, block_size=4, watermark=0.1, num_host_blocks=9)

    def __init__(self) -> None:
        super().__init__()
        self.fresh: set[int] = set()  # seq_ids that may share what the planned step is to write
        self.swapped: list[list[Sequence]] = []
        self.host: dict[int, list[tuple[int, ...]]] = {}
        self.has_swapped_out = self.has_swapped_in = False

    @property
    def paged(self) -> PagedMemory:
        assert isinstance(self.memory, PagedMemory)
        return self.memory

    def swap_out(self, seqs: list[Sequence]) -> bool:
        if self.has_swapped_in or not self.paged.swap_out(seqs):
            return False
        self.has_swapped_out = True
        self.swapped.append(seqs)
        for seq in seqs:
            self.live.remove(seq)
            del self.planned[seq.seq_id]
        return True

    def give_up(self, seq: Sequence) -> None:
        if seq.seq_id in self.fresh or not self.swap_out([seq]):
            self.free(seq)

    @precondition(lambda self: self.live and not self.has_swapped_in)
    @rule(data=st.data())
    def swap_out_some(self, data: st.DataObject) -> None:
        waiting = self.unwritten | self.fresh
        idle = [s for s in self.live if not self.planned[s.seq_id] and s.seq_id not in waiting]
        if idle:
            self.swap_out(data.draw(st.lists(st.sampled_from(idle), min_size=1, max_size=3, unique_by=id)))

    @precondition(lambda self: self.swapped and not self.has_swapped_out)
    @rule(data=st.data())
    def swap_in_some(self, data: st.DataObject) -> None:
        seqs = data.draw(st.sampled_from(self.swapped))
        if self.paged.swap_in(seqs, num_running=len(self.live)):
            self.has_swapped_in = True
            self.swapped.remove(seqs)
            self.live += seqs
            self.planned.update((seq.seq_id, []) for seq in seqs)
            self.fresh.update(seq.seq_id for seq in seqs)

    @precondition(lambda self: self.swapped)
    @rule(data=st.data())
    def abort_swapped(self, data: st.DataObject) -> None:
        seqs = data.draw(st.sampled_from(self.swapped))
        self.swapped.remove(seqs)
        for seq in seqs:
            self.memory.free(seq)

    def begin_step(self) -> None:
        swaps = self.paged.take_swaps()
        for block_id, host_id in swaps.out:
            self.host[host_id] = [self.shadow.get(block_id * 4 + offset, ()) for offset in range(4)]
        for host_id, block_id in swaps.back:
            self.shadow.update((block_id * 4 + offset, held) for offset, held in enumerate(self.host[host_id]))
        self.has_swapped_out = self.has_swapped_in = False
        self.fresh.clear()

    def note_admission(self, seq: Sequence) -> None:
        self.fresh.add(seq.seq_id)

    def teardown(self) -> None:
        for seqs in self.swapped:
            for seq in seqs:
                self.memory.free(seq)
        super().teardown()


class FifoMachine(PagedMachine):
    def make_memory(self) -> KVMemory:
        return PagedMemory(num_blocks=14, block_size=4, watermark=0.1, eviction="fifo")


class UncachedMachine(MemoryMachine):
    slots_per_entry = 4

    def make_memory(self) -> KVMemory:
        return PagedMemory(num_blocks=14, block_size=4, is_prefix_cached=False, watermark=0.0)


class ContiguousMachine(MemoryMachine):
    slots_per_entry = 1

    def make_memory(self) -> KVMemory:
        return ContiguousMemory(3 * MAX_LENGTH + 5, ReserveMax(MAX_LENGTH))


class OracleMachine(MemoryMachine):
    slots_per_entry = 1

    def make_memory(self) -> KVMemory:
        return ContiguousMemory(4 * MAX_LENGTH, ReserveFinal())


class BuddyMachine(MemoryMachine):
    slots_per_entry = 1

    def make_memory(self) -> KVMemory:
        return BuddyMemory(64 + 16 + 4 + 1)


class StaticMachine(MemoryMachine):
    """Batches of several requests: those that are admitted one after the other without a step between."""

    slots_per_entry = 1

    def make_memory(self) -> KVMemory:
        return StaticMemory(4 * MAX_LENGTH, max_sequences=5)

    @rule(lengths=st.lists(st.integers(1, 16), min_size=2, max_size=7))
    def admit_batch(self, lengths: list[int]) -> None:
        sequences = [self.new_sequence([index] * length) for index, length in enumerate(lengths)]
        was_empty = not self.live
        self.memory.foresee([seq] for seq in sequences)
        admitted = [seq for seq in sequences if self.memory.admit(seq, seq.num_tokens, len(self.live)) is not None]
        assert admitted == sequences[: len(admitted)], "a later request overtook an earlier one"
        assert bool(admitted) == was_empty
        self.live += admitted
        self.planned.update((seq.seq_id, []) for seq in admitted)


_SETTINGS = settings(max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
TestPaged = PagedMachine.TestCase
TestPartialHits = PartialHitMachine.TestCase
TestSwapping = SwappingMachine.TestCase
TestFifo = FifoMachine.TestCase
TestUncached = UncachedMachine.TestCase
TestContiguous = ContiguousMachine.TestCase
TestOracle = OracleMachine.TestCase
TestBuddy = BuddyMachine.TestCase
TestStatic = StaticMachine.TestCase
for case in (TestPaged, TestFifo, TestSwapping, TestUncached, TestContiguous, TestOracle, TestBuddy, TestStatic):
    case.settings = _SETTINGS


def _sequence(seq_id: int, num_prompt: int, max_tokens: int, tokens: list[int] | None = None) -> Sequence:
    prompt = tokens or [seq_id] * num_prompt
    return Sequence(seq_id, Request(seq_id, prompt, SamplingParams(max_tokens=max_tokens)))


def test_contiguous_max_runs_seven_requests_in_the_papers_pool() -> None:
    """15 728 slots, maximum length 2048: floor(15728 / 2048) = 7, and 1392 slots (8.85 %) are never allocated."""
    memory = ContiguousMemory(15_728, ReserveMax(2048))
    admitted = [memory.admit(_sequence(i, 100, 200), 100, i) for i in range(8)]
    assert admitted == [0] * 7 + [None]
    usage = memory.usage(_sequence(9, 100, 200))
    assert usage.free == 15_728 - 7 * 2048 == 1392


def test_free_slots_that_do_not_lie_together_are_external_for_the_head() -> None:
    memory = ContiguousMemory(10, ReserveFinal())
    first, second = _sequence(0, 2, 3), _sequence(1, 2, 3)
    assert memory.admit(first, 2, 0) == memory.admit(second, 2, 0) == 0
    memory.free(first)  # 4 free slots, 4 held, 2 free
    assert memory.usage(None).external == 0
    assert memory.usage(_sequence(2, 2, 3)).external == 0  # fits the first hole
    head = _sequence(3, 2, 4)  # wants 5
    assert memory.usage(head).external == 6
    assert memory.usage(head).free == 0
    assert memory.usage(_sequence(4, 2, 6)).external == 0, "7 slots are not there at all"


def test_an_oracle_reserves_what_the_sequence_will_hold_and_wastes_nothing_inside() -> None:
    memory = ContiguousMemory(100, ReserveFinal())
    for seq_id, (num_prompt, max_tokens) in enumerate([(10, 20), (5, 1), (1, 30)]):
        seq = _sequence(seq_id, num_prompt, max_tokens)
        assert memory.admit(seq, num_prompt, seq_id) == 0
        seq.num_computed_tokens = num_prompt
    usage = memory.usage(None)
    assert (usage.token_state, usage.reserved, usage.internal) == (16, 19 + 0 + 29, 0)


def test_requests_of_one_step_share_a_prefix_that_is_computed_in_it() -> None:
    memory = PagedMemory(num_blocks=16, block_size=4)
    first, second = (_sequence(i, 0, 4, [5] * 8 + [i]) for i in range(2))
    assert memory.admit(first, 9, 0) == 0
    memory.grow(first, 9)
    first.num_computed_tokens = 9
    memory.commit(first)
    assert memory.admit(second, 9, 1) == 8
    assert memory.table(first)[:2] == memory.table(second)


def test_a_prefix_is_evicted_after_what_continues_it() -> None:
    memory = PagedMemory(num_blocks=4, block_size=4, watermark=0.0)
    old = _sequence(0, 0, 1, list(range(12)))
    memory.admit(old, 12, 0)
    memory.grow(old, 12)
    old.num_computed_tokens = 12
    memory.commit(old)
    memory.free(old)
    other = _sequence(1, 0, 1, [99] * 8)  # takes the free block and evicts one
    memory.admit(other, 8, 0)
    memory.grow(other, 8)
    again = _sequence(2, 0, 1, list(range(12)))
    assert memory.admit(again, 12, 0) is None
    memory.free(other)
    assert memory.admit(again, 12, 0) == 8  # the last block of the old prompt went first


@pytest.mark.parametrize("num_shared_blocks", range(10))
def test_a_prefix_is_found_to_its_last_block(num_shared_blocks: int) -> None:
    memory = PagedMemory(num_blocks=32, block_size=4)
    old = _sequence(0, 0, 1, [7] * 37)
    memory.admit(old, 37, 0)
    memory.grow(old, 37)
    old.num_computed_tokens = 37
    memory.commit(old)
    num_shared = 4 * num_shared_blocks
    assert memory.admit(_sequence(1, 0, 1, [7] * num_shared + [8] * (37 - num_shared)), 37, 0) == num_shared


@pytest.mark.parametrize("has_partial_hits", [True, False])
@pytest.mark.parametrize("num_shared", range(37))
def test_a_part_of_a_block_is_hit_or_counted_as_a_near_miss(num_shared: int, has_partial_hits: bool) -> None:
    memory = PagedMemory(num_blocks=32, block_size=4, has_partial_hits=has_partial_hits)
    old, new = _sequence(0, 0, 1, [7] * 37), _sequence(1, 0, 1, [7] * num_shared + [8] * (37 - num_shared))
    memory.admit(old, 37, 0)
    memory.grow(old, 37)
    old.num_computed_tokens = 37
    memory.commit(old)
    memory.take_copies()  # the step that computes them is planned
    num_part = num_shared % 4
    num_hits = memory.admit(new, 37, 0)
    assert num_hits == (num_shared if has_partial_hits else num_shared - num_part)
    assert memory.counters().num_near_miss_tokens == (0 if has_partial_hits else num_part)
    new.num_computed_tokens = num_hits
    shared = memory.table(old)[num_shared // 4]
    memory.grow(new, 1)
    copies = memory.take_copies()
    assert [source for source, _ in copies] == [shared] * (has_partial_hits and num_part > 0)


def test_blocks_are_counted_by_their_sharers() -> None:
    memory = PagedMemory(num_blocks=32, block_size=4)
    parent = _sequence(0, 8, 8)
    memory.admit(parent, 8, 0)
    memory.grow(parent, 8)
    parent.num_computed_tokens = 8
    memory.commit(parent)
    expected = {1: (2, 0, 0, 0, 0, 0), 2: (0, 2, 0, 0, 0, 0), 3: (0, 0, 2, 0, 0, 0), 4: (0, 0, 2, 0, 0, 0)}
    expected |= {5: (0, 0, 0, 2, 0, 0), 9: (0, 0, 0, 0, 2, 0), 17: (0, 0, 0, 0, 0, 2), 18: (0, 0, 0, 0, 0, 2)}
    children = [_sequence(number, 8, 8) for number in range(1, 18)]
    for num_sharers, child in enumerate(children, start=1):
        assert memory.usage(None).blocks_by_sharers == expected.get(num_sharers, memory.usage(None).blocks_by_sharers)
        memory.fork(parent, child)
        child.num_computed_tokens = 8
    assert memory.usage(None).blocks_by_sharers == expected[18]
    for num_sharers, child in enumerate(children):
        memory.free(child)
        assert memory.usage(None).blocks_by_sharers == expected.get(
            17 - num_sharers, memory.usage(None).blocks_by_sharers
        )


def test_the_watermark_keeps_room_back_only_while_something_runs() -> None:
    memory = PagedMemory(num_blocks=10, block_size=4, watermark=0.2)
    assert memory.admit(_sequence(0, 36, 4), 36, 1) is None
    assert memory.admit(_sequence(1, 36, 4), 36, 0) == 0


def test_only_the_last_owner_of_a_block_writes_without_a_copy() -> None:
    memory = PagedMemory(num_blocks=8, block_size=4)
    parent, child = _sequence(0, 6, 6), _sequence(1, 6, 6)
    memory.admit(parent, 6, 0)
    memory.grow(parent, 6)
    parent.num_computed_tokens = 6
    memory.commit(parent)
    memory.fork(parent, child)
    child.num_computed_tokens = 6
    assert memory.table(parent) == memory.table(child)
    assert memory.grow(parent, 1) == 1  # copies the shared last block
    assert memory.grow(child, 1) == 2  # is its only owner by now
    assert memory.take_copies() == [(memory.table(child)[1], memory.table(parent)[1])]
    assert memory.counters().num_copied_blocks == 1


@pytest.mark.parametrize("mutation", ["lost reference", "double free", "unmerged", "leaked extent"])
def test_the_audit_sees_planted_damage(mutation: str) -> None:
    if mutation in ("lost reference", "double free"):
        memory = PagedMemory(num_blocks=8, block_size=4)
        seq = _sequence(0, 6, 6)
        memory.admit(seq, 6, 0)
        memory.grow(seq, 6)
        seq.num_computed_tokens = 6
        pool: BlockPool = memory._pool
        if mutation == "lost reference":
            pool.num_refs[memory.table(seq)[0]] += 1
        else:
            pool.release([memory.table(seq)[0]])
        with pytest.raises(AssertionError):
            memory.check_integrity()
    else:
        extents = ExtentAllocator(10)
        extents.allocate(4)
        extents.free(0, 4)
        if mutation == "unmerged":
            extents._starts, extents._lengths = [0, 4], [4, 6]
        else:
            extents._starts, extents._lengths, extents.num_free = [4], [6], 6
        with pytest.raises(AssertionError):
            extents.check_integrity([])
