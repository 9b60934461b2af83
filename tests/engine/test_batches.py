"""What is staged on the device is what the scheduler planned, whatever comes and goes."""

import random
from dataclasses import replace

import pytest
import torch

from pbench.engine.batches import Batches, Layout
from pbench.engine.config import EngineConfig
from pbench.engine.engine import Engine
from pbench.engine.model_config import PRESETS
from pbench.engine.request import Request, SamplingParams
from pbench.engine.roofline import Roofline, Speed
from pbench.engine.simulation import SimulatedClock, SimulatedRunner

SPEED = Speed(bandwidth_bytes_per_s=4e12, flops_per_s=700e12, overhead_ns=500_000)
CONFIG = EngineConfig(
    model=PRESETS["tiny"],
    kv_memory_bytes=300 * PRESETS["tiny"].kv_bytes_per_token("float32"),
    block_size=4,
    max_length=96,
    max_batch_tokens=48,
    max_running=8,
)


class StagingRunner(SimulatedRunner):
    """Simulates steps, and stages each as a real runner does, exactly or with room for more."""

    def __init__(self, config, clock):
        super().__init__(config, Roofline(config, SPEED), clock)
        self.config = config
        block_size = config.num_slots if config.memory != "paged" else config.block_size
        self.batches = Batches(config, torch.zeros(1, config.num_slots // block_size, 2, 1, block_size, 1))
        self.num_seen = self.num_settled = self.num_in_conflict = 0

    def launch(self, plan):
        step = self.batches.take(plan)
        layout = self.batches.layout_of(step)
        if plan.step % 2:
            num_tokens = min(layout.num_tokens + 3, self.config.max_batch_tokens)
            num_decodes, num_prefills = (
                min(count + 2, self.config.max_running) for count in (layout.num_decodes, layout.num_prefills)
            )
            layout = Layout(num_tokens, num_decodes, num_prefills, self.batches.width, has_shared=False)
        self.batches.stage(step, layout)
        batch = self.batches.batch(layout)
        self.check(plan, layout, batch)
        self.check_is_kv_settled(plan, bool(batch.is_kv_settled))
        return super().launch(plan)

    def check(self, plan, layout, batch):
        token = 0
        for index, planned in enumerate(plan.sequences):
            row = index if index < plan.num_decodes else index - plan.num_decodes + layout.num_decodes
            end = planned.start + len(planned.token_ids)
            assert batch.context_lens[row] == end
            table = self.table(planned)
            block_size = self.batches._block_size
            num_entries = -(-end // block_size)
            assert batch.table[row, :num_entries].tolist() == table[:num_entries]
            for position, token_id in enumerate(planned.token_ids, planned.start):
                base = table[position // block_size] * block_size if self.config.memory == "paged" else table[0]
                assert batch.slots[token] == base + position % block_size
                assert batch.positions[token] == position
                assert token_id < 0 or batch.token_ids[token] == token_id
                token += 1
            if index >= plan.num_decodes:
                assert batch.query_start[row - layout.num_decodes] == token - len(planned.token_ids)
            self.num_seen += 1
        assert (batch.slots[token:] == -1).all()
        if layout.num_prefills:
            assert batch.query_start[-1] == token

    def check_is_kv_settled(self, plan, is_kv_settled):
        """In a step that says so, no decode reads what the step writes, but for its own last token."""
        written = {slot for planned in plan.sequences for slot in self.slots(planned, planned.start, planned.end)}
        read = {
            slot for planned in plan.sequences[: plan.num_decodes] for slot in self.slots(planned, 0, planned.start)
        }
        is_in_conflict = not written.isdisjoint(read)
        assert not (is_kv_settled and is_in_conflict)
        self.num_settled += is_kv_settled and plan.num_decodes > 0
        self.num_in_conflict += is_in_conflict

    def slots(self, planned, start, end):
        """Of these tokens of a planned sequence."""
        table = self.table(planned)
        block_size = self.batches._block_size
        bases = [entry if self.config.memory != "paged" else entry * block_size for entry in table]
        return [bases[position // block_size] + position % block_size for position in range(start, end)]

    def table(self, planned):
        sequences = {seq.seq_id: seq for state in self.engine.scheduler.states() for seq in state.unfinished}
        return self.engine.memory.table(sequences[planned.seq_id])


@pytest.mark.parametrize("memory", ["paged", "contiguous:pow2"])
def test_tables_on_the_device_follow_every_plan(memory):
    chance, clock = random.Random(0), SimulatedClock()
    config = replace(CONFIG, memory=memory)
    runner = StagingRunner(config, clock)
    runner.engine = engine = Engine(config, runner, clock)
    num_preempted, before = 0, [7]
    for request_id in range(240):
        prompt = [7] * chance.choice([0, 0, 8, 16]) + [chance.randrange(500) for _ in range(chance.randint(1, 40))]
        if chance.random() < 0.25:
            prompt = before  # it may find all but its last token in the very step that computes them
        before = prompt
        sampling = SamplingParams(max_tokens=chance.randint(1, 40), temperature=1.0, n=chance.choice([1, 1, 2]))
        engine.add_request(Request(request_id, prompt, sampling))
        if chance.random() < 0.1:
            engine.abort(request_id - 1)
        for _ in range(chance.randrange(6)):
            if engine.has_unfinished:
                num_preempted += engine.step().record.num_preempted
    while engine.has_unfinished:
        num_preempted += engine.step().record.num_preempted
    assert runner.num_seen > 3000
    assert num_preempted > 10
    assert runner.num_settled > 400
    assert (runner.num_in_conflict > 0) == (memory == "paged")


def test_what_a_step_uploads_does_not_grow_with_the_context():
    shape = torch.zeros(1, 5000, 2, 1, 4, 1)
    pool_bytes = 20_000 * CONFIG.model.kv_bytes_per_token("float32")
    model = replace(CONFIG.model, max_position_embeddings=16_384)
    short, long = (
        Batches(replace(CONFIG, model=model, kv_memory_bytes=pool_bytes, max_length=length), shape)
        for length in (96, 16_000)
    )
    layouts = [Layout(8, 8, 0, batches.width, has_shared=False) for batches in (short, long)]
    assert layouts[0].width < layouts[1].width
    assert layouts[0].num_staged(num_entries=2) == layouts[1].num_staged(num_entries=2) < 100


def test_what_was_staged_for_one_layout_can_be_cleared_for_all_others():
    clock = SimulatedClock()
    runner = StagingRunner(CONFIG, clock)
    runner.engine = engine = Engine(CONFIG, runner, clock)
    for request_id in range(8):
        engine.add_request(Request(request_id, [90 + request_id] * 12, SamplingParams(max_tokens=5)))
    while engine.has_unfinished:
        engine.step()
    width = runner.batches.width
    layouts = [Layout(40, 3, 2, width, has_shared=False), Layout(1, 1, 0, 2, has_shared=False)]
    with pytest.raises((IndexError, RuntimeError)):
        runner.batches.batch(layouts[0])
    runner.batches.clear()
    for layout in layouts:
        batch = runner.batches.batch(layout)
        assert not any(tensor.any() for tensor in (batch.token_ids, batch.positions, batch.context_lens))
