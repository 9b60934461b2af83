"""Reading safetensors into packed parameters, and everything that can be wrong with them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from pbench.engine import transfers
from pbench.engine.errors import WeightsError
from pbench.engine.model import Model
from pbench.engine.model_config import PRESETS, ModelConfig
from pbench.engine.weights import INITIALIZER_STD, load_weights, parameter_views, random_weights

SMALL = ModelConfig(
    name="small",
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=32,
)
VARIANTS = {
    "llama": SMALL,
    "tied": replace(SMALL, is_head_tied=True),
    "qwen2": replace(SMALL, has_attention_bias=True),
    "qwen3": replace(SMALL, has_qk_norm=True, is_head_tied=True),
}
QUERY = "model.layers.1.self_attn.q_proj.weight"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def make_model(config: ModelConfig = SMALL, dtype: torch.dtype = torch.float32) -> Model:
    return Model(config, dtype, "cpu")


def numbered(model: Model) -> dict[str, Tensor]:
    """A checkpoint of the model in which no two elements are equal."""
    tensors, start = {}, 0
    for name, view in parameter_views(model).items():
        tensors[name] = torch.arange(start, start + view.numel(), dtype=torch.float32).reshape(view.shape)
        start += view.numel()
    return tensors


def save_sharded(tensors: dict[str, Tensor], folder: Path, num_shards: int = 3) -> dict[str, str]:
    """Deal the tensors out to shards; returns the weight map, which stands in the index file too."""
    weight_map: dict[str, str] = {}
    for index in range(num_shards):
        names = sorted(tensors)[index::num_shards]
        file_name = f"model-{index + 1:05}-of-{num_shards:05}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file_name)
        weight_map |= dict.fromkeys(names, file_name)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def assert_holds(model: Model, tensors: dict[str, Tensor]) -> None:
    for name, view in parameter_views(model).items():
        torch.testing.assert_close(view, tensors[name].to(view.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_views_cover_every_element_of_every_parameter_once(config: ModelConfig) -> None:
    model = make_model(config)
    for parameter in model.parameters():
        parameter.zero_()
    for view in parameter_views(model).values():
        view.add_(1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, torch.ones_like(parameter)), name


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("is_sharded", [False, True])
def test_every_tensor_reaches_its_place(config: ModelConfig, is_sharded: bool, tmp_path: Path) -> None:
    model = make_model(config)
    tensors = numbered(model)
    if is_sharded:
        save_sharded(tensors, tmp_path)
    else:
        save_file(tensors, tmp_path / SINGLE)
    load_weights(model, tmp_path)
    assert_holds(model, tensors)
    first = model.layers[0]
    parts = [tensors[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(first.qkv, torch.cat(parts))
    parts = [tensors[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(first.gate_up, torch.cat(parts))


@pytest.mark.parametrize("file_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_are_rounded_to_the_dtype_of_the_model(file_dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_model(dtype=torch.bfloat16)
    tensors = {name: (tensor / 4096).to(file_dtype) for name, tensor in numbered(model).items()}
    save_file(tensors, tmp_path / SINGLE)
    load_weights(model, tmp_path)
    assert_holds(model, tensors)


@pytest.mark.gpu
@pytest.mark.parametrize("piece_bytes", [100, 1 << 20])
@pytest.mark.parametrize("file_dtype", [torch.float32, torch.bfloat16])
def test_weights_reach_a_gpu_whole(
    file_dtype: torch.dtype, piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces that none of the tensors is a multiple of, and in one."""
    monkeypatch.setattr(transfers, "PIECE_BYTES", piece_bytes)
    model = Model(VARIANTS["qwen2"], torch.bfloat16, "cuda")
    tensors = {name: (tensor / 4096).to(file_dtype) for name, tensor in numbered(model).items()}
    save_sharded(tensors, tmp_path)
    load_weights(model, tmp_path)
    assert_holds(model, {name: tensor.cuda() for name, tensor in tensors.items()})


def test_the_single_file_wins_over_an_index(tmp_path: Path) -> None:
    model = make_model()
    tensors = numbered(model)
    save_sharded({name: -tensor for name, tensor in tensors.items()}, tmp_path)
    save_file(tensors, tmp_path / SINGLE)
    load_weights(model, tmp_path)
    assert_holds(model, tensors)


