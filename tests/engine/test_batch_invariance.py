"""Batch invariance: a request's tokens and log-probabilities have the same bits alone and in any crowd."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from pbench.engine.attention import Batch, InvariantAttention
from pbench.engine.config import EngineConfig
from pbench.engine.engine import Engine
from pbench.engine.errors import ConfigError
from pbench.engine.heads import ProjectedHeads
from pbench.engine.loading import load_engine
from pbench.engine.model_config import ModelConfig
from pbench.engine.records import StepRecord
from pbench.engine.request import Request, SamplingParams
from pbench.kernels.rotary_write_kv import Rotation

# Vocabularies that are no multiple of a tile, nor of what a GPU loads at once.
LLAMA = ModelConfig("llama", 97, 48, 80, 2, 4, 2, 16, 256)
QWEN3 = ModelConfig("qwen3", 97, 48, 112, 2, 4, 2, 16, 256, has_qk_norm=True, is_head_tied=True)
BIASED = replace(LLAMA, name="biased", has_attention_bias=True)
WIDE = ModelConfig("wide", 1027, 512, 1024, 3, 8, 2, 64, 512)  # its sums are cut up by any library
CONFIG = EngineConfig(model=LLAMA, max_length=128, max_batch_tokens=256, max_running=8, is_batch_invariant=True)

Scores = list[tuple[int, float, list[tuple[int, float]]]]  # of each token: it, its log-probability, and all others'


def make_requests(vocab_size: int, num_logprobs: int) -> list[Request]:
    """Prompts that share prefixes of whole and of broken blocks, and some that share nothing."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(0, vocab_size, (40,), generator=generator).tolist()
    requests = []
    shapes = [(37, 5, 20), (37, 9, 12), (32, 1, 30), (0, 50, 25), (37, 0, 17), (16, 20, 9), (0, 1, 40), (37, 5, 20)]
    for index, (num_shared, num_own, num_out) in enumerate(shapes):
        own = torch.randint(0, vocab_size, (num_own,), generator=generator).tolist()
        sampling = SamplingParams(max_tokens=num_out, logprobs=num_logprobs)
        requests.append(Request(index, shared[:num_shared] + own, sampling))
    return requests


def scores_of(engine: Engine, requests: list[Request]) -> tuple[dict[int, Scores], list[StepRecord]]:
    """Run requests together to their end."""
    for request in requests:
        engine.add_request(request)
    scores: dict[int, Scores] = {request.request_id: [] for request in requests}
    steps = []
    while engine.has_unfinished:
        output = engine.step()
        steps.append(output.record)
        for token in output.tokens:
            assert token.score is not None
            # By token id: those of equal log-probability come in any order.
            top = sorted((one.token_id, one.log_prob) for one in token.score.top)
            scores[token.request_id].append((token.token_id, token.score.log_prob, top))
    return scores, steps


def alone_and_crowded(
    config: EngineConfig, alone: EngineConfig, *, is_warm: bool = False
) -> tuple[dict[int, Scores], dict[int, Scores], list[StepRecord]]:
    """Every request in an engine of its own, and all in one: each with the log-probabilities of all tokens."""
    requests = make_requests(config.model.vocab_size, config.model.vocab_size)
    engine = load_engine(config)
    if is_warm:
        engine.warm_up()
    crowded, steps = scores_of(engine, requests)
    lonely: dict[int, Scores] = {}
    engine = load_engine(alone)
    for request in requests:
        lonely |= scores_of(engine, [request])[0]
    return lonely, crowded, steps


def _crowds() -> Iterator[dict[str, object]]:
    for max_batch_tokens, is_prefix_cached, has_async_steps in itertools.product(
        (24, 256), (True, False), (True, False)
    ):
        yield {
            "max_batch_tokens": max_batch_tokens,
            "is_prefix_cached": is_prefix_cached,
            "has_async_steps": has_async_steps,
        }
    yield {"num_slots": 112, "max_batch_tokens": 24}  # too few: requests are preempted, and computed again
    yield {"num_slots": 112, "preemption": "swap"}
    yield {"has_partial_hits": True, "max_running": 2}
    yield {"kv_dtype": "fp8", "max_batch_tokens": 24}


def crowd_of(config: EngineConfig, changes: dict[str, object]) -> EngineConfig:
    changes = dict(changes)
    num_slots = changes.pop("num_slots", None)
    if num_slots is not None:
        changes["kv_memory_bytes"] = num_slots * config.slot_bytes  # type: ignore[operator]
    return replace(config, **changes)  # type: ignore[arg-type]


def quiet(config: EngineConfig) -> EngineConfig:
    """For one request at a time: nothing cached, whole prompts, no overlap, no graphs."""
    return replace(
        config,
        is_prefix_cached=False,
        has_partial_hits=False,
        max_batch_tokens=256,
        max_running=1,
        kv_memory_bytes=1 << 22,
        has_async_steps=False,
        has_cuda_graphs=False,
        preemption="recompute",
    )


@pytest.mark.parametrize("changes", list(_crowds()), ids=str)
@pytest.mark.parametrize("model", [LLAMA, QWEN3, BIASED], ids=lambda model: model.name)
def test_a_request_has_the_same_bits_alone_and_in_a_crowd(model: ModelConfig, changes: dict[str, object]) -> None:
    config = crowd_of(replace(CONFIG, model=model, host_kv_memory_bytes=1 << 20), changes)
    alone, crowded, steps = alone_and_crowded(config, quiet(config))
    assert alone == crowded
    assert max(step.num_running for step in steps) > 1
    if "num_slots" in changes:
        assert sum(step.num_preempted for step in steps) > 0
    if config.is_prefix_cached:
        assert sum(step.num_prefix_hit_tokens for step in steps) > 0


