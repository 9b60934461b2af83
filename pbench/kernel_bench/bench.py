"""Times every kernel against what this machine reaches, beside other implementations that can be imported."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from pbench.kernel_bench.cases import (
    OURS,
    OURS_FLAT,
    OURS_FP8,
    Builder,
    Case,
    attention_case,
    attention_error,
    choice_cases,
    copy_case,
    host_cases,
    row_cases,
    step_cases,
)
from pbench.kernel_bench.ceilings import Ceilings
from pbench.kernel_bench.comparison import AGAIN, Comparison, comparisons, peer_ratios
from pbench.kernel_bench.inputs import AttentionInputs, Buffers, attention_inputs
from pbench.kernel_bench.measurement import Measurement
from pbench.kernel_bench.mixed import mixed_ways
from pbench.kernel_bench.pairs import (
    Pair,
    PairBuilder,
    most_likely_pair,
    next_token_pair,
    product_pair,
    projection_pair,
)
from pbench.kernel_bench.peer import MAX_ERROR_RATIO, ROUNDING, Peer, result_error
from pbench.kernel_bench.peers import peers
from pbench.kernel_bench.shapes import (
    CPU_SIZE,
    GPU_SIZE,
    PROJECTED,
    AttentionShape,
    BenchSize,
    attention_shapes,
    invariant_attention_shapes,
    invariant_product_shapes,
    product_shapes,
    taxed_shapes,
)
from pbench.kernel_bench.timing import time_calls, time_host
from pbench.kernels.launch import FP8, FP8_CAPABILITY

ATTENTION_KERNELS = ("decode", "ragged", "prefill", "mixed", "shared", "window", "soft cap")
OTHER_KERNELS = ("copy blocks", "rows", "step", "invariant", "products", "most likely", "host")
TAXED_BLOCK_SIZES = (16, 32, 64, 128, 256)
CONTIGUOUS = "contiguous"

_COPIED_BYTES = {"cuda": 4_294_967_296, "cpu": 33_554_432}  # of the source
_MATRIX_SIZE = {"cuda": 8192, "cpu": 512}


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """What is timed, and where."""

    device: torch.device
    kernels: Collection[str] = (*ATTENTION_KERNELS, *OTHER_KERNELS)
    block_size: int = 16
    num_samples: int = 20
    seed: int = 0
    has_peers: bool = True

    @property
    def size(self) -> BenchSize:
        """Full on a GPU, scaled down elsewhere."""
        return GPU_SIZE if self.device.type == "cuda" else CPU_SIZE

    @property
    def dtype(self) -> torch.dtype:
        """Of all numbers: what models are served in on a GPU, and what every processor multiplies elsewhere."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


