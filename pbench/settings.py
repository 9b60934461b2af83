"""A run's settings: what the user asked for, with every default and size resolved, and refused where it cannot work."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pbench.defaults import DEFAULTS, RunDefaults
from pbench.engine.config import EngineConfig
from pbench.engine.model_config import ModelConfig, load_model_config
from pbench.errors import UsageError
from pbench.external.checks import check_external
from pbench.external.kinds import check_spec, external_kind, unused_notes
from pbench.job import DEFAULT_PROFILING, EngineOptions, ProfilingChoice, WorkloadChoice
from pbench.pool_probe import measure_pool_bytes
from pbench.summary.slo import parse_targets
from pbench.units import display_path, format_bytes, format_number, parse_bytes, printable

if TYPE_CHECKING:
    from pbench.workloads.workload import Workload

DEFAULT_ENGINES = ("paged", "contiguous:max")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of ``pbench run`` as they were given; None: left out."""

    workload: str
    engines: tuple[str, ...] = ()
    model: str | None = None
    kv_memory: str | None = None
    gpu_memory_utilization: float | None = None
    max_length: int | None = None
    block_size: int | None = None
    max_batch_tokens: int | None = None
    max_running: int | None = None
    limit: int | None = None  # 0: all
    seed: int = 0
    threads: int | None = None
    eviction: str = "lru"
    preemption: str = "recompute"
    host_memory: str | None = None
    arrivals: str | None = None
    overrides: tuple[str, ...] = ()  # KEY=VALUE
    rate_scale: float | None = None
    dejitter: bool = False
    sample: int | None = None
    dtype: str | None = None
    kv_dtype: str = "auto"
    device: str = "auto"
    out: Path | None = None
    sample_interval: float = 0.1  # seconds
    timeout: float | None = None  # seconds
    repeats: int = 1
    slo: str | None = None  # ttft=500ms,tpot=50ms
    request_timeout: float = 600.0  # seconds
    api_key_env: str | None = None
    profile: tuple[str, ...] = ()
    profile_steps: tuple[int, int] = DEFAULT_PROFILING.steps
    phase_interval: int = DEFAULT_PROFILING.phase_interval
    no_prefix_cache: bool = False
    partial_hits: bool = False
    no_chunked_prefill: bool = False
    no_async_steps: bool = False
    no_cuda_graphs: bool = False
    batch_invariant: bool = False
    no_report: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run does, resolved once for all its engines."""

    choice: WorkloadChoice
    workload: "Workload"
    engines: tuple[EngineOptions, ...]  # differ in their memory only
    is_limit_default: bool
    targets_ms: Mapping[str, float] = field(default_factory=dict)  # of latencies, by name
    profiling: ProfilingChoice = DEFAULT_PROFILING

    @property
    def notes(self) -> tuple[str, ...]:
        """What holds for every engine of the run."""
        return tuple(note for note in (self._limit_note(), self._sample_note(), self._dropped_note()) if note)

    def lines(self) -> Iterator[str]:
        """The settings for a person, before the run starts."""
        workload, first = self.workload, self.engines[0]
        yield (
            f"workload {printable(workload.name)}: {format_number(workload.num_requests)} requests,"
            f" {format_number(workload.total_input_tokens)} prompt and"
            f" {format_number(workload.total_output_tokens)} output tokens, arrivals {workload.arrivals}"
        )
        kinds = [external_kind(options.memory) for options in self.engines]
        if all(kind is not None and not kind.is_local for kind in kinds):
            model = f"prompts from the vocabulary of model {printable(first.model)}"
        else:
            memory = f"{format_bytes(first.kv_memory_bytes)} in blocks of {first.block_size}"
            model = f"model {printable(first.model)} ({first.dtype} on {first.device}), KV memory {memory}"
        yield (
            f"{model}, max length {format_number(first.max_length)}; engines:"
            f" {', '.join(printable(options.memory) for options in self.engines)}"
        )
        yield from self.notes
        for options in self.engines:
            yield from (f"{printable(options.memory)}: {note}" for note in unused_notes(options))

    def _limit_note(self) -> str | None:
        workload, limit = self.workload, self.choice.limit
        if limit is None or workload.num_requests < limit:
            return None
        # A file is read no further than the limit, so how many it holds is not known.
        total = workload.parameters.get("num_requests")
        if total is not None and int(total) <= limit:
            return None
        of = "" if total is None else f" of {format_number(int(total))}"
        why = " by default on the CPU; --limit 0 plays all" if self.is_limit_default else ""
        return f"limited to the first {format_number(limit)}{of} requests{why}"

    def _sample_note(self) -> str | None:
        sample = self.choice.sample
        if sample is None or self.workload.num_requests < sample:
            return None
        return f"a random sample of {format_number(sample)} requests"

    def _dropped_note(self) -> str | None:
        workload = self.workload
        dropped = (
            (workload.num_dropped_too_long, f"longer than {self.choice.max_length} tokens (--max-length)"),
            (workload.num_dropped_empty, "without input or output tokens"),
        )
        parts = [f"{format_number(count)} {what}" for count, what in dropped if count]
        if not parts:
            return None
        return f"dropped of the {format_number(workload.num_offered)} rows read: {' and '.join(parts)}"


def resolve(options: RunOptions) -> Settings:
    """Resolve and check what the user asked for. Allocates nothing and starts nothing.

    With ``gpu_memory_utilization`` a process loads the model first, to measure how large the pool may be.

    Raises:
        UsageError: an option that cannot work.
        EngineError: an unknown engine or model, or a pool too small for the largest request.
        WorkloadError: an unknown workload or a bad row.

    """
    specs = options.engines or DEFAULT_ENGINES
    for spec in specs:
        check_spec(spec)
        if specs.count(spec) > 1:
            raise UsageError(f"--engine {printable(spec)} is given twice; name every engine once")
    targets_ms = parse_targets(options.slo)
    device = _resolve_device(options.device)
    defaults = DEFAULTS[device]
    model_spec = options.model or defaults.model
    model = load_model_config(model_spec)
    model.check_runnable()
    first = engine_options(options, defaults, device, specs[0], model_spec, model)
    if options.gpu_memory_utilization is not None:
        first = with_measured_pool(options, first)
    engines = tuple(first.of(spec) for spec in specs)
    configs = [engine.config() for engine in engines if external_kind(engine.memory) is None]
    is_limit_default = options.limit is None and options.sample is None and defaults.limit is not None
    choice = WorkloadChoice(
        spec=options.workload,
        seed=options.seed,
        limit=(defaults.limit if is_limit_default else options.limit) or None,
        max_length=first.max_length,
        arrivals=options.arrivals,
        overrides=parse_overrides(options.overrides),
        rate_scale=options.rate_scale,
        is_dejittered=options.dejitter,
        sample=options.sample,
    )
    workload = choice.load()
    for config in configs:
        check_fits(config, workload)
    for engine in engines:
        check_external(engine, workload)
    return Settings(choice, workload, engines, is_limit_default, targets_ms, _profiling(options, engines))


def _profiling(options: RunOptions, engines: tuple[EngineOptions, ...]) -> ProfilingChoice:
    kinds = tuple(dict.fromkeys(options.profile))
    if kinds and all(external_kind(engine.memory) is not None for engine in engines):
        raise UsageError(f"--profile {kinds[0]} records engines of pbench's own; add --engine paged")
    if "memory" in kinds and engines[0].device != "cuda":
        raise UsageError(
            "--profile memory needs an NVIDIA GPU: torch notes allocations of GPU memory only; run with --device cuda"
        )
    return ProfilingChoice(kinds, options.profile_steps, options.phase_interval)


def parse_overrides(pairs: tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE of every --set.

    Raises:
        UsageError: one is not KEY=VALUE, or is given twice.

    """
    overrides: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key.strip():
            raise UsageError(f"--set {printable(pair)!r} is not KEY=VALUE")
        if key.strip() in overrides:
            raise UsageError(f"--set {printable(key.strip())} is given twice")
        overrides[key.strip()] = value.strip()
    return overrides


