"""The whole engine: the same tokens as transformers, whatever the memory does; bad requests; counters."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pbench.engine import shared_runs
from pbench.engine.batches import Layout
from pbench.engine.config import MEMORY_SPECS, EngineConfig
from pbench.engine.engine import Engine
from pbench.engine.errors import ConfigError, RequestError
from pbench.engine.loading import load_engine
from pbench.engine.model_config import PRESETS, load_model_config
from pbench.engine.records import RequestRecord, StepRecord
from pbench.engine.request import Request, SamplingParams
from pbench.engine.runner import Runner, num_unlike_layers
from pbench.engine.shared_runs import Numbers, RunFinder, RunTiles
from pbench.engine.step_graphs import StepGraphs, decode_sizes, mixed_sizes

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "eos_token_id": None,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "initializer_range": 0.4,  # logits far enough apart that rounding does not decide
}


@pytest.fixture(scope="module", params=["llama", "qwen3", "mistral, window", "qwen3, windows"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    torch.manual_seed(0)
    model: PreTrainedModel
    if request.param == "llama":
        rope = {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=rope))
    elif request.param == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True))
    elif request.param == "mistral, window":  # less than a block, a prompt and a chunk
        model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=11))
    else:
        windows = {"use_sliding_window": True, "sliding_window": 19, "max_window_layers": 1}
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, **windows))
    folder = tmp_path_factory.mktemp("reference")
    model.eval().save_pretrained(folder)
    return model, folder


def make_requests() -> list[Request]:
    """Prompts that share prefixes of whole and of broken blocks, and some that share nothing."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(0, 97, (37,), generator=generator).tolist()
    requests = []
    for index, (num_shared, num_own, num_out) in enumerate(
        [
            (37, 5, 20),
            (37, 9, 12),
            (32, 1, 30),
            (0, 50, 25),
            (37, 0, 17),
            (16, 20, 9),
            (0, 1, 40),
            (37, 5, 20),
        ]
    ):
        own = torch.randint(0, 97, (num_own,), generator=generator).tolist()
        requests.append(Request(index, shared[:num_shared] + own, SamplingParams(max_tokens=num_out)))
    return requests


@pytest.fixture(scope="module")
def expected(reference: tuple[PreTrainedModel, Path]) -> list[list[int]]:
    model, _ = reference
    outputs = []
    for request in make_requests():
        prompt = torch.tensor([request.prompt_token_ids])
        generated = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=request.sampling.max_tokens,
            min_new_tokens=request.sampling.max_tokens,
            do_sample=False,
        )
        outputs.append(generated[0, prompt.shape[1] :].tolist())
    return outputs


def make_engine(folder: Path | None, **changes: object) -> Engine:
    model = PRESETS["tiny"] if folder is None else load_model_config(str(folder))
    config = EngineConfig(model=model, max_length=128, max_batch_tokens=256, max_running=8, kv_memory_bytes=1 << 20)
    config = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
    return load_engine(config, None if folder is None else str(folder))


def finish(engine: Engine) -> tuple[dict[tuple[int, int], list[int]], list[RequestRecord], list[StepRecord]]:
    outputs: dict[tuple[int, int], list[int]] = {}
    requests, steps = [], []
    while engine.has_unfinished:
        step = engine.step()
        for token in step.tokens:
            outputs.setdefault((token.request_id, token.sample_index), []).append(token.token_id)
        requests += step.finished
        steps.append(step.record)
        engine.memory.check_integrity()
        assert step.record.usage.pool == engine.num_slots
        assert step.record.num_output_tokens == len(step.tokens)
    usage = engine.memory.usage(None)
    assert usage.free + usage.cached == engine.num_slots
    return outputs, requests, steps


def without_times(record: StepRecord | RequestRecord) -> dict[str, object]:
    return {name: value for name, value in dataclasses.asdict(record).items() if not name.endswith(("_ns", "_seconds"))}