def measure_ceilings(plan: KernelPlan) -> Ceilings:
    """Copy a large buffer, multiply two large matrices of random numbers.

    What copies is a kernel that reads every element and writes it with its sign turned, or the driver's own copy,
    whichever is faster: in a CUDA graph the driver's reached 2.7 TB/s on an H200 whose kernels move more than 4.
    """
    device, kind = plan.device, plan.device.type
    source = torch.randn(_COPIED_BYTES[kind] // plan.dtype.itemsize, dtype=plan.dtype, device=device)
    target = torch.empty_like(source)
    ways = (partial(target.copy_, source), partial(torch.neg, source, out=target))
    copy_us = min(time_calls([way], device, plan.num_samples).median_us for way in ways)
    del source, target, ways
    size = _MATRIX_SIZE[kind]
    left, right = (torch.randn(size, size, dtype=plan.dtype, device=device) for _ in range(2))
    matrix_us = time_calls([partial(torch.matmul, left, right)], device, plan.num_samples).median_us
    name = torch.cuda.get_device_name(device) if kind == "cuda" else "this machine's processor"
    return Ceilings(name, 2 * _COPIED_BYTES[kind] / copy_us * 1e6, 2 * size**3 / matrix_us * 1e6)


def measure_kernels(plan: KernelPlan) -> Iterator[Measurement]:
    """Every kernel of the plan on all its shapes, and peers beside them; failures are measurements too."""
    size, buffers = plan.size, Buffers.of(plan.device, plan.dtype, plan.seed)
    # First: once a peer has used torch.compile, every call of a Python function takes half as long again.
    if "host" in plan.kernels:
        for builder in host_cases(size, plan.block_size, buffers):
            yield from _kept(builder.kernel, builder.shape, partial(_measure_host, builder, plan))
    for shape in attention_shapes(size, plan.seed):
        if shape.kernel in plan.kernels:
            yield from _kept(shape.kernel, shape.name, partial(_measure_attention, shape, plan, buffers))
    for builder in _builders(plan, buffers):
        yield from _kept(builder.kernel, builder.shape, partial(_measure_built, builder, plan))
    for pair in _pair_builders(plan, buffers):
        yield from _kept(pair.kernel, pair.shape, partial(_measure_built_pair, pair, plan))


def _kept(kernel: str, shape: str, measure: Callable[[], Iterator[Measurement]]) -> Iterator[Measurement]:
    """What is measured, and why no more is where something raises: other cases go on."""
    try:
        yield from measure()
    except Exception as raised:
        yield Measurement(kernel, shape, OURS, 0, 0, None, failure=_reason(raised), is_fault=True)


def _reason(raised: Exception) -> str:
    return f"{type(raised).__name__}: {raised}".splitlines()[0]


def _builders(plan: KernelPlan, buffers: Buffers) -> Iterator[Builder]:
    """Of cases that have nothing beside them."""
    size = plan.size
    if "copy blocks" in plan.kernels:
        shape = f"{size.num_copied_blocks} of {plan.block_size}"
        yield Builder("copy blocks", shape, partial(copy_case, shape, size, plan.block_size, buffers))
    if "rows" in plan.kernels:
        for num_tokens in size.num_row_tokens:
            yield from row_cases(size, plan.block_size, num_tokens, buffers)
        for num_rows in size.num_choices:
            yield from choice_cases(size.vocab_size, num_rows, buffers)
    if "step" in plan.kernels:
        yield from step_cases(size, plan.block_size, buffers)
    if "invariant" in plan.kernels:
        for attention in invariant_attention_shapes(size):
            yield Builder(attention.kernel, attention.name, partial(_ours_on_new_inputs, attention, plan, buffers))


def _pair_builders(plan: KernelPlan, buffers: Buffers) -> Iterator[PairBuilder]:
    """Of cases that have torch's own way beside them."""
    size = plan.size
    if "products" in plan.kernels:
        for product in product_shapes(size):
            yield PairBuilder(product.kernel, product.name, partial(product_pair, product, buffers))
        for model in size.projected_models:
            for num_rows in size.num_product_rows:
                build = partial(projection_pair, model, num_rows, plan.block_size, buffers)
                yield PairBuilder(PROJECTED, f"{model.name}, {num_rows} rows", build)
    if "invariant" in plan.kernels:
        for product in invariant_product_shapes(size):
            yield PairBuilder(product.kernel, product.name, partial(product_pair, product, buffers))
    if "most likely" in plan.kernels:
        model = size.models[0]
        for num_rows in size.num_most_likely:
            name = f"{num_rows} of {model.vocab_size}"
            yield PairBuilder("most likely", name, partial(most_likely_pair, model.vocab_size, num_rows, buffers))
            sizes = (model.vocab_size, model.hidden_size, num_rows)
            yield PairBuilder("most likely next", name, partial(next_token_pair, *sizes, buffers))


def _measure_built(builder: Builder, plan: KernelPlan) -> Iterator[Measurement]:
    yield _time(builder.build(), plan)


def _measure_built_pair(builder: PairBuilder, plan: KernelPlan) -> Iterator[Measurement]:
    yield from measure_pair(builder.build(), plan)


def _measure_host(builder: Builder, plan: KernelPlan) -> Iterator[Measurement]:
    case = builder.build()
    timing = time_host(case.calls[0], plan.device, plan.num_samples)
    yield Measurement(case.kernel, case.shape, case.implementation, 0, 0, timing)


def measure_pair(pair: Pair, plan: KernelPlan) -> Iterator[Measurement]:
    """Ours; on a GPU also torch's way, timed if its result is right, and ours again. Elsewhere ours is torch's too."""
    ours = _time(pair.ours, plan)
    yield ours
    if plan.has_peers and plan.device.type == "cuda" and ours.error is not None and pair.theirs.error:
        error = pair.theirs.error()
        failure = _wrong(error, ours.error)
        timing = None if failure else time_calls(pair.theirs.calls, plan.device, plan.num_samples)
        theirs = replace(ours, implementation=pair.theirs.implementation, timing=timing, error=error, failure=failure)
        yield replace(theirs, is_paged=False)  # so that it is not "the fastest on blocks"
        yield replace(_time(pair.ours, plan), implementation=AGAIN)


def measure_paging_tax(plan: KernelPlan) -> Iterator[Measurement]:
    """Decode attention with contiguous extents, then with block tables of every block size."""
    buffers = Buffers.of(plan.device, plan.dtype, plan.seed)
    for shape in taxed_shapes(plan.size):
        yield from _kept("paging tax", shape.name, partial(_measure_tax, shape, plan, buffers))


def _measure_tax(shape: AttentionShape, plan: KernelPlan, buffers: Buffers) -> Iterator[Measurement]:
    heads = plan.size.heads
    inputs = attention_inputs(shape, heads, 1, buffers, is_contiguous=True)
    base = _time(_ours(inputs, plan), plan)
    base = replace(base, kernel="paging tax", implementation=CONTIGUOUS, is_paged=False)
    yield base
    for block_size in TAXED_BLOCK_SIZES:
        del inputs
        inputs = attention_inputs(shape, heads, block_size, buffers)
        paged = _time(_ours(inputs, plan), plan)
        slowdown = None
        if paged.timing and base.timing:
            slowdown = paged.timing.median_us / base.timing.median_us
        name = f"blocks of {block_size}"
        yield replace(paged, kernel="paging tax", implementation=name, slowdown=slowdown)


def document(ceilings: Ceilings, measurements: Sequence[Measurement], plan: KernelPlan) -> dict[str, Any]:
    """All of it as plain data, raw samples included."""
    ratios = peer_ratios(measurements)
    return {
        "ceilings": {
            "device": ceilings.device,
            "copy_bytes_per_s": ceilings.copy_bytes_per_s,
            "matrix_flops_per_s": ceilings.matrix_flops_per_s,
        },
        "is_scaled_down": plan.size is not GPU_SIZE,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "block_size": plan.block_size,
        "seed": plan.seed,
        "measurements": [_fields(one, ceilings) | {"pbench_over_it": ratios.get(one)} for one in measurements],
        "comparisons": [_comparison_fields(comparison) for comparison in comparisons(measurements)],
    }


def _comparison_fields(comparison: Comparison) -> dict[str, Any]:
    return {
        "kernel": comparison.kernel,
        "peer": comparison.peer,
        "num_shapes": len(comparison.ratios),
        "geometric_mean": comparison.geometric_mean,
        "worst": comparison.worst._asdict(),
    }


def _fields(measurement: Measurement, ceilings: Ceilings) -> dict[str, Any]:
    timing = measurement.timing
    return {
        "kernel": measurement.kernel,
        "shape": measurement.shape,
        "implementation": measurement.implementation,
        "num_bytes": measurement.num_bytes,
        "flops": measurement.flops,
        "median_us": timing and timing.median_us,
        "spread": timing and timing.spread,
        "share_of_ceiling": measurement.share(ceilings),
        "error": measurement.error,
        "failure": measurement.failure,
        "is_fault": measurement.is_fault,
        "slowdown": measurement.slowdown,
        "is_paged": measurement.is_paged,
        "calls_per_sample": timing and timing.num_calls,
        "samples_us": timing and list(timing.samples_us),
    }


def _measure_attention(shape: AttentionShape, plan: KernelPlan, buffers: Buffers) -> Iterator[Measurement]:
    inputs = attention_inputs(shape, plan.size.heads, plan.block_size, buffers)
    case = _ours(inputs, plan)
    ours = _time(case, plan)
    yield ours
    if shape.num_shared_tokens and plan.device.type == "cuda":
        yield _time(_ours(inputs, plan, OURS_FLAT), plan)
    has_fp8 = plan.device.type == "cuda" and torch.cuda.get_device_capability() >= FP8_CAPABILITY
    if has_fp8 and max(shape.query_lens) == 1:
        yield _time(_ours(inputs, plan, OURS_FP8), plan)
    beside = tuple(mixed_ways(inputs) if shape.prompt_lens else peers(inputs) if plan.has_peers else ())
    for peer in beside:
        yield _measure_peer(peer, inputs, case, ours, plan)
    if beside:
        yield replace(_time(case, plan), implementation=AGAIN)


def _ours_on_new_inputs(shape: AttentionShape, plan: KernelPlan, buffers: Buffers) -> Case:
    return _ours(attention_inputs(shape, plan.size.heads, plan.block_size, buffers), plan)


def _ours(inputs: AttentionInputs, plan: KernelPlan, implementation: str = OURS) -> Case:
    heads, shape = plan.size.heads, inputs.shape
    kv_bytes = FP8.itemsize if implementation == OURS_FP8 else plan.dtype.itemsize
    num_bytes, flops = shape.num_bytes(heads, plan.dtype.itemsize, kv_bytes), shape.flops(heads)
    return attention_case(inputs, num_bytes, flops, implementation)


def _time(case: Case, plan: KernelPlan) -> Measurement:
    timing = error = None
    if not case.unfit:
        timing = time_calls(case.calls, plan.device, plan.num_samples)
        error = case.error() if case.error else None
    numbers = (case.num_bytes, case.flops)
    return Measurement(case.kernel, case.shape, case.implementation, *numbers, timing, error, case.unfit)


def _wrong(error: float, own_error: float) -> str | None:
    """Why a peer's result is another than ours."""
    if error <= MAX_ERROR_RATIO * max(own_error, ROUNDING):  # NaN is not
        return None
    return f"wrong: {error:.1e} away from the right result, ours {own_error:.1e}"


def _measure_peer(peer: Peer, inputs: AttentionInputs, case: Case, ours: Measurement, plan: KernelPlan) -> Measurement:
    """Time a peer whose results are those of our ``case``. One that fails or computes something else has no time.

    What a package raises is its own choice, so all of it is caught; what fails in our own kernels goes up.
    """
    theirs = replace(ours, implementation=peer.name, timing=None, error=None, is_paged=peer.is_paged)
    places = (0, -1)  # of calls, each of which has a table and a plan of its own
    expected = [cast(Tensor, case.calls[place]()) for place in places]
    try:
        calls = peer.prepare(inputs)
        results = [calls[place]() for place in places]
        error, own_error = result_error(inputs, results, expected), attention_error(inputs, expected[0])
        theirs = replace(theirs, error=error)
        if failure := _wrong(error, own_error):
            return replace(theirs, failure=failure)
        return replace(theirs, timing=time_calls(calls, plan.device, plan.num_samples))
    except Exception as raised:
        return replace(theirs, failure=_reason(raised))