@pytest.mark.parametrize("memory", ["contiguous:max", "contiguous:pow2", "static"])
def test_so_it_is_in_every_memory(memory: str) -> None:
    config = replace(CONFIG, memory=memory, max_batch_tokens=24)
    alone, crowded, _ = alone_and_crowded(config, quiet(config))
    assert alone == crowded


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_so_it_is_in_a_wider_model(dtype: str) -> None:
    config = replace(CONFIG, model=WIDE, dtype=dtype, max_batch_tokens=24)
    alone, crowded, _ = alone_and_crowded(config, quiet(config))
    assert alone == crowded


def test_without_it_the_bits_differ() -> None:
    """Else the tests above could not fail."""
    config = replace(CONFIG, model=WIDE, max_batch_tokens=24, is_batch_invariant=False)
    alone, crowded, _ = alone_and_crowded(config, quiet(config))
    assert alone != crowded


def test_it_computes_what_the_engine_computes_without_it() -> None:
    requests = make_requests(WIDE.vocab_size, 0)
    runs = [
        scores_of(load_engine(replace(CONFIG, model=WIDE, is_batch_invariant=is_invariant)), requests)[0]
        for is_invariant in (True, False)
    ]
    for index in range(len(requests)):
        for (token, log_prob, _), (other, other_log_prob, _) in zip(runs[0][index], runs[1][index], strict=True):
            assert token == other
            assert log_prob == pytest.approx(other_log_prob, abs=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("changes", list(_crowds()), ids=str)
@pytest.mark.parametrize(("dtype", "has_cuda_graphs"), [("bfloat16", True), ("bfloat16", False), ("float32", True)])
def test_on_the_gpu_a_request_has_the_same_bits_alone_and_in_a_crowd(
    dtype: str, has_cuda_graphs: bool, changes: dict[str, object]
) -> None:
    config = replace(
        CONFIG, model=WIDE, dtype=dtype, device="cuda", has_cuda_graphs=has_cuda_graphs, host_kv_memory_bytes=1 << 24
    )
    config = crowd_of(config, changes)
    alone, crowded, steps = alone_and_crowded(config, quiet(config), is_warm=True)
    assert alone == crowded
    if "num_slots" in changes:
        assert sum(step.num_preempted for step in steps) > 0


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["contiguous:max", "contiguous:pow2"])
def test_on_the_gpu_so_it_is_in_contiguous_memory(memory: str) -> None:
    config = replace(CONFIG, model=WIDE, dtype="bfloat16", device="cuda", memory=memory, max_batch_tokens=24)
    alone, crowded, _ = alone_and_crowded(config, quiet(config), is_warm=True)
    assert alone == crowded


@pytest.mark.gpu
def test_on_the_gpu_the_bits_differ_without_it() -> None:
    config = replace(CONFIG, model=WIDE, dtype="bfloat16", device="cuda", is_batch_invariant=False)
    alone, crowded, _ = alone_and_crowded(config, quiet(config), is_warm=True)
    assert alone != crowded


def test_on_the_cpu_it_computes_with_one_thread() -> None:
    with pytest.raises(ConfigError, match=r"needs one thread, not 2.*--threads 1"):
        replace(CONFIG, num_threads=2)
    load_engine(CONFIG)
    assert torch.get_num_threads() == 1


def test_a_step_that_is_padded_to_a_graph_s_layout_attends_as_it_does_alone() -> None:
    """Rows of the table without a sequence stand between decodes and prompts, and behind both, as in a CUDA graph."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(12, num_heads, 16, generator=generator) for num_heads in (4, 2, 2)]
    positions = torch.tensor([20, 3, *range(9, 14), *range(3), 0, 0])  # two decodes, two prompts, two tokens of nobody
    slots = torch.tensor([20, 35, *range(57, 62), *range(64, 67), -1, -1])
    rotation = Rotation(torch.rand(32, 2, 8, generator=generator), positions)
    table = torch.tensor([[0, 1], [2, 0], [3, 0], [4, 0]], dtype=torch.int32)
    context_lens = torch.tensor([21, 4, 14, 3], dtype=torch.int32)
    query_start = torch.tensor([2, 7, 10], dtype=torch.int32)

    def attend(rows: list[int], num_decodes: int, query_start: torch.Tensor, num_tokens: int) -> torch.Tensor:
        pool = torch.randn(1, 5, 2, 2, 16, 16, generator=torch.Generator().manual_seed(1))
        is_row = torch.tensor([row >= 0 for row in rows])
        batch = Batch(
            token_ids=positions[:num_tokens],
            positions=positions[:num_tokens],
            slots=slots[:num_tokens],
            context_lens=torch.where(is_row, context_lens[rows], 0),
            table=torch.where(is_row[:, None], table[rows], 0),
            num_decodes=num_decodes,
            query_start=query_start,
        )
        attention = InvariantAttention(batch, pool, [None] * len(pool), is_contiguous=False)
        turned = rotation._replace(positions=positions[:num_tokens])
        return attention(0, ProjectedHeads(*(part[:num_tokens].clone() for part in inputs), turned))[:10]

    exact = attend([0, 1, 2, 3], 2, query_start, 10)
    padded_start = torch.tensor([2, 7, 10, 10, 10], dtype=torch.int32)
    assert torch.equal(attend([0, 1, -1, -1, -1, 2, 3, -1, -1], 5, padded_start, 12), exact)
