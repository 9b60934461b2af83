"""Tiles of queries, K and V in registers, in the parts that a matrix product takes.

A tile of 16 or 32-bit numbers is one part. Of 8-bit floats there are two, the dimensions of even and of odd number:
the matrix units want the numbers of neighbouring tokens of V side by side, and only 16-bit numbers are turned round on
their way from shared memory. So 8-bit floats are read as pairs of neighbouring dimensions, turned round as pairs, and
taken apart where they are wanted, as float16, which holds every one of them exactly::

    query . K[t] = sum_parts query_part . K_part[t],    acc_part = sum_t weight[t] V_part[t]
"""

import torch

from pbench.kernels.compiler import IS_INTERPRETED, jit, tl
from pbench.kernels.kv_layout import slot_offsets
from pbench.kernels.launch import FP8, next_power_of_2


def tile_dims_of(kv: torch.Tensor) -> int:
    """Dimensions of a tile of one layer of the pool: a power of two, and each part as large as a product takes."""
    return next_power_of_2(max(kv.shape[4], 32 if kv.dtype is FP8 else 16))


@jit()
def load_query(
    row_ptr: tl.tensor,  # (ROWS,): the first dimension of each row
    is_row: tl.tensor,  # (ROWS,): the others are zero
    HEAD_DIM: tl.constexpr,
    TILE_DIMS: tl.constexpr,
    IS_FP8: tl.constexpr,  # K and V are
) -> tuple[tl.tensor, ...]:
    """Queries in parts: ``(ROWS, TILE_DIMS)``, or two of half the dimensions, as float16 unless they are float32.

    Numbers of bfloat16 stay as they are from 2^-14 to 65504.
    """
    return query_parts(load_rows(row_ptr, is_row, HEAD_DIM, TILE_DIMS), IS_FP8)  # type: ignore[no-any-return]


@jit()
def load_rows(
    row_ptr: tl.tensor,  # (ROWS,): the first dimension of each row
    is_row: tl.tensor,  # (ROWS,): the others are zero
    HEAD_DIM: tl.constexpr,
    TILE_DIMS: tl.constexpr,
) -> tl.tensor:
    """Rows as they are: ``(ROWS, TILE_DIMS)``."""
    dims = tl.arange(0, TILE_DIMS)
    return tl.load(row_ptr[:, None] + dims[None, :], mask=is_row[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)


@jit()
def query_parts(query: tl.tensor, IS_FP8: tl.constexpr) -> tuple[tl.tensor, ...]:
    """What ``load_query`` gives, from rows that are loaded."""
    if IS_FP8:
        if query.dtype != tl.float32:
            query = query.to(tl.float16)
        even, odd = tl.split(tl.reshape(query, [query.shape[0], query.shape[1] // 2, 2]))
        return (even, odd)
    else:
        return (query,)


@jit()
def load_tile(
    head_ptr: tl.pointer_type,  # K, or V, of the first slot of block 0 of the head
    block_ids: tl.tensor,  # of load_block_ids
    start: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    HEAD_DIM: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    IS_CONTIGUOUS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_DIMS: tl.constexpr,
    IS_MASKED: tl.constexpr,
    IS_CUT: tl.constexpr,
) -> tl.tensor:
    """K, or V, of the tokens ``start`` .. ``start + TILE_TOKENS``: ``(TILE_TOKENS, TILE_DIMS)``.

    When IS_MASKED, tokens from ``end`` on are zero and their slots are not read; when IS_CUT too, nor those below
    ``first``. 8-bit floats come as the int16 of their pairs: ``(TILE_TOKENS, TILE_DIMS / 2)``.
    """
    IS_FP8: tl.constexpr = head_ptr.dtype.element_ty == tl.float8e4nv
    NUM_NUMBERS: tl.constexpr = HEAD_DIM // 2 if IS_FP8 else HEAD_DIM
    TILE_NUMBERS: tl.constexpr = TILE_DIMS // 2 if IS_FP8 else TILE_DIMS
    if IS_FP8:
        head_ptr = head_ptr.to(tl.pointer_type(tl.int16))
    offsets = slot_offsets(block_ids, start, NUM_NUMBERS, NUM_KV_HEADS, BLOCK_SIZE, IS_CONTIGUOUS, TILE_TOKENS)
    numbers = tl.arange(0, TILE_NUMBERS)
    pointers = head_ptr + offsets[:, None] + numbers[None, :]
    if IS_MASKED:
        tokens = start + tl.arange(0, TILE_TOKENS)
        is_token = tokens < end
        if IS_CUT:
            is_token &= tokens >= first
        tile = tl.load(pointers, mask=is_token[:, None] & (numbers < NUM_NUMBERS)[None, :], other=0)
    elif TILE_NUMBERS > NUM_NUMBERS:
        tile = tl.load(pointers, mask=(numbers < NUM_NUMBERS)[None, :], other=0)
    else:
        tile = tl.load(pointers)
    return tile


@jit()
def parts_of(tile: tl.tensor, dtype: tl.constexpr) -> tuple[tl.tensor, ...]:
    """What ``load_tile`` loaded, in parts that match those of ``load_query``."""
    if tile.dtype == tl.int16:
        even, odd = _take_apart(tile)
        return (even.to(dtype), odd.to(dtype))
    else:
        return (tile.to(dtype),)


@jit()
def _take_apart(pairs: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The lower and the upper 8-bit float of every int16, as float16."""
    if IS_INTERPRETED:  # which knows no assembly
        even = (pairs & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
        odd = ((pairs >> 8) & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
    else:  # two pairs at a time: sorted into lower and upper, then two numbers by each conversion
        even, odd = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 sorted;
            .reg .b16 lower, upper;
            prmt.b32 sorted, $2, 0, 0x3120;
            mov.b32 {lower, upper}, sorted;
            cvt.rn.f16x2.e4m3x2 $0, lower;
            cvt.rn.f16x2.e4m3x2 $1, upper;
            }
            """,
            constraints="=r,=r,r",
            args=[pairs],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    return even, odd


@jit()
def zero_parts(ROWS: tl.constexpr, TILE_DIMS: tl.constexpr, IS_FP8: tl.constexpr) -> tuple[tl.tensor, ...]:
    """Sums to add products to: float32 ``(ROWS, TILE_DIMS)`` in parts."""
    if IS_FP8:
        return (tl.zeros([ROWS, TILE_DIMS // 2], tl.float32), tl.zeros([ROWS, TILE_DIMS // 2], tl.float32))
    else:
        return (tl.zeros([ROWS, TILE_DIMS], tl.float32),)


@jit()
def whole(parts: tl.tuple, IS_FP8: tl.constexpr) -> tl.tensor:
    """Sums ``(ROWS, TILE_DIMS)`` from their parts."""
    if IS_FP8:
        return tl.interleave(parts[0], parts[1])
    else:
        return parts[0]
