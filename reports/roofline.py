"""What every step moved and computed, by arithmetic from the step's own record, and what the machine allows.

The arithmetic is that of the engine's roofline (``engine/roofline.py``), whose factors the run's record keeps::

    bytes   the weights once, the KV of every running sequence's context (with a prefix cache that of shared blocks
            once, as attention on a GPU reads it), that of the tokens computed, copies twice
    FLOPs   per token computed, per token sampled, and per pair of a query and a key

A step that only generates has one query a sequence, so that its pairs are the contexts: its figures are exact as far as
every running sequence took part. Of a prompt's own pairs the record knows nothing; with prompts the FLOPs are those at
least.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pbench.reports.reduction import Floats
from pbench.reports.subjects import Subject, floats


class Ceilings(NamedTuple):
    """What a machine reaches at most, and who says so."""

    bytes_per_s: float
    flops_per_s: float
    source: str


class KernelFigure(NamedTuple):
    """One kernel of a kernel bench, timed on one shape."""

    kernel: str
    shape: str
    implementation: str
    median_us: float
    share: float  # 0..1 of the ceiling that binds it


class Bench(NamedTuple):
    """What is known of machines beside the runs: ceilings by the device's name, and kernels timed on them."""

    ceilings: Mapping[str, Ceilings] = {}
    kernels: tuple[KernelFigure, ...] = ()


NOTHING_KNOWN = Bench()


class StepLoads(NamedTuple):
    """(num_steps,) each."""

    seconds: Floats
    weights_bytes: Floats
    kv_bytes: Floats
    flops: Floats
    has_prompts: NDArray[np.bool_]

    @property
    def num_bytes(self) -> Floats:
        """All that was moved."""
        return self.weights_bytes + self.kv_bytes


def step_loads(subject: Subject) -> StepLoads | None:
    """The loads of an engine's steps; None where the record has no factors, no pool or no step."""
    cost, slot_bytes = subject.engine.cost, subject.pool_figure("slot_bytes")
    if subject.steps.empty or not cost or slot_bytes is None:
        return None
    steps = subject.steps
    context = floats(steps, "token_state") + floats(steps, "shared_saved")
    read = context
    if subject.is_paged and subject.engine.config.get("is_prefix_cached"):
        read = np.minimum(context, sum(floats(steps, part) for part in ("token_state", "reserved", "internal")))
    num_tokens = floats(steps, "num_prefill_tokens") + floats(steps, "num_decode_tokens")
    block_size = subject.pool_figure("block_size") if subject.is_paged else None
    copied = floats(steps, "num_copied_blocks") * (block_size or 0) + floats(steps, "num_moved_slots")
    return StepLoads(
        (floats(steps, "end_ns") - floats(steps, "start_ns")) / 1e9,
        np.full(len(steps), float(cost["weights_bytes"])),
        (read + num_tokens + 2 * copied) * slot_bytes,
        cost["token_flops"] * num_tokens
        + cost["sample_flops"] * floats(steps, "num_output_tokens")
        + cost["pair_flops"] * context,
        floats(steps, "num_prefill_tokens") > 0,
    )


class StepFloors(NamedTuple):
    """Seconds that the parts of every step take at a machine's ceilings; (num_steps,) each."""

    weights_s: Floats
    kv_s: Floats
    arithmetic_s: Floats

    @property
    def least_s(self) -> Floats:
        """No step is shorter: it must read and write, and multiply, and can at best do both at once."""
        return np.maximum(self.weights_s + self.kv_s, self.arithmetic_s)


def step_floors(loads: StepLoads, ceilings: Ceilings) -> StepFloors:
    """The least that each step takes where a machine reaches its ceilings."""
    return StepFloors(
        loads.weights_bytes / ceilings.bytes_per_s,
        loads.kv_bytes / ceilings.bytes_per_s,
        loads.flops / ceilings.flops_per_s,
    )


def ceilings_of(subject: Subject, bench: Bench) -> Ceilings | None:
    """A simulation's own; else those that are known of the run's GPU, or of its processor."""
    hardware = subject.engine.config.get("hardware")
    if isinstance(hardware, Mapping):
        bytes_per_s, flops_per_s = (hardware.get(name) for name in ("bandwidth_bytes_per_s", "flops_per_s"))
        if isinstance(bytes_per_s, int | float) and isinstance(flops_per_s, int | float):
            return Ceilings(float(bytes_per_s), float(flops_per_s), f"as simulated ({hardware.get('gpu')})")
    return bench.ceilings.get(device_name(subject.run.environment))


def device_name(environment: Mapping[str, object]) -> str:
    """The GPU's name, or the processor's where none was used; empty where neither is known."""
    gpu, cpu = environment.get("gpu"), environment.get("cpu")
    if isinstance(gpu, Mapping):
        return str(gpu.get("name"))
    return str(cpu.get("model")) if isinstance(cpu, Mapping) else ""
