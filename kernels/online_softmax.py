"""One step of an online softmax: a tile of K and V taken into what rows of queries have attended to so far.

Milakov and Gimelshein, 2018, https://arxiv.org/abs/1805.02867, in the form of FlashAttention-2 (Dao, 2023,
https://arxiv.org/abs/2307.08691): scores are kept in base 2, and the sums are divided once, at the end.

A *window* of W tokens lets the query at position p see the tokens p - W + 1 .. p alone ("Mistral 7B", Jiang et al.,
2023, https://arxiv.org/abs/2310.06825). A *soft cap* c bends a scaled score s to c * tanh(s / c), before the mask
("Gemma 2", 2024, https://arxiv.org/abs/2408.00118). Both are compile-time choices: without them nothing of them is in
the code.
"""

from pbench.kernels.compiler import jit, tl
from pbench.kernels.kv_tiles import load_tile, parts_of


@jit()
def attend_tile(
    query: tl.tuple,  # (ROWS, TILE_DIMS) in parts, as acc (kv_tiles.py)
    positions: tl.tensor,  # (ROWS,): the last token that each row sees; None: all rows see the same tokens
    top: tl.tensor,  # (ROWS,) float32: largest score so far, in base 2
    total: tl.tensor,  # (ROWS,) float32: sum of exponentials so far, over 2^top
    acc: tl.tuple,  # (ROWS, TILE_DIMS) float32: sum of exponentials times V so far, over 2^top
    key_ptr: tl.pointer_type,
    value_offset: tl.tensor,
    block_ids: tl.tensor,
    start: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    scale_log2: tl.tensor,  # scale of the scores * log2(e)
    HEAD_DIM: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    IS_CONTIGUOUS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TILE_DIMS: tl.constexpr,
    IS_MASKED: tl.constexpr,
    WINDOW: tl.constexpr,  # tokens that a row sees at most; None: all before it
    SOFT_CAP: tl.constexpr,  # None: scores stay as they are
) -> tuple[tl.tensor, tl.tensor, tuple[tl.tensor, ...]]:
    """The rows attend to the tokens ``start`` .. ``start + TILE_TOKENS``.

    When IS_MASKED, to those below ``end`` or up to the rows' positions, and with a window to those from ``first`` or
    within the rows' windows. Slots outside of ``first`` .. ``end`` are not read. Without, every row sees all of them.

    Of the first tile a row must see something, or ``top`` must begin finite: a difference of infinities is no number.
    """
    IS_CUT: tl.constexpr = IS_MASKED and WINDOW is not None
    key = load_tile(
        key_ptr,
        block_ids,
        start,
        first,
        end,
        HEAD_DIM,
        NUM_KV_HEADS,
        BLOCK_SIZE,
        IS_CONTIGUOUS,
        TILE_TOKENS,
        TILE_DIMS,
        IS_MASKED,
        IS_CUT,
    )
    value_ptr = key_ptr + value_offset
    value = load_tile(
        value_ptr,
        block_ids,
        start,
        first,
        end,
        HEAD_DIM,
        NUM_KV_HEADS,
        BLOCK_SIZE,
        IS_CONTIGUOUS,
        TILE_TOKENS,
        TILE_DIMS,
        IS_MASKED,
        IS_CUT,
    )
    dtype: tl.constexpr = query[0].dtype
    keys = parts_of(key, dtype)
    scores = tl.dot(query[0], tl.trans(keys[0]), input_precision="ieee")
    if len(keys) == 2:
        scores = tl.dot(query[1], tl.trans(keys[1]), scores, input_precision="ieee")
    factor = scale_log2
    if SOFT_CAP is not None:
        # tanh(x) = 1 - 2 / (1 + e^(2 x)) with x = score * scale / SOFT_CAP, which is 1 long before 2^64.
        powers = tl.exp2(tl.minimum(scores * (scale_log2 * (2.0 / SOFT_CAP)), 64.0))
        scores = 1.0 - 2.0 / (1.0 + powers)
        factor = SOFT_CAP * 1.4426950408889634  # log2(e)
    if IS_MASKED:
        tokens = start + tl.arange(0, TILE_TOKENS)
        if positions is None:
            is_seen = (tokens < end)[None, :]
            if IS_CUT:
                is_seen &= (tokens >= first)[None, :]
        else:
            is_seen = tokens[None, :] <= positions[:, None]
            if IS_CUT:
                is_seen &= tokens[None, :] > positions[:, None] - WINDOW
        scores = tl.where(is_seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * factor)
    weights = tl.exp2(scores * factor - new_top[:, None])
    decay = tl.exp2(top - new_top)
    total = total * decay + tl.sum(weights, 1)
    weights = weights.to(dtype)
    values = parts_of(value, dtype)
    first_acc = tl.dot(weights, values[0], acc[0] * decay[:, None], input_precision="ieee")
    if len(values) == 2:
        acc = (first_acc, tl.dot(weights, values[1], acc[1] * decay[:, None], input_precision="ieee"))
    else:
        acc = (first_acc,)
    return new_top, total, acc
