"""From the hidden states of few tokens to rotated queries and to K and V in one layer of the pool.

What a product of few rows (few_rows_matmul.py) and the pass behind it (rotary_write_kv.py) compute, rounded where those
two round. With T rows x, H query heads and a weight whose rows are those of queries, keys and values::

    query, key, value = split(x weight^T + bias)
    query', key'      = rotated(query), rotated(key),    normed before where a model norms its heads
    kv[slots[i]]      = key'[i], value[i]

On Hopper most of it goes to the kernel of hopper_project.py, in one launch; the rest takes two.
"""

import torch

from pbench.kernels.few_rows_matmul import check_few_rows, few_rows_matmul_reference, few_rows_matmul_triton
from pbench.kernels.kv_layout import check_kv
from pbench.kernels.launch import (
    FLOAT_DTYPES,
    FP8,
    check_dtype,
    runs_on_hopper,
    runs_on_triton,
)
from pbench.kernels.rotary_write_kv import (
    Rotation,
    check_rotation,
    rotary_write_kv_reference,
    rotary_write_kv_triton,
)


def project_write_kv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rotation: Rotation,
    kv: torch.Tensor,
    slots: torch.Tensor,
    *,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> torch.Tensor:
    """Compute and return the rotated queries, ``(T, H, D)``; write rotated keys, and values, into a layer of the pool.

    On the GPU all arguments but x may be read before the kernel before this one is done, if that one lets the next be
    launched early: nothing of them may be written by such a kernel.

    Args:
        x: ``(T, k)``, float32, bfloat16 or float16, contiguous; its rows a multiple of 16 bytes.
        weight: ``((H + 2 * Hkv) * D, k)`` of x's dtype, contiguous: of query heads, of key heads, of value heads.
        bias: of as many numbers as weight has rows, of x's dtype, contiguous; None for none.
        rotation: see ``rotary_write_kv``, as for the arguments that follow.
        kv: one layer of the pool, ``(num_blocks, 2, Hkv, block_size, D)``, of x's dtype or FP8.
        slots: int64 ``(T,)``; negative: nothing is written.
        key_scale: what K is divided by, where kv is FP8.
        value_scale: likewise for V.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    query = _check(x, weight, bias, rotation, kv, slots)
    if suits_hopper(x, kv):
        from pbench.kernels.hopper_project import hopper_project_write_kv

        hopper_project_write_kv(x, weight, bias, rotation, kv, slots, query, key_scale, value_scale)
        return query
    if not runs_on_triton(x):
        return project_write_kv_reference(x, weight, bias, rotation, kv, slots, key_scale, value_scale)
    heads = _split(few_rows_matmul_triton(x, weight, bias), kv)
    rotary_write_kv_triton(*heads, rotation, kv, slots, key_scale, value_scale)
    return heads[0]


def suits_hopper(x: torch.Tensor, kv: torch.Tensor) -> bool:
    """Whether the kernel of hopper_project.py computes this: on a Hopper GPU, for heads that its tiles fit."""
    return runs_on_hopper(x) and x.element_size() == 2 and kv.shape[4] in (64, 128)


def project_write_kv_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rotation: Rotation,
    kv: torch.Tensor,
    slots: torch.Tensor,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> torch.Tensor:
    """``project_write_kv`` in plain torch; float64 too."""
    heads = _split(few_rows_matmul_reference(x, weight, bias), kv)
    rotary_write_kv_reference(*heads, rotation, kv, slots, key_scale, value_scale)
    return heads[0]


def _split(packed: torch.Tensor, kv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values: views, each (T, heads, D)."""
    num_kv_heads, head_dim = kv.shape[2], kv.shape[4]
    packed = packed.view(len(packed), packed.shape[1] // head_dim, head_dim)
    key_start, value_start = packed.shape[1] - 2 * num_kv_heads, packed.shape[1] - num_kv_heads
    return packed[:, :key_start], packed[:, key_start:value_start], packed[:, value_start:]


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rotation: Rotation,
    kv: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Check the arguments; room for the queries."""
    check_few_rows(x, weight, bias)
    check_kv(kv)
    check_dtype("x", x, *(FLOAT_DTYPES if kv.dtype is FP8 else (kv.dtype,)))
    num_kv_heads, head_dim = kv.shape[2], kv.shape[4]
    num_heads = weight.shape[0] // head_dim - 2 * num_kv_heads
    if num_heads <= 0 or weight.shape[0] % head_dim:
        raise ValueError(
            f"weight has {weight.shape[0]} rows; expected those of 1 or more heads of {head_dim}, "
            f"and of {num_kv_heads} twice"
        )
    query = torch.empty((x.shape[0], num_heads, head_dim), dtype=x.dtype, device=x.device)
    check_rotation(rotation, slots, query)
    return query
