"""Write new K and V into their slots of one layer of the pool.

Slot s of the pool is slot ``s % block_size`` of block ``s // block_size``; with contiguous addressing, where
the pool is one block, that is slot s itself::

    kv[slots[i] // block_size, 0, :, slots[i] % block_size] = key[i]
    kv[slots[i] // block_size, 1, :, slots[i] % block_size] = value[i]
"""

import torch

from pbench.kernels.compiler import jit, tl
from pbench.kernels.kv_layout import check_kv
from pbench.kernels.launch import (
    FLOAT_DTYPES,
    FP8,
    FP8_MAX,
    ceil_div,
    check_dtype,
    check_num_dims,
    check_rows,
    check_shape,
    next_power_of_2,
    runs_on_triton,
)


@jit(do_not_specialize=("block_size",), do_not_specialize_on_alignment=("slots_ptr",))
def _write_kv_kernel(
    key_ptr: tl.pointer_type,  # (num_tokens, NUM_KV_HEADS, HEAD_DIM)
    value_ptr: tl.pointer_type,  # (num_tokens, NUM_KV_HEADS, HEAD_DIM)
    kv_ptr: tl.pointer_type,  # (num_blocks, 2, NUM_KV_HEADS, block_size, HEAD_DIM)
    slots_ptr: tl.pointer_type,  # (num_tokens,)
    key_stride_token: tl.tensor,
    key_stride_head: tl.tensor,
    value_stride_token: tl.tensor,
    value_stride_head: tl.tensor,
    block_size: tl.tensor,
    key_factor: tl.tensor,  # 1 / key_scale; with IS_FP8 only, as the other two
    value_factor: tl.tensor,
    fp8_max: tl.tensor,
    IS_FP8: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    TILE_DIMS: tl.constexpr,
) -> None:
    """Grid: (num_tokens, head tiles)."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if slot < 0:
        return
    heads = tl.program_id(1) * TILE_HEADS + tl.arange(0, TILE_HEADS)
    dims = tl.arange(0, TILE_DIMS)
    mask = (heads < NUM_KV_HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
    key_offsets = token * key_stride_token + heads[:, None] * key_stride_head + dims[None, :]
    value_offsets = token * value_stride_token + heads[:, None] * value_stride_head + dims[None, :]
    key = tl.load(key_ptr + key_offsets, mask=mask)
    value = tl.load(value_ptr + value_offsets, mask=mask)
    if IS_FP8:
        dtype: tl.constexpr = kv_ptr.dtype.element_ty
        key = tl.clamp(key.to(tl.float32) * key_factor, -fp8_max, fp8_max).to(dtype)
        value = tl.clamp(value.to(tl.float32) * value_factor, -fp8_max, fp8_max).to(dtype)

    head_stride = block_size.to(tl.int64) * HEAD_DIM
    slot_offset = slot // block_size * (2 * NUM_KV_HEADS) * head_stride + slot % block_size * HEAD_DIM
    pointers = kv_ptr + slot_offset + heads[:, None] * head_stride + dims[None, :]
    tl.store(pointers, key, mask=mask)
    tl.store(pointers + NUM_KV_HEADS * head_stride, value, mask=mask)


def write_kv(
    key: torch.Tensor,
    value: torch.Tensor,
    kv: torch.Tensor,
    slots: torch.Tensor,
    *,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> None:
    """Write ``key[i]`` and ``value[i]`` into slot ``slots[i]`` of one layer.

    Args:
        key: ``(T, Hkv, D)`` of kv's dtype, or of any float dtype where kv is FP8; a slice of a wider tensor will do,
            if its last dimension is contiguous.
        value: like key.
        kv: one layer of the pool (kv_layout.py).
        slots: int64 ``(T,)``, each at most once. A token whose slot is negative (the padding of a CUDA graph)
            is skipped.
        key_scale: where kv is FP8, K is divided by it, then what exceeds the largest number is cut to that.
        value_scale: likewise for V.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    check_kv(kv)
    check_num_dims("key", key, 3, "(num_tokens, num_kv_heads, head_dim)")
    num_tokens = key.shape[0]
    for name, tensor in (("key", key), ("value", value)):
        check_shape(name, tensor, (num_tokens, kv.shape[2], kv.shape[4]))
        check_dtype(name, tensor, *(FLOAT_DTYPES if kv.dtype is FP8 else (kv.dtype,)))
        check_rows(name, tensor)
    check_shape("slots", slots, (num_tokens,))
    check_dtype("slots", slots, torch.int64)
    check_rows("slots", slots)
    if runs_on_triton(kv):
        write_kv_triton(key, value, kv, slots, key_scale, value_scale)
    else:
        write_kv_reference(key, value, kv, slots, key_scale, value_scale)


def write_kv_triton(
    key: torch.Tensor,
    value: torch.Tensor,
    kv: torch.Tensor,
    slots: torch.Tensor,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> None:
    """Launch the kernel on checked arguments (see ``write_kv``)."""
    num_tokens, num_kv_heads, head_dim = key.shape
    if num_tokens == 0:
        return
    tile_dims = next_power_of_2(head_dim)
    tile_heads = min(next_power_of_2(num_kv_heads), 4096 // tile_dims)
    _write_kv_kernel[(num_tokens, ceil_div(num_kv_heads, tile_heads))](
        key,
        value,
        kv,
        slots,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        kv.shape[3],
        1 / key_scale,
        1 / value_scale,
        FP8_MAX,
        IS_FP8=kv.dtype is FP8,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        TILE_HEADS=tile_heads,
        TILE_DIMS=tile_dims,
    )


def write_kv_reference(
    key: torch.Tensor,
    value: torch.Tensor,
    kv: torch.Tensor,
    slots: torch.Tensor,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> None:
    """``write_kv`` in plain torch."""
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
