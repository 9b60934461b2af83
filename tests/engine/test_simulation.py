"""The engine without a model: it schedules as the real one does, and its steps take a roofline's time."""

import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pbench.engine.config import EngineConfig
from pbench.engine.engine import Engine
from pbench.engine.errors import ConfigError
from pbench.engine.hardware import HARDWARE, find_hardware
from pbench.engine.loading import load_engine
from pbench.engine.model_config import PRESETS
from pbench.engine.records import RequestRecord, StepRecord, TokenOutput
from pbench.engine.request import Request, SamplingParams
from pbench.engine.roofline import ModelCost, Roofline, Speed, StepWork, within_window
from pbench.engine.simulation import SimulatedClock, simulated_engine

SPEED = Speed(bandwidth_bytes_per_s=4e12, flops_per_s=700e12, overhead_ns=500_000)
LLAMA = EngineConfig(model=PRESETS["llama-8b"], kv_memory_bytes=2**30, dtype="bfloat16")
TINY = EngineConfig(
    model=PRESETS["tiny"], kv_memory_bytes=512 * 1024, max_length=256, max_batch_tokens=128, max_running=16
)


def play(engine: Engine, requests: list[Request]) -> tuple[list[StepRecord], list[RequestRecord], list[TokenOutput]]:
    """Offer everything at once and run to the end."""
    for request in requests:
        engine.add_request(request)
    steps, finished, tokens = [], [], []
    while engine.has_unfinished:
        output = engine.step()
        engine.memory.check_integrity()
        steps.append(output.record)
        finished += output.finished
        tokens += output.tokens
    return steps, finished, tokens


def some_requests(count: int, sampling: SamplingParams | None = None) -> list[Request]:
    """Prompts of many lengths; each third begins alike for more than a block, and no two are equal."""
    requests = []
    for i in range(count):
        prompt = [*([5] * 40 if i % 3 == 0 else []), *((i * 7 + j) % 500 for j in range(3 + 11 * i % 90))]
        requests.append(Request(i, prompt, sampling or SamplingParams(max_tokens=1 + 13 * i % 60)))
    return requests


def without_times(record: StepRecord | RequestRecord) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if not name.endswith(("_ns", "_seconds"))}


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, kv_memory_bytes=80 * 1024),  # preempts
        replace(TINY, is_prefix_cached=False),
        replace(TINY, max_batch_tokens=256, is_prefill_chunked=False),
        replace(TINY, memory="contiguous:max"),
        replace(TINY, has_async_steps=False),
    ],
    ids=["paged", "preempting", "uncached", "unchunked", "contiguous", "waiting"],
)
def test_every_step_is_the_real_engines_but_for_its_time(config: EngineConfig) -> None:
    simulated, _ = simulated_engine(config, SPEED)
    steps, finished, _ = play(simulated, some_requests(20))
    real_steps, real_finished, _ = play(load_engine(config), some_requests(20))
    assert [without_times(record) for record in steps] == [without_times(record) for record in real_steps]
    assert [without_times(record) for record in finished] == [without_times(record) for record in real_finished]


def test_the_case_that_is_to_preempt_does() -> None:
    engine, _ = simulated_engine(replace(TINY, kv_memory_bytes=80 * 1024), SPEED)
    assert sum(step.num_preempted for step in play(engine, some_requests(20))[0]) > 0


def test_a_simulation_repeats_itself_to_the_nanosecond() -> None:
    first, again = (play(simulated_engine(TINY, SPEED)[0], some_requests(20)) for _ in range(2))
    assert first == again


def test_steps_follow_each_other_on_the_simulated_clock() -> None:
    engine, clock = simulated_engine(TINY, SPEED)
    steps, _, _ = play(engine, some_requests(8))
    assert all(step.end_ns - step.start_ns > SPEED.overhead_ns for step in steps)
    assert [step.start_ns for step in steps] == [0, *(step.end_ns for step in steps[:-1])]
    assert clock() == steps[-1].end_ns


def test_time_does_not_run_backwards() -> None:
    with pytest.raises(AssertionError, match="backwards"):
        SimulatedClock().advance(-1)