def _variants() -> Iterator[dict[str, object]]:
    for chunk, is_cached in itertools.product((24, 256), (True, False)):
        yield {"memory": "paged", "max_batch_tokens": chunk, "is_prefix_cached": is_cached}
        yield {"memory": "paged", "max_batch_tokens": chunk, "is_prefix_cached": is_cached, "num_slots": 112}
    for chunk in (24, 256):
        yield {"memory": "paged", "max_batch_tokens": chunk, "has_partial_hits": True, "max_running": 2}
    yield {"memory": "paged", "is_prefill_chunked": False, "block_size": 4}
    yield {"memory": "contiguous:max", "max_batch_tokens": 24}
    yield {"memory": "contiguous:max", "is_prefill_chunked": False, "num_slots": 300}
    for memory in ("contiguous:pow2", "contiguous:oracle", "static"):
        yield {"memory": memory, "max_batch_tokens": 24}
        yield {"memory": memory, "is_prefill_chunked": False, "num_slots": 300}
    yield {"memory": "contiguous:pow2", "max_batch_tokens": 24, "num_slots": 128}


@pytest.mark.parametrize("has_async_steps", [True, False])
@pytest.mark.parametrize("variant", list(_variants()), ids=str)
def test_greedy_tokens_are_those_of_transformers(
    reference: tuple[PreTrainedModel, Path],
    expected: list[list[int]],
    variant: dict[str, object],
    has_async_steps: bool,
) -> None:
    _, folder = reference
    variant = dict(variant)
    num_slots = variant.pop("num_slots", None)
    if num_slots is not None:
        variant["kv_memory_bytes"] = num_slots * load_model_config(str(folder)).kv_bytes_per_token("float32")
    engine = make_engine(folder, has_async_steps=has_async_steps, **variant)
    for request in make_requests():
        engine.add_request(request)
    outputs, records, steps = finish(engine)
    assert [outputs[index, 0] for index in range(len(expected))] == expected
    assert len(records) == len(expected)
    assert sum(step.num_output_tokens for step in steps) == sum(map(len, expected))
    if variant["memory"] == "contiguous:pow2" and num_slots is None:
        assert sum(step.num_moved_slots for step in steps) > 0, "extents were meant to move"
    if num_slots in (112, 128):
        assert sum(step.num_preempted for step in steps) > 0, "the pool was meant to be too small"
    if variant.get("has_partial_hits"):
        assert sum(step.num_copied_blocks for step in steps) > 0, "parts of blocks were meant to be hit, and copied"
    if variant["memory"] == "paged" and variant.get("is_prefix_cached", True):
        assert sum(step.num_prefix_hit_tokens for step in steps) > 0


