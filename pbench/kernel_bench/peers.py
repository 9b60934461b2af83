"""Other people's attention kernels, timed on the same inputs wherever their package can be imported.

A peer whose package is missing does not appear. One that is there and fails on a shape appears with its reason: a table
that silently leaves it out would compare with nobody.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pbench.kernel_bench.inputs import AttentionInputs

Call = Callable[[], Tensor]
FLASHINFER_WORKSPACE_BYTES = 512 * 2**20


class Peer(NamedTuple):
    """One implementation on one shape."""

    name: str
    prepare: Callable[[AttentionInputs], tuple[Call, ...]]  # may raise whatever the package raises


def peers(inputs: AttentionInputs) -> Iterator[Peer]:
    """Those that can be imported and compute what is asked for; none is asked for a window or a soft cap."""
    if not inputs.kv.is_cuda or inputs.shape.window is not None or inputs.shape.soft_cap is not None:
        return
    if find_spec("flashinfer"):
        yield Peer("flashinfer", _flashinfer)
    if find_spec("vllm"):
        yield Peer("vllm FA3", _vllm_flash_attention)
    if find_spec("flash_attn") and inputs.kv.shape[3] % 256 == 0:  # smaller blocks it refuses
        yield Peer("flash-attn", _flash_attention)
    if len(set(inputs.shape.context_lens)) == 1 and not inputs.shape.num_shared_tokens:
        yield Peer("torch sdpa, contiguous", _torch_sdpa)


def _flashinfer(inputs: AttentionInputs) -> tuple[Call, ...]:
    import flashinfer  # type: ignore[import-not-found]

    num_heads, head_dim = inputs.queries[0].shape[1:]
    num_kv_heads, block_size = inputs.kv.shape[2:4]
    num_blocks = [-(-length // block_size) for length in inputs.shape.context_lens]
    device = inputs.kv.device
    starts = torch.zeros(len(num_blocks) + 1, dtype=torch.int32)
    starts[1:] = torch.tensor(num_blocks).cumsum(0)
    last_lens = (inputs.context_lens.cpu() - 1) % block_size + 1
    calls = []
    workspace = torch.empty(FLASHINFER_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    for query, table in zip(inputs.queries, inputs.tables, strict=True):
        indices = torch.cat([row[:count] for row, count in zip(table, num_blocks, strict=True)])
        common: dict[str, Any] = {"q_data_type": query.dtype, "kv_data_type": inputs.kv.dtype}
        if inputs.shape.is_prefill:
            wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
            wrapper.plan(
                inputs.query_start,
                starts.to(device),
                indices,
                last_lens.to(device),
                num_heads,
                num_kv_heads,
                head_dim,
                block_size,
                causal=True,
                sm_scale=inputs.scale,
                **common,
            )
        else:
            wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
            wrapper.plan(
                starts,
                indices,
                last_lens,
                num_heads,
                num_kv_heads,
                head_dim,
                block_size,
                sm_scale=inputs.scale,
                **common,
            )
        calls.append(partial(wrapper.run, query, inputs.kv))
    return tuple(calls)


def _vllm_flash_attention(inputs: AttentionInputs) -> tuple[Call, ...]:
    from vllm.vllm_flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    key, value = _token_major(inputs)

    def call(query: Tensor, table: Tensor) -> Tensor:
        out: Tensor = flash_attn_varlen_func(
            query,
            key,
            value,
            max_seqlen_q=max(inputs.shape.context_lens) if inputs.shape.is_prefill else 1,
            cu_seqlens_q=inputs.query_start,
            max_seqlen_k=max(inputs.shape.context_lens),
            seqused_k=inputs.context_lens,
            softmax_scale=inputs.scale,
            causal=True,
            block_table=table,
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


def _torch_sdpa(inputs: AttentionInputs) -> tuple[Call, ...]:
    """Contiguous KV and equal lengths only: what attention costs without a pool."""
    batch, length = len(inputs.shape.context_lens), inputs.shape.context_lens[0]
    num_heads, head_dim = inputs.queries[0].shape[1:]
    num_kv_heads = inputs.kv.shape[2]
    calls = []
    for query, table in zip(inputs.queries, inputs.tables, strict=True):
        kv = inputs.kv[table.flatten().long()]  # (blocks of all sequences, 2, num_kv_heads, block_size, head_dim)
        kv = kv.view(batch, -1, 2, num_kv_heads, kv.shape[3], head_dim).permute(2, 0, 3, 1, 4, 5)
        key, value = (kv[i].reshape(batch, num_kv_heads, -1, head_dim)[:, :, :length].contiguous() for i in (0, 1))
        rows = query.view(batch, -1, num_heads, head_dim).transpose(1, 2)

        def call(rows: Tensor = rows, key: Tensor = key, value: Tensor = value) -> Tensor:
            out = torch.nn.functional.scaled_dot_product_attention(
                rows, key, value, is_causal=inputs.shape.is_prefill, scale=inputs.scale, enable_gqa=True
            )
            return out.transpose(1, 2).reshape(-1, num_heads, head_dim)

        calls.append(call)
    return tuple(calls)


def _token_major(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """K and V as ``(num_blocks, block_size, num_kv_heads, head_dim)`` views."""
    return inputs.kv[:, 0].transpose(1, 2), inputs.kv[:, 1].transpose(1, 2)


def _rotated(inputs: AttentionInputs, call: Callable[[Tensor, Tensor], Tensor]) -> tuple[Call, ...]:
    return tuple(partial(call, query, table) for query, table in zip(inputs.queries, inputs.tables, strict=True))
