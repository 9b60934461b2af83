"""From the projections of new tokens to rotated queries and to K and V in one layer of the pool, in one pass.

Queries and keys are rotated by their tokens' positions. The two halves of a head are the coordinates of head_dim / 2
planes, each turned by an angle that grows with the position p and falls with the plane's number j (Su et al., 2021,
https://arxiv.org/abs/2104.09864; the pairing of halves rather than of neighbours is that of GPT-NeoX and of Hugging
Face's Llama)::

    x'[j]         = x[j] cos(p, j) - x[j + D/2] sin(p, j)
    x'[j + D/2]   = x[j + D/2] cos(p, j) + x[j] sin(p, j),    0 <= j < D/2

Where a model norms its heads (Qwen3), each is normed before, as rms_norm.py norms a row. Queries are rotated in place.
Slot s of the pool is slot ``s % block_size`` of block ``s // block_size``; with contiguous addressing, where the pool
is one block, that is slot s itself::

    kv[slots[i] // block_size, 0, :, slots[i] % block_size] = key'[i]
    kv[slots[i] // block_size, 1, :, slots[i] % block_size] = value[i]
"""

from collections.abc import Hashable
from typing import NamedTuple

import torch

from pbench.kernels.compiler import jit, let_next_launch, tl, wait_for_previous
from pbench.kernels.kv_layout import check_kv
from pbench.kernels.launch import (
    FLOAT_DTYPES,
    FP8,
    FP8_MAX,
    can_launch_early,
    ceil_div,
    check_contiguous,
    check_dtype,
    check_num_dims,
    check_rows,
    check_shape,
    next_power_of_2,
    runs_on_triton,
)
from pbench.kernels.launcher import Checked, Launch, Launcher, layout_of, short_key
from pbench.kernels.rms_norm import rms_norm_reference

MAX_TILE_NUMEL = 2048  # of the heads that one program treats


class HeadNorms(NamedTuple):
    """Root-mean-square norms of heads, one for all queries and one for all keys."""

    query_weight: torch.Tensor  # (head_dim,) of the query's dtype, contiguous
    key_weight: torch.Tensor
    eps: float


class Rotation(NamedTuple):
    """What the heads of a batch of tokens are rotated by, and normed with before."""

    cos_sin: torch.Tensor  # float32 (max_positions, 2, head_dim / 2), contiguous: cosines, then sines
    positions: torch.Tensor  # int64 (num_tokens,), each below max_positions
    norms: HeadNorms | None = None


