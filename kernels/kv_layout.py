"""Where the K and V of a token lie: the two ways of addressing one layer of the pool.

One layer is ``kv: (num_blocks, 2, num_kv_heads, block_size, head_dim)``, K at index 0 and V at index 1,
contiguous, so that one (block, K or V, head) tile is one run of memory. Each sequence has a row of ``table:
(num_sequences, width)``.

Paged: the row is the sequence's block table, and its token t lies in block ``row[t // block_size]``, slot
``t % block_size`` (Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention", SOSP 2023, https://arxiv.org/abs/2309.06180).

Contiguous: the layer is ONE block as large as the pool, ``row[0]`` is the first slot of the sequence's
extent, and its token t lies in slot ``row[0] + t``.

Nothing of a row is read beyond the blocks that hold the sequence's context.

K and V are of the queries' dtype, or 8-bit floats (e4m3: Micikevicius et al., 2022, https://arxiv.org/abs/2209.05433)
that hold them divided by one scale for all of K and one for all of V.
"""

import math

import torch

from pbench.kernels.compiler import jit, tl
from pbench.kernels.launch import (
    FLOAT_DTYPES,
    FP8,
    check_contiguous,
    check_dtype,
    check_num_dims,
    check_rows,
    check_shape,
)

MAX_HEAD_DIM = 256


