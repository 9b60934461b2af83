"""FlashInfer's attention on the inputs of the bench: its decode, its prefill, its persistent kernel and its cascade.

Its plans are made before the clock runs, as ours are: an engine plans once for all layers of a step. "flashinfer" alone
is what FlashInfer chooses by itself; where this GPU could run its other backend too, that one is timed beside it.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pbench.kernel_bench.inputs import AttentionInputs
from pbench.kernel_bench.peer import Call, Peer

LAYOUT = "HND"  # of our pool: (num_blocks, 2, num_kv_heads, block_size, head_dim)
WORKSPACE_BYTES = 512 * 2**20  # for the pieces that sequences are split into; all calls use it in turn
FA3_CAPABILITY_MAJOR = 9  # its second backend is made for Hopper alone


def flashinfer_peers(inputs: AttentionInputs) -> Iterator[Peer]:
    """What of FlashInfer computes this shape."""
    has_fa3 = torch.cuda.get_device_capability(inputs.kv.device)[0] == FA3_CAPABILITY_MAJOR
    if inputs.shape.is_prefill:  # of its own accord it takes FA3 here
        yield Peer("flashinfer", partial(_prefill, backend="auto"))
        if has_fa3:
            yield Peer("flashinfer, fa2", partial(_prefill, backend="fa2"))
        return
    yield Peer("flashinfer", partial(_decode, backend="auto"))  # of its own accord it takes FA2 here
    if has_fa3:
        yield Peer("flashinfer, fa3", partial(_decode, backend="fa3"))
    yield Peer("flashinfer, persistent", _persistent)
    if inputs.shape.num_shared_tokens:
        yield Peer("flashinfer, cascade", _cascade)
        if has_fa3:
            yield Peer("flashinfer, cascade fa2", _cascade_fa2)


class _Pages(NamedTuple):
    """The blocks of sequences as FlashInfer takes them; all int32."""

    starts: Tensor  # (batch + 1,), on the host: where each sequence's block ids begin
    ids: Tensor  # (starts[-1],)
    last_lens: Tensor  # (batch,), on the host: tokens in each sequence's last block


def _pages(inputs: AttentionInputs, table: Tensor, num_skipped: int = 0) -> _Pages:
    """Of a call's block table, without the first ``num_skipped`` blocks of every sequence."""
    block_size = inputs.kv.shape[3]
    ends = [-(-length // block_size) for length in inputs.shape.context_lens]
    starts = torch.zeros(len(ends) + 1, dtype=torch.int32)
    starts[1:] = torch.tensor([end - num_skipped for end in ends]).cumsum(0)
    ids = torch.cat([row[num_skipped:end] for row, end in zip(table, ends, strict=True)])
    last_lens = [(length - 1) % block_size + 1 for length in inputs.shape.context_lens]
    return _Pages(starts, ids, torch.tensor(last_lens, dtype=torch.int32))


def _sizes(inputs: AttentionInputs) -> tuple[int, int, int, int]:
    """``num_heads, num_kv_heads, head_dim, block_size``, as plans take them."""
    num_kv_heads, block_size, head_dim = inputs.kv.shape[2:]
    return inputs.queries[0].shape[1], num_kv_heads, head_dim, block_size


def _kinds(inputs: AttentionInputs) -> dict[str, Any]:
    return {"sm_scale": inputs.scale, "q_data_type": inputs.queries[0].dtype, "kv_data_type": inputs.kv.dtype}


def _workspace(inputs: AttentionInputs) -> Tensor:
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=inputs.kv.device)  # it wants zeros at first


def _decode(inputs: AttentionInputs, backend: str) -> tuple[Call, ...]:
    """On tensor cores, as engines call it where several query heads share a KV head."""
    import flashinfer  # type: ignore[import-not-found]

    workspace, calls = _workspace(inputs), []
    for query, table in zip(inputs.queries, inputs.tables, strict=True):
        pages = _pages(inputs, table)
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace, LAYOUT, use_tensor_cores=True, backend=backend
        )
        wrapper.plan(pages.starts, pages.ids, pages.last_lens, *_sizes(inputs), **_kinds(inputs))
        calls.append(partial(wrapper.run, query, inputs.kv))
    return tuple(calls)


