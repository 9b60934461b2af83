"""The model against transformers: same weights, same tokens, same logits."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pbench.engine.errors import ConfigError
from pbench.engine.heads import Heads, ProjectedHeads
from pbench.engine.model import Model
from pbench.engine.model_config import PRESETS, ModelConfig, load_model_config
from pbench.engine.weights import load_weights, parameter_views, random_weights
from pbench.kernels.rms_norm import rms_norm
from pbench.kernels.rotary_write_kv import rotate_reference

SHAPE = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "attn_implementation": "eager",
}

# With 64 original positions the frequencies of 16 dimensions lie on both sides of the ramp and on it.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def llama(**changes: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**(SHAPE | changes)))


PEERS = {
    "llama": llama,
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "llama, llama3 rope": lambda: llama(rope_parameters=LLAMA3_ROPE),
    "llama, linear rope": lambda: llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}),
    "llama, wide heads": lambda: llama(head_dim=32),
    "llama, one KV head": lambda: llama(num_key_value_heads=1),
    "llama, as many KV heads": lambda: llama(num_key_value_heads=4),
    "qwen3, tied": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=True)),
    "qwen3, untied": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
}


class CausalAttention:
    """Plain causal attention over a flattened batch, without any memory of earlier calls."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.layer_indices: list[int] = []

    def __call__(self, layer_index: int, heads: ProjectedHeads) -> Tensor:
        query, key, value, rotation = heads
        self.layer_indices.append(layer_index)
        if (norms := rotation.norms) is not None:
            query, key = rms_norm(query, norms.query_weight, norms.eps), rms_norm(key, norms.key_weight, norms.eps)
        query, key = rotate_reference(query, rotation), rotate_reference(key, rotation)
        group = query.shape[1] // key.shape[1]
        attended = []
        for q, k, v in zip(*(x.split(self.lengths) for x in (query, key, value)), strict=True):
            scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, 1)) / math.sqrt(q.shape[-1])
            is_later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            weights = scores.masked_fill(is_later, -math.inf).softmax(-1, dtype=torch.float32).to(v.dtype)
            attended.append(torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(group, 1)))
        return torch.cat(attended)


def make_peer(name: str) -> PreTrainedModel:
    """A transformers model in which every parameter matters: norms off one, biases off zero."""
    torch.manual_seed(len(name))
    peer = PEERS[name]().eval()
    with torch.no_grad():
        for parameter_name, parameter in peer.named_parameters():
            is_norm = "norm" in parameter_name
            parameter.normal_(1.0 if is_norm else 0.0, 0.2 if parameter.dim() == 1 else 0.1)
    return peer


def load_copy(peer: PreTrainedModel, folder: Path, dtype: torch.dtype, **save_options: object) -> Model:
    peer.save_pretrained(folder, **save_options)
    model = Model(load_model_config(str(folder)), dtype, "cpu")
    for view in parameter_views(model).values():
        view.fill_(math.nan)
    load_weights(model, folder)
    return model


def model_logits(model: Model, token_ids: Tensor, lengths: list[int]) -> Tensor:
    positions = torch.cat([torch.arange(length) for length in lengths])
    with torch.inference_mode():
        return model.logits(model(token_ids, positions, CausalAttention(lengths)))


