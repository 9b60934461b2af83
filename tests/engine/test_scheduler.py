"""The scheduler over both memories, with a toy model that sees nothing but what a plan says."""

import hashlib
from collections.abc import Sequence as Seq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbench.engine.buddy import next_power_of_two
from pbench.engine.buddy_memory import BuddyMemory
from pbench.engine.contiguous_memory import ContiguousMemory
from pbench.engine.memory import KVMemory
from pbench.engine.paged_memory import PagedMemory
from pbench.engine.plan import StepPlan, placeholder
from pbench.engine.records import RequestRecord
from pbench.engine.request import Request, SamplingParams
from pbench.engine.reservation import ReserveFinal, ReserveMax
from pbench.engine.scheduler import Scheduler
from pbench.engine.static_memory import StaticMemory

MAX_LENGTH = 40
BLOCK_SIZE = 4


def next_token(tokens: Seq[int], seed: int) -> int:
    return hashlib.sha256(repr((list(tokens), seed)).encode()).digest()[0] % 3


class ToyRunner:
    """Keeps a pool of tokens instead of KV, written and read through the tables of the plans alone."""

    def __init__(self, memory: KVMemory) -> None:
        self.block_size = BLOCK_SIZE if memory.can_fork else memory.num_slots
        self.pool: dict[int, int] = {}
        self.host: dict[int, list[int]] = {}
        self.tables: dict[int, list[int]] = {}
        self.chosen: list[int] = []  # in the last step

    def slot(self, seq_id: int, position: int) -> int:
        table = self.tables[seq_id]
        if self.block_size == BLOCK_SIZE:
            return table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
        return table[0] + position

    def run(self, plan: StepPlan) -> list[int]:
        for seq_id in plan.released:
            self.tables.pop(seq_id, None)
        for block_id, host_id in plan.swaps.out:
            self.host[host_id] = [self.pool.get(block_id * BLOCK_SIZE + offset, -1) for offset in range(BLOCK_SIZE)]
        for host_id, block_id in plan.swaps.back:
            for offset, token in enumerate(self.host[host_id]):
                self.pool[block_id * BLOCK_SIZE + offset] = token
        old = dict(self.pool)
        for source, destination, num_slots in plan.moves:
            for offset in range(num_slots):
                self.pool[destination + offset] = old[source + offset]
        old = dict(self.pool)
        for source, destination in plan.copies:
            for offset in range(BLOCK_SIZE):
                self.pool[destination * BLOCK_SIZE + offset] = old.get(source * BLOCK_SIZE + offset, -1)
        for seq in plan.sequences:
            self.tables[seq.seq_id] = self.tables.get(seq.seq_id, [])[: seq.table_start] + seq.table_entries
            for position, token in enumerate(seq.token_ids, seq.start):
                known = token if token >= 0 else self.chosen[placeholder(token)]
                self.pool[self.slot(seq.seq_id, position)] = known
        chosen = []
        for seq in plan.sequences:
            context = [self.pool[self.slot(seq.seq_id, p)] for p in range(seq.start + len(seq.token_ids))]
            assert seq.end == len(context)
            chosen += [next_token(context, sample.seed) for sample in seq.samples]
        self.chosen = chosen
        return chosen


