"""Other ways to attend in a step of decodes and prompts than an engine's, which launches one after the other."""

from collections.abc import Iterator
from functools import partial

import torch

from pbench.kernel_bench.cases import attend_apart, decode_plan
from pbench.kernel_bench.inputs import AttentionInputs
from pbench.kernel_bench.peer import Call, Peer
from pbench.kernels.launch import device_limits, runs_on_triton
from pbench.kernels.prefill_attention import prefill_attention, prefill_attention_triton, suits_hopper
from pbench.kernels.tiling import Operands
from pbench.kernels.tuning_table import choose_prefill_tiling

ONE_LAUNCH = "one launch"
ONE_PLAIN_LAUNCH = "one launch, plain kernel"  # not Hopper's own
TWO_STREAMS = "two streams"


def mixed_ways(inputs: AttentionInputs) -> Iterator[Peer]:
    """To the kernels of prompts a decode is a prompt with one new token; two streams need a GPU."""
    yield Peer(ONE_LAUNCH, _together)
    if runs_on_triton(inputs.kv):
        if suits_hopper(inputs.queries[0], inputs.kv, is_contiguous=False):
            yield Peer(ONE_PLAIN_LAUNCH, _together_plain)
        yield Peer(TWO_STREAMS, _at_once)


def _together(inputs: AttentionInputs) -> tuple[Call, ...]:
    return tuple(
        partial(
            prefill_attention,
            query,
            inputs.kv,
            table,
            inputs.query_start,
            inputs.context_lens,
            scale=inputs.scale,
        )
        for query, table in zip(inputs.queries, inputs.tables, strict=True)
    )


def _together_plain(inputs: AttentionInputs) -> tuple[Call, ...]:
    operands = Operands.of(inputs.queries[0], inputs.kv)
    tiling = choose_prefill_tiling(device_limits(inputs.kv), operands, len(inputs.queries[0]) * operands.group)
    return tuple(
        partial(
            prefill_attention_triton,
            query,
            inputs.kv,
            table,
            inputs.query_start,
            inputs.context_lens,
            torch.empty_like(query),
            scale=inputs.scale,
            is_contiguous=False,
            tiling=tiling,
        )
        for query, table in zip(inputs.queries, inputs.tables, strict=True)
    )


def _at_once(inputs: AttentionInputs) -> tuple[Call, ...]:
    plan = decode_plan(inputs)
    beside: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return tuple(partial(attend_apart, inputs, index, plan, beside) for index in range(len(inputs.queries)))
