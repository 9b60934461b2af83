"""What requests pay for KV memory: together exactly what was held, shared blocks split."""

import pytest

from pbench.engine.config import EngineConfig
from pbench.engine.kv_cost import BlockCost
from pbench.engine.model_config import PRESETS
from pbench.engine.request import Request, SamplingParams
from pbench.engine.roofline import Speed
from pbench.engine.simulation import simulated_engine

SPEED = Speed(bandwidth_bytes_per_s=1e12, flops_per_s=1e14, overhead_ns=1_000)


@pytest.mark.parametrize("has_async_steps", [False, True])
@pytest.mark.parametrize("beam_width", [1, 3])
@pytest.mark.parametrize(
    ("memory", "preemption"),
    [
        ("paged", "recompute"),
        ("paged", "swap"),
        ("contiguous:max", "recompute"),
        ("contiguous:pow2", "recompute"),
        ("contiguous:oracle", "recompute"),
    ],
)
def test_all_that_was_held_is_paid_once(
    memory: str, preemption: str, beam_width: int, has_async_steps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if beam_width > 1 and memory != "paged":
        pytest.skip("contiguous memory cannot search with beams")
    model = PRESETS["tiny"]
    config = EngineConfig(
        model=model,
        memory=memory,
        max_length=128,
        max_running=12,
        max_batch_tokens=64,
        kv_memory_bytes=600 * model.kv_bytes_per_token("bfloat16"),
        preemption=preemption,
        host_kv_memory_bytes=1 << 20,
        dtype="bfloat16",
        has_async_steps=has_async_steps,
    )
    engine, _ = simulated_engine(config, SPEED)
    for index in range(12):
        params = SamplingParams(
            max_tokens=30 + 5 * (index % 5), n=1 + index % 3, beam_width=beam_width, temperature=float(beam_width == 1)
        )
        engine.add_request(Request(index, [7] * 40 + [index] * (index % 4 + 1), params))
    memory_of_engine, tick = engine.memory, engine.memory.tick
    held = paid = 0.0
    num_preempted = last_ns = 0

    def tick_and_integrate(now_ns: int) -> None:
        """The pool changes at ticks only, so between two of them as much is held as before the later one."""
        nonlocal held, last_ns
        usage = memory_of_engine.usage(None)
        held += (usage.token_state + usage.reserved + usage.internal) * (now_ns - last_ns)
        last_ns = now_ns
        tick(now_ns)

    monkeypatch.setattr(memory_of_engine, "tick", tick_and_integrate)
    while engine.has_unfinished:
        record, _, finished = engine.step()
        paid += sum(request.kv_byte_seconds for request in finished)
        num_preempted += record.num_preempted
    assert paid == pytest.approx(held * engine.slot_bytes / 1e9, rel=1e-9)
    if memory == "paged" and beam_width == 1:
        assert num_preempted > 0, "the pool was meant to be too small"


def test_sharers_of_a_block_split_it_for_as_long_as_they_share() -> None:
    cost, owners = BlockCost(1), [1]
    cost.take([0])
    cost.now_ns = 100  # the first holds it alone
    second = cost.join([0], owners)
    owners[0] = 2
    cost.now_ns = 140  # both hold it
    first = cost.leave([0], owners)
    owners[0] = 1
    cost.now_ns = 145  # the second holds it alone
    second += cost.leave([0], owners)
    assert (first, second) == (100 + 20, 20 + 5)
