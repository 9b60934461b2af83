"""The engine without a model: the same scheduler and memories, steps that take simulated time."""

from array import array

from pbench.engine.config import EngineConfig
from pbench.engine.engine import Engine
from pbench.engine.plan import Sample, StepPlan
from pbench.engine.roofline import Roofline, Speed, StepWork

# Odd numbers without small factors in common (the first words of a table of random digits): see ``_next_token``.
_TOKEN_FACTOR = 2654435761
_POSITION_FACTOR = 40503
_SEED_FACTOR = 2246822519


class SimulatedClock:
    """Nanoseconds since the start of a simulation. Time passes only when somebody lets it."""

    def __init__(self) -> None:
        self._now_ns = 0

    def __call__(self) -> int:
        """The time now."""
        return self._now_ns

    def advance(self, duration_ns: int) -> None:
        """Let time pass."""
        assert duration_ns >= 0, f"time cannot run backwards: {duration_ns} ns"
        self._now_ns += duration_ns


class SimulatedRunner:
    """A ``StepRunner`` that lets the time of a roofline pass instead of running a model.

    A sampled token is a function of the token before it, its position and, with a temperature, the sample's seed. So
    equal prompts are continued alike, as by a real model that chooses greedily, and different ones never come to have
    the same prefix.
    """

    def __init__(self, config: EngineConfig, roofline: Roofline, clock: SimulatedClock) -> None:
        self.weights_bytes = roofline.weights_bytes
        self._vocab_size = config.model.vocab_size
        self._block_size = config.block_size
        self._roofline = roofline
        self._clock = clock

    def launch(self, plan: StepPlan) -> "array[int]":
        """Let the step's time pass; returns a token for every sample of the plan, in order."""
        token_ids: array[int] = array("q")
        num_tokens = num_context = num_pairs = 0
        for _, start, computed, _, _, samples in plan.sequences:
            count = len(computed)
            num_tokens += count
            num_context += start + count
            num_pairs += count * start + count * (count + 1) // 2
            for sample in samples:
                token_ids.append(self._next_token(computed[-1], sample))
        work = StepWork(num_tokens, len(token_ids), num_context, num_pairs, len(plan.copies) * self._block_size)
        self._clock.advance(self._roofline.step_ns(work))
        return token_ids

    def warm_up(self) -> None:
        """There is nothing to prepare."""

    def _next_token(self, token_id: int, sample: Sample) -> int:
        seed = sample.seed if sample.temperature else 0
        mixed = token_id * _TOKEN_FACTOR + sample.position * _POSITION_FACTOR + seed * _SEED_FACTOR
        return (mixed ^ mixed >> 16) % self._vocab_size


def simulated_engine(config: EngineConfig, speed: Speed) -> tuple[Engine, SimulatedClock]:
    """An engine that runs nothing, and the clock on which all that it says is timed.

    Raises:
        ConfigError: the model's cost is not known, or the pool cannot hold the smallest request.
    """
    clock = SimulatedClock()
    runner = SimulatedRunner(config, Roofline(config, speed), clock)
    return Engine(config, runner, clock), clock
