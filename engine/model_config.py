"""Shapes of the models that the engine runs: presets, and Hugging Face's config.json. Imports no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pbench.engine.errors import ConfigError
from pbench.engine.json_fields import JsonFields, read_json_object
from pbench.engine.rope_scaling import RopeScaling, read_rope

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FP8 = "fp8"  # e4m3, of K and V only
KV_DTYPE_BYTES = DTYPE_BYTES | {FP8: 1}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder of the Llama family.

    ``is_kv_shape_only`` marks a model of another family: it is here for the shape of its KV (layers, KV
    heads, head_dim, positions), so that a pool can be sized and simulated, and cannot be run.
    """

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    is_head_tied: bool = False  # the output head is the embedding
    has_qk_norm: bool = False  # RMSNorm over each head's query and key, before the rotary embedding (Qwen3)
    has_attention_bias: bool = False  # on the query, key and value projections alone (Qwen2)
    sliding_window: int | None = None  # tokens that a token sees at most, its own included; None: all before it
    full_layers: tuple[int, ...] = ()  # that see everything in spite of it
    eos_token_ids: tuple[int, ...] = ()
    is_kv_shape_only: bool = False

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_position_embeddings",
            "rope_theta",
            "rms_norm_eps",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"model {self.name}: {name} is {getattr(self, name)}; it must be above 0")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ConfigError(f"model {self.name}: sliding_window is {self.sliding_window}; it must be above 0")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model {self.name}: {self.num_heads} heads cannot share {self.num_kv_heads} KV heads evenly"
            )
        if self.head_dim % 2:
            raise ConfigError(f"model {self.name}: head_dim {self.head_dim} is odd; the rotary embedding needs halves")

    @property
    def query_size(self) -> int:
        """Elements of one token's query over all heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Elements of one token's key (or value) in one layer, over all KV heads."""
        return self.num_kv_heads * self.head_dim

    def window_of(self, layer_index: int) -> int | None:
        """Tokens that a token sees at most in this layer, its own included; None: all before it."""
        return None if layer_index in self.full_layers else self.sliding_window

    @property
    def num_parameters(self) -> int:
        """Trained parameters; a tied head counts once.

        Raises:
            ConfigError: the model is a KV shape only.

        """
        self.check_runnable()
        qkv = (self.query_size + 2 * self.kv_size) * (self.hidden_size + self.has_attention_bias)
        attention = qkv + self.query_size * self.hidden_size + 2 * self.head_dim * self.has_qk_norm
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        norms = 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.is_head_tied else 2)
        return embeddings + self.num_layers * (attention + feed_forward + norms) + self.hidden_size

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Return the bytes of one token's K and V in every layer, for ``dtype`` one of KV_DTYPE_BYTES.

        Raises:
            ConfigError: another dtype.

        """
        if dtype not in KV_DTYPE_BYTES:
            raise ConfigError(f"dtype {dtype!r} is unknown; known: {', '.join(KV_DTYPE_BYTES)}")
        return 2 * self.num_layers * self.kv_size * KV_DTYPE_BYTES[dtype]

    def check_runnable(self) -> None:
        """Refuse a model that is a KV shape only.

        Raises:
            ConfigError: naming the model and the presets that can be run.

        """
        if self.is_kv_shape_only:
            runnable = ", ".join(name for name, preset in PRESETS.items() if not preset.is_kv_shape_only)
            raise ConfigError(
                f"model {self.name} is known by the shape of its KV only and cannot be run; presets that can:"
                f" {runnable}"
            )


# The published config.json of each model, but for tiny.
PRESETS: dict[str, ModelConfig] = {
    preset.name: preset
    for preset in (
        # Small enough that a step of 32 sequences takes about a millisecond on two CPU cores.
        ModelConfig(
            name="tiny",
            vocab_size=512,
            hidden_size=64,
            intermediate_size=192,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            max_position_embeddings=4096,
        ),
        ModelConfig(
            name="qwen3-0.6b",
            vocab_size=151936,
            hidden_size=1024,
            intermediate_size=3072,
            num_layers=28,
            num_heads=16,
            num_kv_heads=8,
            head_dim=128,
            max_position_embeddings=40960,
            rope_theta=1000000.0,
            rms_norm_eps=1e-6,
            is_head_tied=True,
            has_qk_norm=True,
            eos_token_ids=(151645,),
        ),
        # Llama-3.2-1B
        ModelConfig(
            name="llama-1b",
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=8192,
            num_layers=16,
            num_heads=32,
            num_kv_heads=8,
            head_dim=64,
            max_position_embeddings=131072,
            rope_theta=500000.0,
            rope_scaling=RopeScaling("llama3", factor=32.0),
            is_head_tied=True,
            eos_token_ids=(128001,),
        ),
        # Llama-3.1-8B
        ModelConfig(
            name="llama-8b",
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_layers=32,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            max_position_embeddings=131072,
            rope_theta=500000.0,
            rope_scaling=RopeScaling("llama3", factor=8.0),
            eos_token_ids=(128001,),
        ),
        # The model of the PagedAttention paper's memory figures: 800 KiB of KV a token in two-byte dtypes.
        ModelConfig(
            name="opt-13b",
            vocab_size=50272,
            hidden_size=5120,
            intermediate_size=20480,
            num_layers=40,
            num_heads=40,
            num_kv_heads=40,
            head_dim=128,
            max_position_embeddings=2048,
            eos_token_ids=(2,),
            is_kv_shape_only=True,
        ),
    )
}


class _Architecture(NamedTuple):
    """What a class of transformers implies that its config.json need not say."""

    has_qk_norm: bool = False
    has_attention_bias: bool = False
    head_dim: int | None = None  # where config.json is silent; None: hidden_size / num_attention_heads
    is_kv_head_count_optional: bool = False  # as many as query heads where config.json is silent
    sliding_window: int | None = None  # where config.json is silent; null there means none; None: there is never one
    is_window_optional: bool = False  # used only if config.json says so, and only in some layers


_FULL, _SLIDING = "full_attention", "sliding_attention"  # of layer_types

ARCHITECTURES = {
    "LlamaForCausalLM": _Architecture(is_kv_head_count_optional=True),
    "MistralForCausalLM": _Architecture(sliding_window=4096),
    "Qwen2ForCausalLM": _Architecture(has_attention_bias=True, sliding_window=4096, is_window_optional=True),
    "Qwen3ForCausalLM": _Architecture(has_qk_norm=True, head_dim=128, sliding_window=4096, is_window_optional=True),
}


def load_model_config(spec: str) -> ModelConfig:
    """Read the configuration that ``spec`` names: a preset of PRESETS, or a Hugging Face folder.

    A preset's name wins over a folder of the same name; ``./tiny`` is always the folder. Reads config.json,
    and the end-of-sequence ids of generation_config.json, but no weights.

    Raises:
        ConfigError: neither a preset nor a folder; an architecture other than ARCHITECTURES; a field of
            config.json that is missing, of another type, or asks for something that the engine does not do.

    """
    if spec in PRESETS:
        return PRESETS[spec]
    folder = Path(spec)
    if not folder.is_dir():
        raise ConfigError(
            f"model {spec!r} is neither a preset nor a folder; presets: {', '.join(PRESETS)}; a folder must"
            " hold Hugging Face's config.json and safetensors files"
        )
    return _read_config_json(folder)


def _read_config_json(folder: Path) -> ModelConfig:
    path = folder / "config.json"
    if not path.exists():
        raise ConfigError(f"model folder {folder} has no config.json")
    fields = JsonFields(read_json_object(path, ConfigError))
    eos_token_ids = _generation_eos_token_ids(folder)
    with _located(path):
        return _interpret(fields, folder.resolve().name, eos_token_ids or fields.token_ids("eos_token_id"))


@contextmanager
def _located(path: Path) -> Iterator[None]:
    """Put the file before the message of a ConfigError about one of its fields."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _interpret(fields: JsonFields, name: str, eos_token_ids: tuple[int, ...]) -> ModelConfig:
    architecture = _architecture(fields)
    _refuse_unsupported(fields, architecture)
    rope_theta, rope_scaling = read_rope(fields)
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    num_layers = fields.integer("num_hidden_layers")
    sliding_window, full_layers = _read_window(fields, architecture, num_layers)
    return ModelConfig(
        name=name,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer(
            "num_key_value_heads", num_heads if architecture.is_kv_head_count_optional else None
        ),
        head_dim=fields.integer("head_dim", architecture.head_dim or hidden_size // num_heads),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        rms_norm_eps=fields.number("rms_norm_eps"),
        is_head_tied=fields.boolean("tie_word_embeddings", False),
        has_qk_norm=architecture.has_qk_norm,
        has_attention_bias=architecture.has_attention_bias,
        sliding_window=sliding_window,
        full_layers=full_layers,
        eos_token_ids=eos_token_ids,
    )


def _architecture(fields: JsonFields) -> _Architecture:
    for name in (names := fields.texts("architectures")):
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    raise ConfigError(
        f"architecture {' or '.join(names) or '(none)'} is not supported; supported: {', '.join(ARCHITECTURES)}"
    )


def _refuse_unsupported(fields: JsonFields, architecture: _Architecture) -> None:
    """Refuse what a config.json of a supported architecture may ask for and the engine does not do."""
    if (activation := fields.text("hidden_act", "silu")) != "silu":
        raise ConfigError(f"hidden_act {activation!r} is not supported; supported: silu")
    if fields.values.get("quantization_config") is not None:
        raise ConfigError("quantization_config: quantised weights are not supported; use the unquantised model")
    # Qwen2's class has its biases whatever the file says; the others would have one on the output as well.
    if fields.boolean("attention_bias", False) and not architecture.has_attention_bias:
        raise ConfigError("attention_bias true is not supported for this architecture")
    if fields.boolean("mlp_bias", False):
        raise ConfigError("mlp_bias true is not supported")


def _read_window(
    fields: JsonFields, architecture: _Architecture, num_layers: int
) -> tuple[int | None, tuple[int, ...]]:
    """Read the sliding window, and the layers without it, as transformers' classes understand config.json."""
    kinds = fields.texts("layer_types", ())
    if others := set(kinds) - {_FULL, _SLIDING}:
        raise ConfigError(f"layer_types {', '.join(sorted(others))}: supported are {_FULL} and {_SLIDING}")
    if kinds and len(kinds) != num_layers:
        raise ConfigError(f"layer_types has {len(kinds)} entries, and num_hidden_layers is {num_layers}")
    if architecture.sliding_window is None:  # transformers' class would ignore it
        is_asked_for = fields.boolean("use_sliding_window", False) and fields.values.get("sliding_window") is not None
        if is_asked_for or _SLIDING in kinds:
            raise ConfigError(f"sliding_window {fields.values.get('sliding_window')}: this architecture has no window")
        return None, ()
    is_used = not architecture.is_window_optional or fields.boolean("use_sliding_window", False)
    if not is_used or fields.values.get("sliding_window", architecture.sliding_window) is None:
        if _SLIDING in kinds:
            raise ConfigError(f"layer_types has {_SLIDING} layers, and no sliding_window is used")
        return None, ()
    window = fields.integer("sliding_window", architecture.sliding_window)
    if not architecture.is_window_optional:
        if _FULL in kinds:
            raise ConfigError(f"layer_types has {_FULL} layers; this architecture has its window in every layer")
        return window, ()
    if kinds:
        full_layers = tuple(index for index, kind in enumerate(kinds) if kind == _FULL)
    else:
        full_layers = tuple(range(min(fields.integer("max_window_layers", 28, least=0), num_layers)))
    return (None, ()) if len(full_layers) == num_layers else (window, full_layers)


def _generation_eos_token_ids(folder: Path) -> tuple[int, ...]:
    """Read the end-of-sequence ids of generation_config.json, by which transformers generates; () without."""
    path = folder / "generation_config.json"
    if not path.exists():
        return ()
    fields = JsonFields(read_json_object(path, ConfigError))
    with _located(path):
        return fields.token_ids("eos_token_id")
