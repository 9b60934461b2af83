"""The engine without a model: the same scheduler and memories, steps that take simulated time."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from pbench.engine.candidate import Candidate, ScoredToken
from pbench.engine.config import EngineConfig
from pbench.engine.engine import Engine
from pbench.engine.paged_memory import PagedMemory
from pbench.engine.plan import Choice, Sample, StepPlan, placeholder
from pbench.engine.roofline import Roofline, Speed, StepWork, within_window

# Odd, so that a product keeps every bit of what it mixes: see ``_choose``.
_TOKEN_FACTOR = 2654435761
_POSITION_FACTOR = 40503
_SEED_FACTOR = 2246822519


# How sure of the next token a simulated model is, from context to context: with 12 candidates the first has 32 to 98 %.
BEAM_EXPONENTS = (1.0, 6.0)
_NUM_EXPONENTS = 64

HOST_BANDWIDTH_BYTES_PER_S = 50e9


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


class _Choices(NamedTuple):
    """What a step chose, and when it has run."""

    choices: list[Choice]
    end_ns: int
    clock: SimulatedClock

    def tolist(self) -> list[Choice]:
        """Let time pass until the step has run; the choice for every sample of the plan, in order."""
        self.clock.advance(max(self.end_ns - self.clock(), 0))
        return self.choices


class SimulatedRunner:
    """A ``StepRunner`` that lets the time of a roofline pass instead of running a model, one step after the other.

    A sampled token is a function of the token before it, its position and, with a temperature, the sample's seed. So
    equal prompts are continued alike, as by a real model that chooses greedily, and different ones never come to have
    the same prefix.
    """

    def __init__(self, config: EngineConfig, roofline: Roofline, clock: SimulatedClock) -> None:
        self.weights_bytes = roofline.weights_bytes
        self._vocab_size = config.model.vocab_size
        self._windows = Counter(config.windows)  # how many layers have each
        self._block_size = config.block_size
        self._block_bytes = config.block_size * config.slot_bytes
        self._roofline = roofline
        self._clock = clock
        self._last = _Choices([], 0, clock)
        self._sharing: PagedMemory | None = None

    def read_shared_once(self, memory: PagedMemory) -> None:
        """Let steps read KV that several sequences share once for all of them, as attention on a GPU does."""
        self._sharing = memory

    def launch(self, plan: StepPlan) -> "_Choices":
        """Start a step when the one before has run."""
        choices: list[Choice] = []
        num_tokens = num_context = num_pairs = 0
        choose, last = self._choose, self._last.choices
        for _, start, computed, _, _, samples in plan.sequences:
            count = len(computed)
            num_tokens += count
            num_context += start + count
            num_pairs += count * start + count * (count + 1) // 2
            token_id = computed[-1]
            if token_id < 0:
                chosen = last[placeholder(token_id)]
                if isinstance(chosen, ScoredToken):
                    chosen = chosen.token_id
                assert isinstance(chosen, int), "a step was planned ahead of beams"
                token_id = chosen
            if len(samples) == 1:
                choices.append(choose(token_id, start + count, samples[0]))
            else:
                choices += [choose(token_id, start + count, sample) for sample in samples]
        if self._sharing is not None:
            num_context = min(num_context, self._sharing.num_held_slots)
        if any(self._windows):
            num_context, num_pairs = self._within_windows(plan, num_context, num_pairs)
        num_copied_slots = len(plan.copies) * self._block_size + sum(num_slots for _, _, num_slots in plan.moves)
        has_prompts = plan.num_decodes < len(plan.sequences)
        work = StepWork(num_tokens, len(choices), num_context, num_pairs, num_copied_slots, has_prompts)
        num_swapped = len(plan.swaps.out) + len(plan.swaps.back)
        duration_ns = self._roofline.step_ns(work) + self.time_swap(num_swapped) // 2
        self._last = _Choices(choices, max(self._clock(), self._last.end_ns) + duration_ns, self._clock)
        return self._last

    def _within_windows(self, plan: StepPlan, num_context: int, num_pairs: int) -> tuple[int, int]:
        """KV read and pairs in the mean of all layers; given are those of a layer that sees everything."""
        context = pairs = 0
        for window, num_layers in self._windows.items():
            seen = [(num_context, num_pairs)]
            if window is not None:
                seen = [within_window(window, seq.start, len(seq.token_ids)) for seq in plan.sequences]
            context += num_layers * sum(one[0] for one in seen)
            pairs += num_layers * sum(one[1] for one in seen)
        num_layers = self._windows.total()
        return round(context / num_layers), round(pairs / num_layers)

    def memory_bytes(self) -> dict[str, int]:
        """Nothing is really held."""
        return {}

    def time_swap(self, num_blocks: int) -> int:
        """Two transfers over a PCIe 5.0 x16 bus, at 50 of its 63 GB/s."""
        return round(2 * num_blocks * self._block_bytes / HOST_BANDWIDTH_BYTES_PER_S * 1e9)

    def compile_ahead(self, prompt_lengths: Sequence[int]) -> None:
        """There is nothing to compile."""

    def warm_up(self) -> None:
        """There is nothing to prepare."""

    def _choose(self, token_id: int, position: int, sample: Sample) -> Choice:
        _, temperature, seed, num_candidates, options, _ = sample
        mixed = token_id * _TOKEN_FACTOR + position * _POSITION_FACTOR + (seed if temperature else 0) * _SEED_FACTOR
        chosen = (mixed ^ mixed >> 16) % self._vocab_size
        if num_candidates:
            return self._candidates(chosen, num_candidates)
        if options is None or options.num_logprobs is None:
            return chosen
        candidates = self._candidates(chosen, max(options.num_logprobs, 1))
        return ScoredToken(chosen, candidates[0].log_prob, candidates[: options.num_logprobs])

    def _candidates(self, best: int, count: int) -> list[Candidate]:
        """Candidates of a beam by a power law from ``best`` on: some beams survive a step, others fork.

        A model is sure of some tokens and not of others, so the exponent depends on the context, by way of ``best``.
        """
        count = min(count, self._vocab_size)
        log_probs = _log_probs(best * _TOKEN_FACTOR >> 12 & _NUM_EXPONENTS - 1, count)
        return [Candidate((best + rank) % self._vocab_size, log_prob) for rank, log_prob in enumerate(log_probs)]


@cache
def _log_probs(level: int, count: int) -> tuple[float, ...]:
    """Of ``count`` candidates whose probabilities fall as rank ** -exponent; levels are spread over the exponents."""
    low, high = BEAM_EXPONENTS
    exponent = low + (high - low) * level / (_NUM_EXPONENTS - 1)
    log_total = math.log(math.fsum(rank**-exponent for rank in range(1, count + 1)))
    return tuple(-exponent * math.log(rank) - log_total for rank in range(1, count + 1))


def simulated_engine(config: EngineConfig, speed: Speed) -> tuple[Engine, SimulatedClock]:
    """An engine that runs nothing, and the clock on which all that it says is timed.

    Raises:
        ConfigError: the model's cost is not known, or the pool cannot hold the smallest request.
    """
    clock = SimulatedClock()
    runner = SimulatedRunner(config, Roofline(config, speed), clock)
    engine = Engine(config, runner, clock)
    if isinstance(engine.memory, PagedMemory) and config.is_prefix_cached:
        runner.read_shared_once(engine.memory)
    return engine, clock
