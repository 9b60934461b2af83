"""Root-mean-square normalisation, alone or fused with the addition of the residual stream.

Over the last dimension, of size n (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467)::

    rms_norm(x) = weight * x / sqrt(mean(x^2) + eps)

in float32, rounded to x's dtype before the product with the weight and once more after it, as Llama's models
do.
"""

import torch

from pbench.kernels.compiler import jit, let_next_launch, tl, wait_for_previous
from pbench.kernels.launch import (
    FLOAT_DTYPES,
    can_launch_early,
    ceil_div,
    check_contiguous,
    check_dtype,
    check_num_dims,
    check_rows,
    check_shape,
    device_limits,
    next_power_of_2,
    runs_on_triton,
)
from pbench.kernels.launcher import Launch, Launcher, layout_of

MAX_SIZE = 32768  # one program holds a row in its registers
MOST_ROWS_TO_LET_EARLY = 64


@jit()
def _fetch(ptr: tl.tensor, num_elements: tl.tensor, SIZE: tl.constexpr) -> None:
    """Have all programs together bring ``num_elements`` into the L2 cache, each by SIZE threads."""
    element_bytes: tl.constexpr = ptr.dtype.element_ty.primitive_bitwidth // 8
    num_bytes = num_elements.to(tl.int64) * element_bytes
    piece_bytes = (num_bytes // (tl.num_programs(0) * SIZE) // 128 + 1) * 128
    places = (tl.program_id(0) * SIZE + tl.arange(0, SIZE)) * piece_bytes
    counts = tl.maximum(tl.minimum(num_bytes - places, piece_bytes), 0).to(tl.int32) // 16 * 16
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.u32 p, $2, 0; @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0; }",
        "=r,l,r",
        [ptr.to(tl.pointer_type(tl.int8)) + places, counts],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@jit(do_not_specialize=("num_upcoming", "num_rows"))
