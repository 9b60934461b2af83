"""How exact the engine's log-probabilities are in bfloat16, and that no optimisation changes a token in float32."""

from array import array
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from pbench.engine import shared_runs
from pbench.engine.config import EngineConfig
from pbench.engine.engine import Engine
from pbench.engine.loading import load_engine
from pbench.engine.model import Model
from pbench.engine.model_config import ModelConfig, load_model_config
from pbench.engine.products import FewRowsProducts, WholeProducts
from pbench.engine.records import TokenOutput
from pbench.engine.request import Request, SamplingParams
from pbench.engine.runner import Runner
from pbench.engine.weights import random_weights
from pbench.kernels import (
    choose_tokens,
    copy_blocks,
    decode_attention,
    prefill_attention,
    rms_norm,
    rotary_write_kv,
    silu_and_mul,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

# The engine's error in bfloat16, against float32 with the same weights, is at most so many times that of transformers
# in bfloat16, and a little more: where a sum is rounded differs, how often it is rounded does not.
RELATIVE_ERROR = 1.5
ABSOLUTE_ERROR = 1e-3

SHAPE = {
    "vocab_size": 515,
    "hidden_size": 512,  # so much that on a GPU the kernels for few rows multiply
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "eos_token_id": None,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "initializer_range": 0.1,
}


def finish(engine: Engine) -> dict[int, list[TokenOutput]]:
    outputs: dict[int, list[TokenOutput]] = {}
    while engine.has_unfinished:
        for token in engine.step().tokens:
            outputs.setdefault(token.request_id, []).append(token)
    return outputs


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    """A model whose weights are numbers of bfloat16, so that both precisions have the same ones; and its folder."""
    torch.manual_seed(0)
    model: PreTrainedModel
    if request.param == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True))
    model = model.eval().to(torch.bfloat16)
    folder = tmp_path_factory.mktemp(str(request.param))
    model.save_pretrained(folder)
    return model, folder


def peer_log_probs(model: PreTrainedModel, token_ids: list[int], num_rows: int, device: str) -> Tensor:
    """Of the last ``num_rows`` tokens, each given those before it: float32 (num_rows, vocab_size)."""
    with torch.inference_mode():
        logits = model.to(device)(torch.tensor([token_ids], device=device)).logits[0, -num_rows - 1 : -1]
    return logits.float().log_softmax(-1).cpu()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("is_batch_invariant", [False, True])
def test_log_probabilities_in_bfloat16_are_as_near_to_float32_as_those_of_transformers(
    peer: tuple[PreTrainedModel, Path], is_batch_invariant: bool, device: str
) -> None:
    """Of every token of the vocabulary, through chunks, prefix hits, graphs, and decodes beside prompts."""
    model, folder = peer
    config = EngineConfig(
        model=load_model_config(str(folder)),
        max_length=256,
        max_batch_tokens=48,
        max_running=8,
        kv_memory_bytes=1 << 23,
        dtype="bfloat16",
        device=device,
        is_batch_invariant=is_batch_invariant,
    )
    engine = load_engine(config, str(folder))
    engine.warm_up()
    assert isinstance(engine.runner, Runner)
    has_few_rows = device == "cuda" and torch.cuda.get_device_capability() >= (9, 0) and not is_batch_invariant
    assert isinstance(engine.runner.model.products(8), FewRowsProducts if has_few_rows else WholeProducts)
    vocab_size = config.model.vocab_size
    shared = [17 * index % vocab_size for index in range(64)]
    prompts = [[*shared, index, *range(7 * index)] for index in range(6)] + [[3], [5 * index for index in range(100)]]
    for index, prompt in enumerate(prompts):
        engine.add_request(Request(index, prompt, SamplingParams(max_tokens=24, logprobs=vocab_size)))
    errors: dict[str, list[Tensor]] = {"ours": [], "theirs": []}
    for index, outputs in finish(engine).items():
        ours = torch.empty(len(outputs), vocab_size)
        for row, output in zip(ours, outputs, strict=True):
            assert output.score is not None
            for candidate in output.score.top:
                row[candidate.token_id] = candidate.log_prob
        token_ids = prompts[index] + [output.token_id for output in outputs]
        exact = peer_log_probs(model.float(), token_ids, len(outputs), device)
        theirs = peer_log_probs(model.to(torch.bfloat16), token_ids, len(outputs), device)
        assert exact.std() > 0.3, "the model was meant to prefer some tokens"
        errors["ours"].append(ours - exact)
        errors["theirs"].append(theirs - exact)
    ours, theirs = (torch.cat(parts) for parts in errors.values())
    assert theirs.square().mean().sqrt() > 0, "bfloat16 was meant to round"
    assert ours.square().mean().sqrt() <= RELATIVE_ERROR * theirs.square().mean().sqrt() + ABSOLUTE_ERROR
    assert ours.abs().max() <= RELATIVE_ERROR * theirs.abs().max() + 10 * ABSOLUTE_ERROR


