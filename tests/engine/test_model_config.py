"""Presets, and reading Hugging Face's config.json."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from pbench.engine.config import EngineConfig
from pbench.engine.errors import ConfigError
from pbench.engine.model_config import ARCHITECTURES, PRESETS, ModelConfig, load_model_config
from pbench.engine.rope_scaling import RopeScaling

JsonObject = dict[str, object]

# config.json of the published models, as transformers 4 wrote them.
PUBLISHED: dict[str, JsonObject] = {
    "llama-8b": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "vocab_size": 128256,
    },
    "llama-1b": {
        "architectures": ["LlamaForCausalLM"],
        "eos_token_id": 128001,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}
LLAMA = PUBLISHED["llama-8b"]
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
ABSENT = object()


def write(folder: Path, config_json: JsonObject, **changes: object) -> str:
    """Write config.json with some fields changed, or left out; returns the folder as a user would give it."""
    fields = {name: value for name, value in (config_json | changes).items() if value is not ABSENT}
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)


def load(folder: Path, config_json: JsonObject = LLAMA, **changes: object) -> ModelConfig:
    return load_model_config(write(folder, config_json, **changes))


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_configurations(name: str, tmp_path: Path) -> None:
    assert replace(load(tmp_path, PUBLISHED[name]), name=name) == PRESETS[name]


def test_presets_have_the_published_number_of_parameters() -> None:
    assert PRESETS["llama-8b"].num_parameters == 8_030_261_248
    assert PRESETS["llama-1b"].num_parameters == 1_235_814_400
    assert PRESETS["qwen3-0.6b"].num_parameters == 596_049_920


def test_presets_have_the_known_kv_bytes_per_token() -> None:
    assert PRESETS["llama-8b"].kv_bytes_per_token("bfloat16") == 128 * 1024
    assert PRESETS["opt-13b"].kv_bytes_per_token("float16") == 800 * 1024
    assert PRESETS["tiny"].kv_bytes_per_token("float32") == 2 * PRESETS["tiny"].kv_bytes_per_token("bfloat16")
    with pytest.raises(ConfigError, match="dtype 'int4' is unknown; known: float32"):
        PRESETS["tiny"].kv_bytes_per_token("int4")


def test_a_preset_is_loaded_by_name_even_beside_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert load_model_config("tiny") is PRESETS["tiny"]
    with pytest.raises(ConfigError, match=r"model folder tiny has no config\.json"):
        load_model_config("./tiny")


def test_an_unknown_model_lists_the_presets() -> None:
    with pytest.raises(ConfigError, match=r"'llama-9b' is neither.*tiny, qwen3-0.6b, llama-1b, llama-8b, opt-13b"):
        load_model_config("llama-9b")


def test_a_kv_shape_is_loaded_but_not_runnable() -> None:
    config = load_model_config("opt-13b")
    assert (config.num_layers, config.num_kv_heads, config.head_dim) == (40, 40, 128)
    assert config.max_position_embeddings == 2048
    with pytest.raises(ConfigError, match=r"cannot be run; presets that can: tiny, qwen3-0\.6b, llama-1b, llama-8b$"):
        config.check_runnable()
    with pytest.raises(ConfigError, match="cannot be run"):
        _ = config.num_parameters
    assert [name for name, preset in PRESETS.items() if preset.is_kv_shape_only] == ["opt-13b"]


@pytest.mark.parametrize(
    "peer",
    [
        LlamaConfig(num_key_value_heads=None, rope_parameters={"rope_type": "default", "rope_theta": 123.0}),
        LlamaConfig(tie_word_embeddings=True, eos_token_id=[7, 9], head_dim=96),
        LlamaConfig(
            rope_parameters=LLAMA3_ROPE | {"rope_theta": 5e5, "original_max_position_embeddings": 1024},
        ),
        LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}),
        Qwen3Config(tie_word_embeddings=True),
        Qwen2Config(),
        MistralConfig(sliding_window=None),
    ],
    ids=["llama", "llama tied", "llama3 rope", "linear rope", "qwen3", "qwen2", "mistral"],
)
def test_what_transformers_saves_is_read_as_transformers_means_it(peer: PretrainedConfig, tmp_path: Path) -> None:
    peer.architectures = [type(peer).__name__.replace("Config", "ForCausalLM")]
    peer.save_pretrained(tmp_path)
    config = load_model_config(str(tmp_path))
    assert config.name == tmp_path.name
    assert config.vocab_size == peer.vocab_size
    assert config.hidden_size == peer.hidden_size
    assert config.intermediate_size == peer.intermediate_size
    assert config.num_layers == peer.num_hidden_layers
    assert config.num_heads == peer.num_attention_heads
    assert config.num_kv_heads == peer.num_key_value_heads
    assert config.head_dim == (getattr(peer, "head_dim", None) or peer.hidden_size // peer.num_attention_heads)
    assert config.max_position_embeddings == peer.max_position_embeddings
    assert config.rms_norm_eps == peer.rms_norm_eps
    assert config.is_head_tied == peer.tie_word_embeddings
    eos = peer.eos_token_id
    assert config.eos_token_ids == (() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,))
    assert config.rope_theta == peer.rope_parameters["rope_theta"]
    scaling = config.rope_scaling
    assert (scaling.rope_type if scaling else "default") == peer.rope_parameters["rope_type"]
    if scaling:
        assert scaling.factor == peer.rope_parameters["factor"]
    assert config.has_qk_norm == isinstance(peer, Qwen3Config)
    assert config.has_attention_bias == isinstance(peer, Qwen2Config)


def test_both_generations_of_config_json_mean_the_same(tmp_path: Path) -> None:
    parameters = LLAMA3_ROPE | {"rope_theta": 500000.0, "original_max_position_embeddings": 8192}
    old = load(tmp_path)
    new = load(tmp_path, rope_parameters=parameters, rope_scaling=ABSENT, rope_theta=ABSENT)
    assert old == new
    assert old.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    ("changes", "theta", "scaling"),
    [
        ({"rope_scaling": None}, 500000.0, None),
        ({"rope_scaling": None, "rope_theta": ABSENT}, 10000.0, None),
        ({"rope_scaling": {}, "rope_parameters": {"rope_theta": 7.0}}, 7.0, None),
        ({"rope_scaling": {"rope_type": "default"}}, 500000.0, None),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 500000.0, RopeScaling("linear", 2.0)),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "yarn"}},
            500000.0,
            RopeScaling("linear", 2.0),
        ),
    ],
)
def test_rope_fields_are_read_as_transformers_reads_them(
    changes: JsonObject, theta: float, scaling: RopeScaling | None, tmp_path: Path
) -> None:
    config = load(tmp_path, **changes)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


def test_silence_means_the_default_of_the_architecture(tmp_path: Path) -> None:
    llama = load(tmp_path, num_key_value_heads=ABSENT, tie_word_embeddings=ABSENT, eos_token_id=ABSENT)
    assert llama.num_kv_heads == 32
    assert llama.head_dim == 4096 // 32
    assert not llama.is_head_tied
    assert llama.eos_token_ids == ()
    qwen = load(tmp_path, PUBLISHED["qwen3-0.6b"], head_dim=ABSENT)
    assert qwen.head_dim == 128


def test_generation_config_decides_where_a_sequence_ends(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [128001, 128008]}')
    assert load(tmp_path).eos_token_ids == (128001, 128008)
    (tmp_path / "generation_config.json").write_text("{}")
    assert load(tmp_path).eos_token_ids == (128001,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(ConfigError, match=r"generation_config\.json: eos_token_id is '</s>'; it must be a token id"):
        load(tmp_path)


@pytest.mark.parametrize("names", [["GPT2LMHeadModel"], ["MixtralForCausalLM", "OPTForCausalLM"], []])
def test_an_unknown_architecture_is_refused_by_name(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, architectures=names)
    message = str(caught.value)
    assert str(tmp_path / "config.json") in message
    assert all(name in message for name in (names or ["(none)"]))
    assert all(name in message for name in ARCHITECTURES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ABSENT}, "architectures is missing"),
        (
            {"architectures": "LlamaForCausalLM"},
            "architectures is 'LlamaForCausalLM'; it must be a list of strings",
        ),
        ({"hidden_size": ABSENT}, "hidden_size is missing"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "4096"}, "hidden_size is '4096'; it must be a whole number of at least 1"),
        ({"hidden_size": 4096.0}, "hidden_size is 4096.0; it must be a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be a whole number of at least 1"),
        ({"num_attention_heads": True}, "num_attention_heads is True; it must be a whole number"),
        ({"num_key_value_heads": 5}, "32 heads cannot share 5 KV heads evenly"),
        ({"head_dim": 63}, "head_dim 63 is odd; the rotary embedding needs halves"),
        ({"hidden_size": 16}, "head_dim is 0; it must be a whole number"),
        ({"rms_norm_eps": ABSENT}, "rms_norm_eps is missing"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1; it must be a finite number above 0"),
        ({"rope_theta": float("nan")}, "rope_theta is nan; it must be a finite number above 0"),
        ({"rope_theta": 10**400}, r"rope_theta is 10+\.\.\.; it must be a finite number above 0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; it must be true or false"),
        ({"eos_token_id": [1, -2]}, "eos_token_id is \\[1, -2\\]; it must be a token id or a list"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported: silu"),
        ({"attention_bias": True}, "attention_bias true is not supported for this architecture"),
        ({"mlp_bias": True}, "mlp_bias true is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config: quantised weights"),
        ({"rope_scaling": "llama3"}, "rope_scaling is 'llama3'; it must be an object"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope type 'yarn' is not supported; supported: def",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope type 'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, r"rope_scaling\.factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "rope scaling factor 0.5 is below 1"),
        ({"rope_scaling": LLAMA3_ROPE}, r"rope_scaling\.original_max_position_embeddings is missing"),
        (
            {"rope_scaling": LLAMA3_ROPE | {"low_freq_factor": 4, "original_max_position_embeddings": 8192}},
            "high_freq_factor 4.0 must exceed its low_freq_factor 4.0",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; supported: 1"),
        ({"rope_scaling": {"partial_rotary_factor": 0.5}}, r"rope_scaling\.partial_rotary_factor is 0.5"),
    ],
)
def test_a_field_that_cannot_work_is_named_with_its_value(changes: JsonObject, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, **changes)
    assert str(caught.value).count(str(tmp_path / "config.json")) == 1


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Qwen3ForCausalLM", {"num_key_value_heads": ABSENT}, "num_key_value_heads is missing"),
        ("Qwen3ForCausalLM", {"attention_bias": True}, "attention_bias true is not supported"),
        (
            "Qwen3ForCausalLM",
            {"layer_types": ["full_attention", "chunked_attention"]},
            "layer_types chunked_attention: supported are full_attention and sliding_attention",
        ),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention"]}, "layer_types has 1 entries.*num_hidden_layers is 32"),
        ("Qwen2ForCausalLM", {"layer_types": ["sliding_attention"] * 32}, "and no sliding_window is used"),
        (
            "Qwen2ForCausalLM",
            {"use_sliding_window": True, "max_window_layers": -1},
            "max_window_layers is -1; it must be a whole number of at least 0",
        ),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 0}, "sliding_window is 0; it must be"),
        ("MistralForCausalLM", {"layer_types": ["full_attention"] * 32}, "this architecture has its window in every"),
        ("LlamaForCausalLM", {"use_sliding_window": True, "sliding_window": 64}, "sliding_window 64: this arch"),
        ("LlamaForCausalLM", {"layer_types": ["sliding_attention"] * 32}, "sliding_window None: this architecture"),
    ],
)
def test_variants_that_the_engine_does_not_do_are_refused(
    name: str, changes: JsonObject, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, architectures=[name], **changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Qwen3ForCausalLM", {"use_sliding_window": True, "sliding_window": None}),
        ("Qwen2ForCausalLM", {"use_sliding_window": False, "sliding_window": 4096, "attention_bias": True}),
        ("Qwen2ForCausalLM", {"layer_types": ["full_attention"] * 32}),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": 32}),
        ("MistralForCausalLM", {"sliding_window": None}),
    ],
)
def test_a_window_that_is_not_used_is_no_obstacle(name: str, changes: JsonObject, tmp_path: Path) -> None:
    config = load(tmp_path, architectures=[name], **changes)
    assert config.num_layers == 32
    assert {config.window_of(index) for index in range(32)} == {None}


KINDS = ["sliding_attention", "full_attention"] * 16


@pytest.mark.parametrize(
    ("name", "changes", "windows"),
    [
        ("MistralForCausalLM", {}, [4096] * 32),
        ("MistralForCausalLM", {"sliding_window": 64, "use_sliding_window": False}, [64] * 32),
        ("Qwen2ForCausalLM", {"use_sliding_window": True}, [None] * 28 + [4096] * 4),
        (
            "Qwen3ForCausalLM",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
            [8] * 32,
        ),
        (
            "Qwen3ForCausalLM",
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": KINDS, "max_window_layers": 2},
            [8, None] * 16,
        ),
    ],
)
def test_windows_are_those_of_transformers(
    name: str, changes: JsonObject, windows: list[int | None], tmp_path: Path
) -> None:
    config = load(tmp_path, architectures=[name], **changes)
    assert [config.window_of(index) for index in range(config.num_layers)] == windows
    peer = getattr(transformers, name.replace("ForCausalLM", "Config"))(num_hidden_layers=32, **changes)
    kinds = getattr(peer, "layer_types", None) or ["sliding_attention"] * 32
    assert [peer.sliding_window if kind == "sliding_attention" else None for kind in kinds] == windows


def test_a_window_as_wide_as_the_longest_sequence_cuts_nothing() -> None:
    model = replace(PRESETS["tiny"], sliding_window=64, full_layers=(1,))
    assert EngineConfig(model, max_length=65).windows == (64, None)
    assert EngineConfig(model, max_length=64).windows == (None, None)


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "\x80", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.json (cannot be read as JSON|holds)"):
        load_model_config(str(tmp_path))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([1, 2, 64, 0.5]),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.sampled_from([*LLAMA3_ROPE, "type", "rope_theta", "x"]), values, max_size=4)
    ),
    max_leaves=6,
)
WINDOW_FIELDS = ("layer_types", "sliding_window", "use_sliding_window", "max_window_layers")
FIELDS = [*LLAMA, "head_dim", "rope_parameters", *WINDOW_FIELDS]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    architecture=st.sampled_from(list(ARCHITECTURES)),
    changes=st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, min_size=1, max_size=3),
)
def test_any_config_json_gives_a_model_or_a_config_error(
    architecture: str, changes: JsonObject, tmp_path: Path
) -> None:
    result: ModelConfig | ConfigError
    try:
        result = load(tmp_path, LLAMA | {"architectures": [architecture]}, **changes)
    except ConfigError as error:
        result = error
    assert isinstance(result, ModelConfig) or str(tmp_path / "config.json") in str(result)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: RopeScaling("yarn", 2.0),
            "rope type 'yarn' is not supported; supported: default, linear, llama3",
        ),
        (lambda: RopeScaling("linear", float("nan")), "rope scaling factor nan is below 1"),
        (lambda: replace(PRESETS["tiny"], vocab_size=0), "model tiny: vocab_size is 0; it must be above 0"),
        (lambda: replace(PRESETS["tiny"], rms_norm_eps=float("nan")), "model tiny: rms_norm_eps is nan"),
        (lambda: replace(PRESETS["tiny"], sliding_window=0), "model tiny: sliding_window is 0; it must be above 0"),
    ],
)
def test_impossible_shapes_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_configurations_are_read_without_torch() -> None:
    code = "import sys, pbench.engine.config; print({'torch', 'numpy'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