def outputs(tokens: list[TokenOutput]) -> dict[tuple[int, int], list[int]]:
    by_sequence: dict[tuple[int, int], list[int]] = {}
    for token in tokens:
        by_sequence.setdefault((token.request_id, token.sample_index), []).append(token.token_id)
    return by_sequence


def test_greedy_samples_and_equal_prompts_are_continued_alike_and_random_ones_are_not() -> None:
    greedy = SamplingParams(max_tokens=20, n=2)
    tokens = outputs(play(simulated_engine(TINY, SPEED)[0], [Request(i, [1, 2, 3], greedy) for i in range(2)])[2])
    assert len({tuple(sequence) for sequence in tokens.values()}) == 1
    random = SamplingParams(max_tokens=20, n=2, temperature=1.0)
    tokens = outputs(play(simulated_engine(TINY, SPEED)[0], [Request(0, [1, 2, 3], random)])[2])
    assert tokens[0, 0] != tokens[0, 1]
    assert all(0 <= token < TINY.model.vocab_size for sequence in tokens.values() for token in sequence)
    assert len(set(tokens[0, 0])) > 10, "tokens hardly vary"


def test_beams_run_fork_and_give_their_best_out() -> None:
    beams = SamplingParams(max_tokens=24, n=2, beam_width=4)
    steps, finished, tokens = play(simulated_engine(TINY, SPEED)[0], some_requests(4, beams))
    assert [record.num_output_tokens for record in finished] == [48] * 4
    assert all(len(sequence) == 24 for sequence in outputs(tokens).values())
    assert sum(step.num_forks for step in steps) > 0


# Roofline


def test_a_decode_step_is_bound_by_the_bytes_it_reads() -> None:
    roofline = Roofline(LLAMA, SPEED)
    num_read = 8_030_261_248 - 128256 * 4096  # Llama-3.1-8B without its embedding
    work = StepWork(num_tokens=10, num_samples=10, num_context_tokens=10_000, num_pairs=10_000, num_copied_slots=16)
    num_bytes = 2 * num_read + (10_000 + 10 + 2 * 16) * 128 * 1024
    assert roofline.step_bytes(work) == num_bytes
    assert roofline.step_ns(work) == 500_000 + round(num_bytes / 4e12 * 1e9)


