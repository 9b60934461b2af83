"""The most likely token of every row of logits, or after every hidden state.

::

    token[r] = the first t with logits[r, t] = max_t logits[r, t]
    logits[r, t] = sum_k hidden[r, k] head[t, k]

A vocabulary is long and rows are few, so many programs share a row; a second, tiny launch compares what they found.
After few hidden states on a Hopper GPU logits stay in registers (hopper_most_likely.py).
"""

import torch
from torch.nn import functional

from pbench.kernels.compiler import jit, let_next_launch, tl, wait_for_previous
from pbench.kernels.few_rows_matmul import suits_hopper
from pbench.kernels.launch import (
    FLOAT_DTYPES,
    can_launch_early,
    ceil_div,
    check_contiguous,
    check_dtype,
    check_num_dims,
    check_product,
    check_shape,
    device_limits,
    next_power_of_2,
    runs_on_triton,
)

TILE_SIZE = 4096
MANY_ROWS, MAX_ROWS_IN_REGISTERS = 128, 256
MAX_DEPTH_OF_MANY_ROWS = 1024
MIN_TOKENS_PER_SM = 900


@jit(do_not_specialize_on_alignment=("logits_ptr",))
def _most_likely_kernel(
    logits_ptr: tl.pointer_type,  # (num_rows, VOCAB_SIZE)
    tile_logits_ptr: tl.pointer_type,  # (num_rows, num_tiles) float32: the largest of each tile
    tile_tokens_ptr: tl.pointer_type,  # (num_rows, num_tiles) int32: the first token that has it
    VOCAB_SIZE: tl.constexpr,
    TILE_SIZE: tl.constexpr,
    IS_ALIGNED: tl.constexpr,  # each row, to 16 bytes
    LETS_EARLY: tl.constexpr,  # _merge_kernel is launched before this one is done
) -> None:
    """Grid: (num_tiles, num_rows)."""
    if LETS_EARLY:
        let_next_launch()
    row, tile = tl.program_id(1).to(tl.int64), tl.program_id(0)
    tokens = tile * TILE_SIZE + tl.arange(0, TILE_SIZE)
    row_ptr = logits_ptr + row * VOCAB_SIZE
    if IS_ALIGNED:
        row_ptr = tl.multiple_of(row_ptr, 16)
    logits = tl.load(row_ptr + tokens, mask=tokens < VOCAB_SIZE, other=float("-inf"))
    logits = logits.to(tl.float32)
    largest = tl.max(logits, 0)
    first = tl.min(tl.where(logits == largest, tokens, VOCAB_SIZE), 0)
    tl.store(tile_logits_ptr + row * tl.num_programs(0) + tile, largest)
    tl.store(tile_tokens_ptr + row * tl.num_programs(0) + tile, first)


@jit(do_not_specialize_on_alignment=("tokens_ptr",))
def _merge_kernel(
    tile_logits_ptr: tl.pointer_type,  # (num_rows, NUM_TILES) float32
    tile_tokens_ptr: tl.pointer_type,  # (num_rows, NUM_TILES) int32
    tokens_ptr: tl.pointer_type,  # (num_rows,) int64
    VOCAB_SIZE: tl.constexpr,
    NUM_TILES: tl.constexpr,
    MAX_TILES: tl.constexpr,  # a power of two
    IS_EARLY: tl.constexpr,  # launched before the kernel before it is done
) -> None:
    """Grid: (num_rows,)."""
    if IS_EARLY:
        wait_for_previous()
    row, tiles = tl.program_id(0), tl.arange(0, MAX_TILES)
    is_tile = tiles < NUM_TILES
    logits = tl.load(tile_logits_ptr + row * NUM_TILES + tiles, mask=is_tile, other=float("-inf"))
    tokens = tl.load(tile_tokens_ptr + row * NUM_TILES + tiles, mask=is_tile, other=VOCAB_SIZE)
    is_largest = logits == tl.max(logits, 0)
    tl.store(tokens_ptr + row, tl.min(tl.where(is_largest, tokens, VOCAB_SIZE), 0).to(tl.int64))