PEAKED = ModelConfig("peaked", 1027, 256, 512, 3, 8, 2, 32, 1024)
EVERYTHING_ON = EngineConfig(
    model=PEAKED, max_length=512, max_batch_tokens=96, max_running=24, kv_memory_bytes=1 << 24, has_partial_hits=True
)
EVERYTHING_OFF = replace(
    EVERYTHING_ON,
    max_batch_tokens=1024,
    kv_memory_bytes=1 << 26,
    is_prefill_chunked=False,
    is_prefix_cached=False,
    has_partial_hits=False,
    has_async_steps=False,
    has_cuda_graphs=False,
)


def load_peaked(config: EngineConfig) -> Engine:
    """An engine that is nearly sure of most tokens: the same weights on every device, drawn on the CPU and scaled."""
    drawn = Model(config.model, torch.float32, "cpu")
    random_weights(drawn, seed=3)
    engine = load_engine(config)
    assert isinstance(engine.runner, Runner)
    with torch.inference_mode():
        for (name, parameter), source in zip(engine.runner.model.named_parameters(), drawn.parameters(), strict=True):
            scale = 1 if "norm" in name else 60 if name == "head" else 5
            parameter.copy_(scale * source)
    return engine


@pytest.mark.parametrize("device", DEVICES)
def test_all_optimisations_together_change_no_token_of_a_peaked_model(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs, overlap, prefix hits, shared runs, chunks and kernels, against steps one by one in plain torch."""
    for name in ("MIN_SAVED_TOKENS", "MIN_SAVED_TOKENS_OF_LAUNCH"):
        monkeypatch.setattr(shared_runs, name, 1)
    shared = [31 * index % 1027 for index in range(200)]
    prompts = [array("i", [*shared[: 50 + 25 * (index % 7)], index, *range(index % 11)]) for index in range(40)]

    def run(config: EngineConfig, num_logprobs: int | None) -> dict[int, list[TokenOutput]]:
        engine = load_peaked(replace(config, device=device))
        engine.warm_up()
        for index, prompt in enumerate(prompts):
            sampling = SamplingParams(max_tokens=16 + index % 16, logprobs=num_logprobs)
            engine.add_request(Request(index, prompt, sampling))
        return finish(engine)

    optimised = run(EVERYTHING_ON, None)
    kernels = (
        *(choose_tokens, copy_blocks, decode_attention, prefill_attention),
        *(rms_norm, rotary_write_kv, silu_and_mul),
    )
    for module in kernels:
        monkeypatch.setattr(module, "runs_on_triton", lambda tensor: False)
    plain = run(EVERYTHING_OFF, 2)
    scores = [output.score for outputs in plain.values() for output in outputs]
    log_probs = torch.tensor([score.log_prob for score in scores if score is not None])
    margins = torch.tensor([score.top[0].log_prob - score.top[1].log_prob for score in scores if score is not None])
    assert log_probs.exp().median() > 0.8, "the model was meant to be peaked"
    assert margins.min() > 5e-3, "rounding was not meant to decide"
    for index in range(len(prompts)):
        assert [output.token_id for output in optimised[index]] == [output.token_id for output in plain[index]], index