def test_rotary_frequencies_and_a_tied_head_are_skipped(tmp_path: Path) -> None:
    model = make_model(VARIANTS["tied"])
    tensors = numbered(model)
    skipped = {
        "lm_head.weight": torch.zeros(48, 16),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    save_file(tensors | skipped, tmp_path / SINGLE)
    load_weights(model, tmp_path)
    assert_holds(model, tensors)
    assert model.head is model.embedding


def test_links_to_files_elsewhere_are_followed(tmp_path: Path) -> None:
    model, folder, blobs = make_model(), tmp_path / "snapshot", tmp_path / "blobs"
    folder.mkdir()
    blobs.mkdir()
    tensors = numbered(model)
    weight_map = save_sharded(tensors, folder)
    for file_name in set(weight_map.values()):
        (folder / file_name).rename(blobs / file_name)
        (folder / file_name).symlink_to(Path("..") / "blobs" / file_name)
    load_weights(model, folder)
    assert_holds(model, tensors)


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def with_(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: tensors | {name: tensor}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(QUERY), rf"lacks tensor {QUERY}, which model small needs"),
        (without("lm_head.weight"), r"lacks tensor lm_head\.weight"),
        (lambda tensors: {}, r"lacks tensors lm_head\.weight, .* and 16 more, which model small needs"),
        (
            with_("model.layers.2.mlp.up_proj.weight", torch.zeros(24, 16)),
            r"holds tensor model\.layers\.2\.mlp.*unknown",
        ),
        (
            with_("model.layers.0.self_attn.q_proj.bias", torch.zeros(32)),
            r"q_proj\.bias, unknown to model small",
        ),
        (with_(QUERY, torch.zeros(16, 16)), rf"{QUERY} has shape \(16, 16\); model small needs \(32, 16\)"),
        (with_(QUERY, torch.zeros(32 * 16)), r"has shape \(512,\); model small needs \(32, 16\)"),
        (
            with_(QUERY, torch.zeros(32, 16, dtype=torch.int8)),
            rf"{QUERY} is I8; supported: F64, F32, BF16, F16",
        ),
        (with_(QUERY, torch.zeros(32, 16, dtype=torch.float8_e4m3fn)), r"is F8_E4M3; supported"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, tmp_path: Path
) -> None:
    model = make_model()
    for parameter in model.parameters():
        parameter.fill_(7)
    save_file(change(numbered(model)), tmp_path / SINGLE)
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(model, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert all((parameter == 7).all() for parameter in model.parameters()), "something was copied before the check"


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor .*index\.json.*safetensors only"):
        load_weights(make_model(), tmp_path)


@pytest.mark.parametrize(
    "file_name", ["../other.safetensors", "/etc/passwd", "a/../../b.safetensors", "", ".", 7, None]
)
def test_an_index_that_leaves_its_folder_is_refused(file_name: object, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(numbered(make_model()), tmp_path / "other.safetensors")
    write_index(folder, {QUERY: file_name})
    with pytest.raises(WeightsError, match=rf"{QUERY} is in .*, outside the folder"):
        load_weights(make_model(), folder)


@pytest.mark.parametrize("weight_map", [None, {}, [], "model.safetensors", 3])
def test_an_index_without_a_weight_map_is_refused(weight_map: object, tmp_path: Path) -> None:
    write_index(tmp_path, weight_map)
    with pytest.raises(WeightsError, match=r"index\.json: weight_map is .*; it must map tensors to files"):
        load_weights(make_model(), tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", "[" * 100_000])
def test_an_index_that_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(WeightsError, match=r"index\.json (cannot be read as JSON|holds)"):
        load_weights(make_model(), tmp_path)


def test_an_index_naming_a_missing_file_is_refused(tmp_path: Path) -> None:
    weight_map = save_sharded(numbered(make_model()), tmp_path)
    (tmp_path / weight_map[QUERY]).unlink()
    with pytest.raises(WeightsError, match=rf"is in {weight_map[QUERY]}, which .* does not hold"):
        load_weights(make_model(), tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    weight_map = save_sharded(numbered(make_model()), tmp_path)
    other = next(file_name for file_name in weight_map.values() if file_name != weight_map[QUERY])
    tensors = load_file(tmp_path / other)
    save_file(tensors | {QUERY: torch.zeros(32, 16)}, tmp_path / other)
    with pytest.raises(WeightsError, match=rf"{other} holds tensor {QUERY}, which .* does not place there"):
        load_weights(make_model(), tmp_path)


def test_a_shard_without_its_tensor_is_refused(tmp_path: Path) -> None:
    weight_map = save_sharded(numbered(make_model()), tmp_path)
    path = tmp_path / weight_map[QUERY]
    save_file(without(QUERY)(load_file(path)), path)
    with pytest.raises(WeightsError, match=rf"{path.name} lacks tensor {QUERY}, which .* says it holds"):
        load_weights(make_model(), tmp_path)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_that_is_cut_short_is_refused(data: st.DataObject, tmp_path: Path) -> None:
    model = make_model()
    path = tmp_path / SINGLE
    save_file(numbered(model), path)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1), label="length")])
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read as safetensors"):
        load_weights(model, tmp_path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_refused_or_changes_nothing(data: st.DataObject, tmp_path: Path) -> None:
    model = make_model()
    tensors = numbered(model)
    path = tmp_path / SINGLE
    save_file(tensors, path)
    content = bytearray(path.read_bytes())
    header_length = 8 + int.from_bytes(content[:8], "little")
    content[data.draw(st.integers(0, header_length - 1), label="offset")] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        load_weights(model, tmp_path)
    except WeightsError:
        return
    assert_holds(model, tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_seed_makes_one_model(dtype: torch.dtype) -> None:
    config = replace(PRESETS["tiny"], has_attention_bias=True, has_qk_norm=True)
    first, again, other = (make_model(config, dtype) for _ in range(3))
    random_weights(first, seed=3)
    random_weights(again, seed=3)
    random_weights(other, seed=4)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
        if parameter.dim() == 2:
            assert not torch.equal(parameter, other.get_parameter(name)), name


def test_random_weights_have_the_distribution_of_a_new_model() -> None:
    model = make_model(replace(PRESETS["tiny"], has_attention_bias=True, has_qk_norm=True))
    random_weights(model, seed=0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            assert abs(parameter.mean()) < 0.001, name
            assert parameter.std() == pytest.approx(INITIALIZER_STD, rel=0.05), name
        else:
            assert (parameter == (1.0 if name.endswith("_norm") else 0.0)).all(), name