def most_likely(logits: torch.Tensor, out: torch.Tensor) -> None:
    """Write the most likely token of each row into ``out``; of equals the first.

    Args:
        logits: ``(num_rows, vocab_size)``, float32, bfloat16 or float16, contiguous. No NaN; a row of nothing but -inf
            gives token 0.
        out: int64 ``(num_rows,)``, contiguous.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    check_num_dims("logits", logits, 2, "(num_rows, vocab_size)")
    check_dtype("logits", logits, *FLOAT_DTYPES)
    check_contiguous("logits", logits)
    check_shape("out", out, logits.shape[:1])
    check_dtype("out", out, torch.int64)
    check_contiguous("out", out)
    if runs_on_triton(logits):
        most_likely_triton(logits, out)
    else:
        most_likely_reference(logits, out)


def most_likely_next(hidden: torch.Tensor, head: torch.Tensor, out: torch.Tensor) -> None:
    """Write the most likely token after each hidden state into ``out``; of equals the first.

    Logits are rounded to the dtype of the hidden states before they are compared, as those in memory are.

    Args:
        hidden: ``(num_rows, k)``, float32, bfloat16 or float16, contiguous.
        head: ``(vocab_size, k)`` of that dtype, contiguous.
        out: int64 ``(num_rows,)``, contiguous.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    check_product(hidden, head, x_name="hidden", weight_name="head")
    check_shape("out", out, hidden.shape[:1])
    check_dtype("out", out, torch.int64)
    check_contiguous("out", out)
    if suits_hopper(hidden) and can_stay_in_registers(
        len(hidden), head.shape[0], head.shape[1], device_limits(hidden).num_sms
    ):
        from pbench.kernels.hopper_most_likely import hopper_most_likely

        hopper_most_likely(hidden, head, out)
    else:
        most_likely(functional.linear(hidden, head), out)


def can_stay_in_registers(num_rows: int, vocab_size: int, depth: int, num_sms: int) -> bool:
    """Whether the kernel of hopper_most_likely.py was faster on an H200 than a product and a choice.

    What it saves does not depend on the depth, and of many rows a library multiplies great depths faster.
    """
    most = MAX_ROWS_IN_REGISTERS if depth <= MAX_DEPTH_OF_MANY_ROWS else MANY_ROWS
    return 0 < num_rows <= most and depth % 8 == 0 and vocab_size >= MIN_TOKENS_PER_SM * num_sms


def most_likely_triton(logits: torch.Tensor, out: torch.Tensor) -> None:
    """Launch the kernels on checked arguments (see ``most_likely``)."""
    num_rows, vocab_size = logits.shape
    if num_rows == 0:
        return
    num_tiles = ceil_div(vocab_size, TILE_SIZE)
    largest = torch.empty((num_rows, num_tiles), dtype=torch.float32, device=logits.device)
    tokens = torch.empty((num_rows, num_tiles), dtype=torch.int32, device=logits.device)
    is_early = can_launch_early(logits)
    _most_likely_kernel[(num_tiles, num_rows)](
        logits,
        largest,
        tokens,
        VOCAB_SIZE=vocab_size,
        TILE_SIZE=TILE_SIZE,
        IS_ALIGNED=logits.data_ptr() % 16 == 0 and vocab_size * logits.element_size() % 16 == 0,
        LETS_EARLY=is_early,
        num_warps=4,
    )
    merge_tiles(largest, tokens, out, vocab_size, is_early=is_early)


def merge_tiles(
    largest: torch.Tensor, tokens: torch.Tensor, out: torch.Tensor, vocab_size: int, *, is_early: bool
) -> None:
    """Launch the kernel that finds the best of all tiles: ``(num_rows, num_tiles)`` float32 and int32."""
    num_rows, num_tiles = largest.shape
    _merge_kernel[(num_rows,)](
        largest,
        tokens,
        out,
        VOCAB_SIZE=vocab_size,
        NUM_TILES=num_tiles,
        MAX_TILES=next_power_of_2(num_tiles),
        IS_EARLY=is_early,
        launch_pdl=is_early,
        num_warps=4 if num_tiles > 128 else 1,
    )


def most_likely_reference(logits: torch.Tensor, out: torch.Tensor) -> None:
    """``most_likely`` in plain torch."""
    torch.argmax(logits, dim=-1, out=out)
