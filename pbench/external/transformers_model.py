"""A model in transformers' own classes: with the parameters of ours for a preset, or from a Hugging Face folder."""

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from pbench.engine.model import Model
from pbench.engine.model_config import ModelConfig, load_model_config
from pbench.engine.weights import parameter_views, random_weights

if TYPE_CHECKING:
    from pbench.job import EngineOptions

# transformers.PreTrainedModel, whose methods have types that hold only in part
PeerModel: TypeAlias = Any

# What transformers' continuous batching takes unless it finds a better one.
ATTENTION = "sdpa"


def load_model(options: "EngineOptions") -> PeerModel:
    """The model of ``options``, on its device.

    Raises:
        OSError: the folder cannot be read.

    """
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    if options.weights is not None:
        model: PeerModel = AutoModelForCausalLM.from_pretrained(
            options.weights, dtype=dtype, attn_implementation=ATTENTION, local_files_only=True, use_safetensors=True
        )
        return model.to(device).eval()
    return model_with_random_weights(load_model_config(options.model), dtype, device, options.seed)


def model_with_random_weights(config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int) -> PeerModel:
    """The model that our engine runs with this seed. The parameters are views of ours: they exist once."""
    ours = Model(config, dtype, device)
    random_weights(ours, seed)
    with torch.device("meta"):
        make: Any = AutoModelForCausalLM.from_config
        theirs = make(peer_config(config), dtype=dtype, attn_implementation=ATTENTION)
    theirs.load_state_dict(parameter_views(ours), strict=False, assign=True)
    theirs.tie_weights()
    # What is computed and not loaded; on the meta device it was not.
    with device:
        theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config=theirs.config)
    tensors = (*theirs.named_parameters(), *theirs.named_buffers())
    missing = [name for name, tensor in tensors if tensor.is_meta]
    assert not missing, f"transformers' model has tensors that ours has not: {missing}"
    return theirs.eval()


def peer_config(config: ModelConfig) -> PretrainedConfig:
    """``config`` as transformers writes it; which family it is of follows from what it has."""
    family = "qwen3" if config.has_qk_norm else "qwen2" if config.has_attention_bias else "llama"
    window: dict[str, Any] = {}
    if config.sliding_window is not None:
        window = {"sliding_window": config.sliding_window}
        if family == "llama":
            family = "mistral"
        else:
            kinds = ("sliding_attention", "full_attention")
            layers = range(config.num_layers)
            window |= {"use_sliding_window": True, "layer_types": [kinds[i in config.full_layers] for i in layers]}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if (scaling := config.rope_scaling) is not None:
        rope |= {"rope_type": scaling.rope_type, "factor": scaling.factor}
        if scaling.rope_type == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position_embeddings,
            }
    return AutoConfig.for_model(
        family,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters=rope,
        **window,
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=config.is_head_tied,
        # Requests end at their length; a special token outside a small vocabulary would be refused.
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