def play(
    memory: KVMemory,
    requests: list[Request],
    *,
    max_batch_tokens: int,
    max_running: int,
    is_prefill_chunked: bool,
    aborts: dict[int, int],
    is_swapping: bool = False,
    is_ahead: bool = False,
) -> tuple[dict[tuple[int, int], list[int]], list[RequestRecord]]:
    """Run all requests; ``aborts`` maps a step to the request to drop before it.

    With ``is_ahead`` a step is planned before the tokens of the one before it are told.
    """
    scheduler = Scheduler(
        memory,
        max_batch_tokens=max_batch_tokens,
        max_running=max_running,
        is_prefill_chunked=is_prefill_chunked,
        swapping=memory if is_swapping and isinstance(memory, PagedMemory) else None,
    )
    runner = ToyRunner(memory)
    for request in requests:
        assert memory.can_ever_hold(request)
        scheduler.add(request, added_ns=0)
    outputs: dict[tuple[int, int], list[int]] = {}
    records: list[RequestRecord] = []
    step = 0
    running: list[list[int]] = []  # what steps chose that run: at most one, in the middle of a turn two
    while scheduler.has_requests or running:
        if step in aborts and (state := scheduler.abort(aborts[step])) is not None:
            records.append(scheduler.record(state, "aborted", step))
        planned = scheduler.schedule(start_ns=step) if scheduler.has_requests else None
        assert planned is not None or running or not scheduler.has_requests
        if planned is not None:
            plan, counts = planned
            num_tokens = sum(len(seq.token_ids) for seq in plan.sequences)
            assert num_tokens == counts.num_prefill_tokens + counts.num_decode_tokens <= max_batch_tokens
            assert sum(1 for state in scheduler.running for _ in state.unfinished) <= max_running
            memory.check_integrity()
            assert memory.usage(scheduler.head).pool == memory.num_slots
            running.append(runner.run(plan))
        if running and (planned is None or len(running) > 1 or not is_ahead):
            given, finished = scheduler.complete(running.pop(0), now_ns=step)
            for output in given:
                outputs.setdefault((output.request_id, output.sample_index), []).append(output.token_id)
            records += finished
            memory.check_integrity()
        step += 1
        assert step < 5000, "no progress"
    assert not scheduler.states()
    usage = memory.usage(None)
    assert usage.free + usage.cached == memory.num_slots, "the pool is not whole at the end"
    return outputs, records


def expected_outputs(request: Request, sample_index: int) -> list[int]:
    tokens = list(request.prompt_token_ids)
    while len(tokens) < len(request.prompt_token_ids) + request.sampling.max_tokens:
        tokens.append(next_token(tokens, request.sampling.seed + sample_index))
        if tokens[-1] in request.sampling.stop_token_ids:
            break
    return tokens[len(request.prompt_token_ids) :]


@st.composite
def request_lists(draw: st.DrawFn) -> list[Request]:
    requests = []
    for request_id in range(draw(st.integers(1, 8))):
        num_prompt = draw(st.integers(1, 25))
        prompt = ([1] * num_prompt)[: draw(st.integers(0, 25))]
        prompt += [draw(st.integers(0, 2)) for _ in range(num_prompt - len(prompt))]
        sampling = SamplingParams(
            max_tokens=draw(st.integers(1, MAX_LENGTH - 25)),
            seed=draw(st.integers(0, 1)),
            n=draw(st.sampled_from([1, 1, 2, 3])),
            stop_token_ids=draw(st.sampled_from([(), (), (2,)])),
        )
        requests.append(Request(request_id, prompt, sampling))
    return requests


def make_contiguous(kind: str, requests: list[Request], num_spare: int) -> KVMemory:
    """As many slots as the hungriest request needs alone, and a few more."""
    if kind == "max":
        return ContiguousMemory(3 * MAX_LENGTH + 3 * num_spare, ReserveMax(MAX_LENGTH))
    finals = [(r.sampling.n, len(r.prompt_token_ids) + r.sampling.max_tokens - 1) for r in requests]
    if kind == "pow2":
        return BuddyMemory(max(n * next_power_of_two(final) for n, final in finals) + 3 * num_spare)
    num_slots = max(n * final for n, final in finals) + 3 * num_spare
    if kind == "oracle":
        return ContiguousMemory(num_slots, ReserveFinal())
    return StaticMemory(num_slots, max_sequences=6)


