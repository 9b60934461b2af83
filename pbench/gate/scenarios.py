"""What the gate plays: small workloads in pools so small that memory is the limit, in simulated time, on one core."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pbench.gate.baseline import Case
from pbench.gate.counters import count
from pbench.job import EngineOptions, WorkloadChoice
from pbench.simulation.settings import SimulationOptions, resolve_simulation

if TYPE_CHECKING:
    from pbench.engine.records import StepRecord
    from pbench.engine.roofline import Speed
    from pbench.workloads.workload import Workload

MODEL = "llama-8b"
PAGED = ("paged",)
SHARING_FREE = ("paged", "contiguous:max", "contiguous:pow2", "contiguous:oracle", "static")

# Which of an engine's options decide what is counted; the others decide how fast a real engine is.
_SETTINGS = (
    "model",
    "dtype",
    "kv_memory_bytes",
    "block_size",
    "max_length",
    "max_batch_tokens",
    "max_running",
    "is_prefill_chunked",
    "is_prefix_cached",
    "eviction",
    "preemption",
    "host_kv_memory_bytes",
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One workload, the engines that play it, and their pool.

    All requests are there at the start: what is counted then does not depend on how long a simulated step takes.
    """

    name: str
    workload: str
    limit: int  # requests
    kv_memory: str
    engines: tuple[str, ...]
    max_length: int = 2048
    preemption: str = "recompute"
    block_size: int = 16


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("chat-shared-prompt", "chat-shared-prompt", 64, "1GiB", SHARING_FREE),
    Scenario("sharegpt-lengths", "sharegpt-lengths", 100, "1GiB", SHARING_FREE),
    Scenario("sharegpt-lengths-swapped", "sharegpt-lengths", 100, "1GiB", PAGED, preemption="swap"),
    Scenario("sharegpt-lengths-ample", "sharegpt-lengths", 100, "16GiB", PAGED),  # memory is not the limit
    Scenario("parallel-sampling", "parallel-sampling", 100, "256MiB", ("paged", "contiguous:oracle"), max_length=256),
    Scenario("beam-search", "beam-search", 60, "256MiB", PAGED, max_length=256),
    Scenario("fragmentation", "fragmentation", 150, "1GiB", SHARING_FREE),
    Scenario("prefix-thrash", "prefix-thrash", 512, "8GiB", PAGED),
    Scenario("mixed", "mixed", 100, "2GiB", ("paged", "contiguous:pow2"), max_length=4096),
)


def play(scenario: Scenario) -> Iterator[Case]:
    """Play the scenario through each of its engines, and count."""
    choice = WorkloadChoice(scenario.workload, limit=scenario.limit, max_length=scenario.max_length, arrivals="all")
    options = SimulationOptions(
        engines=scenario.engines,
        model=MODEL,
        kv_memory=scenario.kv_memory,
        preemption=scenario.preemption,
        block_size=scenario.block_size,
    )
    resolved = resolve_simulation(options, choice)
    (size,) = resolved.sizes
    for engine_options in size.engines:
        steps = _simulate(engine_options, size.workload, resolved.speed)
        yield Case(
            scenario=scenario.name,
            engine=engine_options.memory,
            workload_sha256=size.workload.sha256,
            workload_seed=size.workload.seed,
            settings=_settings(engine_options),
            counters=count(steps),
        )


def _settings(options: EngineOptions) -> dict[str, Any]:
    fields = asdict(options)
    return {name: fields[name] for name in _SETTINGS}


def _simulate(options: EngineOptions, workload: "Workload", speed: "Speed") -> "list[StepRecord]":
    from pbench.engine.simulation import simulated_engine
    from pbench.lazy_requests import lazy_arrivals

    config = options.config()
    engine, clock = simulated_engine(config, speed)
    arrivals = lazy_arrivals(workload, config.model.vocab_size)
    for request in arrivals.due(clock(), num_in_engine=0):
        engine.add_request(request)
    assert not arrivals.has_more, f"{workload.name} offers requests later than at the start"
    steps = []
    while engine.has_unfinished:
        steps.append(engine.step().record)
    return steps
