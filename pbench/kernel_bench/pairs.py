"""Kernels of decode steps, each beside torch's own way to the same result on buffers that hold the same."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pbench.engine.model_config import ModelConfig
from pbench.engine.products import FewRowsProducts, Products, WholeProducts
from pbench.kernel_bench.cases import EPS, OURS, Case, random_rotation
from pbench.kernel_bench.inputs import Buffers
from pbench.kernel_bench.shapes import ADDED, GATED, INVARIANT, PRODUCT, PROJECTED, ProductShape
from pbench.kernels.few_rows_matmul import few_rows_matmul_reference
from pbench.kernels.gated_matmul import gated_matmul_reference
from pbench.kernels.launch import can_launch_early, runs_on_triton
from pbench.kernels.matmul import matmul
from pbench.kernels.most_likely import most_likely, most_likely_next, most_likely_reference
from pbench.kernels.project_write_kv import project_write_kv, project_write_kv_reference
from pbench.kernels.rms_norm import add_rms_norm_reference
from pbench.kernels.rotary_write_kv import HeadNorms, Rotation, rotary_write_kv

LINEAR = "torch linear"  # and behind it our own activation or norm, as engines have it for many rows
ARGMAX = "torch argmax"
LINEAR_ARGMAX = "torch linear and argmax"
NOT_HOPPER = "needs compute capability 9.0; on other GPUs engines take torch's products"


class Pair(NamedTuple):
    """The same work twice."""

    ours: Case
    theirs: Case


class PairBuilder(NamedTuple):
    """Of a pair, which has a name before there are buffers for it."""

    kernel: str
    shape: str
    build: Callable[[], Pair]


class _ExactProducts:
    """References, for float64."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return few_rows_matmul_reference(x, weight, bias)

    def gated(self, x: Tensor, gate_up: Tensor) -> Tensor:
        return gated_matmul_reference(x, gate_up)

    def addend(self, x: Tensor, weight: Tensor) -> Tensor:
        return few_rows_matmul_reference(x, weight)

    def add_norm(
        self, addend: Tensor, residual: Tensor, weight: Tensor, eps: float, upcoming: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return add_rms_norm_reference(addend, residual, weight, eps)


def product_pair(shape: ProductShape, buffers: Buffers) -> Pair:
    """A layer's product as engines compute it for few rows, or batch-invariant, beside how they do for many.

    Each call has its weight. Where the result is added to the residual stream, sum and norm are in the time: our kernel
    leaves them the product in parts.
    """
    num_bytes = shape.num_bytes(buffers.dtype.itemsize)
    inputs = [_product_inputs(shape, buffers) for _ in range(buffers.num_rotations(num_bytes))]
    run = _PRODUCTS[shape.kernel]

    def case(implementation: str, products: Products, unfit: str | None = None) -> Case:
        def error() -> float:
            expected = _joined(run(_ExactProducts(), *(tensor.double() for tensor in inputs[0])))
            out = _joined(run(products, *inputs[0])).double()
            return float((out - expected).norm() / expected.norm())

        calls = tuple(partial(run, products, *own) for own in inputs)
        return Case(shape.kernel, shape.name, implementation, calls, num_bytes, shape.flops, error, unfit)

    theirs = case(LINEAR, WholeProducts(functional.linear))
    if shape.kernel == INVARIANT:
        return Pair(case(OURS, WholeProducts(matmul)), theirs)
    return Pair(case(OURS, FewRowsProducts(), _unfit(inputs[0][0])), theirs)


def projection_pair(model: ModelConfig, num_rows: int, block_size: int, buffers: Buffers) -> Pair:
    """Rotated queries, and keys and values in the pool, as engines compute them of few rows in one launch, beside two.

    Each call has its weight; the error is that of queries, keys and values together.
    """
    num_heads, num_kv_heads, head_dim, depth = model.num_heads, model.num_kv_heads, model.head_dim, model.hidden_size
    num_columns = model.query_size + 2 * model.kv_size
    num_bytes = (num_columns * depth + num_rows * (depth + num_columns)) * buffers.dtype.itemsize
    rotation = random_rotation(head_dim, num_rows, buffers)
    if model.has_qk_norm:
        rotation = rotation._replace(norms=HeadNorms(buffers.random(head_dim), buffers.random(head_dim), EPS))
    num_blocks = -(-num_rows // block_size)
    kv = buffers.random(num_blocks, 2, num_kv_heads, block_size, head_dim)
    slots = torch.randperm(num_blocks * block_size)[:num_rows].to(buffers.device)
    inputs = [
        (buffers.random(num_rows, depth), buffers.random(num_columns, depth).mul_(depth**-0.5))
        for _ in range(buffers.num_rotations(num_bytes))
    ]

    def theirs(x: Tensor, weight: Tensor, bias: None, rotation: Rotation, kv: Tensor, slots: Tensor) -> Tensor:
        heads = functional.linear(x, weight, bias).view(num_rows, -1, head_dim)
        query, key, value = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
        rotary_write_kv(query, key, value, rotation, kv, slots)
        return query

    def results(project: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        x, weight = (tensor.to(dtype) for tensor in inputs[0])
        norms = rotation.norms
        if norms is not None:
            norms = HeadNorms(norms.query_weight.to(dtype), norms.key_weight.to(dtype), norms.eps)
        pool = kv.to(dtype, copy=True)
        query = project(x, weight, None, rotation._replace(norms=norms), pool, slots)
        written = pool.permute(0, 3, 1, 2, 4).reshape(-1, 2 * num_kv_heads, head_dim)[slots]
        return torch.cat((query, written), dim=1).double()

    def case(implementation: str, project: Callable[..., Tensor], unfit: str | None = None) -> Case:
        def error() -> float:
            expected = results(project_write_kv_reference, torch.float64)
            return float((results(project, buffers.dtype) - expected).norm() / expected.norm())

        calls = tuple(partial(project, *own, None, rotation, kv, slots) for own in inputs)
        flops = 2 * num_rows * num_columns * depth
        return Case(PROJECTED, f"{model.name}, {num_rows} rows", implementation, calls, num_bytes, flops, error, unfit)

    return Pair(case(OURS, project_write_kv, _unfit(kv)), case(LINEAR, theirs))


def most_likely_pair(vocab_size: int, num_rows: int, buffers: Buffers) -> Pair:
    """The most likely token of each of ``num_rows``; the error is how many are others than the first of equals."""
    num_bytes = num_rows * (vocab_size * buffers.dtype.itemsize + torch.int64.itemsize)
    logits = [buffers.random(num_rows, vocab_size) for _ in range(buffers.num_rotations(num_bytes))]
    chosen = torch.empty(num_rows, dtype=torch.int64, device=buffers.device)

    def case(implementation: str, choose: Callable[[Tensor, Tensor], object]) -> Case:
        def error() -> float:
            expected = torch.empty(num_rows, dtype=torch.int64)
            most_likely_reference(logits[0].cpu(), expected)
            choose(logits[0], chosen)
            return float((chosen.cpu() != expected).sum())

        calls = tuple(partial(choose, own, chosen) for own in logits)
        return Case("most likely", f"{num_rows} of {vocab_size}", implementation, calls, num_bytes, 0, error)

    return Pair(case(OURS, most_likely), case(ARGMAX, lambda own, out: torch.argmax(own, dim=-1, out=out)))


def next_token_pair(vocab_size: int, hidden_size: int, num_rows: int, buffers: Buffers) -> Pair:
    """The most likely token after each of ``num_rows`` hidden states; the error is how many are not.

    Sums in another order are rounded otherwise: logits so near the largest count as equal to it.
    """
    num_bytes = (vocab_size + num_rows) * hidden_size * buffers.dtype.itemsize
    inputs = [
        (buffers.random(num_rows, hidden_size), buffers.random(vocab_size, hidden_size).mul_(hidden_size**-0.5))
        for _ in range(buffers.num_rotations(num_bytes))
    ]
    chosen = torch.empty(num_rows, dtype=torch.int64, device=buffers.device)
    rounding = 2 * torch.finfo(buffers.dtype).eps

    def case(implementation: str, choose: Callable[[Tensor, Tensor, Tensor], object]) -> Case:
        def error() -> float:
            logits = few_rows_matmul_reference(*(tensor.double() for tensor in inputs[0]))
            choose(*inputs[0], chosen)
            largest = logits.amax(1, keepdim=True)
            return float((logits.gather(1, chosen[:, None]) < largest * (1 - rounding)).sum())

        calls = tuple(partial(choose, *own, chosen) for own in inputs)
        flops = 2 * num_rows * vocab_size * hidden_size
        name = f"{num_rows} of {vocab_size}"
        return Case("most likely next", name, implementation, calls, num_bytes, flops, error)

    def theirs(hidden: Tensor, head: Tensor, out: Tensor) -> None:
        torch.argmax(functional.linear(hidden, head), dim=-1, out=out)

    return Pair(case(OURS, most_likely_next), case(LINEAR_ARGMAX, theirs))


def _unfit(tensor: Tensor) -> str | None:
    return NOT_HOPPER if runs_on_triton(tensor) and not can_launch_early(tensor) else None


def _product_inputs(shape: ProductShape, buffers: Buffers) -> tuple[Tensor, ...]:
    """What the function of the shape's kernel in ``_PRODUCTS`` takes; products are about as large as the residual."""
    x = buffers.random(shape.num_rows, shape.depth)
    weight = buffers.random(shape.num_columns, shape.depth).mul_(shape.depth**-0.5)
    if shape.kernel != ADDED:
        return x, weight
    return x, weight, buffers.random(shape.num_rows, shape.num_columns), buffers.random(shape.num_columns)


def _product(products: Products, x: Tensor, weight: Tensor) -> Tensor:
    return products.linear(x, weight, None)


def _gated(products: Products, x: Tensor, gate_up: Tensor) -> Tensor:
    return products.gated(x, gate_up)


def _added(
    products: Products, x: Tensor, weight: Tensor, residual: Tensor, norm_weight: Tensor
) -> tuple[Tensor, Tensor]:
    return products.add_norm(products.addend(x, weight), residual, norm_weight, EPS)


_PRODUCTS: dict[str, Callable[..., Tensor | tuple[Tensor, Tensor]]] = {
    PRODUCT: _product,
    INVARIANT: _product,
    GATED: _gated,
    ADDED: _added,
}


def _joined(out: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return out if isinstance(out, Tensor) else torch.stack(out)
