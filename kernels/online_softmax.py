"""One step of an online softmax: a tile of K and V taken into what rows of queries have attended to so far.

Milakov and Gimelshein, 2018, https://arxiv.org/abs/1805.02867, in the form of FlashAttention-2 (Dao, 2023,
https://arxiv.org/abs/2307.08691): scores are kept in base 2, and the sums are divided once, at the end.
"""

from pbench.kernels.compiler import jit, tl
from pbench.kernels.kv_layout import load_tile


@jit()
def attend_tile(
    query: tl.tensor,  # (DOT_ROWS, TILE_DIMS)
    top: tl.tensor,  # (DOT_ROWS,) float32: largest score so far, times scale_log2
    total: tl.tensor,  # (DOT_ROWS,) float32: sum of exponentials so far, over 2^top
    acc: tl.tensor,  # (DOT_ROWS, TILE_DIMS) float32: sum of exponentials times V so far, over 2^top
    key_ptr: tl.pointer_type,
    value_offset: tl.tensor,
    block_ids: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    scale_log2: tl.tensor,
    HEAD_DIM: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    IS_CONTIGUOUS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_DIMS: tl.constexpr,
    IS_MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """All rows attend to the tokens ``start`` .. ``start + TILE_TOKENS``; when IS_MASKED, to those below ``end``."""
    key = load_tile(
        key_ptr,
        block_ids,
        start,
        end,
        HEAD_DIM,
        NUM_KV_HEADS,
        BLOCK_SIZE,
        IS_CONTIGUOUS,
        TILE_TOKENS,
        TILE_DIMS,
        IS_MASKED,
    )
    value_ptr = key_ptr + value_offset
    value = load_tile(
        value_ptr,
        block_ids,
        start,
        end,
        HEAD_DIM,
        NUM_KV_HEADS,
        BLOCK_SIZE,
        IS_CONTIGUOUS,
        TILE_TOKENS,
        TILE_DIMS,
        IS_MASKED,
    )
    scores = tl.dot(query, tl.trans(key.to(query.dtype)), input_precision="ieee")
    if IS_MASKED:
        scores = tl.where((start + tl.arange(0, TILE_TOKENS) < end)[None, :], scores, float("-inf"))
    # A tile has at least one token, so new_top is finite and no difference of infinities arises.
    new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
    weights = tl.exp2(scores * scale_log2 - new_top[:, None])
    decay = tl.exp2(top - new_top)
    total = total * decay + tl.sum(weights, 1)
    acc = tl.dot(weights.to(query.dtype), value.to(query.dtype), acc * decay[:, None], input_precision="ieee")
    return new_top, total, acc
