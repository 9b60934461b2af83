"""Which tilings are worth trying beside one: few, and only such as a multiprocessor has room for."""

from collections.abc import Iterator

from pbench.kernels.launch import DeviceLimits, next_power_of_2
from pbench.kernels.tiling import DecodeTiling, Operands, PrefillTiling, SharedTiling, Tiling, programs_fit

# Below so many registers a thread keeps its sums in memory.
MIN_REGISTERS = 64
SM_REGISTERS = 65536


def neighbours(tiling: Tiling, limits: DeviceLimits, operands: Operands) -> Iterator[Tiling]:
    """Tilings that differ by one step in one number, or in two that are known to belong together."""
    if isinstance(tiling, DecodeTiling):
        for decode in _decode_steps(tiling):
            if _is_decode_possible(decode, limits, operands):
                yield decode
    else:
        for step in _steps(tiling):
            if _is_possible(step, limits, operands):
                yield step


def _decode_steps(tiling: DecodeTiling) -> Iterator[DecodeTiling]:
    tile_tokens, tiles_in_flight, num_warps, programs_per_sm, min_chunk = tiling
    smaller = tiling._replace(tile_tokens=tile_tokens // 2, min_chunk=2 * min_chunk)  # a chunk of as many tokens
    yield tiling._replace(programs_per_sm=programs_per_sm + 1)
    yield tiling._replace(programs_per_sm=programs_per_sm - 1)
    yield tiling._replace(tiles_in_flight=tiles_in_flight + 1)
    yield tiling._replace(tiles_in_flight=tiles_in_flight - 1)
    yield smaller
    yield smaller._replace(tiles_in_flight=tiles_in_flight + 1)
    yield smaller._replace(programs_per_sm=programs_per_sm + 1)
    yield tiling._replace(tile_tokens=2 * tile_tokens, min_chunk=max(min_chunk // 2, 1))
    yield tiling._replace(num_warps=2 * num_warps)
    yield tiling._replace(num_warps=num_warps // 2)
    yield tiling._replace(min_chunk=2 * min_chunk)
    yield tiling._replace(min_chunk=min_chunk // 2)


def _is_decode_possible(tiling: DecodeTiling, limits: DeviceLimits, operands: Operands) -> bool:
    return (
        16 <= tiling.tile_tokens <= 256
        and 1 <= tiling.tiles_in_flight <= 5
        and 2 <= tiling.num_warps <= 8
        and tiling.programs_per_sm >= 1
        and 1 <= tiling.min_chunk <= 64
        and programs_fit(tiling, limits, operands)
        and tiling.programs_per_sm * tiling.num_warps * 32 * MIN_REGISTERS <= SM_REGISTERS
    )


def _steps(tiling: PrefillTiling | SharedTiling) -> Iterator[PrefillTiling | SharedTiling]:
    tile_rows, tile_tokens, num_warps, tiles_in_flight = tiling
    yield tiling._replace(tiles_in_flight=tiles_in_flight + 1)
    yield tiling._replace(tiles_in_flight=tiles_in_flight - 1)
    yield tiling._replace(tile_tokens=2 * tile_tokens)
    yield tiling._replace(tile_tokens=2 * tile_tokens, tiles_in_flight=tiles_in_flight - 1)
    yield tiling._replace(tile_tokens=tile_tokens // 2)
    yield tiling._replace(tile_tokens=tile_tokens // 2, tiles_in_flight=tiles_in_flight + 1)
    yield tiling._replace(tile_rows=tile_rows // 2, num_warps=num_warps // 2)  # a warp of as many rows
    yield tiling._replace(tile_rows=2 * tile_rows, num_warps=2 * num_warps)
    yield tiling._replace(num_warps=2 * num_warps)
    yield tiling._replace(num_warps=num_warps // 2)


def _is_possible(tiling: PrefillTiling | SharedTiling, limits: DeviceLimits, operands: Operands) -> bool:
    tile_bytes = tiling.tile_tokens * operands.token_bytes
    query_bytes = tiling.tile_rows * next_power_of_2(operands.head_dim) * operands.query_bytes
    return (
        16 <= tiling.tile_rows <= 256
        and 16 <= tiling.tile_tokens <= 256
        and 4 <= tiling.num_warps <= 16
        and 1 <= tiling.tiles_in_flight <= 4
        and tiling.tile_rows >= 2 * operands.group
        and query_bytes + tiling.tiles_in_flight * tile_bytes <= limits.shared_memory_bytes
    )
