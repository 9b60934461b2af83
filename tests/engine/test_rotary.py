"""Rotary frequencies and table against transformers, bit for bit."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pbench.engine.model_config import PRESETS, ModelConfig
from pbench.engine.rope_scaling import RopeScaling
from pbench.engine.rotary import inverse_frequencies, rotary_table

CONFIGS = {
    "llama-8b": PRESETS["llama-8b"],
    "llama-1b": PRESETS["llama-1b"],
    "qwen3-0.6b": PRESETS["qwen3-0.6b"],
    "tiny": PRESETS["tiny"],
    "linear": replace(PRESETS["tiny"], rope_scaling=RopeScaling("linear", 3.0)),
    "odd ramp": replace(
        PRESETS["tiny"],
        head_dim=80,
        rope_scaling=RopeScaling("llama3", 5.0, 1.5, 7.0, original_max_position_embeddings=100),
    ),
}


def peer_rotary(config: ModelConfig) -> LlamaRotaryEmbedding:
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if (scaling := config.rope_scaling) is not None:
        rope |= {"rope_type": scaling.rope_type, "factor": scaling.factor}
        if scaling.rope_type == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position_embeddings,
            }
    return LlamaRotaryEmbedding(
        LlamaConfig(
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=rope,
        )
    )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_frequencies_are_those_of_transformers(config: ModelConfig) -> None:
    frequencies = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    assert frequencies.dtype == torch.float32
    assert torch.equal(frequencies, peer_rotary(config).inv_freq)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_table_is_that_of_transformers_up_to_the_last_position(config: ModelConfig) -> None:
    table = rotary_table(replace(config, max_position_embeddings=(last := 40000) + 1), torch.device("cpu"))
    assert table.shape == (last + 1, 2, config.head_dim // 2)
    assert table.is_contiguous()
    positions = torch.tensor([0, 1, 63, 4095, last - 1, last])
    cos, sin = peer_rotary(config)(torch.empty(0), positions[None])
    half = config.head_dim // 2
    assert torch.equal(table[positions, 0], cos[0, :, :half])
    assert torch.equal(table[positions, 1], sin[0, :, :half])


def test_llama3_scaling_keeps_high_frequencies_and_divides_low_ones() -> None:
    plain = inverse_frequencies(128, 500000.0, None)
    scaled = inverse_frequencies(128, 500000.0, RopeScaling("llama3", 8.0))
    ratios = plain / scaled
    assert ratios[0] == 1
    assert ratios[-1] == 8
    assert (ratios.diff() >= -1e-6).all()
    assert ((ratios > 1.01) & (ratios < 7.99)).any()
