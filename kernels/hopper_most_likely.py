"""The most likely token after each hidden state, without its logits in memory, on Hopper.

What most_likely.py says of a product, while it is in registers. A program on each multiprocessor takes tiles of tokens
in turn, each with all hidden states: the head, which is what takes time to read, is read once, and hidden states come
out of the second-level cache for each tile. Written in Gluon, Triton's lower layer, which leaves to the kernel when a
load begins: nobody writes the head, so a program asks for as much as it has room for before it waits for the kernel
before it; and the next tile is on its way while the best of this one is found.

The tensor cores take 64 rows of their first operand, so those are tokens. Of the second they take any multiple of 8,
but a tensor has a power of two: hidden states are two of them, so that 144 do not take what 256 do.
"""

from typing import NamedTuple

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from pbench.kernels.compiler import let_next_launch, wait_for_previous
from pbench.kernels.launch import ceil_div, device_limits, next_power_of_2
from pbench.kernels.most_likely import merge_tiles

PIECE = gl.constexpr(64)  # tokens that are multiplied together
TILE_DEPTH = gl.constexpr(64)  # so many 16-bit elements are the 128 bytes that shared memory is swizzled by
MAX_HELD, MAX_SHARED_BYTES = 10, 216 * 1024
MAX_ROWS_OF_THREE = 36  # a warp, of a tile of three pieces: of more the sums do not fit into registers
PLACES = gl.constexpr(1 << 16)  # that the low half of an integer can tell apart
wait_for_program = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # renamed in Triton 3.7
SWIZZLED = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))


class NextTiling(NamedTuple):
    """How a product is cut up."""

    rows: int  # hidden states
    more_rows: int  # behind them, or 0
    num_pieces: int  # of a tile of tokens
    num_held: int  # parts of the depth that have a place in shared memory
    num_warps: int


@gluon.jit
def _load_head(
    head_descriptor: tma.tensor_descriptor,
    pieces: gl.shared_memory_descriptor,
    loaded: gl.shared_memory_descriptor,
    step: gl.tensor,
    num_steps: gl.tensor,
    VOCAB_SIZE: gl.constexpr,
    NUM_DEPTHS: gl.constexpr,
    NUM_BYTES: gl.constexpr,  # with the hidden states
) -> None:
    NUM_PIECES: gl.constexpr = pieces.shape[0] // loaded.shape[0]
    place = step % loaded.shape[0]
    tile = gl.program_id(0) + step // NUM_DEPTHS * gl.num_programs(0)
    first_token = gl.minimum(tile * (NUM_PIECES * PIECE), VOCAB_SIZE - NUM_PIECES * PIECE)
    is_there = step < num_steps
    mbarrier.expect(loaded.index(place), NUM_BYTES, pred=is_there)
    for i in gl.static_range(NUM_PIECES):
        start = [first_token + i * PIECE, step % NUM_DEPTHS * TILE_DEPTH]
        piece = pieces.index(place * NUM_PIECES + i)
        tma.async_copy_global_to_shared(head_descriptor, start, loaded.index(place), piece, pred=is_there)


@gluon.jit
def _load_hidden(
    descriptor: tma.tensor_descriptor,
    tiles: gl.shared_memory_descriptor,
    loaded: gl.shared_memory_descriptor,
    first_row: gl.constexpr,
    step: gl.tensor,
    num_steps: gl.tensor,
    NUM_DEPTHS: gl.constexpr,
) -> None:
    place = step % loaded.shape[0]
    start = [first_row, step % NUM_DEPTHS * TILE_DEPTH]
    tma.async_copy_global_to_shared(descriptor, start, loaded.index(place), tiles.index(place), pred=step < num_steps)


