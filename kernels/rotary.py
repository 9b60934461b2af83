"""Rotary position embedding of queries and keys, in place.

The two halves of a head are the coordinates of head_dim / 2 planes, each turned by an angle that grows with
the token's position p and falls with the plane's number j (Su et al., 2021, https://arxiv.org/abs/2104.09864;
the pairing of halves rather than of neighbours is that of GPT-NeoX and of Hugging Face's Llama)::

    x'[j]         = x[j] cos(p, j) - x[j + D/2] sin(p, j)
    x'[j + D/2]   = x[j + D/2] cos(p, j) + x[j] sin(p, j),    0 <= j < D/2
"""

import torch

from pbench.kernels.compiler import jit, tl
from pbench.kernels.launch import (
    FLOAT_DTYPES,
    check_contiguous,
    check_dtype,
    check_num_dims,
    check_rows,
    check_shape,
    next_power_of_2,
    runs_on_triton,
)


@jit()
def _rotate(
    x_ptr: tl.pointer_type,  # the token's first head
    stride_head: tl.tensor,
    cos: tl.tensor,  # (TILE_DIMS,) float32
    sin: tl.tensor,  # (TILE_DIMS,) float32
    NUM_HEADS: tl.constexpr,
    HALF_DIM: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    TILE_DIMS: tl.constexpr,
) -> None:
    heads = tl.arange(0, TILE_HEADS)
    dims = tl.arange(0, TILE_DIMS)
    mask = (heads < NUM_HEADS)[:, None] & (dims < HALF_DIM)[None, :]
    first_ptr = x_ptr + heads[:, None] * stride_head + dims[None, :]
    second_ptr = first_ptr + HALF_DIM
    first = tl.load(first_ptr, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(second_ptr, mask=mask, other=0.0).to(tl.float32)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    tl.store(first_ptr, (first * cos[None, :] - second * sin[None, :]).to(dtype), mask=mask)
    tl.store(second_ptr, (second * cos[None, :] + first * sin[None, :]).to(dtype), mask=mask)


@jit(do_not_specialize_on_alignment=("positions_ptr",))
def _rotary_embedding_kernel(
    query_ptr: tl.pointer_type,  # (num_tokens, NUM_HEADS, 2 * HALF_DIM)
    key_ptr: tl.pointer_type,  # (num_tokens, NUM_KV_HEADS, 2 * HALF_DIM)
    cos_sin_ptr: tl.pointer_type,  # (max_positions, 2, HALF_DIM)
    positions_ptr: tl.pointer_type,  # (num_tokens,)
    query_stride_token: tl.tensor,
    query_stride_head: tl.tensor,
    key_stride_token: tl.tensor,
    key_stride_head: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF_DIM: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    TILE_KV_HEADS: tl.constexpr,
    TILE_DIMS: tl.constexpr,
) -> None:
    """Grid: (num_tokens,)."""
    token = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, TILE_DIMS)
    cos_ptr = cos_sin_ptr + tl.load(positions_ptr + token) * (2 * HALF_DIM) + dims
    cos = tl.load(cos_ptr, mask=dims < HALF_DIM, other=0.0)
    sin = tl.load(cos_ptr + HALF_DIM, mask=dims < HALF_DIM, other=0.0)
    token_query_ptr = query_ptr + token * query_stride_token
    _rotate(token_query_ptr, query_stride_head, cos, sin, NUM_HEADS, HALF_DIM, TILE_HEADS, TILE_DIMS)
    token_key_ptr = key_ptr + token * key_stride_token
    _rotate(token_key_ptr, key_stride_head, cos, sin, NUM_KV_HEADS, HALF_DIM, TILE_KV_HEADS, TILE_DIMS)


def rotary_embedding(query: torch.Tensor, key: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> None:
    """Turn ``query`` and ``key`` in place by their tokens' positions; computed in float32 and rounded once.

    Args:
        query: ``(T, H, D)``, float32, bfloat16 or float16; a slice of a wider tensor will do, if its last
            dimension is contiguous.
        key: ``(T, Hkv, D)`` of query's dtype; likewise.
        cos_sin: float32 ``(max_positions, 2, D / 2)``, contiguous: cosines at index 0, sines at index 1.
        positions: int64 ``(T,)``, each below max_positions.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    check_num_dims("query", query, 3, "(num_tokens, num_heads, head_dim)")
    check_num_dims("key", key, 3, "(num_tokens, num_kv_heads, head_dim)")
    num_tokens, _, head_dim = query.shape
    if head_dim % 2:
        raise ValueError(f"query has head_dim {head_dim}; it must be even")
    check_dtype("query", query, *FLOAT_DTYPES)
    check_dtype("key", key, query.dtype)
    check_shape("key", key, (num_tokens, key.shape[1], head_dim))
    check_rows("query", query)
    check_rows("key", key)
    check_num_dims("cos_sin", cos_sin, 3, "(max_positions, 2, head_dim / 2)")
    check_shape("cos_sin", cos_sin, (cos_sin.shape[0], 2, head_dim // 2))
    check_dtype("cos_sin", cos_sin, torch.float32)
    check_contiguous("cos_sin", cos_sin)
    check_shape("positions", positions, (num_tokens,))
    check_dtype("positions", positions, torch.int64)
    check_rows("positions", positions)
    if runs_on_triton(query):
        rotary_embedding_triton(query, key, cos_sin, positions)
    else:
        rotary_embedding_reference(query, key, cos_sin, positions)


def rotary_embedding_triton(
    query: torch.Tensor, key: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor
) -> None:
    """Launch the kernel on checked arguments (see ``rotary_embedding``)."""
    num_tokens, num_heads, head_dim = query.shape
    if num_tokens == 0:
        return
    num_kv_heads = key.shape[1]
    tile_heads, tile_dims = next_power_of_2(num_heads), next_power_of_2(head_dim // 2)
    _rotary_embedding_kernel[(num_tokens,)](
        query,
        key,
        cos_sin,
        positions,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HALF_DIM=head_dim // 2,
        TILE_HEADS=tile_heads,
        TILE_KV_HEADS=next_power_of_2(num_kv_heads),
        TILE_DIMS=tile_dims,
        num_warps=min(max(tile_heads * tile_dims // 512, 1), 16),
    )


def rotary_embedding_reference(
    query: torch.Tensor, key: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor
) -> None:
    """``rotary_embedding`` in plain torch; float64 too."""
    cos, sin = cos_sin[positions, None].unbind(2)  # (T, 1, D / 2)
    for x in (query, key):
        first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        x.copy_(rotated)
