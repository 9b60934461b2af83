"""The matrix products of a decoder layer, and what is fused with them: by a library, or for few rows by our kernels."""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from pbench.engine.model_config import ModelConfig
from pbench.kernels.few_rows_matmul import few_rows_matmul, few_rows_parts, num_parts_for
from pbench.kernels.gated_matmul import gated_matmul, num_gated_programs
from pbench.kernels.launch import can_launch_early, device_limits
from pbench.kernels.rms_norm import add_parts_rms_norm, add_rms_norm
from pbench.kernels.silu_and_mul import silu_and_mul

Linear: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # of x, weight and bias

FEW_ROWS = (256, 128, 64, 32)  # that were measured, on an H200
# Where the gated product has several tiles of rows: of its programs on each multiprocessor. With more, tiles as small
# as these read the weight too often.
MAX_GATED_PROGRAMS = 2
MAX_FETCHED_BYTES = 16 * 2**20  # of a weight, while a norm waits: larger ones keep memory busy as it is


class Products(Protocol):
    """Of T tokens."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x @ weight.T + bias``: (T, n)."""
        ...

    def gated(self, x: Tensor, gate_up: Tensor) -> Tensor:
        """``silu(x @ gate.T) * (x @ up.T)``: (T, n)."""
        ...

    def addend(self, x: Tensor, weight: Tensor) -> Tensor:
        """``x @ weight.T`` for ``add_norm``, and nothing else."""
        ...

    def add_norm(
        self, addend: Tensor, residual: Tensor, weight: Tensor, eps: float, upcoming: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See ``pbench.kernels.rms_norm.add_rms_norm``; ``upcoming`` is the weight of the product that follows."""
        ...


class WholeProducts:
    """Each product by one call, for any number of tokens."""

    def __init__(self, linear: Linear) -> None:
        self.linear = linear

    def gated(self, x: Tensor, gate_up: Tensor) -> Tensor:
        """See ``Products``."""
        return silu_and_mul(self.linear(x, gate_up, None))

    def addend(self, x: Tensor, weight: Tensor) -> Tensor:
        """See ``Products``."""
        return self.linear(x, weight, None)

    def add_norm(
        self, addend: Tensor, residual: Tensor, weight: Tensor, eps: float, upcoming: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See ``Products``."""
        return add_rms_norm(addend, residual, weight, eps)


class FewRowsProducts:
    """Where reading the weights is most of the work: each kernel is launched while the one before it still runs."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See ``Products``."""
        return few_rows_matmul(x, weight, bias)

    def gated(self, x: Tensor, gate_up: Tensor) -> Tensor:
        """See ``Products``."""
        return gated_matmul(x, gate_up)

    def addend(self, x: Tensor, weight: Tensor) -> Tensor:
        """See ``Products``."""
        return few_rows_parts(x, weight)

    def add_norm(
        self, addend: Tensor, residual: Tensor, weight: Tensor, eps: float, upcoming: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See ``Products``."""
        if upcoming is not None and upcoming.nbytes > MAX_FETCHED_BYTES:
            upcoming = None
        return add_parts_rms_norm(addend, residual, weight, eps, upcoming)


def most_few_rows(config: ModelConfig, embedding: Tensor) -> int:
    """For how many tokens at most ``FewRowsProducts`` are the faster ones for a model; 0: for none.

    That is where what is added to the residual stream has so few tiles that it is worth cutting into parts, and the
    gated product not too many. Their kernels are for Hopper, and for what its tensor cores multiply.
    """
    sizes = (config.hidden_size, config.query_size, config.intermediate_size)
    is_hopper = embedding.is_cuda and can_launch_early(embedding)
    if not is_hopper or embedding.dtype is torch.float32 or any(size % 8 for size in sizes):
        return 0
    num_sms = device_limits(embedding).num_sms
    for num_rows in FEW_ROWS:
        num_parts = (num_parts_for(num_rows, config.hidden_size, depth, num_sms) for depth in sizes[1:])
        num_programs = num_gated_programs(num_rows, config.intermediate_size, num_sms)
        if min(num_parts) > 1 and (num_rows <= 64 or num_programs <= MAX_GATED_PROGRAMS * num_sms):
            return num_rows
    return 0