@gluon.jit
def _zeros(NUM_PIECES: gl.constexpr, ROWS: gl.constexpr, LAYOUT: gl.constexpr) -> gl.tuple:
    sums = (gl.zeros([PIECE, ROWS], gl.float32, layout=LAYOUT),)
    for _ in gl.static_range(1, NUM_PIECES):
        sums = sums + (gl.zeros([PIECE, ROWS], gl.float32, layout=LAYOUT),)  # type: ignore[assignment]  # noqa: RUF005
    return sums


@gluon.jit
def _multiply(
    pieces: gl.shared_memory_descriptor, tiles: gl.shared_memory_descriptor, place: gl.tensor, sums: gl.tuple
) -> gl.tuple:
    """Have products added to the sums of each piece, and do not wait for that."""
    hidden = tiles.index(place).permute((1, 0))
    added = (warpgroup_mma(pieces.index(place * len(sums)), hidden, sums[0], is_async=True),)
    for i in gl.static_range(1, len(sums)):
        sum_ = warpgroup_mma(pieces.index(place * len(sums) + i), hidden, sums[i], is_async=True)
        added = added + (sum_,)  # type: ignore[assignment]  # noqa: RUF005
    return added


@gluon.jit
def _ranked(sums: gl.tensor, first_place: gl.constexpr, dtype: gl.constexpr) -> gl.tensor:
    """Logits and where in their tile they stand as integers, of which the largest is that of the first largest logit.

    Two at a time: logits are rounded, -0 becomes 0, and the bits of negative ones but for the sign are turned, so that
    they are in the order of integers; they become the high halves.
    """
    PAIR: gl.constexpr = "bf16x2" if dtype == gl.bfloat16 else "f16x2"
    places = first_place + gl.arange(0, PIECE, layout=gl.SliceLayout(1, sums.type.layout))
    return gl.inline_asm_elementwise(
        "{.reg .b32 pair, signs, zero; mov.b32 zero, 0;"
        "cvt.rn." + PAIR + ".f32 pair, $3, $2;"
        "add.rn." + PAIR + " pair, pair, zero;"
        "prmt.b32 signs, pair, pair, 0xbb99;"  # each half is all its sign
        "lop3.b32 pair, pair, signs, 0x7fff7fff, 0x78;"  # pair ^ (signs & 0x7fff7fff)
        "prmt.b32 $0, $4, pair, 0x5410;"
        "lop3.b32 $1, pair, 0xffff0000, $5, 0xea;}",  # (pair & 0xffff0000) | $5
        "=&r,=&r,f,f,r,r",
        [sums, gl.zeros_like(sums).to(gl.int32) + gl.expand_dims(PLACES - 1 - places, 1)],
        dtype=gl.int32,
        is_pure=True,
        pack=2,
    )


@gluon.jit
def _store_best(
    sums: gl.tuple,
    first_row: gl.constexpr,
    place: gl.tuple,
    tile_logits_ptr: gl.tensor,
    tile_tokens_ptr: gl.tensor,
    num_rows: gl.tensor,
    dtype: gl.constexpr,
) -> None:
    """Of each row the largest logit of a tile, and the first token that has it."""
    tile, num_tiles, first_token = place
    ROWS: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    ranked = _ranked(sums[0], 0, dtype)
    for i in gl.static_range(1, len(sums)):
        ranked = gl.maximum(ranked, _ranked(sums[i], i * PIECE, dtype))
    best = gl.convert_layout(gl.max(ranked, 0), ROWS)
    ordered = (best >> 16).to(gl.int16)
    logits = (ordered ^ ((ordered >> 15) & 0x7FFF)).to(dtype, bitcast=True).to(gl.float32)
    tokens = first_token + (PLACES - 1 - (best & (PLACES - 1)))
    rows = first_row + gl.arange(0, best.shape[0], layout=ROWS)
    gl.store(tile_logits_ptr + rows * num_tiles + tile, logits, mask=rows < num_rows)
    gl.store(tile_tokens_ptr + rows * num_tiles + tile, tokens, mask=rows < num_rows)


