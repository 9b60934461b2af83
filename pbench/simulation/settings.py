"""A simulation's settings: what the user asked for, with every default and size resolved."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbench.defaults import GPU_DEFAULTS
from pbench.engine.hardware import HardwareProfile, find_hardware
from pbench.engine.model_config import DTYPE_BYTES, load_model_config
from pbench.engine.roofline import ModelCost, Speed
from pbench.errors import UsageError
from pbench.job import EngineOptions, WorkloadChoice
from pbench.kernel_bench.ceilings import Ceilings, read_ceilings
from pbench.settings import DEFAULT_ENGINES, RunOptions, Settings, check_fits, engine_options
from pbench.units import format_bytes, parse_bytes, printable

if TYPE_CHECKING:
    from pbench.simulation.machine_fit import MachineFit

DEFAULT_MODEL = "llama-8b"
DEFAULT_GPU = "h200"
DEFAULT_OVERHEAD_US = 500.0  # a step's scheduling, upload and launches, as far as the GPU waits for them
USABLE_MEMORY_SHARE = 0.9  # of the GPU's memory, for weights and KV; activations and the driver take the rest

SWEEP_OPTION = "--capacity-sweep"


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """The options of ``pbench simulate`` as they were given, but for those that choose the workload; None: left out."""

    engines: tuple[str, ...] = ()
    model: str = DEFAULT_MODEL
    kv_memory: str | None = None
    capacity_sweep: str | None = None  # sizes, separated by commas
    gpu: str = DEFAULT_GPU
    ceilings: Path | None = None  # a file of `pbench kernels --json`
    bandwidth: float | None = None  # GB/s
    flops: float | None = None  # TFLOP/s
    efficiency: float = 1.0
    step_overhead: float | None = None  # microseconds
    like: Path | None = None  # the folder of a run whose machine is simulated
    dtype: str = "bfloat16"
    kv_dtype: str = "auto"
    block_size: int | None = None
    max_batch_tokens: int | None = None
    max_running: int | None = None
    eviction: str = "lru"
    preemption: str = "recompute"
    host_memory: str | None = None
    no_prefix_cache: bool = False
    partial_hits: bool = False
    no_chunked_prefill: bool = False
    no_async_steps: bool = False


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """What is simulated: one run for each size of the pool."""

    sizes: tuple[Settings, ...]  # differ in their KV memory only; one unless the capacity is swept
    is_sweep: bool
    hardware: Mapping[str, Any]
    speed: Speed
    fit: "MachineFit | None" = None  # where the speed was fitted to a run

    def lines(self) -> Iterator[str]:
        """The settings for a person, before the simulation starts."""
        yield from self.sizes[0].lines()
        if self.fit is not None:
            yield self.fit.line()
        if self.is_sweep:
            yield f"capacity sweep: {', '.join(format_bytes(size.engines[0].kv_memory_bytes) for size in self.sizes)}"

    @property
    def note(self) -> str:
        """What a reader must know before believing a time."""
        speed = self.speed
        measured_on = self.hardware["ceilings_of"]
        source = self.hardware["gpu"] if measured_on is None else f"measured on {measured_on}"
        if self.fit is not None:
            source = f"fitted to {self.fit.source}"
        prompts = f", with prompts at least {speed.prompt_step_ns / 1e6:.3g} ms" if speed.prompt_step_ns else ""
        return (
            f"simulated, not measured: a step takes {speed.overhead_ns / 1e3:,.4g} us and the longer of its bytes over"
            f" {speed.bandwidth_bytes_per_s / 1e9:,.4g} GB/s and its FLOPs over {speed.flops_per_s / 1e12:,.3g} TFLOP/s"
            f"{prompts} ({source})"
        )


def resolve_simulation(options: SimulationOptions, choice: WorkloadChoice) -> SimulationSettings:
    """Resolve and check what the user asked for, and load the workload. Starts nothing.

    Raises:
        UsageError: an option that cannot work.
        EngineError: an unknown engine, model or GPU, or a pool too small for the largest request.
        WorkloadError: an unknown workload or a bad row.

    """
    hardware = find_hardware(options.gpu)
    ceilings = None if options.ceilings is None else read_ceilings(options.ceilings)
    fit = None
    if options.like is None:
        speed = _speed(options, hardware, ceilings)
    else:
        fit = _fit(options, options.like, hardware)
        speed = fit.speed.at(options.efficiency)
    sizes = _kv_memory_bytes(options, hardware)
    engines = [_engines(options, choice, size) for size in sizes]
    choice = replace(choice, max_length=engines[0][0].max_length)
    configs = [engine.config() for group in engines for engine in group]
    workload = choice.load()
    for config in configs:
        check_fits(config, workload)
    return SimulationSettings(
        sizes=tuple(Settings(choice, workload, group, is_limit_default=False) for group in engines),
        is_sweep=options.capacity_sweep is not None,
        hardware={
            "gpu": hardware.name,
            "source": hardware.source,
            "ceilings_of": ceilings and ceilings.device,
            "efficiency": options.efficiency,
            "bandwidth_bytes_per_s": speed.bandwidth_bytes_per_s,
            "flops_per_s": speed.flops_per_s,
            "step_overhead_ns": speed.overhead_ns,
            "prompt_step_ns": speed.prompt_step_ns,
            "like": fit and fit.source,
        },
        speed=speed,
        fit=fit,
    )


def _fit(options: SimulationOptions, folder: Path, hardware: HardwareProfile) -> "MachineFit":
    from pbench.simulation.machine_fit import fit_machine

    for name in ("ceilings", "bandwidth", "flops", "step_overhead"):
        if getattr(options, name) is not None:
            raise UsageError(f"--like fits the machine to a run; leave out --{name.replace('_', '-')}, or --like")
    return fit_machine(folder, Speed.of(hardware, 0))


def _speed(options: SimulationOptions, hardware: HardwareProfile, ceilings: Ceilings | None) -> Speed:
    overhead_us = DEFAULT_OVERHEAD_US if options.step_overhead is None else options.step_overhead
    speed = Speed.of(hardware, round(overhead_us * 1e3))
    if ceilings is not None:
        if options.bandwidth is not None or options.flops is not None:
            raise UsageError("--ceilings measured both; leave out --bandwidth and --flops, or --ceilings")
        speed = Speed(ceilings.copy_bytes_per_s, ceilings.matrix_flops_per_s, speed.overhead_ns)
    if options.bandwidth is not None:
        speed = replace(speed, bandwidth_bytes_per_s=options.bandwidth * 1e9)
    if options.flops is not None:
        speed = replace(speed, flops_per_s=options.flops * 1e12)
    return speed.at(options.efficiency)


def _kv_memory_bytes(options: SimulationOptions, hardware: HardwareProfile) -> list[int]:
    """The sizes of the pool to simulate; by default what the weights leave of the GPU's memory."""
    if options.capacity_sweep is not None:
        if options.kv_memory is not None:
            raise UsageError(f"--kv-memory and {SWEEP_OPTION} exclude each other; give one of them")
        sizes = [parse_bytes(text, SWEEP_OPTION) for text in options.capacity_sweep.split(",")]
        for size in sizes:
            if sizes.count(size) > 1:
                raise UsageError(f"{SWEEP_OPTION} has {format_bytes(size)} twice; name every size once")
        return sorted(sizes)
    if options.kv_memory is not None:
        return [parse_bytes(options.kv_memory, "--kv-memory")]
    weights_bytes = ModelCost.of(load_model_config(options.model)).num_parameters * DTYPE_BYTES[options.dtype]
    left = int(USABLE_MEMORY_SHARE * hardware.memory_bytes) - weights_bytes
    if left <= 0:
        raise UsageError(
            f"model {printable(options.model)} has {format_bytes(weights_bytes)} of weights, and a {hardware.name} has"
            f" {format_bytes(hardware.memory_bytes)} in all; give --kv-memory, or another --gpu"
        )
    return [left]