def _rms_norm_kernel(
    x_ptr: tl.pointer_type,  # (num_rows / num_inner, num_inner, SIZE), or with NUM_PARTS (NUM_PARTS, num_rows, SIZE)
    residual_ptr: tl.pointer_type,  # (num_rows, SIZE), added to x first
    weight_ptr: tl.pointer_type,  # (SIZE,)
    normed_ptr: tl.pointer_type,  # (num_rows, SIZE)
    sum_ptr: tl.pointer_type,  # (num_rows, SIZE): x + residual
    upcoming_ptr: tl.pointer_type,  # (num_upcoming,): what the next kernel reads, with FETCH_SIZE only
    num_upcoming: tl.tensor,
    num_rows: tl.tensor,
    num_inner: tl.tensor,
    outer_stride: tl.tensor,
    inner_stride: tl.tensor,
    eps: tl.tensor,
    HAS_RESIDUAL: tl.constexpr,
    NUM_PARTS: tl.constexpr,  # that x is the sum of; None: it is not in parts
    SIZE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_SIZE: tl.constexpr,
    IS_EARLY: tl.constexpr,  # launched before the kernel before it is done
    LETS_EARLY: tl.constexpr,  # the next kernel may start before that, too
    FETCH_SIZE: tl.constexpr,  # threads of a program that fetch; None: nothing is fetched
) -> None:
    """Grid: (row tiles,), or more where there is much to fetch."""
    columns = tl.arange(0, TILE_SIZE)
    if LETS_EARLY:
        let_next_launch()
    weight = tl.load(weight_ptr + columns, mask=columns < SIZE, other=0.0).to(tl.float32)
    if FETCH_SIZE is not None:
        _fetch(upcoming_ptr, num_upcoming, FETCH_SIZE)
    if IS_EARLY:
        wait_for_previous()
        if not LETS_EARLY:
            let_next_launch()
    rows = tl.program_id(0).to(tl.int64) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    mask = (rows < num_rows)[:, None] & (columns < SIZE)[None, :]
    x_rows = rows // num_inner * outer_stride + rows % num_inner * inner_stride
    offsets = rows[:, None] * SIZE + columns[None, :]
    x = tl.load(x_ptr + x_rows[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    if NUM_PARTS is not None:
        for part in tl.static_range(1, NUM_PARTS):
            x += tl.load(x_ptr + part * num_rows.to(tl.int64) * SIZE + offsets, mask=mask, other=0.0)
        x = x.to(normed_ptr.dtype.element_ty).to(tl.float32)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        rounded_sum = (x + residual).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + offsets, rounded_sum, mask=mask)
        x = rounded_sum.to(tl.float32)
    mean_square = tl.sum(x * x, 1) / SIZE
    normed = (x * tl.rsqrt(mean_square + eps)[:, None]).to(normed_ptr.dtype.element_ty)
    out = weight[None, :] * normed.to(tl.float32)
    tl.store(normed_ptr + offsets, out.to(normed_ptr.dtype.element_ty), mask=mask)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise the last dimension of ``x``; a new contiguous tensor of its shape and dtype.

    Args:
        x: ``(..., n)``, float32, bfloat16 or float16, n at most 32768; with up to three dimensions a slice of
            a wider tensor is read in place, if its last dimension is contiguous.
        weight: ``(n,)`` of x's dtype.
        eps: added to the mean square.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    _check(x, weight)
    return rms_norm_triton(x, weight, eps) if runs_on_triton(x) else rms_norm_reference(x, weight, eps)


def rms_norm_triton(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Launch the kernel on checked arguments (see ``rms_norm``)."""
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, normed, normed, eps)
    return normed


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``rms_norm`` in plain torch; float64 too."""
    computed = x.to(torch.promote_types(x.dtype, torch.float32))
    computed = computed * torch.rsqrt(computed.pow(2).mean(-1, keepdim=True) + eps)
    return weight * computed.to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``new_residual = x + residual``, rounded, and its normalisation: ``(normed, new_residual)``.

    Args:
        x: as for ``rms_norm``.
        residual: of x's shape and dtype, contiguous.
        weight: ``(n,)`` of x's dtype.
        eps: added to the mean square.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    _check(x, weight)
    check_shape("residual", residual, x.shape)
    check_dtype("residual", residual, x.dtype)
    check_contiguous("residual", residual)
    if runs_on_triton(x):
        return add_rms_norm_triton(x, residual, weight, eps)
    return add_rms_norm_reference(x, residual, weight, eps)


def add_rms_norm_triton(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel on checked arguments (see ``add_rms_norm``)."""
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    new_residual = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, residual, weight, normed, new_residual, eps)
    return normed, new_residual


def add_rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``add_rms_norm`` in plain torch; float64 too."""
    new_residual = x + residual
    return rms_norm_reference(new_residual, weight, eps), new_residual


def add_parts_rms_norm(
    parts: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, upcoming: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``add_rms_norm`` of the sum of ``parts``, rounded to residual's dtype as one product would be.

    Args:
        parts: float32 ``(num_parts, T, n)``, contiguous, n at most 32768: what few_rows_matmul.py makes.
        residual: ``(T, n)``, float32, bfloat16 or float16, contiguous.
        weight: ``(n,)`` of residual's dtype.
        eps: added to the mean square.
        upcoming: a weight that the next kernel reads, contiguous. Memory fetches it while this kernel still waits for
            ``parts``; what is computed does not depend on it.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    _check(residual, weight)
    check_num_dims("parts", parts, 3, "(num_parts, num_tokens, n)")
    check_shape("parts", parts, (parts.shape[0], *residual.shape))
    check_dtype("parts", parts, torch.float32)
    check_contiguous("parts", parts)
    check_contiguous("residual", residual)
    if upcoming is not None:
        check_contiguous("upcoming", upcoming)
    if runs_on_triton(parts):
        return add_parts_rms_norm_triton(parts, residual, weight, eps, upcoming)
    return add_parts_rms_norm_reference(parts, residual, weight, eps)


def add_parts_rms_norm_triton(
    parts: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, upcoming: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel on checked arguments (see ``add_parts_rms_norm``)."""
    normed, new_residual = torch.empty_like(residual), torch.empty_like(residual)
    _launch(parts[0], residual, weight, normed, new_residual, eps, len(parts), upcoming)
    return normed, new_residual


def add_parts_rms_norm_reference(
    parts: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``add_parts_rms_norm`` in plain torch; float64 too."""
    return add_rms_norm_reference(parts.sum(0).to(residual.dtype), residual, weight, eps)


def _check(x: torch.Tensor, weight: torch.Tensor) -> None:
    check_dtype("x", x, *FLOAT_DTYPES)
    check_rows("x", x)
    if not 1 <= x.shape[-1] <= MAX_SIZE:
        raise ValueError(f"x has shape {tuple(x.shape)}; its last dimension must be from 1 to {MAX_SIZE}")
    check_shape("weight", weight, (x.shape[-1],))
    check_dtype("weight", weight, x.dtype)
    check_contiguous("weight", weight)


_launcher = Launcher(_rms_norm_kernel)


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    normed: torch.Tensor,
    new_residual: torch.Tensor,
    eps: float,
    num_parts: int | None = None,
    upcoming: torch.Tensor | None = None,
) -> None:
    if normed.numel() == 0:
        return
    if x.dim() > 3:
        x = x.flatten(0, -3)
    num_upcoming = 0 if upcoming is None or upcoming.data_ptr() % 16 else upcoming.numel()
    _launcher(
        (layout_of(x, weight), residual is None, num_parts, num_upcoming),
        (
            x,
            x if residual is None else residual,
            weight,
            normed,
            new_residual,
            weight if upcoming is None else upcoming,
        ),
        (float(eps),),
        lambda: _first_launch(x, num_parts, num_upcoming, has_residual=residual is not None),
    )


def _first_launch(x: torch.Tensor, num_parts: int | None, num_upcoming: int, *, has_residual: bool) -> Launch:
    size = x.shape[-1]
    num_rows = x.numel() // size
    num_inner, inner_stride = (x.shape[1], x.stride(1)) if x.dim() == 3 else (1, 0)
    outer_stride = x.stride(0) if x.dim() > 1 else 0
    tile_size = next_power_of_2(size)
    tile_rows = max(1, 1024 // tile_size)
    num_programs = ceil_div(num_rows, tile_rows)
    # Behind a library's kernel, which lets nothing start, that would cost time.
    is_early = num_parts is not None and can_launch_early(x)
    # With few rows the next kernel fits beside the one before this, and fetches for itself. With more it would find the
    # multiprocessors unevenly taken, and end up unevenly spread itself: so this one fetches for it.
    lets_early = is_early and num_upcoming > 0 and num_rows <= MOST_ROWS_TO_LET_EARLY
    fetches = is_early and num_upcoming > 0 and not lets_early
    num_warps = min(max(tile_size // (512 if num_parts is None else 128), 4), 16)
    options = {
        "HAS_RESIDUAL": has_residual,
        "NUM_PARTS": num_parts,
        "SIZE": size,
        "TILE_ROWS": tile_rows,
        "TILE_SIZE": tile_size,
        "IS_EARLY": is_early,
        "LETS_EARLY": lets_early,
        "FETCH_SIZE": 32 * num_warps if fetches else None,
        "launch_pdl": is_early,
        "num_warps": num_warps,
    }
    if fetches:
        num_programs = max(num_programs, device_limits(x).num_sms)
    integers = (num_upcoming, num_rows, num_inner, outer_stride, inner_stride)
    return Launch((num_programs, 1, 1), integers, options)
