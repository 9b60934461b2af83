"""Every KV memory under random operations, against a shadow of what each slot holds."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pbench.engine.block_pool import BlockPool
from pbench.engine.contiguous_memory import ContiguousMemory
from pbench.engine.extents import ExtentAllocator
from pbench.engine.memory import KVMemory
from pbench.engine.paged_memory import PagedMemory
from pbench.engine.request import Request, SamplingParams
from pbench.engine.sequence import Sequence

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
        num_hits = self.memory.admit(seq, length, num_running)
        if num_hits is not None:
            assert 0 <= num_hits < length
            seq.num_computed_tokens = num_hits
            self.live.append(seq)
            self.planned[seq.seq_id] = []

    @precondition(lambda self: self.live)
    @rule(data=st.data(), num_tokens=st.integers(1, 9), is_given_up=st.booleans())
    def grow(self, data: st.DataObject, num_tokens: int, is_given_up: bool) -> None:
        seq = data.draw(st.sampled_from(self.live))
        if self.planned[seq.seq_id] or seq.seq_id in self.unwritten:
            return  # one growth a step
        start = seq.num_computed_tokens
        end = min(start + num_tokens, seq.final_kv_tokens)
        if end == start:
            return
        while seq.num_tokens < end:
            seq.token_ids.append(data.draw(st.integers(0, 2)))
        before = list(self.memory.table(seq))
        changed_from = self.memory.grow(seq, end - start)
        if changed_from is None:
            assert self.memory.table(seq) == before, "a refused growth changed the table"
            return
        assert self.memory.table(seq)[:changed_from] == before[:changed_from]
        if is_given_up:  # preempted before the step was planned: nobody may ever find what was not written
            self.free(seq)
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

    @precondition(lambda self: any(not p for p in self.planned.values()))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        idle = [seq for seq in self.live if not self.planned[seq.seq_id]]
        self.free(data.draw(st.sampled_from(idle)))

    def free(self, seq: Sequence) -> None:
        self.memory.free(seq)
        self.live.remove(seq)
        del self.planned[seq.seq_id]

    @rule()
    def run_step(self) -> None:
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


class UncachedMachine(MemoryMachine):
    slots_per_entry = 4

    def make_memory(self) -> KVMemory:
        return PagedMemory(num_blocks=14, block_size=4, is_prefix_cached=False, watermark=0.0)


class ContiguousMachine(MemoryMachine):
    slots_per_entry = 1

    def make_memory(self) -> KVMemory:
        return ContiguousMemory(num_slots=3 * MAX_LENGTH + 5, max_length=MAX_LENGTH)


_SETTINGS = settings(max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
TestPaged = PagedMachine.TestCase
TestUncached = UncachedMachine.TestCase
TestContiguous = ContiguousMachine.TestCase
for case in (TestPaged, TestUncached, TestContiguous):
    case.settings = _SETTINGS


def _sequence(seq_id: int, num_prompt: int, max_tokens: int, tokens: list[int] | None = None) -> Sequence:
    prompt = tokens or [seq_id] * num_prompt
    return Sequence(seq_id, Request(seq_id, prompt, SamplingParams(max_tokens=max_tokens)))


def test_contiguous_max_runs_seven_requests_in_the_papers_pool() -> None:
    """15 728 slots, maximum length 2048: floor(15728 / 2048) = 7, and 1392 slots (8.85 %) are never allocated."""
    memory = ContiguousMemory(num_slots=15_728, max_length=2048)
    admitted = [memory.admit(_sequence(i, 100, 200), 100, i) for i in range(8)]
    assert admitted == [0] * 7 + [None]
    usage = memory.usage(_sequence(9, 100, 200))
    assert usage.free == 15_728 - 7 * 2048 == 1392


def test_free_slots_that_do_not_lie_together_are_external_for_the_head() -> None:
    memory = ContiguousMemory(num_slots=10, max_length=4)
    first, second = _sequence(0, 2, 2), _sequence(1, 2, 2)
    assert memory.admit(first, 2, 0) == memory.admit(second, 2, 0) == 0
    memory.free(first)  # 4 free slots, 4 held, 2 free
    assert memory.usage(None).external == 0
    assert memory.usage(_sequence(2, 2, 2)).external == 0  # fits the first hole
    third = _sequence(3, 2, 2)
    memory.max_length = 5
    assert memory.usage(third).external == 6
    assert memory.usage(third).free == 0


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
