"""Another implementation of attention, and when its result counts as the same."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pbench.kernel_bench.cases import attention_error
from pbench.kernel_bench.inputs import AttentionInputs

Call = Callable[[], Tensor]
# Correct kernels differ in what they round, and when. Further away than this many times our own error is another
# result: in 16 bits, one token in 10 000 left out.
MAX_ERROR_RATIO = 3.0
ROUNDING = 3e-7  # so far apart are results of float32 that are as right as they can be


class Peer(NamedTuple):
    """One implementation on one shape."""

    name: str
    prepare: Callable[[AttentionInputs], tuple[Call, ...]]  # may raise whatever the package raises
    is_paged: bool = True  # reads blocks through a table, as we do; else KV that lies side by side


def result_error(inputs: AttentionInputs, results: Sequence[Tensor], ours: Sequence[Tensor]) -> float:
    """How far a peer's results of some calls, the first among them, are from the right ones, relative: L2 norms.

    The first is held to float64 where ``attention_error`` looks, and every row of all of them to our own results.

    Raises:
        ValueError: a result has another shape.

    """
    distances = []
    for result, own in zip(results, ours, strict=True):
        if result.shape != own.shape:
            raise ValueError(f"its result has shape {tuple(result.shape)}; expected {tuple(own.shape)}")
        distances.append(float((result.float() - own.float()).norm() / own.float().norm()))
    distances.append(attention_error(inputs, results[0]))
    return float(torch.tensor(distances).max())  # NaN if any is