def make_folder(out: Path | None, run_id: str) -> Path:
    """Create the run folder: ``out``, or ``runs/<run_id>`` with a number behind it when that exists.

    Raises:
        UsageError: ``out`` holds something already, or cannot be created.

    """
    if out is None:
        names = (run_id if number == 1 else f"{run_id}-{number}" for number in range(1, 1000))
        folder = next(path for path in (Path("runs") / name for name in names) if not path.exists())
    else:
        folder = out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
    except OSError as error:
        raise UsageError(f"--out {display_path(folder)} cannot be created: {error.strerror}") from error
    if not is_empty:
        raise UsageError(f"--out {display_path(folder)} is not empty; a run needs a folder of its own")
    return folder


def run_id(created: datetime, name: str) -> str:
    """A run's name: when it was created (UTC), and what it played (a slug)."""
    return f"{created:%Y%m%dT%H%M%SZ}-{name}"


def engine_options(
    options: RunOptions, defaults: RunDefaults, device: str, memory: str, model_spec: str, model: ModelConfig
) -> EngineOptions:
    """What an engine with ``memory`` is to do: what was asked for, and the defaults for the rest."""
    from pbench.workloads.catalogue import suggested_block_size

    dtype = options.dtype or defaults.dtype
    held = dtype if options.kv_dtype == "auto" else options.kv_dtype
    block_size = options.block_size or suggested_block_size(options.workload)
    kv_memory_bytes = defaults.kv_memory_bytes
    if options.kv_memory is not None:
        kv_memory_bytes = parse_bytes(options.kv_memory, "--kv-memory")
    host_kv_memory_bytes = kv_memory_bytes
    if options.host_memory is not None:
        host_kv_memory_bytes = parse_bytes(options.host_memory, "--host-memory")
    max_length = options.max_length or min(defaults.max_length, model.max_position_embeddings)
    max_running = options.max_running or defaults.max_running
    # Chosen smaller than a step's budget can be: a default yields to what was asked for.
    max_batch_tokens = options.max_batch_tokens or max(
        defaults.max_batch_tokens, max_running, max_length if options.no_chunked_prefill else 0
    )
    return EngineOptions(
        model=model_spec,
        memory=memory,
        kv_memory_bytes=_whole_blocks(kv_memory_bytes, block_size * model.kv_bytes_per_token(held)),
        block_size=block_size,
        max_length=max_length,
        max_batch_tokens=max_batch_tokens,
        max_running=max_running,
        is_prefill_chunked=not options.no_chunked_prefill,
        is_prefix_cached=not options.no_prefix_cache,
        has_partial_hits=options.partial_hits,
        eviction=options.eviction,
        preemption=options.preemption,
        host_kv_memory_bytes=host_kv_memory_bytes,
        dtype=dtype,
        kv_dtype=options.kv_dtype,
        device=device,
        num_threads=defaults.num_threads if options.threads is None else options.threads,
        seed=options.seed,
        has_cuda_graphs=not options.no_cuda_graphs,
        # On the CPU a launch is the step itself: tokens would be told a step late, and nothing gained.
        has_async_steps=not options.no_async_steps and device != "cpu",
        is_batch_invariant=options.batch_invariant,
    )


