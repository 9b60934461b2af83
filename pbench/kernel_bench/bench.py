"""Times every kernel against what this machine reaches, beside other implementations that can be imported."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from pbench.kernel_bench.cases import (
    OURS,
    OURS_FLAT,
    OURS_FP8,
    Case,
    attention_case,
    attention_error,
    choice_cases,
    copy_case,
    host_cases,
    row_cases,
)
from pbench.kernel_bench.ceilings import Ceilings
from pbench.kernel_bench.inputs import AttentionInputs, Buffers, attention_inputs
from pbench.kernel_bench.peers import Peer, peers
from pbench.kernel_bench.shapes import CPU_SIZE, GPU_SIZE, AttentionShape, BenchSize, attention_shapes, taxed_shapes
from pbench.kernel_bench.timing import Timing, time_calls, time_host
from pbench.kernels.launch import FP8, FP8_CAPABILITY

ATTENTION_KERNELS = ("decode", "ragged", "prefill", "shared", "window", "soft cap")
OTHER_KERNELS = ("copy blocks", "rows", "host")
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


@dataclass(frozen=True, slots=True)
class Measurement:
    """One implementation of one kernel on one shape."""

    kernel: str
    shape: str
    implementation: str
    num_bytes: int  # the least that a call must move
    flops: int
    timing: Timing | None  # None: it failed
    error: float | None = None  # relative to float64; of a copy and of choices, how many differ
    failure: str | None = None
    slowdown: float | None = None  # of the paging tax: over contiguous addressing

    def share(self, ceilings: Ceilings) -> float | None:
        """Of what the machine reaches; above 1 where a cache serves what was counted as memory; None of host times."""
        if self.timing is None or not (self.num_bytes or self.flops):
            return None
        return ceilings.least_us(self.num_bytes, self.flops) / self.timing.median_us


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
    buffers = Buffers.of(plan.device, plan.dtype, plan.seed)
    for shape in attention_shapes(plan.size, plan.seed):
        if shape.kernel in plan.kernels:
            yield from _measure_attention(shape, plan, buffers)
    if "copy blocks" in plan.kernels:
        yield _measure(partial(copy_case, plan.size, plan.block_size, buffers), plan)
    if "rows" in plan.kernels:
        for num_tokens in plan.size.num_row_tokens:
            for build in row_cases(plan.size, plan.block_size, num_tokens, buffers):
                yield _measure(build, plan)
        for num_rows in plan.size.num_choices:
            for build in choice_cases(plan.size.vocab_size, num_rows, buffers):
                yield _measure(build, plan)
    if "host" in plan.kernels:
        for case in host_cases(plan.size, plan.block_size, buffers):
            timing = time_host(case.calls[0], plan.device, plan.num_samples)
            yield Measurement(case.kernel, case.shape, case.implementation, 0, 0, timing)


def measure_paging_tax(plan: KernelPlan) -> Iterator[Measurement]:
    """Decode attention with contiguous extents, then with block tables of every block size."""
    buffers = Buffers.of(plan.device, plan.dtype, plan.seed)
    heads = plan.size.heads
    for shape in taxed_shapes(plan.size):
        inputs = attention_inputs(shape, heads, 1, buffers, is_contiguous=True)
        base = replace(_measure(_ours(inputs, plan), plan), kernel="paging tax", implementation=CONTIGUOUS)
        yield base
        for block_size in TAXED_BLOCK_SIZES:
            del inputs
            inputs = attention_inputs(shape, heads, block_size, buffers)
            paged = _measure(_ours(inputs, plan), plan)
            slowdown = None
            if paged.timing and base.timing:
                slowdown = paged.timing.median_us / base.timing.median_us
            name = f"blocks of {block_size}"
            yield replace(paged, kernel="paging tax", implementation=name, slowdown=slowdown)


def document(ceilings: Ceilings, measurements: list[Measurement], plan: KernelPlan) -> dict[str, Any]:
    """All of it as plain data, raw samples included."""
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
        "measurements": [_fields(measurement, ceilings) for measurement in measurements],
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
        "slowdown": measurement.slowdown,
        "calls_per_sample": timing and timing.num_calls,
        "samples_us": timing and list(timing.samples_us),
    }


def _measure_attention(shape: AttentionShape, plan: KernelPlan, buffers: Buffers) -> Iterator[Measurement]:
    inputs = attention_inputs(shape, plan.size.heads, plan.block_size, buffers)
    ours = _measure(_ours(inputs, plan), plan)
    yield ours
    if shape.num_shared_tokens and plan.device.type == "cuda":
        yield _measure(_ours(inputs, plan, OURS_FLAT), plan)
    if not shape.is_prefill and plan.device.type == "cuda" and torch.cuda.get_device_capability() >= FP8_CAPABILITY:
        yield _measure(_ours(inputs, plan, OURS_FP8), plan)
    if plan.has_peers:
        for peer in peers(inputs):
            yield _measure(_theirs(peer, inputs, ours), plan, ours, peer.name)


def _ours(inputs: AttentionInputs, plan: KernelPlan, implementation: str = OURS) -> Callable[[], Case]:
    heads, shape = plan.size.heads, inputs.shape
    kv_bytes = FP8.itemsize if implementation == OURS_FP8 else plan.dtype.itemsize
    num_bytes, flops = shape.num_bytes(heads, plan.dtype.itemsize, kv_bytes), shape.flops(heads)
    return lambda: attention_case(inputs, num_bytes, flops, implementation)


def _theirs(peer: Peer, inputs: AttentionInputs, ours: Measurement) -> Callable[[], Case]:
    def build() -> Case:
        calls = peer.prepare(inputs)
        kernel, shape = inputs.shape.kernel, inputs.shape.name
        return Case(
            kernel, shape, peer.name, calls, ours.num_bytes, ours.flops, lambda: attention_error(inputs, calls[0]())
        )

    return build


def _measure(
    build: Callable[[], Case], plan: KernelPlan, ours: Measurement | None = None, name: str = OURS
) -> Measurement:
    """Build and time a case. A peer that fails (``ours`` is given) is kept with its reason; our own failures go up."""
    try:
        case = build()
        timing = time_calls(case.calls, plan.device, plan.num_samples)
        error = case.error() if case.error else None
    except Exception as failure:
        if ours is None:
            raise
        reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
        return replace(ours, implementation=name, timing=None, error=None, failure=reason)
    return Measurement(case.kernel, case.shape, case.implementation, case.num_bytes, case.flops, timing, error)