@settings(max_examples=400, deadline=None)
@given(
    requests=request_lists(),
    kind=st.sampled_from(["paged", "paged", "uncached", "max", "pow2", "pow2", "oracle", "static"]),
    num_spare=st.integers(0, 12),
    num_host_blocks=st.sampled_from([0, 4, 40]),
    max_batch_tokens=st.integers(6, 30),
    is_prefill_chunked=st.booleans(),
    aborts=st.dictionaries(st.integers(0, 30), st.integers(0, 7), max_size=2),
    is_ahead=st.booleans(),
)
def test_every_schedule_gives_every_request_its_own_tokens(
    requests: list[Request],
    kind: str,
    num_spare: int,
    num_host_blocks: int,
    max_batch_tokens: int,
    is_prefill_chunked: bool,
    aborts: dict[int, int],
    is_ahead: bool,
) -> None:
    """Whatever the memory, the pool's size, the chunking and the preemptions: the same tokens, and nothing leaks.

    And whether steps are planned before the tokens of the last are known or not.
    """
    memory: KVMemory
    if kind not in ("paged", "uncached"):
        memory = make_contiguous(kind, requests, num_spare)
    else:  # as few blocks as the hungriest request needs alone, and a few more: preemptions are frequent
        num_blocks = 1
        while not all(PagedMemory(num_blocks, BLOCK_SIZE).can_ever_hold(request) for request in requests):
            num_blocks += 1
        memory = PagedMemory(
            num_blocks + num_spare,
            BLOCK_SIZE,
            is_prefix_cached=kind == "paged",
            watermark=0.05 * (num_spare % 3),
            num_host_blocks=num_host_blocks,
        )
    outputs, records = play(
        memory,
        requests,
        max_batch_tokens=max_batch_tokens if is_prefill_chunked else MAX_LENGTH,
        max_running=6,
        is_prefill_chunked=is_prefill_chunked,
        aborts=aborts,
        is_swapping=num_host_blocks > 0,
        is_ahead=is_ahead,
    )
    assert sorted(record.request_id for record in records) == sorted(request.request_id for request in requests)
    for record in records:
        request = requests[record.request_id]
        for sample_index in range(request.sampling.n):
            got = outputs.get((record.request_id, sample_index), [])
            want = expected_outputs(request, sample_index)
            assert got == (want if record.status == "finished" else want[: len(got)])
        assert record.num_output_tokens == sum(
            len(outputs.get((record.request_id, index), [])) for index in range(request.sampling.n)
        )
        assert 0 <= record.num_prefix_hit_tokens < record.num_prompt_tokens * request.sampling.n


def _play(memory: KVMemory, requests: list[Request], max_batch_tokens: int = 64) -> list[RequestRecord]:
    return play(
        memory,
        requests,
        max_batch_tokens=max_batch_tokens,
        max_running=64,
        is_prefill_chunked=True,
        aborts={},
    )[1]


def test_the_first_come_is_the_first_served() -> None:
    requests = [Request(i, [i % 3] * 9, SamplingParams(max_tokens=5)) for i in range(12)]
    records = _play(ContiguousMemory(2 * MAX_LENGTH, ReserveMax(MAX_LENGTH)), requests)
    firsts = {record.request_id: record.first_scheduled_ns for record in records}
    assert [firsts[i] for i in range(12)] == sorted(firsts.values())


def test_recomputation_after_a_preemption_is_no_prefix_hit() -> None:
    requests = [Request(i, [i] * 8, SamplingParams(max_tokens=12)) for i in range(2)]
    records = _play(PagedMemory(7, BLOCK_SIZE, watermark=0.0), requests)
    assert sum(record.num_preemptions for record in records) > 0
    assert sum(record.num_recomputed_tokens for record in records) > 0
    assert sum(record.num_prefix_hit_tokens for record in records) == 0


def test_a_shared_prompt_is_computed_once() -> None:
    prompt = [1] * 16
    requests = [Request(i, [*prompt, i % 3, i // 3], SamplingParams(max_tokens=3)) for i in range(9)]
    records = _play(PagedMemory(60, BLOCK_SIZE), requests, max_batch_tokens=512)
    assert sorted(record.num_prefix_hit_tokens for record in records) == [0] + [16] * 8


def test_samples_share_their_prompt() -> None:
    memory = PagedMemory(60, BLOCK_SIZE)
    scheduler = Scheduler(memory, max_batch_tokens=64, max_running=8)
    scheduler.add(Request(0, [1] * 14, SamplingParams(max_tokens=4, n=4)), added_ns=0)
    runner = ToyRunner(memory)
    planned = scheduler.schedule(0)
    assert planned is not None
    plan, counts = planned
    assert counts.num_prefill_tokens == 14
    assert memory.usage(None).token_state == 14
    assert memory.usage(None).shared_saved == 3 * 14
    scheduler.complete(runner.run(plan), 0)
    planned = scheduler.schedule(1)
    assert planned is not None
    plan, _ = planned
    assert len(plan.copies) == 3, "the last owner writes in place"
    assert memory.usage(None).token_state == 12 + 4 * 3


@pytest.mark.parametrize("num_blocks", [6, 7])
def test_no_livelock_when_two_requests_each_need_nearly_all(num_blocks: int) -> None:
    requests = [Request(i, [i] * 12, SamplingParams(max_tokens=12)) for i in range(4)]
    assert len(_play(PagedMemory(num_blocks, BLOCK_SIZE), requests)) == 4