@jit()
def load_block_ids(
    row_ptr: tl.pointer_type,  # the sequence's row of the table
    start: tl.tensor,  # first token of the tile, a multiple of the smaller of BLOCK_SIZE and TILE_TOKENS
    end: tl.tensor,  # tokens from here on are masked: their entries of the table are not read
    BLOCK_SIZE: tl.constexpr,
    IS_CONTIGUOUS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
) -> tl.tensor:
    """What the table says of a tile: int32 ``(TILE_TOKENS,)``, or one number if the whole tile has the same."""
    if IS_CONTIGUOUS:
        block_ids = tl.load(row_ptr, mask=start < end, other=0)
    elif BLOCK_SIZE >= TILE_TOKENS:  # the tile lies in one block
        block_ids = tl.load(row_ptr + start // BLOCK_SIZE, mask=start < end, other=0)
    else:
        tokens = start + tl.arange(0, TILE_TOKENS)
        block_ids = tl.load(row_ptr + tokens // BLOCK_SIZE, mask=tokens < end, other=0)
    return block_ids


@jit()
def slot_offsets(
    block_ids: tl.tensor,  # of load_block_ids
    start: tl.tensor,
    HEAD_DIM: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    IS_CONTIGUOUS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
) -> tl.tensor:
    """Element offsets of a tile's slots from slot 0 of block 0 of the same head; int64 ``(TILE_TOKENS,)``."""
    places = tl.arange(0, TILE_TOKENS)
    if IS_CONTIGUOUS:
        offsets = (block_ids.to(tl.int64) + start + places) * HEAD_DIM
    elif BLOCK_SIZE >= TILE_TOKENS:
        block_offset = block_ids.to(tl.int64) * (2 * NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM)
        offsets = block_offset + (start % BLOCK_SIZE + places) * HEAD_DIM
    else:
        block_offsets = block_ids.to(tl.int64) * (2 * NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM)
        offsets = block_offsets + (places % BLOCK_SIZE) * HEAD_DIM
    return offsets


def check_attention(
    query: torch.Tensor,
    kv: torch.Tensor,
    table: torch.Tensor,
    context_lens: torch.Tensor,
    is_contiguous: bool,
    window: int | None,
    soft_cap: float | None,
) -> None:
    """Check the arguments that decode and prefill attention share.

    Raises:
        ValueError: a shape, dtype, stride or number that the kernels do not take, naming the argument.
    """
    if window is not None and not 1 <= window < 2**31:
        raise ValueError(f"window is {window}; it must be at least 1, the query itself, and below 2^31, or None")
    if soft_cap is not None and not 0 < soft_cap < math.inf:
        raise ValueError(f"soft_cap is {soft_cap}; it must be a finite number above 0, or None for no cap")
    check_num_dims("query", query, 3, "(num_tokens, num_heads, head_dim)")
    check_kv(kv)
    check_dtype("query", query, *(FLOAT_DTYPES if kv.dtype is FP8 else (kv.dtype,)))
    check_rows("query", query)
    num_blocks, _, num_kv_heads, block_size, head_dim = kv.shape
    if query.shape[2] != head_dim:
        raise ValueError(f"query has head_dim {query.shape[2]} and kv {head_dim}; they must be equal")
    if query.shape[1] % num_kv_heads:
        raise ValueError(f"query has {query.shape[1]} heads; expected a multiple of kv's {num_kv_heads}")
    check_num_dims("table", table, 2, "(num_sequences, width)")
    check_dtype("table", table, torch.int32)
    check_rows("table", table)
    if is_contiguous and (num_blocks != 1 or table.shape[1] < 1):
        raise ValueError(
            f"contiguous addressing needs one block and a table of at least one column; kv has {num_blocks}"
            f" blocks and table has shape {tuple(table.shape)}"
        )
    if not is_contiguous and block_size & (block_size - 1):
        raise ValueError(f"kv has block_size {block_size}; paged addressing needs a power of two")
    check_shape("context_lens", context_lens, (table.shape[0],))
    check_dtype("context_lens", context_lens, torch.int32)
    check_rows("context_lens", context_lens)


def check_query_start(query_start: torch.Tensor, num_sequences: int) -> None:
    """Check where the queries of every sequence begin.

    Raises:
        ValueError: a shape, dtype or stride that the kernels do not take.
    """
    check_shape("query_start", query_start, (num_sequences + 1,))
    check_dtype("query_start", query_start, torch.int32)
    check_rows("query_start", query_start)


def check_kv(kv: torch.Tensor) -> None:
    """Check one layer of the pool.

    Raises:
        ValueError: it is not laid out as this file's head says, or of a dtype or head_dim without kernels.
    """
    check_num_dims("kv", kv, 5, "(num_blocks, 2, num_kv_heads, block_size, head_dim)")
    check_dtype("kv", kv, *FLOAT_DTYPES, FP8)
    check_contiguous("kv", kv)
    if kv.shape[1] != 2:
        raise ValueError(f"kv has shape {tuple(kv.shape)}; dimension 1 must hold K and V")
    if kv.shape[4] % 16 or not 16 <= kv.shape[4] <= MAX_HEAD_DIM:
        raise ValueError(f"kv has head_dim {kv.shape[4]}; expected a multiple of 16 up to {MAX_HEAD_DIM}")


def gather_kv(
    kv: torch.Tensor,
    table: torch.Tensor,
    context_lens: torch.Tensor,
    max_context: int,
    is_contiguous: bool,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of every sequence, side by side, by plain indexing: what the references attend to.

    Returns:
        Two tensors ``(num_sequences, num_kv_heads, length, head_dim)`` of ``dtype``, length at least
        ``max_context`` (paged: rounded up to whole blocks). Past a sequence's context K is arbitrary and V is
        zero.
    """
    num_kv_heads, block_size, head_dim = kv.shape[2:]
    device = kv.device
    heads = torch.arange(num_kv_heads, device=device)[:, None]
    if is_contiguous:  # runs of one slot: (heads, slots) of the only block
        num_runs, run_slots = block_size, 1
        runs = table[:, :1] + torch.arange(max_context, device=device)
    else:  # runs of one block: (blocks, heads)
        num_runs, run_slots = 1, block_size
        runs = table[:, : -(-max_context // block_size)].long() * (2 * num_kv_heads)
    first_tokens = torch.arange(runs.shape[1], device=device) * run_slots
    runs = torch.where(first_tokens < context_lens[:, None], runs, 0)[:, None] + heads * num_runs
    memory = kv.view(-1, run_slots * head_dim).view(torch.uint8)  # torch does not index 8-bit floats
    shape = (len(table), num_kv_heads, runs.shape[2] * run_slots, head_dim)
    # index_select copies whole rows, which a CPU does faster than indexing with two tensors.
    key = memory.index_select(0, runs.flatten()).view(kv.dtype).view(shape).to(dtype)
    value = memory.index_select(0, (runs + num_kv_heads * num_runs).flatten()).view(kv.dtype).view(shape).to(dtype)
    # A weight of zero does not silence what lies in an unused slot: 0 * NaN is NaN.
    is_unused = torch.arange(shape[2], device=device) >= context_lens[:, None]
    return key, value.masked_fill_(is_unused[:, None, :, None], 0)