def _engines(options: SimulationOptions, choice: WorkloadChoice, kv_memory_bytes: int) -> tuple[EngineOptions, ...]:
    specs = options.engines or DEFAULT_ENGINES
    for spec in specs:
        if specs.count(spec) > 1:
            raise UsageError(f"--engine {printable(spec)} is given twice; name every engine once")
    model = load_model_config(options.model)
    ModelCost.of(model)  # refuses a model whose cost is not known
    run_options = RunOptions(
        workload=choice.spec,
        kv_memory=str(kv_memory_bytes),
        max_length=choice.max_length,
        block_size=options.block_size,
        max_batch_tokens=options.max_batch_tokens,
        max_running=options.max_running,
        seed=choice.seed,
        eviction=options.eviction,
        preemption=options.preemption,
        host_memory=options.host_memory,
        dtype=options.dtype,
        kv_dtype=options.kv_dtype,
        no_prefix_cache=options.no_prefix_cache,
        partial_hits=options.partial_hits,
        no_chunked_prefill=options.no_chunked_prefill,
        no_async_steps=options.no_async_steps,
        no_cuda_graphs=True,
    )
    device = f"simulated {options.gpu}"
    first = engine_options(run_options, GPU_DEFAULTS, device, specs[0], options.model, model)
    return tuple(first.of(spec) for spec in specs)