@jit()
def norm_halves(
    first: tl.tensor,  # (heads or tokens, dims) float32: the first halves of heads
    second: tl.tensor,
    first_weight: tl.tensor,  # (1, dims)
    second_weight: tl.tensor,
    eps: tl.tensor,
    HALF_DIM: tl.constexpr,
    dtype: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Both halves, normed, rounded where rms_norm.py rounds."""
    mean_square = tl.sum(first * first + second * second, 1) / (2 * HALF_DIM)
    factor = tl.rsqrt(mean_square + eps)[:, None]
    first = (first_weight.to(tl.float32) * (first * factor).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    second = (second_weight.to(tl.float32) * (second * factor).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    return first, second


@jit()
def rotate_halves(
    first: tl.tensor,  # (heads or tokens, dims) float32
    second: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    dtype: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Both halves, rotated and rounded to ``dtype``."""
    new_first = (first * cos - second * sin).to(dtype)
    new_second = (second * cos + first * sin).to(dtype)
    return new_first, new_second


@jit()
def _rotated(
    first_ptr: tl.pointer_type,  # (TILE_HEADS, TILE_DIMS): the first halves of heads
    mask: tl.tensor,
    cos: tl.tensor,  # (TILE_DIMS,) float32
    sin: tl.tensor,
    weight_ptr: tl.pointer_type,  # (2 * HALF_DIM,), with HAS_NORM only
    eps: tl.tensor,
    HAS_NORM: tl.constexpr,
    HALF_DIM: tl.constexpr,
    TILE_DIMS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Both halves, normed and rotated, in the dtype in which they lie."""
    dtype: tl.constexpr = first_ptr.dtype.element_ty
    first = tl.load(first_ptr, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(first_ptr + HALF_DIM, mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        dims = tl.arange(0, TILE_DIMS)
        first_weight = tl.load(weight_ptr + dims, mask=dims < HALF_DIM, other=0.0)[None, :]
        second_weight = tl.load(weight_ptr + HALF_DIM + dims, mask=dims < HALF_DIM, other=0.0)[None, :]
        first, second = norm_halves(first, second, first_weight, second_weight, eps, HALF_DIM, dtype)
    new_first, new_second = rotate_halves(first, second, cos[None, :], sin[None, :], dtype)
    return new_first, new_second


@jit()
def store_halves(
    first_ptr: tl.pointer_type,
    first: tl.tensor,  # (heads or tokens, dims)
    second: tl.tensor,
    mask: tl.tensor,
    factor: tl.tensor,  # with IS_FP8 only, as fp8_max
    fp8_max: tl.tensor,
    IS_FP8: tl.constexpr,
    HALF_DIM: tl.constexpr,
) -> None:
    """Store both halves, as they are or as 8-bit floats."""
    if IS_FP8:
        dtype: tl.constexpr = first_ptr.dtype.element_ty
        first = tl.clamp(first.to(tl.float32) * factor, -fp8_max, fp8_max).to(dtype)
        second = tl.clamp(second.to(tl.float32) * factor, -fp8_max, fp8_max).to(dtype)
    tl.store(first_ptr, first, mask=mask)
    tl.store(first_ptr + HALF_DIM, second, mask=mask)


@jit(do_not_specialize=("block_size",), do_not_specialize_on_alignment=("positions_ptr", "slots_ptr"))
def _rotary_write_kv_kernel(
    query_ptr: tl.pointer_type,  # (num_tokens, NUM_HEADS, 2 * HALF_DIM)
    key_ptr: tl.pointer_type,  # (num_tokens, NUM_KV_HEADS, 2 * HALF_DIM)
    value_ptr: tl.pointer_type,  # (num_tokens, NUM_KV_HEADS, 2 * HALF_DIM)
    kv_ptr: tl.pointer_type,  # (num_blocks, 2, NUM_KV_HEADS, block_size, 2 * HALF_DIM)
    slots_ptr: tl.pointer_type,  # (num_tokens,)
    cos_sin_ptr: tl.pointer_type,  # (max_positions, 2, HALF_DIM)
    positions_ptr: tl.pointer_type,  # (num_tokens,)
    query_weight_ptr: tl.pointer_type,  # (2 * HALF_DIM,), with HAS_NORM only, as key_weight_ptr and eps
    key_weight_ptr: tl.pointer_type,
    query_stride_token: tl.tensor,
    query_stride_head: tl.tensor,
    key_stride_token: tl.tensor,
    key_stride_head: tl.tensor,
    value_stride_token: tl.tensor,
    value_stride_head: tl.tensor,
    block_size: tl.tensor,
    eps: tl.tensor,
    key_factor: tl.tensor,  # 1 / key_scale; with IS_FP8 only, as the two below
    value_factor: tl.tensor,
    fp8_max: tl.tensor,
    HAS_NORM: tl.constexpr,
    IS_FP8: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF_DIM: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    TILE_KV_HEADS: tl.constexpr,
    TILE_DIMS: tl.constexpr,
    IS_EARLY: tl.constexpr,  # launched before the kernel before it is done
) -> None:
    """Grid: (num_tokens, tiles of query heads + tiles of KV heads)."""
    if IS_EARLY:
        wait_for_previous()
        let_next_launch()
    NUM_QUERY_TILES: tl.constexpr = (NUM_HEADS + TILE_HEADS - 1) // TILE_HEADS
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    dims = tl.arange(0, TILE_DIMS)
    cos_ptr = cos_sin_ptr + tl.load(positions_ptr + token) * (2 * HALF_DIM) + dims
    cos = tl.load(cos_ptr, mask=dims < HALF_DIM, other=0.0)
    sin = tl.load(cos_ptr + HALF_DIM, mask=dims < HALF_DIM, other=0.0)
    if tile < NUM_QUERY_TILES:
        heads = tile * TILE_HEADS + tl.arange(0, TILE_HEADS)
        mask = (heads < NUM_HEADS)[:, None] & (dims < HALF_DIM)[None, :]
        pointers = query_ptr + token * query_stride_token + heads[:, None] * query_stride_head + dims[None, :]
        first, second = _rotated(pointers, mask, cos, sin, query_weight_ptr, eps, HAS_NORM, HALF_DIM, TILE_DIMS)
        store_halves(pointers, first, second, mask, 1.0, fp8_max, False, HALF_DIM)
    else:
        slot = tl.load(slots_ptr + token)
        if slot >= 0:
            heads = (tile - NUM_QUERY_TILES) * TILE_KV_HEADS + tl.arange(0, TILE_KV_HEADS)
            mask = (heads < NUM_KV_HEADS)[:, None] & (dims < HALF_DIM)[None, :]
            head_stride = block_size.to(tl.int64) * (2 * HALF_DIM)
            slot_offset = slot // block_size * (2 * NUM_KV_HEADS) * head_stride + slot % block_size * (2 * HALF_DIM)
            kv_pointers = kv_ptr + slot_offset + heads[:, None] * head_stride + dims[None, :]
            pointers = key_ptr + token * key_stride_token + heads[:, None] * key_stride_head + dims[None, :]
            first, second = _rotated(pointers, mask, cos, sin, key_weight_ptr, eps, HAS_NORM, HALF_DIM, TILE_DIMS)
            store_halves(kv_pointers, first, second, mask, key_factor, fp8_max, IS_FP8, HALF_DIM)
            pointers = value_ptr + token * value_stride_token + heads[:, None] * value_stride_head + dims[None, :]
            first = tl.load(pointers, mask=mask)
            second = tl.load(pointers + HALF_DIM, mask=mask)
            kv_pointers += NUM_KV_HEADS * head_stride
            store_halves(kv_pointers, first, second, mask, value_factor, fp8_max, IS_FP8, HALF_DIM)


_launch = Launcher(_rotary_write_kv_kernel)
_checked = Checked()


def rotary_write_kv(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rotation: Rotation,
    kv: torch.Tensor,
    slots: torch.Tensor,
    *,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> None:
    """Rotate ``query`` in place; write ``key``, rotated, and ``value`` into one layer of the pool.

    Computed in float32, and rounded to query's dtype after the rotation (and as rms_norm.py after a norm). What key
    holds afterwards is not said.

    Args:
        query: ``(T, H, D)``, float32, bfloat16 or float16; like key and value perhaps a slice of a wider tensor, if
            its last dimension is contiguous.
        key: ``(T, Hkv, D)`` of query's dtype.
        value: likewise.
        rotation: cosines and sines of the angles, and positions; norms.
        kv: one layer of the pool (kv_layout.py), of query's dtype or FP8.
        slots: int64 ``(T,)``, each at most once. Of a token whose slot is negative (the padding of a CUDA graph)
            nothing is written.
        key_scale: where kv is FP8, K is divided by it, then what exceeds the largest number is cut to that.
        value_scale: likewise for V.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    layout = short_key(_layout(query, key, value, rotation, kv, slots))
    if layout not in _checked:
        _check(query, key, value, rotation, kv, slots)
        _checked.add(layout)
    if runs_on_triton(kv):
        rotary_write_kv_triton(query, key, value, rotation, kv, slots, key_scale, value_scale, layout)
    else:
        rotary_write_kv_reference(query, key, value, rotation, kv, slots, key_scale, value_scale)


def rotary_write_kv_triton(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rotation: Rotation,
    kv: torch.Tensor,
    slots: torch.Tensor,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
    layout: Hashable = None,
) -> None:
    """Launch the kernel on checked arguments (see ``rotary_write_kv``)."""
    if query.shape[0] == 0:
        return
    cos_sin, positions, norms = rotation
    query_weight, key_weight, eps = norms or (query, query, 0.0)
    _launch(
        _layout(query, key, value, rotation, kv, slots) if layout is None else layout,
        (query, key, value, kv, slots, cos_sin, positions, query_weight, key_weight),
        (float(eps), 1 / key_scale, 1 / value_scale, FP8_MAX),
        lambda: _first_launch(query, key, value, kv, has_norm=norms is not None),
    )


def _first_launch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kv: torch.Tensor, *, has_norm: bool
) -> Launch:
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads = key.shape[1]
    tile_dims = next_power_of_2(head_dim // 2)
    max_heads = MAX_TILE_NUMEL // (2 * tile_dims)
    tile_heads, tile_kv_heads = (min(next_power_of_2(count), max_heads) for count in (num_heads, num_kv_heads))
    is_early = can_launch_early(kv)
    options = {
        "HAS_NORM": has_norm,
        "IS_FP8": kv.dtype is FP8,
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "HALF_DIM": head_dim // 2,
        "TILE_HEADS": tile_heads,
        "TILE_KV_HEADS": tile_kv_heads,
        "TILE_DIMS": tile_dims,
        "IS_EARLY": is_early,
        "launch_pdl": is_early,
    }
    strides = [tensor.stride(dim) for tensor in (query, key, value) for dim in (0, 1)]
    num_tiles = ceil_div(num_heads, tile_heads) + ceil_div(num_kv_heads, tile_kv_heads)
    return Launch((num_tokens, num_tiles, 1), (*strides, kv.shape[3]), options)


def _layout(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rotation: Rotation,
    kv: torch.Tensor,
    slots: torch.Tensor,
) -> Hashable:
    cos_sin, positions, norms = rotation
    if norms is None:
        return layout_of(query, key, value, kv, slots, cos_sin, positions)
    return layout_of(query, key, value, kv, slots, cos_sin, positions, norms.query_weight, norms.key_weight)


def _check(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rotation: Rotation,
    kv: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    check_kv(kv)
    num_kv_heads, head_dim = kv.shape[2], kv.shape[4]
    check_num_dims("query", query, 3, "(num_tokens, num_heads, head_dim)")
    num_tokens, num_heads, _ = query.shape
    check_dtype("query", query, *(FLOAT_DTYPES if kv.dtype is FP8 else (kv.dtype,)))
    for name, tensor, heads in (
        ("query", query, num_heads),
        ("key", key, num_kv_heads),
        ("value", value, num_kv_heads),
    ):
        check_shape(name, tensor, (num_tokens, heads, head_dim))
        check_dtype(name, tensor, query.dtype)
        check_rows(name, tensor)
    check_rotation(rotation, slots, query)


def check_rotation(rotation: Rotation, slots: torch.Tensor, query: torch.Tensor) -> None:
    """Check what the tokens of ``query: (T, H, D)`` are rotated by, and where their K and V go."""
    num_tokens, _, head_dim = query.shape
    check_num_dims("cos_sin", rotation.cos_sin, 3, "(max_positions, 2, head_dim / 2)")
    check_shape("cos_sin", rotation.cos_sin, (rotation.cos_sin.shape[0], 2, head_dim // 2))
    check_dtype("cos_sin", rotation.cos_sin, torch.float32)
    check_contiguous("cos_sin", rotation.cos_sin)
    for name, tensor in (("positions", rotation.positions), ("slots", slots)):
        check_shape(name, tensor, (num_tokens,))
        check_dtype(name, tensor, torch.int64)
        check_rows(name, tensor)
    if rotation.norms is not None:
        norms = rotation.norms
        for name, tensor in (("query_weight", norms.query_weight), ("key_weight", norms.key_weight)):
            check_shape(name, tensor, (head_dim,))
            check_dtype(name, tensor, query.dtype)
            check_contiguous(name, tensor)


def rotary_write_kv_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rotation: Rotation,
    kv: torch.Tensor,
    slots: torch.Tensor,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> None:
    """``rotary_write_kv`` in plain torch; float64 too."""
    norms = rotation.norms
    if norms is not None:
        query.copy_(rms_norm_reference(query, norms.query_weight, norms.eps))
        key = rms_norm_reference(key, norms.key_weight, norms.eps)
    query.copy_(rotate_reference(query, rotation))
    key = rotate_reference(key, rotation)
    is_written = slots >= 0
    slots = slots[is_written]
    block_ids, offsets = slots // kv.shape[3], slots % kv.shape[3]
    if kv.dtype is FP8:
        key, value = (
            (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8)
            for x, scale in ((key, key_scale), (value, value_scale))
        )
    memory = kv.view(torch.uint8)  # torch does not index 8-bit floats
    memory[block_ids, 0, :, offsets] = key.contiguous().view(torch.uint8)[is_written]
    memory[block_ids, 1, :, offsets] = value.contiguous().view(torch.uint8)[is_written]


def rotate_reference(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Heads ``x: (T, heads, D)``, rotated; float64 too."""
    cos, sin = rotation.cos_sin[rotation.positions, None].unbind(2)  # (T, 1, D / 2)
    first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