class StagedSteps(StepGraphs):
    """Computes what a graph would replay: a step that is padded to a layout."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.layouts: list[Layout] = []

    def replay(self, layout: Layout) -> torch.Tensor:
        self.layouts.append(layout)
        return self.runner._run_staged(layout)


@pytest.mark.parametrize("max_running", [8, 24])
@pytest.mark.parametrize("memory", ["paged", "contiguous:pow2"])
def test_steps_that_are_padded_to_a_layout_choose_the_same_tokens(
    reference: tuple[PreTrainedModel, Path], expected: list[list[int]], memory: str, max_running: int
) -> None:
    _, folder = reference
    engine = make_engine(folder, memory=memory, max_batch_tokens=48, max_running=max_running)
    runner = engine.runner
    assert isinstance(runner, Runner)
    assert {layout.num_tokens for layout in runner._layouts_to_capture() if layout.num_prefills} == {32, 48}
    runner._graphs = staged = StagedSteps(runner)
    for request in make_requests():
        engine.add_request(request)
    outputs, _, _ = finish(engine)
    assert [outputs[index, 0] for index in range(len(expected))] == expected
    assert {layout.num_tokens for layout in staged.layouts if layout.num_prefills} == {32, 48}
    kept = {layout.keeps_last_tokens for layout in staged.layouts if layout.num_prefills}
    assert kept == ({True} if max_running == 8 else {False})


@pytest.mark.parametrize(
    ("max_batch_tokens", "layer_flops", "largest", "num_sizes"),
    [(100, 10**12, 100, 3), (8192, 0, 8192, 25), (8192, 10**8, 2560, 18), (8192, 10**12, 1024, 13), (700, 0, 700, 11)],
)
def test_sizes_of_captured_steps_with_prompts_end_where_launching_is_hidden(
    max_batch_tokens: int, layer_flops: int, largest: int, num_sizes: int
) -> None:
    sizes = mixed_sizes(max_batch_tokens, layer_flops)
    assert sizes == sorted(set(sizes))
    assert (sizes[-1], len(sizes)) == (largest, num_sizes)


def test_log_probabilities_are_those_of_transformers(
    reference: tuple[PreTrainedModel, Path], expected: list[list[int]]
) -> None:
    """Of chunked prompts, behind prefixes from the cache, and after preemption."""
    model, folder = reference
    slot_bytes = load_model_config(str(folder)).kv_bytes_per_token("float32")
    engine = make_engine(folder, max_batch_tokens=24, kv_memory_bytes=112 * slot_bytes)
    requests = make_requests()
    for request in requests:
        engine.add_request(dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, logprobs=5)))
    scored: list[list[tuple[int, float]]] = [[] for _ in requests]
    num_preempted = num_hits = 0
    while engine.has_unfinished:
        step = engine.step()
        num_preempted += step.record.num_preempted
        num_hits += step.record.num_prefix_hit_tokens
        for token in step.tokens:
            assert token.score is not None
            scored[token.request_id] += [(one.token_id, one.log_prob) for one in token.score.top]
    assert num_preempted > 0 < num_hits
    for request, tokens, candidates in zip(requests, expected, scored, strict=True):
        sequence = torch.tensor([*request.prompt_token_ids, *tokens])
        with torch.inference_mode():
            logits = model(sequence[None]).logits[0, len(request.prompt_token_ids) - 1 : -1]
        top = logits.log_softmax(-1).topk(5)
        assert [token_id for token_id, _ in candidates] == top.indices.flatten().tolist()
        log_probs = torch.tensor([log_prob for _, log_prob in candidates])
        torch.testing.assert_close(log_probs, top.values.flatten(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("has_async_steps", [True, False])
@pytest.mark.parametrize("is_prefix_cached", [True, False])
@pytest.mark.parametrize("preemption", ["swap", "auto"])
def test_swapping_gives_the_tokens_of_an_ample_pool(
    reference: tuple[PreTrainedModel, Path],
    expected: list[list[int]],
    preemption: str,
    is_prefix_cached: bool,
    has_async_steps: bool,
) -> None:
    _, folder = reference
    slot_bytes = load_model_config(str(folder)).kv_bytes_per_token("float32")
    engine = make_engine(
        folder,
        preemption=preemption,
        is_prefix_cached=is_prefix_cached,
        has_async_steps=has_async_steps,
        kv_memory_bytes=112 * slot_bytes,
        host_kv_memory_bytes=400 * slot_bytes,
    )
    engine.warm_up()
    for request in make_requests():
        engine.add_request(request)
    outputs, records, steps = finish(engine)
    assert [outputs[index, 0] for index in range(len(expected))] == expected
    assert sum(step.num_preempted for step in steps) > 0
    num_out, num_in = (
        sum(getattr(step, name) for step in steps) for name in ("num_swapped_out_blocks", "num_swapped_in_blocks")
    )
    if preemption == "swap" or (engine.preemption_costs and engine.preemption_costs.is_swap_cheaper):
        assert num_out >= num_in > 0
        assert sum(record.num_recomputed_tokens for record in records) == 0
    else:
        assert num_out == num_in == 0


def test_samples_that_are_swapped_stay_shared() -> None:
    slot_bytes = PRESETS["tiny"].kv_bytes_per_token("float32")
    engine = make_engine(
        None, preemption="swap", is_prefix_cached=False, kv_memory_bytes=208 * slot_bytes, host_kv_memory_bytes=1 << 20
    )
    ample = make_engine(None)
    for index in range(4):
        params = SamplingParams(max_tokens=40, temperature=1.0, seed=index, n=3)
        for each in (engine, ample):
            each.add_request(Request(index, [index] * 40, params))
    outputs, _, steps = finish(engine)
    assert outputs == finish(ample)[0]
    assert sum(step.num_swapped_in_blocks for step in steps) > 0
    assert sum(step.num_recomputed_tokens for step in steps) == 0
    swapped = next(step for step in steps if step.num_swapped_out_blocks)
    assert swapped.num_swapped_out_blocks < 3 * 40 // 16 + 3, "the shared prompt is swapped once"


@pytest.mark.gpu
@pytest.mark.parametrize("has_async_steps", [True, False])
@pytest.mark.parametrize("has_cuda_graphs", [True, False])
@pytest.mark.parametrize("memory", MEMORY_SPECS)
def test_greedy_tokens_on_the_gpu_are_those_of_transformers(
    reference: tuple[PreTrainedModel, Path],
    expected: list[list[int]],
    memory: str,
    has_cuda_graphs: bool,
    has_async_steps: bool,
) -> None:
    _, folder = reference
    engine = make_engine(
        folder, device="cuda", memory=memory, has_cuda_graphs=has_cuda_graphs, has_async_steps=has_async_steps
    )
    engine.warm_up()
    for request in make_requests():
        engine.add_request(request)
    outputs, _, _ = finish(engine)
    assert [outputs[index, 0] for index in range(len(expected))] == expected


@pytest.mark.gpu
def test_logits_are_multiplied_only_for_numbers_of_rows_that_some_graph_has(
    reference: tuple[PreTrainedModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For others a library may load a kernel in the middle of a run, for longer than a step takes."""
    _, folder = reference
    engine = make_engine(folder, device="cuda", max_running=24)
    engine.warm_up()
    assert isinstance(engine.runner, Runner)
    model, numbers = engine.runner.model, {"logits": set[int](), "choose": set[int]()}

    def and_note(name: str) -> Callable[..., object]:
        multiply = getattr(model, name)

        def noted(hidden: torch.Tensor, *rest: torch.Tensor) -> object:
            numbers[name].add(len(hidden))
            return multiply(hidden, *rest)

        return noted

    for name in numbers:
        monkeypatch.setattr(model, name, and_note(name))
    for temperature in (0.0, 1.0):
        for index in range(24):
            params = SamplingParams(max_tokens=3 + index % 5, temperature=temperature)
            engine.add_request(Request(24 * int(temperature) + index, [index + 1] * (20 + 3 * index), params))
        finish(engine)
    for noted in numbers.values():
        assert noted
        assert noted <= {0, *decode_sizes(24)}


