"""What is particular to each contiguous baseline."""

from pbench.engine.buddy_memory import BuddyMemory
from pbench.engine.request import Request, SamplingParams
from pbench.engine.scheduler import Scheduler
from pbench.engine.sequence import Sequence
from pbench.engine.static_memory import StaticMemory


def admitted(memory: BuddyMemory, seq_id: int, num_prompt: int, max_tokens: int = 50) -> Sequence:
    seq = Sequence(seq_id, Request(seq_id, [1] * num_prompt, SamplingParams(max_tokens=max_tokens)))
    assert memory.admit(seq, num_prompt, seq_id) == 0
    write(memory, seq, num_prompt)
    return seq


def write(memory: BuddyMemory, seq: Sequence, num_tokens: int) -> int | None:
    changed_from = memory.grow(seq, num_tokens)
    if changed_from is not None:
        seq.num_computed_tokens += num_tokens
    return changed_from


def test_an_extent_is_the_power_of_two_above_the_known_tokens() -> None:
    memory = BuddyMemory(64)
    for seq_id, num_prompt in enumerate([3, 4, 15]):
        admitted(memory, seq_id, num_prompt)
    usage = memory.usage(None)
    assert usage.token_state == 22
    assert usage.token_state + usage.reserved + usage.internal == 4 + 8 + 16


def test_no_room_is_kept_for_a_token_that_gets_no_kv() -> None:
    memory = BuddyMemory(8)
    admitted(memory, 0, 8, max_tokens=1)
    assert memory.usage(None).token_state == 8


def test_alone_a_sequence_lies_at_slot_0_and_never_moves() -> None:
    memory = BuddyMemory(100)
    seq = admitted(memory, 0, 1, max_tokens=64)
    for _ in range(63):
        assert write(memory, seq, 1) == 1
        assert memory.table(seq) == [0]
    assert memory.counters().num_moved_slots == 0
    assert memory.take_moves() == []


def test_a_sequence_moves_when_its_buddy_is_held_and_leaves_its_place_with_the_step() -> None:
    memory = BuddyMemory(16)
    first, second = admitted(memory, 0, 3), admitted(memory, 1, 3)  # at 0 and 4
    assert write(memory, first, 1) == 1
    assert write(memory, first, 1) == 0, "the table has not changed"
    assert memory.table(first) == [8]
    assert memory.usage(None).free == 0, "the place is free before the step that empties it"
    assert memory.take_moves() == [(0, 8, 4)]
    assert memory.take_moves() == []
    assert memory.usage(None).free == 4
    assert memory.counters().num_moved_slots == 4
    assert write(memory, second, 2) is None, "a right buddy cannot grow in place, and 8 slots are nowhere"
    assert memory.table(second) == [4]


def test_a_move_of_a_preempted_sequence_is_not_handed_out() -> None:
    memory = BuddyMemory(16)
    first, _ = admitted(memory, 0, 3), admitted(memory, 1, 3)
    assert write(memory, first, 2) == 0
    memory.free(first)
    assert memory.take_moves() == []
    assert memory.counters().num_moved_slots == 0
    assert memory.usage(None).free == 12


def request(request_id: int, num_prompt: int, max_tokens: int) -> Request:
    return Request(request_id, [1] * num_prompt, SamplingParams(max_tokens=max_tokens))


def running_by_step(memory: StaticMemory, requests: list[Request]) -> list[list[int]]:
    """The requests that run in each step."""
    scheduler = Scheduler(memory, max_batch_tokens=100, max_running=10)
    for item in requests:
        scheduler.add(item, added_ns=0)
    steps = []
    while scheduler.waiting or scheduler.running:
        planned = scheduler.schedule(0)
        assert planned is not None
        plan, _ = planned
        memory.check_integrity()
        steps.append([state.request.request_id for state in scheduler.running])
        scheduler.complete([0] * sum(len(seq.samples) for seq in plan.sequences), 0)
    return steps


def test_a_static_batch_lets_nobody_in_before_its_last_has_ended() -> None:
    requests = [request(0, 4, 1), request(1, 2, 3), request(2, 4, 2), request(3, 1, 1)]
    # The first two pad to 4 + 3 - 1 = 6 slots, and so would the third: 18 do not fit.
    assert running_by_step(StaticMemory(17, 10), requests) == [[0, 1], [1], [1], [2, 3], [2]]
    assert running_by_step(StaticMemory(24, 10), requests)[0] == [0, 1, 2, 3]
    assert running_by_step(StaticMemory(24, 3), requests)[0] == [0, 1, 2], "no more sequences than may run"


def test_a_long_request_does_not_join_a_batch_that_its_padding_would_burst() -> None:
    requests = [request(0, 2, 2), request(1, 2, 2), request(2, 9, 2)]
    assert running_by_step(StaticMemory(20, 10), requests)[0] == [0, 1]  # 3 x 10 slots with the third


def test_padding_and_what_has_ended_are_internal_waste() -> None:
    memory = StaticMemory(20, 10)
    short, long = (Sequence(i, request(i, 2 + 4 * i, 1 + 3 * i)) for i in range(2))
    memory.foresee([[short], [long]])  # 9 slots each
    assert memory.usage(None).reserved == 2 + 9
    for seq in (short, long):
        assert memory.admit(seq, seq.num_prompt_tokens, 0) == 0
        seq.num_computed_tokens = seq.num_prompt_tokens
    usage = memory.usage(None)
    assert (usage.token_state, usage.reserved, usage.internal, usage.free) == (8, 3, 7, 2)
    memory.free(short)
    usage = memory.usage(None)
    assert (usage.token_state, usage.reserved, usage.internal, usage.free) == (6, 3, 9, 2)
    memory.free(long)
    assert memory.usage(None).free == 20