def _prefill(inputs: AttentionInputs, backend: str) -> tuple[Call, ...]:
    workspace, calls = _workspace(inputs), []
    for query, table in zip(inputs.queries, inputs.tables, strict=True):
        pages = _pages(inputs, table)
        wrapper = _planned(inputs, inputs.query_start, pages, workspace, backend, is_causal=True)
        calls.append(partial(wrapper.run, query, inputs.kv))
    return tuple(calls)


def _persistent(inputs: AttentionInputs) -> tuple[Call, ...]:
    """One launch of as many programs as the GPU holds, among which the plan divides the work."""
    import flashinfer

    num_heads, num_kv_heads, head_dim, block_size = _sizes(inputs)
    calls, workspace = [], None
    for query, table in zip(inputs.queries, inputs.tables, strict=True):
        pages = _pages(inputs, table)
        wrapper = flashinfer.BatchAttention(LAYOUT, str(inputs.kv.device))
        if workspace is not None:
            wrapper.float_workspace_buffer = workspace  # hundreds of megabytes that its calls can share
        workspace = wrapper.float_workspace_buffer
        starts = (inputs.query_start, pages.starts.to(inputs.kv.device))
        heads = (num_heads, num_kv_heads, head_dim, head_dim, block_size)
        wrapper.plan(*starts, pages.ids, inputs.context_lens, *heads, causal=False, **_kinds(inputs))
        calls.append(partial(_first_result, wrapper, query, inputs.kv))
    return tuple(calls)


def _first_result(wrapper: Any, query: Tensor, kv: Tensor) -> Tensor:
    out: Tensor = wrapper.run(query, kv)[0]
    return out


class _Level(NamedTuple):
    """One level of the tree of prefixes: who reads which blocks."""

    query_start: Tensor
    pages: _Pages


def _levels(inputs: AttentionInputs, table: Tensor) -> tuple[_Level, _Level]:
    """The run that all sequences share, and what each has of its own."""
    block_size = inputs.kv.shape[3]
    num_shared = inputs.shape.num_shared_tokens // block_size
    starts = torch.tensor([0, num_shared], dtype=torch.int32)
    last_lens = torch.tensor([block_size], dtype=torch.int32)
    shared = _Pages(starts, table[0, :num_shared].contiguous(), last_lens)
    together = torch.tensor([0, len(table)], dtype=torch.int32, device=inputs.kv.device)
    return _Level(together, shared), _Level(inputs.query_start, _pages(inputs, table, num_shared))


def _cascade(inputs: AttentionInputs) -> tuple[Call, ...]:
    import flashinfer

    workspace, calls = _workspace(inputs), []
    for query, table in zip(inputs.queries, inputs.tables, strict=True):
        levels = _levels(inputs, table)
        wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(len(levels), workspace, LAYOUT)
        wrapper.plan(
            [level.query_start for level in levels],
            [level.pages.starts.to(inputs.kv.device) for level in levels],
            [level.pages.ids for level in levels],
            [level.pages.last_lens.to(inputs.kv.device) for level in levels],
            *_sizes(inputs),
            **_kinds(inputs),
        )
        calls.append(partial(wrapper.run, query, inputs.kv))
    return tuple(calls)


def _cascade_fa2(inputs: AttentionInputs) -> tuple[Call, ...]:
    """What its cascade does, with the backend that it does not choose there."""
    workspace, calls = _workspace(inputs), []
    for query, table in zip(inputs.queries, inputs.tables, strict=True):
        shared, own = (
            _planned(inputs, level.query_start, level.pages, workspace, "fa2", is_causal=False)
            for level in _levels(inputs, table)
        )
        calls.append(partial(_merged, shared, own, query, inputs.kv))
    return tuple(calls)


def _merged(shared: Any, own: Any, query: Tensor, kv: Tensor) -> Tensor:
    import flashinfer

    out: Tensor
    out, log_sum = own.run(query, kv, return_lse=True)
    flashinfer.merge_state_in_place(out, log_sum, *shared.run(query, kv, return_lse=True))
    return out


def _planned(
    inputs: AttentionInputs, query_start: Tensor, pages: _Pages, workspace: Tensor, backend: str, *, is_causal: bool
) -> Any:
    import flashinfer

    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, LAYOUT, backend=backend)
    parts = (part.to(inputs.kv.device) for part in pages)
    wrapper.plan(query_start, *parts, *_sizes(inputs), causal=is_causal, **_kinds(inputs))
    return wrapper