def peer_logits(peer: PreTrainedModel, token_ids: Tensor, lengths: list[int]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([peer(part[None]).logits[0] for part in token_ids.split(lengths)])


@pytest.mark.parametrize("name", PEERS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    peer = make_peer(name)
    model = load_copy(peer, tmp_path, torch.float32)
    lengths = [1, 150, 7]
    token_ids = torch.randint(model.config.vocab_size, (sum(lengths),))
    expected = peer_logits(peer, token_ids, lengths)
    assert expected.std() > 0.1
    torch.testing.assert_close(model_logits(model, token_ids, lengths), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "llama, tied", "qwen3, tied"])
def test_sharded_weights_are_the_same_weights(name: str, tmp_path: Path) -> None:
    peer = make_peer(name)
    model = load_copy(peer, tmp_path, torch.float32, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    expected = peer_logits(peer, token_ids := torch.arange(40), [40])
    torch.testing.assert_close(model_logits(model, token_ids, [40]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama, llama3 rope", "qwen3, tied"])
def test_bfloat16_is_as_near_to_float32_as_transformers_bfloat16(name: str, tmp_path: Path) -> None:
    peer = make_peer(name)
    model = load_copy(peer, tmp_path, torch.bfloat16)
    token_ids = torch.randint(model.config.vocab_size, (120,))
    exact = peer_logits(peer, token_ids, [120])
    peer_error = (peer_logits(peer.to(torch.bfloat16), token_ids, [120]) - exact).std()
    logits = model_logits(model, token_ids, [120])
    assert logits.dtype == torch.bfloat16
    assert 0 < (logits - exact).std() < 1.1 * peer_error


def test_layers_attend_in_order_once_each() -> None:
    model = Model(PRESETS["tiny"], torch.float32, "cpu")
    random_weights(model, seed=0)
    attention = CausalAttention([3])
    hidden = model(torch.arange(3), torch.arange(3), attention)
    assert attention.layer_indices == list(range(model.config.num_layers))
    assert hidden.shape == (3, model.config.hidden_size)


@pytest.mark.parametrize("rows", [[2], [9, 2, 2, 0], list(range(10)), []])
def test_hidden_states_of_some_tokens_are_those_among_all(rows: list[int]) -> None:
    model = Model(PRESETS["tiny"], torch.float32, "cpu")
    random_weights(model, seed=0)
    token_ids, positions = torch.arange(10), torch.tensor([*range(3), *range(7)])
    every = model(token_ids, positions, CausalAttention([3, 7]))
    some = model(token_ids, positions, CausalAttention([3, 7]), torch.tensor(rows, dtype=torch.int64))
    torch.testing.assert_close(some, every[rows], rtol=0, atol=1e-5)


def test_no_tokens_make_no_hidden_states() -> None:
    model = Model(PRESETS["tiny"], torch.float32, "cpu")
    random_weights(model, seed=0)
    nothing = torch.empty(0, dtype=torch.int64)
    hidden = model(nothing, nothing, lambda layer_index, heads: heads.query)
    assert model.logits(hidden).shape == (0, model.config.vocab_size)


def test_attention_sees_the_shapes_of_its_contract() -> None:
    config = PRESETS["tiny"]
    model = Model(config, torch.float32, "cpu")
    random_weights(model, seed=0)

    def attention(layer_index: int, heads: ProjectedHeads) -> Tensor:
        query, key, value, rotation = heads
        assert query.shape == (5, config.num_heads, config.head_dim)
        assert key.shape == value.shape == (5, config.num_kv_heads, config.head_dim)
        assert all(x.stride()[1:] == (config.head_dim, 1) for x in (query, key, value))
        assert rotation.positions.tolist() == [0, 1, 2, 3, 4]
        return query

    model(torch.arange(5), torch.arange(5), attention)


@pytest.mark.parametrize(
    "config",
    [
        *(preset for preset in PRESETS.values() if not preset.is_kv_shape_only),
        replace(PRESETS["tiny"], name="tiny, biased", has_attention_bias=True),
    ],
    ids=lambda config: config.name,
)
def test_num_parameters_counts_the_model(config: ModelConfig) -> None:
    model = Model(config, torch.bfloat16, "meta")
    assert config.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_kv_shape_is_refused_as_a_model() -> None:
    with pytest.raises(ConfigError, match=r"opt-13b is known by the shape of its KV only.*tiny"):
        Model(PRESETS["opt-13b"], torch.float32, "cpu")


@pytest.mark.gpu
def test_the_pass_can_be_captured_in_a_cuda_graph() -> None:
    config = ModelConfig("graph", 128, 64, 96, 2, 4, 2, 16, 64, has_qk_norm=True)
    model = Model(config, torch.bfloat16, "cuda")
    random_weights(model, seed=0)
    token_ids = torch.arange(8, device="cuda")
    positions = torch.zeros(8, dtype=torch.int64, device="cuda")
    kv = torch.zeros(1, 2, 2, 8, 16, dtype=torch.bfloat16, device="cuda")
    slots = torch.arange(8, device="cuda")

    def attention(_layer_index: int, heads: Heads) -> Tensor:
        return heads.write_kv(kv, slots).clone()

    def compute() -> Tensor:
        return model.logits(model(token_ids, positions, attention))

    with torch.inference_mode():
        compute()  # compiles the kernels
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = compute()
        token_ids.copy_(token_ids + 40)
        positions.copy_(positions + 9)
        graph.replay()
        torch.testing.assert_close(captured, compute(), rtol=0, atol=0)
