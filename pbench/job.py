"""What a worker process is asked to do: plain data, written as one JSON document into the run folder.

The parent resolves every default and size once, so that all engines of a run get the same ones. The worker builds the
workload again from the same choice and holds its hash against the parent's.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbench.engine.config import EngineConfig
from pbench.engine.model_config import load_model_config
from pbench.results import write_atomically

if TYPE_CHECKING:
    from pbench.workloads.workload import Workload

ENGINE_FACTORY = "pbench.engine.loading:load_engine"


@dataclass(frozen=True, slots=True)
class WorkloadChoice:
    """Which requests to play: the arguments of ``load_workload``."""

    spec: str  # built-in name or file
    seed: int = 0
    limit: int | None = None  # None: all
    max_length: int | None = None  # longer requests are dropped and counted
    arrivals: str | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)  # parameters of a built-in, or of a file's format
    rate_scale: float | None = None  # arrivals at so many times their rate
    is_dejittered: bool = False  # recorded arrivals of one timestamp are spread until the next
    sample: int | None = None  # so many of them at random; None: all

    def load(self) -> "Workload":
        """Build the workload.

        Raises:
            WorkloadError: it is unknown, a row is bad, or nothing is left of it.

        """
        from pbench.workloads.catalogue import load_workload

        return load_workload(
            self.spec,
            seed=self.seed,
            limit=self.limit,
            max_length=self.max_length,
            arrivals=self.arrivals,
            overrides=self.overrides,
            rate_scale=self.rate_scale,
            is_dejittered=self.is_dejittered,
            sample=self.sample,
        )


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What decides an engine, before the model is read: the fields of ``EngineConfig`` with the model by name."""

    model: str  # preset name, or a Hugging Face folder
    memory: str  # the engine's spec: the memory of one of ours, or an engine that is not
    kv_memory_bytes: int
    block_size: int
    max_length: int
    max_batch_tokens: int
    max_running: int
    is_prefill_chunked: bool
    is_prefix_cached: bool
    has_partial_hits: bool
    eviction: str
    preemption: str
    host_kv_memory_bytes: int
    dtype: str
    kv_dtype: str
    device: str
    num_threads: int
    seed: int
    has_cuda_graphs: bool
    has_async_steps: bool
    is_batch_invariant: bool

    def config(self) -> EngineConfig:
        """The engine's configuration, with the model's shapes read.

        Raises:
            ConfigError: the model is unknown, or the configuration cannot work.

        """
        fields = asdict(self) | {"model": load_model_config(self.model)}
        return EngineConfig(**fields)

    def of(self, memory: str) -> "EngineOptions":
        """The same with another memory: nothing else may differ between the engines of a run."""
        return replace(self, memory=memory)

    @property
    def weights(self) -> str | None:
        """The folder with the model's weights; None for a preset, whose weights are random."""
        from pbench.engine.model_config import PRESETS

        return None if self.model in PRESETS else self.model


@dataclass(frozen=True, slots=True)
class ServerAccess:
    """How servers are talked to."""

    timeout_s: float = 600.0  # of one request, from sending it to its last token
    key_variable: str | None = None  # name of the environment variable with the API key, which is kept nowhere else


DEFAULT_ACCESS = ServerAccess()


@dataclass(frozen=True, slots=True)
class ProfilingChoice:
    """What is recorded of the steps of our engines."""

    kinds: tuple[str, ...] = ()  # "torch", "memory"
    steps: tuple[int, int] = (32, 16)  # that torch's profiler records: the first one, and how many
    phase_interval: int = 32  # the phases within every so many steps are timed; 0: none


DEFAULT_PROFILING = ProfilingChoice()


@dataclass(frozen=True, slots=True)
class Job:
    """One engine, one workload, and where to journal."""

    journal: str  # folder
    engine: EngineOptions
    workload: WorkloadChoice
    workload_sha256: str
    sample_interval_s: float  # 0: no sampler
    repeat: int = 1  # of the engine, from 1
    engine_factory: str = ENGINE_FACTORY  # module:attribute, called with (EngineConfig, weights)
    access: ServerAccess = DEFAULT_ACCESS
    profiling: ProfilingChoice = DEFAULT_PROFILING

    def write(self, path: Path) -> None:
        """Write the job as JSON, atomically."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n"
        write_atomically(path, lambda stream: stream.write(text.encode()))

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Read what ``write`` wrote."""
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        engine = EngineOptions(**data.pop("engine"))
        workload = WorkloadChoice(**data.pop("workload"))
        access = ServerAccess(**data.pop("access"))
        profiling = data.pop("profiling")
        choice = ProfilingChoice(tuple(profiling["kinds"]), tuple(profiling["steps"]), profiling["phase_interval"])
        return cls(**data, engine=engine, workload=workload, access=access, profiling=choice)