def with_measured_pool(options: RunOptions, engine: EngineOptions) -> EngineOptions:
    """The options with the pool that ``--gpu-memory-utilization`` leaves room for, the same for every engine.

    Raises:
        UsageError: it cannot be had here, or beside another size.
    """
    assert options.gpu_memory_utilization is not None
    where = f"--gpu-memory-utilization {options.gpu_memory_utilization}"
    if options.kv_memory is not None:
        raise UsageError(f"{where} and --kv-memory {options.kv_memory} exclude each other; give one of them")
    if engine.device != "cuda":
        raise UsageError(f"{where} needs a GPU, and the engines run on the CPU; give --kv-memory instead")
    kv_memory_bytes = measure_pool_bytes(engine.of("paged"), options.gpu_memory_utilization)
    host_kv_memory_bytes = engine.host_kv_memory_bytes if options.host_memory is not None else kv_memory_bytes
    return replace(engine, kv_memory_bytes=kv_memory_bytes, host_kv_memory_bytes=host_kv_memory_bytes)


def _whole_blocks(kv_memory_bytes: int, block_bytes: int) -> int:
    """The pool in whole blocks, so that every memory gets exactly as much; as it is when it is less than one."""
    return kv_memory_bytes // block_bytes * block_bytes or kv_memory_bytes


def check_fits(config: EngineConfig, workload: "Workload") -> None:
    """Refuse a configuration in which some request of the workload could never run.

    Raises:
        ConfigError: the pool is too small; the message names the smallest that would do.
        UsageError: a request has more samples than sequences may run.
    """
    requests = workload.requests
    num_sequences = requests.num_sequences.tolist()
    shapes = set(zip(requests.input_length.tolist(), requests.output_length.tolist(), num_sequences, strict=True))
    if config.memory != "paged" and int(requests.beam_width.max()) > 1:
        raise UsageError(
            f"workload {printable(workload.name)} wants beam search, which {config.memory} cannot do: its sequences"
            " cannot share; use --engine paged"
        )
    config.check_pool(*max(shapes, key=lambda shape: config.num_slots_for(*shape)))
    most_samples = max(num_sequences)
    if most_samples > config.max_running:
        raise UsageError(
            f"workload {printable(workload.name)} asks for {most_samples} sequences of a request at once, more than"
            f" --max-running {config.max_running}"
        )


def _resolve_device(device: str) -> str:
    if device == "cpu":
        return device
    import torch

    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UsageError("--device cuda: torch finds no NVIDIA GPU here; use --device cpu (pbench env says more)")
    return "cuda" if has_cuda else "cpu"
