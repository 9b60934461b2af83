"""Roofline: how long a step of the engine takes, by arithmetic instead of a model.

Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore architectures", CACM
52(4), 2009. A step is bound by memory or by arithmetic, whichever takes longer, and has a fixed cost beside it::

    step time = overhead + max(bytes / bandwidth, FLOPs / rate, least time of a step with prompts, where it has some)

    bytes   weights, once a step, without the embedding, of which a step reads single rows
            + KV read: the whole context of every sequence, and with a prefix cache what several of them share once
            + KV written: the slots of the tokens computed
            + blocks copied on write, read and written
    FLOPs   2 for each weight of the layers and each token computed
            + 2 for each weight of the head and each token sampled
            + 4 * layers * heads * head_dim for each pair of a query and a key that it sees: scores and weighted sum

A token after n others sees n + 1 keys. Prompt chunks are causal: c tokens after s others see c * s + c * (c + 1) / 2.
Layers with a sliding window read and see no more than it holds; KV and pairs are then the mean of all layers.
The activations are left out: a step's are small beside its weights and KV, and fused kernels keep them on the chip.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from pbench.engine.config import EngineConfig
from pbench.engine.errors import ConfigError
from pbench.engine.hardware import BANDWIDTH_SHARE, FLOPS_SHARE, HardwareProfile
from pbench.engine.model_config import DTYPE_BYTES, ModelConfig


class _Published(NamedTuple):
    """Parameters of a model of which the presets know the shape of the KV only."""

    num_parameters: int  # a tied head counts once
    num_embedding_parameters: int  # of tokens and positions


# Zhang et al., "OPT: Open Pre-trained Transformer Language Models", 2022; the checkpoint facebook/opt-13b. Its head is
# the embedding of 50272 tokens; 2050 positions are learned.
_PUBLISHED = {"opt-13b": _Published(12_853_473_280, (50272 + 2050) * 5120)}


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a model's arithmetic and memory traffic are made of."""

    num_parameters: int
    num_layer_parameters: int  # multiplied with every token computed (norms and biases, below 0.1 %, included)
    num_head_parameters: int  # multiplied with every token sampled
    attention_flops: int  # for each pair of a query and a key, in all layers

    @classmethod
    def of(cls, model: ModelConfig) -> "ModelCost":
        """The cost of a model.

        Raises:
            ConfigError: the model is a KV shape whose parameters are not known.
        """
        num_head = model.vocab_size * model.hidden_size
        if not model.is_kv_shape_only:
            num_parameters = model.num_parameters
            num_embedding = num_head if model.is_head_tied else 2 * num_head
        elif model.name in _PUBLISHED:
            num_parameters, num_embedding = _PUBLISHED[model.name]
        else:
            raise ConfigError(
                f"model {model.name} is known by the shape of its KV only, and its number of parameters is not known:"
                f" a step's time cannot be told; KV shapes that can be simulated: {', '.join(_PUBLISHED)}"
            )
        return cls(
            num_parameters=num_parameters,
            num_layer_parameters=num_parameters - num_embedding,
            num_head_parameters=num_head,
            attention_flops=4 * model.num_layers * model.query_size,
        )


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step computes, reads and writes, counted over all its sequences."""

    num_tokens: int  # computed
    num_samples: int
    num_context_tokens: int  # whose KV is read, that of this step included; what several sequences share may count once
    num_pairs: int  # of a query and a key that it sees
    num_copied_slots: int
    has_prompts: bool = False  # some sequence computes several tokens


def within_window(window: int, start: int, count: int) -> tuple[int, int]:
    """KV read, in tokens, and pairs, where ``count`` tokens after ``start`` others see ``window`` keys at most."""
    num_before = min(max(window - start, 0), count)  # tokens that still see everything
    pairs = num_before * start + num_before * (num_before + 1) // 2 + (count - num_before) * window
    return min(start + count, window + count - 1), pairs


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast the hardware is in fact, beside what every step costs whatever it does."""

    bandwidth_bytes_per_s: float
    flops_per_s: float
    overhead_ns: int
    prompt_step_ns: int = 0  # a step with prompts takes at least so long beside it: it is launched kernel by kernel

    def __post_init__(self) -> None:
        for name in ("bandwidth_bytes_per_s", "flops_per_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name):g}; it must be above 0")
        for name in ("overhead_ns", "prompt_step_ns"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative")

    @classmethod
    def of(cls, hardware: HardwareProfile, overhead_ns: int) -> "Speed":
        """What a profile's GPU reaches: the shares of its published figures that an H200 was measured to reach."""
        return cls(hardware.bandwidth_bytes_per_s * BANDWIDTH_SHARE, hardware.flops_per_s * FLOPS_SHARE, overhead_ns)

    def at(self, efficiency: float) -> "Speed":
        """The same for an engine that reaches that share of bandwidth and rate."""
        return replace(
            self,
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s * efficiency,
            flops_per_s=self.flops_per_s * efficiency,
        )


class Roofline:
    """Tells a step's time for one engine on one piece of hardware.

    Raises:
        ConfigError: the model's cost is not known.
    """

    def __init__(self, config: EngineConfig, speed: Speed) -> None:
        self.speed = speed
        self._cost = cost = ModelCost.of(config.model)
        element_bytes = DTYPE_BYTES[config.dtype]
        self.weights_bytes = cost.num_parameters * element_bytes
        self._step_weights_bytes = (cost.num_layer_parameters + cost.num_head_parameters) * element_bytes
        self._slot_bytes = config.slot_bytes

    def step_bytes(self, work: StepWork) -> int:
        """Bytes that a step moves between the GPU and its memory."""
        num_slots = work.num_context_tokens + work.num_tokens + 2 * work.num_copied_slots
        return self._step_weights_bytes + num_slots * self._slot_bytes

    def step_flops(self, work: StepWork) -> int:
        """Floating point operations of a step; a multiplication and an addition count as two.

        Every layer counts for every token, though an engine leaves most of the last one out for tokens whose successors
        nobody samples.
        """
        cost = self._cost
        return (
            2 * cost.num_layer_parameters * work.num_tokens
            + 2 * cost.num_head_parameters * work.num_samples
            + cost.attention_flops * work.num_pairs
        )

    def step_ns(self, work: StepWork) -> int:
        """Duration of a step in nanoseconds, at least 1."""
        speed = self.speed
        bound_s = max(self.step_bytes(work) / speed.bandwidth_bytes_per_s, self.step_flops(work) / speed.flops_per_s)
        bound_ns = round(bound_s * 1e9)
        if work.has_prompts and bound_ns < speed.prompt_step_ns:
            bound_ns = speed.prompt_step_ns
        return max(1, speed.overhead_ns + bound_ns)
