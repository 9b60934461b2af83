"""Filling a model's parameters: from Hugging Face's safetensors files, or at random."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pbench.engine.errors import WeightsError
from pbench.engine.json_fields import read_json_object, shown
from pbench.engine.model import Layer, Model
from pbench.engine.transfers import Uploads

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# What a file may hold; the copy converts it to the model's dtype.
FILE_DTYPES = ("F64", "F32", "BF16", "F16")

INITIALIZER_STD = 0.02


class _Shard(NamedTuple):
    path: Path
    names: frozenset[str] | None  # the tensors that the index says it holds; None where there is no index


def load_weights(model: Model, folder: Path) -> None:
    """Fill every parameter of ``model`` from the safetensors files in ``folder``.

    The folder holds ``model.safetensors`` (which wins, as in transformers), or
    ``model.safetensors.index.json`` and the files that it names. Each tensor is copied from the mapped file,
    piece by piece, into its place in the packed parameters on the model's device, so that the model never exists
    twice. Everything is checked before the first copy. Rotary frequencies, and the output head of a model
    whose head is tied, are skipped where a file holds them.

    Raises:
        WeightsError: a file that is missing, damaged or outside the folder; a tensor that is missing,
            unexpected, of another shape or type: naming the tensor, the file and both shapes.

    """
    views = parameter_views(model)
    shards = _shards(folder)
    sources: dict[str, Path] = {}
    for shard in shards:
        with _open(shard.path) as file:
            for name in _checked_names(file, shard, model, views):
                sources[name] = shard.path
    if missing := sorted(views.keys() - sources.keys()):
        raise WeightsError(f"{folder} lacks {_listed(missing)}, which model {model.config.name} needs")

    uploads = Uploads(model.embedding.device)
    for shard in shards:
        with _open(shard.path) as file, torch.no_grad():
            for name in [name for name, path in sources.items() if path == shard.path]:
                uploads.copy(views[name], file.get_tensor(name))


def random_weights(model: Model, seed: int) -> None:
    """Fill every parameter as transformers initialises a new model: normal(0, 0.02); norms one, biases zero.

    The values are drawn on the model's device in its dtype; one seed gives one model for a given device type
    and dtype.
    """
    generator = torch.Generator(device=model.embedding.device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_norm"):
                parameter.fill_(1.0)
            elif name.endswith("_bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, INITIALIZER_STD, generator=generator)


def parameter_views(model: Model) -> dict[str, Tensor]:
    """Map each tensor of a checkpoint, by its name in transformers, to the (part of a) parameter it fills.

    The views cover every element of every parameter exactly once.
    """
    views = {"model.embed_tokens.weight": model.embedding.data, "model.norm.weight": model.final_norm.data}
    if not model.config.is_head_tied:
        views["lm_head.weight"] = model.head.data
    for layer in model.layers:
        assert isinstance(layer, Layer)
        for name, view in _layer_views(layer).items():
            views[f"model.layers.{layer.index}.{name}"] = view
    return views


def _layer_views(layer: Layer) -> dict[str, Tensor]:
    config = layer.config
    qkv_sizes = [config.query_size, config.kv_size, config.kv_size]
    query, key, value = torch.split(layer.qkv.data, qkv_sizes)
    gate, up = layer.gate_up.data.chunk(2)
    views = {
        "input_layernorm.weight": layer.attention_norm.data,
        "self_attn.q_proj.weight": query,
        "self_attn.k_proj.weight": key,
        "self_attn.v_proj.weight": value,
        "self_attn.o_proj.weight": layer.attention_output.data,
        "post_attention_layernorm.weight": layer.feed_forward_norm.data,
        "mlp.gate_proj.weight": gate,
        "mlp.up_proj.weight": up,
        "mlp.down_proj.weight": layer.down.data,
    }
    if layer.qkv_bias is not None:
        biases = torch.split(layer.qkv_bias.data, qkv_sizes)
        views |= {f"self_attn.{name}_proj.bias": bias for name, bias in zip("qkv", biases, strict=True)}
    if layer.query_norm is not None and layer.key_norm is not None:
        views |= {
            "self_attn.q_norm.weight": layer.query_norm.data,
            "self_attn.k_norm.weight": layer.key_norm.data,
        }
    return views


def _shards(folder: Path) -> list[_Shard]:
    """Find the safetensors files of a model folder, and what the index says of each."""
    if (folder / SINGLE_FILE).exists():
        return [_Shard(folder / SINGLE_FILE, None)]
    index_path = folder / INDEX_FILE
    if not index_path.exists():
        raise WeightsError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; weights are read from safetensors only"
        )
    weight_map = read_json_object(index_path, WeightsError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index_path}: weight_map is {shown(weight_map)}; it must map tensors to files")
    names_by_file: dict[str, set[str]] = {}
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or not _is_inside(file_name):
            raise WeightsError(f"{index_path}: tensor {name} is in {shown(file_name)}, outside the folder")
        if not (folder / file_name).is_file():
            raise WeightsError(f"{index_path}: tensor {name} is in {file_name}, which {folder} does not hold")
        names_by_file.setdefault(file_name, set()).add(name)
    return [_Shard(folder / file_name, frozenset(names)) for file_name, names in names_by_file.items()]


def _is_inside(file_name: str) -> bool:
    """Whether the path, as written, stays in its folder. Links may leave it: download caches use them."""
    path = PurePosixPath(file_name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in file_name


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Map the safetensors file; anything wrong with it while it is open is a WeightsError."""
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error


def _checked_names(file: Any, shard: _Shard, model: Model, views: dict[str, Tensor]) -> list[str]:
    """Check all tensors of the file, and name those that the model takes."""
    held = set(file.keys())
    if shard.names is not None and (absent := sorted(shard.names - held)):
        raise WeightsError(f"{shard.path} lacks {_listed(absent)}, which {INDEX_FILE} says it holds")
    if shard.names is not None and (unlisted := sorted(held - shard.names)):
        raise WeightsError(f"{shard.path} holds {_listed(unlisted)}, which {INDEX_FILE} does not place there")
    names = sorted(name for name in held if not _is_skipped(name, model))
    if unexpected := [name for name in names if name not in views]:
        raise WeightsError(f"{shard.path} holds {_listed(unexpected)}, unknown to model {model.config.name}")
    for name in names:
        header = file.get_slice(name)
        shape, wanted = tuple(header.get_shape()), tuple(views[name].shape)
        if shape != wanted:
            raise WeightsError(
                f"{shard.path}: tensor {name} has shape {shape}; model {model.config.name} needs {wanted}"
            )
        if header.get_dtype() not in FILE_DTYPES:
            raise WeightsError(
                f"{shard.path}: tensor {name} is {header.get_dtype()}; supported: {', '.join(FILE_DTYPES)}"
            )
    return names


def _is_skipped(name: str, model: Model) -> bool:
    return name.endswith("rotary_emb.inv_freq") or (model.config.is_head_tied and name == "lm_head.weight")


def _listed(names: list[str]) -> str:
    """List names as a message does: the first few, and how many more."""
    rest = len(names) - 5
    return f"tensor{'s'[: len(names) > 1]} {', '.join(names[:5])}" + (f" and {rest} more" if rest > 0 else "")