@gluon.jit(do_not_specialize=("num_rows", "num_tiles"))
def _hopper_most_likely_kernel(
    hidden_descriptor: tma.tensor_descriptor,  # (num_rows, depth), in tiles (ROWS, TILE_DEPTH)
    more_descriptor: tma.tensor_descriptor,  # the same in tiles (MORE_ROWS, TILE_DEPTH)
    head_descriptor: tma.tensor_descriptor,  # (VOCAB_SIZE, depth), in tiles (PIECE, TILE_DEPTH)
    tile_logits_ptr: gl.tensor,  # (num_rows, num_tiles) float32: the largest of each tile
    tile_tokens_ptr: gl.tensor,  # (num_rows, num_tiles) int32: the first token that has it
    num_rows: gl.tensor,
    num_tiles: gl.tensor,
    VOCAB_SIZE: gl.constexpr,
    NUM_DEPTHS: gl.constexpr,
    ROWS: gl.constexpr,
    MORE_ROWS: gl.constexpr,  # or 0
    NUM_PIECES: gl.constexpr,
    NUM_HELD: gl.constexpr,
    NUM_WARPS: gl.constexpr,
) -> None:
    """Grid: (as many programs as run at once,)."""
    WARPS_ACROSS: gl.constexpr = NUM_WARPS // 4
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, WARPS_ACROSS], [16, ROWS // WARPS_ACROSS, 16])
    MORE_SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, WARPS_ACROSS], [16, max(MORE_ROWS, 16), 16])
    NUM_BYTES: gl.constexpr = (PIECE * NUM_PIECES + ROWS + MORE_ROWS) * TILE_DEPTH * 2
    dtype: gl.constexpr = head_descriptor.dtype
    num_own = (num_tiles - gl.program_id(0) + gl.num_programs(0) - 1) // gl.num_programs(0)
    num_steps = num_own * NUM_DEPTHS
    pieces = gl.allocate_shared_memory(dtype, [NUM_HELD * NUM_PIECES, PIECE, TILE_DEPTH], SWIZZLED)
    tiles = gl.allocate_shared_memory(dtype, [NUM_HELD, ROWS, TILE_DEPTH], SWIZZLED)
    if MORE_ROWS:
        more_tiles = gl.allocate_shared_memory(dtype, [NUM_HELD, MORE_ROWS, TILE_DEPTH], SWIZZLED)
    loaded = gl.allocate_shared_memory(gl.int64, [NUM_HELD, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(NUM_HELD):
        mbarrier.init(loaded.index(i), count=1)
    fence_async_shared()
    wait_for_program()
    for i in gl.static_range(NUM_HELD):
        _load_head(head_descriptor, pieces, loaded, i, num_steps, VOCAB_SIZE, NUM_DEPTHS, NUM_BYTES)
    wait_for_previous()
    let_next_launch()
    for i in gl.static_range(NUM_HELD):
        _load_hidden(hidden_descriptor, tiles, loaded, 0, i, num_steps, NUM_DEPTHS)
        if MORE_ROWS:
            _load_hidden(more_descriptor, more_tiles, loaded, ROWS, i, num_steps, NUM_DEPTHS)
    step = num_tiles * 0  # a number of the device, as the loop makes it
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        sums = _zeros(NUM_PIECES, ROWS, SUMS)
        if MORE_ROWS:
            sums = sums + _zeros(NUM_PIECES, MORE_ROWS, MORE_SUMS)
        for _ in range(NUM_DEPTHS):
            place = step % NUM_HELD
            mbarrier.wait(loaded.index(place), step // NUM_HELD & 1)
            added = _multiply(pieces, tiles, place, sums[:NUM_PIECES])
            if MORE_ROWS:
                added = added + _multiply(pieces, more_tiles, place, sums[NUM_PIECES:])
            sums = warpgroup_mma_wait(len(added), added)
            if step > 0:
                wait_for_program()  # nobody reads what the step before this one multiplied any more
                later = step - 1 + NUM_HELD
                _load_head(head_descriptor, pieces, loaded, later, num_steps, VOCAB_SIZE, NUM_DEPTHS, NUM_BYTES)
                _load_hidden(hidden_descriptor, tiles, loaded, 0, later, num_steps, NUM_DEPTHS)
                if MORE_ROWS:
                    _load_hidden(more_descriptor, more_tiles, loaded, ROWS, later, num_steps, NUM_DEPTHS)
            step += 1
        sums = warpgroup_mma_wait(0, sums)
        first_token = gl.minimum(tile * (NUM_PIECES * PIECE), VOCAB_SIZE - NUM_PIECES * PIECE)
        place = (tile, num_tiles, first_token)
        _store_best(sums[:NUM_PIECES], 0, place, tile_logits_ptr, tile_tokens_ptr, num_rows, dtype)
        if MORE_ROWS:
            _store_best(sums[NUM_PIECES:], ROWS, place, tile_logits_ptr, tile_tokens_ptr, num_rows, dtype)


def next_tiling(num_rows: int, vocab_size: int, num_sms: int) -> NextTiling:
    """How products of so many rows, at most 256, were fastest on an H200."""
    if num_rows <= 96:
        rows = min(max(next_power_of_2(num_rows), 16), 64)
    else:
        rows = 128 if num_rows <= 192 else 256
    more_rows = max(next_power_of_2(num_rows - rows), 32) if num_rows > rows else 0  # each size is compiled
    num_warps = 8 if rows == 256 else 4
    num_pieces = 2
    if num_rows > 64 and (rows + more_rows) // num_warps <= MAX_ROWS_OF_THREE:
        # Of the two sizes the one of which the last turn leaves fewer multiprocessors without a tile.
        num_pieces = min((3, 2), key=lambda count: count * ceil_div(ceil_div(vocab_size, count * PIECE.value), num_sms))
    num_bytes = (num_pieces * PIECE.value + rows + more_rows) * TILE_DEPTH.value * 2
    return NextTiling(rows, more_rows, num_pieces, min(MAX_HELD, MAX_SHARED_BYTES // num_bytes), num_warps)


def hopper_most_likely(hidden: torch.Tensor, head: torch.Tensor, out: torch.Tensor) -> None:
    """Launch the kernels on checked arguments (see ``most_likely_next``) that ``can_stay_in_registers``."""
    (num_rows, depth), vocab_size, num_sms = hidden.shape, head.shape[0], device_limits(hidden).num_sms
    rows, more_rows, num_pieces, num_held, num_warps = next_tiling(num_rows, vocab_size, num_sms)
    num_tiles = ceil_div(vocab_size, num_pieces * PIECE.value)
    largest = torch.empty((num_rows, num_tiles), dtype=torch.float32, device=hidden.device)
    tokens = torch.empty((num_rows, num_tiles), dtype=torch.int32, device=hidden.device)

    def tiles(tensor: torch.Tensor, count: int) -> TensorDescriptor:
        box = [count, TILE_DEPTH.value]
        return TensorDescriptor(tensor, list(tensor.shape), [depth, 1], box, SWIZZLED.value)

    _hopper_most_likely_kernel[(min(num_tiles, num_sms),)](
        tiles(hidden, rows),
        tiles(hidden, more_rows or rows),
        tiles(head, PIECE.value),
        largest,
        tokens,
        num_rows,
        num_tiles,
        VOCAB_SIZE=vocab_size,
        NUM_DEPTHS=ceil_div(depth, TILE_DEPTH.value),
        ROWS=rows,
        MORE_ROWS=more_rows,
        NUM_PIECES=num_pieces,
        NUM_HELD=num_held,
        NUM_WARPS=num_warps,
        launch_pdl=True,
        num_warps=num_warps,
    )
    merge_tiles(largest, tokens, out, vocab_size, is_early=True)
