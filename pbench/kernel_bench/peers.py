"""Other people's attention kernels, timed on the same inputs wherever their package can be imported.

A peer whose package is missing does not appear. One that is there and fails on a shape, or computes something else,
appears with its reason: a table that silently leaves it out would compare with nobody.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from pbench.kernel_bench.flashinfer_peers import flashinfer_peers
from pbench.kernel_bench.inputs import AttentionInputs
from pbench.kernel_bench.peer import Call, Peer


def peers(inputs: AttentionInputs) -> Iterator[Peer]:
    """Those that can be imported and compute what is asked for; none is asked for a window or a soft cap."""
    if not inputs.kv.is_cuda or inputs.shape.window is not None or inputs.shape.soft_cap is not None:
        return
    if find_spec("flashinfer"):
        yield from flashinfer_peers(inputs)
    if find_spec("vllm"):
        yield Peer("vllm FA3", _vllm_flash_attention)
    if find_spec("flash_attn") and inputs.kv.shape[3] % 256 == 0:  # smaller blocks it refuses
        yield Peer("flash-attn", _flash_attention)
    if len(set(inputs.shape.context_lens)) == 1 and not inputs.shape.num_shared_tokens:
        yield Peer("torch sdpa", _torch_sdpa, is_paged=False)
        yield Peer("torch sdpa, cudnn", partial(_torch_sdpa, backend=SDPBackend.CUDNN_ATTENTION), is_paged=False)
        if inputs.shape.is_prefill:
            yield Peer("torch flex_attention", _torch_flex, is_paged=False)


def _vllm_flash_attention(inputs: AttentionInputs) -> tuple[Call, ...]:
    """Its schedule is made before the clock runs, as vLLM makes it once for all layers of a step."""
    from vllm.vllm_flash_attn import (  # type: ignore[import-not-found]
        flash_attn_varlen_func,
        get_scheduler_metadata,
    )

    key, value = _token_major(inputs)
    longest = max(inputs.shape.context_lens)
    longest_query = longest if inputs.shape.is_prefill else 1
    num_heads, head_dim = inputs.queries[0].shape[1:]
    schedule = get_scheduler_metadata(
        len(inputs.shape.context_lens),
        longest_query,
        longest,
        num_heads,
        inputs.kv.shape[2],
        head_dim,
        inputs.context_lens,
        qkv_dtype=inputs.kv.dtype,
        cu_seqlens_q=inputs.query_start,
        page_size=inputs.kv.shape[3],
        causal=True,
    )

    def call(query: Tensor, table: Tensor) -> Tensor:
        out: Tensor = flash_attn_varlen_func(
            query,
            key,
            value,
            max_seqlen_q=longest_query,
            cu_seqlens_q=inputs.query_start,
            max_seqlen_k=longest,
            seqused_k=inputs.context_lens,
            softmax_scale=inputs.scale,
            causal=True,
            block_table=table,
            scheduler_metadata=schedule,
            fa_version=3,
        )
        return out

    return _rotated(inputs, call)


def _flash_attention(inputs: AttentionInputs) -> tuple[Call, ...]:
    from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache  # type: ignore[import-not-found]

    key, value = _token_major(inputs)
    longest = max(inputs.shape.context_lens)

    def call(query: Tensor, table: Tensor) -> Tensor:
        out: Tensor
        if inputs.shape.is_prefill:
            starts = inputs.query_start
            out = flash_attn_varlen_func(
                query, key, value, starts, starts, longest, longest, 0.0, inputs.scale, True, block_table=table
            )
        else:
            out = flash_attn_with_kvcache(
                query[:, None],
                key,
                value,
                cache_seqlens=inputs.context_lens,
                block_table=table,
                softmax_scale=inputs.scale,
                causal=True,
            )[:, 0]
        return out

    return _rotated(inputs, call)


def _torch_sdpa(inputs: AttentionInputs, backend: SDPBackend | None = None) -> tuple[Call, ...]:
    """Contiguous KV and equal lengths only: what attention costs without a pool."""

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend) if backend else nullcontext():
            out = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=inputs.shape.is_prefill, scale=inputs.scale, enable_gqa=True
            )
        return _rows(out)

    return tuple(partial(call, *parts) for parts in _side_by_side(inputs))


def _torch_flex(inputs: AttentionInputs) -> tuple[Call, ...]:
    """What ``torch.compile`` makes of attention with a causal mask, over KV as for ``_torch_sdpa``."""
    length = inputs.shape.context_lens[0]
    attend = torch.compile(flex_attention, dynamic=False)
    mask = create_block_mask(_is_seen, None, None, length, length, device=str(inputs.kv.device))

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _rows(attend(query, key, value, block_mask=mask, scale=inputs.scale, enable_gqa=True))

    return tuple(partial(call, *parts) for parts in _side_by_side(inputs))


def _is_seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def _side_by_side(inputs: AttentionInputs) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For every call, queries and copies of K and V as ``(batch, heads, tokens, head_dim)``."""
    batch, length = len(inputs.shape.context_lens), inputs.shape.context_lens[0]
    num_heads, head_dim = inputs.queries[0].shape[1:]
    num_kv_heads = inputs.kv.shape[2]
    for query, table in zip(inputs.queries, inputs.tables, strict=True):
        kv = inputs.kv[table.flatten().long()]  # (blocks of all sequences, 2, num_kv_heads, block_size, head_dim)
        kv = kv.view(batch, -1, 2, num_kv_heads, kv.shape[3], head_dim).permute(2, 0, 3, 1, 4, 5)
        key, value = (kv[i].reshape(batch, num_kv_heads, -1, head_dim)[:, :, :length].contiguous() for i in (0, 1))
        yield query.view(batch, -1, num_heads, head_dim).transpose(1, 2), key, value


def _rows(out: Tensor) -> Tensor:
    """``(batch, num_heads, tokens, head_dim)`` as ``(num_queries, num_heads, head_dim)``."""
    return out.transpose(1, 2).flatten(0, 1)


def _token_major(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """K and V as ``(num_blocks, block_size, num_kv_heads, head_dim)`` views."""
    return inputs.kv[:, 0].transpose(1, 2), inputs.kv[:, 1].transpose(1, 2)


def _rotated(inputs: AttentionInputs, call: Callable[[Tensor, Tensor], Tensor]) -> tuple[Call, ...]:
    return tuple(partial(call, query, table) for query, table in zip(inputs.queries, inputs.tables, strict=True))
