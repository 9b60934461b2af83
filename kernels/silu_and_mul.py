"""The gated activation of a SwiGLU feed-forward layer (Shazeer, 2020, https://arxiv.org/abs/2002.05202).

With gate and up the two halves of each row::

    out = gate * sigmoid(gate) * up
"""

import torch
from torch.nn.functional import silu

from pbench.kernels.compiler import jit, tl
from pbench.kernels.launch import (
    FLOAT_DTYPES,
    ceil_div,
    check_dtype,
    check_num_dims,
    check_rows,
    runs_on_triton,
)
from pbench.kernels.launcher import Launch, Launcher, layout_of

TILE_SIZE = 1024


@jit()
def _silu_and_mul_kernel(
    gate_up_ptr: tl.pointer_type,  # (num_tokens, 2 * SIZE)
    out_ptr: tl.pointer_type,  # (num_tokens, SIZE)
    stride_token: tl.tensor,
    SIZE: tl.constexpr,
    TILE_SIZE: tl.constexpr,
) -> None:
    """Grid: (num_tokens, column tiles)."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * TILE_SIZE + tl.arange(0, TILE_SIZE)
    mask = columns < SIZE
    gate_ptr = gate_up_ptr + token * stride_token + columns
    gate = tl.load(gate_ptr, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + SIZE, mask=mask, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + token * SIZE + columns, out.to(out_ptr.dtype.element_ty), mask=mask)


_launch = Launcher(_silu_and_mul_kernel)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` of ``gate_up: (T, 2 * n)``: ``(T, n)``, computed in float32 and rounded once.

    Raises:
        ValueError: gate_up is not float32, bfloat16 or float16, has other than two dimensions, an odd number
            of columns, or columns that are not contiguous.
    """
    check_num_dims("gate_up", gate_up, 2, "(num_tokens, 2 * n)")
    check_dtype("gate_up", gate_up, *FLOAT_DTYPES)
    check_rows("gate_up", gate_up)
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up has {gate_up.shape[1]} columns; expected an even number: gate, then up")
    return silu_and_mul_triton(gate_up) if runs_on_triton(gate_up) else silu_and_mul_reference(gate_up)


def silu_and_mul_triton(gate_up: torch.Tensor) -> torch.Tensor:
    """Launch the kernel on a checked argument (see ``silu_and_mul``)."""
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel() == 0:
        return out
    _launch(layout_of(gate_up), (gate_up, out), (), lambda: _first_launch(gate_up))
    return out


def _first_launch(gate_up: torch.Tensor) -> Launch:
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    options = {"SIZE": size, "TILE_SIZE": TILE_SIZE}
    return Launch((num_tokens, ceil_div(size, TILE_SIZE), 1), (gate_up.stride(0),), options)


def silu_and_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu_and_mul`` in plain torch; float64 too."""
    gate, up = gate_up.to(torch.promote_types(gate_up.dtype, torch.float32)).chunk(2, dim=-1)
    return (silu(gate) * up).to(gate_up.dtype)