@pytest.mark.parametrize(
    ("windows", "num_layers"),
    [
        ([None] * 28, 3),
        ([5, None] * 13, 4),
        ([5] * 5 + [None] + [5] * 5 + [None], 12),
        ([5, None, None, None], 4),
        ([None] * 2, 2),
        ([None], 1),
    ],
)
def test_as_many_layers_as_launch_all_variants(windows: list[int | None], num_layers: int) -> None:
    assert num_unlike_layers(windows) == num_layers


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("changes", [{}, {"is_batch_invariant": True}, {"kv_dtype": "fp8"}], ids=str)
def test_what_is_compiled_ahead_is_all_that_captured_steps_launch(
    changes: dict[str, object], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton

    model = dataclasses.replace(PRESETS["qwen3-0.6b"], num_layers=5, vocab_size=4096)
    if window:
        model = dataclasses.replace(model, sliding_window=window, full_layers=(1, 3, 4))
    engine = make_engine(
        None, model=model, device="cuda", dtype="bfloat16", max_running=48, max_batch_tokens=2048, **changes
    )
    engine.runner.compile_ahead([120])
    compiled: list[str] = []
    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda *, src, **_: compiled.append(src.name))
    engine.runner.warm_up()
    assert not compiled


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_engine_that_has_run_may_be_warmed_up_again(device: str) -> None:
    """What its last step staged has another layout than what is captured first."""
    engine = make_engine(None, device=device)
    outputs = []
    for num_warm_ups in (0, 1, 2):
        for _ in range(num_warm_ups):
            engine.warm_up()
        for index in range(12):
            engine.add_request(Request(index, [90 + index] * (20 + 3 * index), SamplingParams(max_tokens=5 + index)))
        outputs.append(finish(engine)[0])
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("memory", ["paged", "contiguous:pow2"])
def test_kv_of_8_bits_holds_twice_to_four_times_as_much_and_stays_near(device: str, memory: str) -> None:
    """Swapping and moving it changes nothing: an ample pool gives the same tokens."""
    engines = [
        make_engine(
            None, device=device, memory=memory, kv_dtype=kv_dtype, kv_memory_bytes=pool_bytes, **swapping(memory)
        )
        for kv_dtype, pool_bytes in (("auto", 1 << 20), ("fp8", 1 << 20), ("fp8", 1 << 17))
    ]
    assert engines[1].num_slots == 4 * engines[0].num_slots
    outputs = []
    for engine in engines:
        for index in range(6):
            engine.add_request(Request(index, [index + 1] * (20 + index), SamplingParams(max_tokens=40)))
        outputs.append(finish(engine)[0])
    assert outputs[1] == outputs[2]
    same = sum(a == b for key, tokens in outputs[0].items() for a, b in zip(tokens, outputs[1][key], strict=True))
    assert same > 0.3 * 6 * 40