def test_a_prompt_is_bound_by_arithmetic() -> None:
    roofline = Roofline(LLAMA, SPEED)
    length = 8192
    work = StepWork(length, 1, length, length * (length + 1) // 2, 0)
    num_head = 128256 * 4096
    num_layer = 8_030_261_248 - 2 * num_head
    causal = 2 * 32 * 32 * 128 * length * (length + 1)  # layers * heads * head_dim
    assert roofline.step_flops(work) == 2 * num_layer * length + 2 * num_head + causal
    assert roofline.step_ns(work) == 500_000 + round(roofline.step_flops(work) / 700e12 * 1e9)


def test_work_in_chunks_sees_as_many_keys_as_in_one() -> None:
    """The chunks' attention FLOPs sum to the whole prompt's: read off the clock with nothing else to pay for."""
    durations = []
    for max_batch_tokens in (256, 16):
        config = replace(LLAMA, max_batch_tokens=max_batch_tokens, max_running=1)
        engine, clock = simulated_engine(config, Speed(1e30, 1e9, 0))
        play(engine, [Request(0, [1] * 256, SamplingParams(max_tokens=1))])
        durations.append(clock())
    assert durations[0] == pytest.approx(durations[1], rel=1e-9)


@pytest.mark.parametrize("window", [1, 5, 64])
def test_a_window_bounds_what_every_token_sees(window: int) -> None:
    for start in (0, 3, 5, 70):
        for count in (1, 2, 9, 80):
            seen = [range(max(position + 1 - window, 0), position + 1) for position in range(start, start + count)]
            expected = len(set().union(*seen)), sum(map(len, seen))
            assert within_window(window, start, count) == expected


def test_a_step_reads_what_its_windows_hold() -> None:
    """Three quarters of the layers see 256 of a long context: read off the clock with nothing else to pay for."""
    durations = []
    for full_layers in (range(32), range(8), range(0)):
        model = replace(PRESETS["llama-8b"], sliding_window=256, full_layers=tuple(full_layers))
        config = replace(LLAMA, model=model, max_length=8192)
        engine, clock = simulated_engine(config, SPEED)
        engine.add_request(Request(0, [1] * 4000, SamplingParams(max_tokens=2)))
        engine.step()
        start_ns = clock()
        play(engine, [])
        durations.append(clock() - start_ns)
    slot_ns = 128 * 1024 / 4e12 * 1e9
    assert durations[0] - durations[2] == pytest.approx((4001 - 256) * slot_ns, abs=2)
    assert durations[1] - durations[2] == pytest.approx((4001 - 256) * slot_ns / 4, abs=slot_ns)


def test_published_figures_stand_in_for_a_kv_shape_and_others_are_refused() -> None:
    cost = ModelCost.of(PRESETS["opt-13b"])
    assert cost.num_layer_parameters == 40 * (12 * 5120**2 + 13 * 5120) + 2 * 5120
    assert cost.num_parameters == cost.num_layer_parameters + (50272 + 2050) * 5120
    with pytest.raises(ConfigError, match="opt-66b is known by the shape of its KV only"):
        ModelCost.of(replace(PRESETS["opt-13b"], name="opt-66b"))


def test_an_unknown_gpu_lists_the_known_ones() -> None:
    assert find_hardware("H200") is HARDWARE["h200"]
    with pytest.raises(ConfigError, match="GPU 'h300' is unknown; known: h200, h100,"):
        find_hardware("h300")


@pytest.mark.parametrize("field", ["bandwidth_bytes_per_s", "flops_per_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_impossible_speeds_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(SPEED, **{field: value})


def test_the_h200_profile_reaches_what_was_measured_on_one() -> None:
    speed = Speed.of(HARDWARE["h200"], 0)
    assert speed.bandwidth_bytes_per_s == pytest.approx(4258e9)
    assert speed.flops_per_s == pytest.approx(723e12)


# The prefix cache against the ideal one


def mooncake_trace() -> Path:
    folder = Path(os.environ.get("PBENCH_TRACES", Path(__file__).parents[2] / ".." / "shared" / "traces"))
    return folder / "mooncake_conversation_trace.jsonl"


@cache
def mooncake_rows() -> list[tuple[int, list[int]]]:
    """(prompt tokens, hashes of its blocks of 512) of every request."""
    if not mooncake_trace().exists():
        pytest.skip("the Mooncake trace is neither in PBENCH_TRACES nor in ../shared/traces")
    with mooncake_trace().open(encoding="utf-8") as lines:
        return [(row["input_length"], row["hash_ids"]) for row in map(json.loads, lines)]


def prompts(rows: list[tuple[int, list[int]]]) -> Iterator["array[int]"]:
    for length, hashes in rows:
        prompt = array("i")
        for block_hash in hashes:
            prompt.extend(array("i", [block_hash]) * 512)
        yield prompt[:length]


@pytest.mark.parametrize(("num_blocks", "hit_pct"), [(200_000, 38.19), (1_000, 4.68), (10_000, 22.42), (50_000, 37.10)])
def test_one_request_at_a_time_hits_what_an_ideal_prefix_cache_does(num_blocks: int, hit_pct: float) -> None:
    """Full blocks of 512 tokens, one output token.

    With room for all 182 790 blocks the figure is exact. A small cache does slightly better than the ideal one's
    least recently used: a sequence gives its last block back first, so prefixes outlive what continues them.
    """
    rows = mooncake_rows()
    config = EngineConfig(
        model=replace(PRESETS["llama-8b"], vocab_size=2**31 - 1),
        kv_memory_bytes=num_blocks * 512 * 128 * 1024,
        block_size=512,
        max_length=131072,
        max_batch_tokens=131072,
        max_running=1,
        dtype="bfloat16",
    )
    engine, _ = simulated_engine(config, SPEED)
    num_hits = 0
    for request_id, prompt in enumerate(prompts(rows)):
        engine.add_request(Request(request_id, prompt, SamplingParams(max_tokens=1)))
        while engine.has_unfinished:
            num_hits += engine.step().record.num_prefix_hit_tokens
    num_full = sum(length // 512 for length, _ in rows)
    assert 100 * num_hits / 512 / num_full == pytest.approx(hit_pct, abs=0.005 if num_blocks == 200_000 else 0.06)
