"""Causal attention in which a query's sums know nothing of the other queries, nor of how it came.

The formula, the layout and the arguments are those of prefill_attention.py, and a decode is a sequence with one query.
For the query at position p the tiles of K and V always lie alike and are taken in one order, none is split over
programs, and all are masked alike: so a query has the same bits alone, in a chunk of any size, behind a cached prefix,
and as a decode.
"""

import torch

from pbench.kernels.decode_attention import decode_attention_reference
from pbench.kernels.kv_layout import check_attention, check_query_start
from pbench.kernels.launch import (
    device_limits,
    runs_on_triton,
)
from pbench.kernels.prefill_attention import prefill_attention_triton
from pbench.kernels.tiling import Operands, PrefillTiling, prefill_rule

# For which a launch is cut up. Prompts would be faster with more, decodes with fewer: a tile holds one sequence alone.
NUM_ROWS = 64


def invariant_attention(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    scale: float,
    is_contiguous: bool = False,
    window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """Attend causally from the last tokens of every sequence: ``(T, H, D)``; see ``prefill_attention``.

    Rows of the result that are nobody's are arbitrary.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    check_attention(query, kv, table, context_lens, is_contiguous, window, soft_cap)
    check_query_start(query_start, table.shape[0])
    if not runs_on_triton(query):
        return invariant_attention_reference(
            query,
            kv,
            table,
            query_start,
            context_lens,
            scale=scale,
            is_contiguous=is_contiguous,
            window=window,
            soft_cap=soft_cap,
        )
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    return prefill_attention_triton(
        query,
        kv,
        table,
        query_start,
        context_lens,
        out,
        scale=scale,
        is_contiguous=is_contiguous,
        tiling=fixed_tiling(query, kv),
        window=window,
        soft_cap=soft_cap,
        is_masked_throughout=True,
    )


def fixed_tiling(query: torch.Tensor, kv: torch.Tensor) -> PrefillTiling:
    """How to cut up a launch on this device, whatever the number of queries.

    Not by the table of what was measured: its entries differ by the number of rows.
    """
    return prefill_rule(device_limits(query), Operands.of(query, kv), NUM_ROWS)


def invariant_attention_reference(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    scale: float,
    is_contiguous: bool = False,
    window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """``invariant_attention`` in plain torch: every query is a decode of its own, of which nothing else is known."""
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    starts = query_start.tolist()
    for sequence, context_len in enumerate(context_lens.tolist()):
        first, end = starts[sequence], starts[sequence + 1]
        for row in range(first, end):
            out[row] = decode_attention_reference(
                query[row : row + 1].contiguous(),
                kv,
                table[sequence : sequence + 1],
                context_lens.new_tensor([context_len - (end - 1 - row)]),
                scale=scale,
                is_contiguous=is_contiguous,
                window=window,
                soft_cap=soft_cap,
            )[0]
    return out