def swapping(memory: str) -> dict[str, object]:
    return {"preemption": "swap", "host_kv_memory_bytes": 1 << 20} if memory == "paged" else {}


@pytest.mark.gpu
@pytest.mark.parametrize("has_cuda_graphs", [True, False])
def test_attention_to_shared_runs_does_not_change_tokens(
    reference: tuple[PreTrainedModel, Path], has_cuda_graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against an engine that shares nothing; requests come and go, fork, and are preempted meanwhile."""
    for name in ("MIN_SAVED_TOKENS", "MIN_SAVED_TOKENS_OF_LAUNCH"):
        monkeypatch.setattr(shared_runs, name, 1)
    found: list[RunTiles | None] = []
    find = RunFinder.find

    def find_and_note(finder: RunFinder, *arguments: Numbers) -> RunTiles | None:
        found.append(find(finder, *arguments))
        return found[-1]

    monkeypatch.setattr(RunFinder, "find", find_and_note)
    _, folder = reference
    outputs = []
    for is_prefix_cached in (True, False):
        pool_bytes = 320 * 2 * 2 * 2 * 16 * 4  # slots, layers, K and V, heads, dimensions, bytes
        engine = make_engine(
            folder,
            device="cuda",
            has_cuda_graphs=has_cuda_graphs,
            is_prefix_cached=is_prefix_cached,
            kv_memory_bytes=pool_bytes if is_prefix_cached else 16 * pool_bytes,
        )
        engine.warm_up()
        for index in range(24):
            prompt = [*range(48 - 16 * (index % 3)), *([90 - index % 2] * 17), index, *range(index % 7)]
            engine.add_request(Request(index, prompt, SamplingParams(max_tokens=10 + index, n=1 + index % 2)))
        outputs.append(finish(engine)[0])
    assert outputs[0] == outputs[1]
    has_full_layers = None in engine.config.windows
    found_trees = any(runs is not None and runs.num_levels.max() > 1 for runs in found)
    assert found_trees == has_full_layers, "trees of runs are found for layers without a window, and only for those"


@pytest.mark.parametrize("num_prompt", [21, 4])
@pytest.mark.parametrize("has_async_steps", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_samples_of_one_request_are_those_of_separate_requests(
    temperature: float, has_async_steps: bool, num_prompt: int
) -> None:
    """n samples that share their prompt copy-on-write, against n requests with the seeds they stand for.

    Also where the prompt has as many tokens as there are samples.
    """
    prompt = [7 * i % 90 for i in range(num_prompt)]
    together = make_engine(None, has_async_steps=has_async_steps)
    together.add_request(Request(0, prompt, SamplingParams(max_tokens=12, temperature=temperature, seed=5, n=4)))
    outputs, _, steps = finish(together)
    assert sum(step.num_forks for step in steps) == 3
    assert sum(step.num_copied_blocks for step in steps) == 3
    apart = make_engine(None, is_prefix_cached=False)
    for index in range(4):
        apart.add_request(
            Request(index, prompt, SamplingParams(max_tokens=12, temperature=temperature, seed=5 + index))
        )
    expected_outputs, _, _ = finish(apart)
    assert [outputs[0, index] for index in range(4)] == [expected_outputs[index, 0] for index in range(4)]
    assert (len({tuple(tokens) for tokens in outputs.values()}) > 1) == (temperature > 0)


def _ways() -> Iterator[dict[str, object]]:
    slot_bytes = PRESETS["tiny"].kv_bytes_per_token("float32")
    yield from ({"memory": memory} for memory in MEMORY_SPECS)
    yield {"has_partial_hits": True}
    yield {"is_prefix_cached": False}
    for preemption in ("recompute", "swap"):
        for has_partial_hits in (True, False):
            yield {
                "preemption": preemption,
                "has_partial_hits": has_partial_hits,
                "kv_memory_bytes": 144 * slot_bytes,
                "host_kv_memory_bytes": 400 * slot_bytes,
            }


@pytest.mark.parametrize("has_async_steps", [True, False])
@pytest.mark.parametrize("way", list(_ways()), ids=str)
def test_samples_do_not_depend_on_the_memory(way: dict[str, object], has_async_steps: bool) -> None:
    """Every memory, what its cache hits, and what happens when it is full: always the tokens of an ample paged pool."""
    prompt = [5 * i % 90 for i in range(22)]
    requests = [
        Request(index, [*prompt[: 22 - 4 * index], index], SamplingParams(24, temperature=0.9, seed=9 * index, n=3))
        for index in range(4)
    ]
    engines = make_engine(None, has_async_steps=has_async_steps, **way), make_engine(None)
    for request in requests:
        for engine in engines:
            engine.add_request(request)
    outputs, records, steps = finish(engines[0])
    assert outputs == finish(engines[1])[0]
    if "preemption" in way:
        assert sum(step.num_preempted for step in steps) > 0
        assert (sum(step.num_swapped_in_blocks for step in steps) > 0) == (way["preemption"] == "swap")
        assert (sum(record.num_recomputed_tokens for record in records) > 0) == (way["preemption"] == "recompute")


@pytest.mark.parametrize("has_async_steps", [True, False])
def test_a_stop_token_ends_a_sequence_and_is_the_last_given_out(has_async_steps: bool) -> None:
    """With overlapping steps one token more is computed, and nobody sees it."""
    engine = make_engine(None, has_async_steps=has_async_steps)
    engine.add_request(Request(0, [1, 2, 3], SamplingParams(max_tokens=20)))
    free_run = finish(engine)[0][0, 0]
    engine.add_request(Request(1, [1, 2, 3], SamplingParams(max_tokens=20, stop_token_ids=(free_run[4],))))
    outputs, (record,), steps = finish(engine)
    num_given = free_run.index(free_run[4]) + 1
    assert outputs[1, 0] == free_run[:num_given]
    assert record.num_output_tokens == num_given
    assert sum(step.num_decode_tokens for step in steps) == num_given - 1 + has_async_steps


@pytest.mark.parametrize("max_tokens", [12, 13, 14, 27])
@pytest.mark.parametrize("has_async_steps", [True, False])
def test_the_next_turn_of_a_conversation_hits_what_was_generated(has_async_steps: bool, max_tokens: int) -> None:
    """Every full block: of the last token given out there is no KV."""
    engine = make_engine(None, has_async_steps=has_async_steps)
    prompt = list(range(20))
    engine.add_request(Request(0, prompt, SamplingParams(max_tokens=max_tokens)))
    said = finish(engine)[0][0, 0]
    engine.add_request(Request(1, [*prompt, *said, 1, 2], SamplingParams(max_tokens=2)))
    _, (record,), _ = finish(engine)
    assert record.num_prefix_hit_tokens == (20 + max_tokens - 1) // 16 * 16


def test_steps_overlap_without_changing_what_is_scheduled() -> None:
    """Where nothing ends early, all that is known of a sequence is known without its tokens."""
    slot_bytes = PRESETS["tiny"].kv_bytes_per_token("float32")
    runs = []
    for has_async_steps in (True, False):
        engine = make_engine(None, has_async_steps=has_async_steps, kv_memory_bytes=208 * slot_bytes)
        for index in range(12):
            params = SamplingParams(max_tokens=1 + 7 * index % 40, temperature=1.0, seed=index, n=1 + index % 3)
            engine.add_request(Request(index, [index % 5] * (1 + 11 * index % 60), params))
        outputs, requests, steps = finish(engine)
        runs.append((outputs, [without_times(request) for request in requests], [without_times(s) for s in steps]))
    assert runs[0] == runs[1]
    assert sum(step.num_preempted for step in steps) > 0


def test_warm_up_leaves_no_trace() -> None:
    engine = make_engine(None)
    assert engine.warm_up() > 0
    assert engine.memory.usage(None).free == engine.num_slots
    engine.add_request(Request(0, [1, 2, 3], SamplingParams(max_tokens=2)))
    assert engine.step().record.step == 0


def test_an_aborted_request_gives_everything_back() -> None:
    engine = make_engine(None)
    for index in range(3):
        engine.add_request(Request(index, list(range(40)), SamplingParams(max_tokens=30)))
    engine.step()
    record = engine.abort(1)
    assert record is not None
    assert record.status == "aborted"
    assert engine.abort(1) is None
    outputs, records, _ = finish(engine)
    assert sorted(record.request_id for record in records) == [0, 2]
    assert set(outputs) == {(0, 0), (2, 0)}


def test_unfinished_requests_are_told() -> None:
    engine = make_engine(None, max_running=1)
    engine.add_request(Request(0, [1, 2], SamplingParams(max_tokens=9)))
    engine.add_request(Request(1, [1, 2], SamplingParams(max_tokens=9)))
    engine.step()
    first, second = engine.unfinished()
    assert (first.num_output_tokens, second.num_output_tokens) == (1, 0)
    assert first.status == second.status == "unfinished"
    assert second.first_scheduled_ns is None


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(0, [], SamplingParams(max_tokens=4)), "0 prompt tokens"),
        (Request(0, [1], SamplingParams(max_tokens=0)), "max_tokens 0"),
        (Request(0, [1] * 120, SamplingParams(max_tokens=9)), "max_length 128"),
        (Request(0, [1, 10**6], SamplingParams(max_tokens=9)), "vocabulary"),
        (Request(0, [1, -1], SamplingParams(max_tokens=9)), "vocabulary"),
        (Request(0, [1], SamplingParams(max_tokens=9, n=9)), "n 9"),
        (Request(0, [1], SamplingParams(max_tokens=9, n=0)), "n 0"),
        (Request(0, [1], SamplingParams(max_tokens=9, temperature=-1.0)), "temperature -1.0"),
        (Request(0, [1], SamplingParams(max_tokens=9, temperature=float("nan"))), "temperature nan"),
        (Request(0, [1], SamplingParams(max_tokens=9, beam_width=2, early_stopping="soon")), "'soon'; known: first"),  # type: ignore[arg-type]
        (Request(0, [1] * 90, SamplingParams(max_tokens=30, n=8)), "does not fit the pool"),
    ],
)
def test_a_request_that_can_never_run_is_refused_with_its_reason(request_: Request, words: str) -> None:
    slot_bytes = PRESETS["tiny"].kv_bytes_per_token("float32")
    engine = make_engine(None, kv_memory_bytes=160 * slot_bytes)
    with pytest.raises(RequestError, match=words):
        engine.add_request(request_)
    assert not engine.has_unfinished


def test_one_request_id_cannot_live_twice() -> None:
    engine = make_engine(None)
    engine.add_request(Request(0, [1], SamplingParams(max_tokens=4)))
    with pytest.raises(RequestError, match="already"):
        engine.add_request(Request(0, [1], SamplingParams(max_tokens=4)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory": "contiguous:best"}, "known: paged, contiguous:max"),
        ({"block_size": 12}, "power of two"),
        ({"max_running": 512}, "max_batch_tokens"),
        ({"is_prefill_chunked": False, "max_batch_tokens": 64}, "without chunked prefill"),
        ({"max_length": 10**7}, "positions"),
        ({"kv_memory_bytes": 0}, "at least 1"),
    ],
)
def test_an_impossible_configuration_is_refused_with_its_reason(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_engine(None, **changes)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("memory", MEMORY_SPECS)
def test_the_smallest_pool_that_the_refusal_names_would_do(memory: str, n: int) -> None:
    config = EngineConfig(model=PRESETS["tiny"], memory=memory, max_length=128, max_running=8, kv_memory_bytes=1000)
    with pytest.raises(ConfigError, match="use --kv-memory") as caught:
        config.check_pool(70, 30, n)
    smallest = int(str(caught.value).split("use --kv-memory ")[1].split()[0])
    with pytest.raises(ConfigError):
        dataclasses.replace(config, kv_memory_bytes=smallest - 1).check_pool(70, 30, n)
    config = dataclasses.replace(config, kv_memory_bytes=smallest)
    config.check_pool(70, 30, n)
    engine = load_engine(config)
    engine.add_request(Request(0, list(range(70)), SamplingParams(max_tokens=30, n=n, temperature=1.0)))
    outputs, _, steps = finish(engine)
    assert [len(tokens) for tokens in outputs.values()] == [30] * n
    assert sum(step.num_preempted for step in steps) == 0


def test_times_are_in_order() -> None:
    engine = make_engine(None)
    before = time.monotonic_ns()
    engine.add_request(Request(0, [1] * 20, SamplingParams(max_tokens=3), arrival_ns=before))
    _, (record,), steps = finish(engine)
    times = [before, record.added_ns, record.first_scheduled_ns, record.first_token_ns, record.finished_ns]
    assert times == sorted(times)  # type: ignore[type-var]
    edges = [edge for step in steps for edge in (step.start_ns, step.end_ns)]
    assert edges == sorted(edges)
