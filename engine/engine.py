"""Engine: requests in, tokens and records out, one step at a time. Imports no torch: a runner brings it."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

from pbench.engine.buddy_memory import BuddyMemory
from pbench.engine.config import EngineConfig
from pbench.engine.contiguous_memory import ContiguousMemory
from pbench.engine.draft import StepCounts
from pbench.engine.errors import RequestError
from pbench.engine.memory import KVMemory, MemoryCounters
from pbench.engine.paged_memory import PagedMemory
from pbench.engine.phases import Phases, no_phases
from pbench.engine.plan import Choice, StepPlan
from pbench.engine.pool_map import PoolMap
from pbench.engine.preemption import PreemptionCosts
from pbench.engine.records import Completion, KVUsage, RequestRecord, StepRecord, TokenOutput
from pbench.engine.request import Request, SamplingParams
from pbench.engine.request_check import check_request
from pbench.engine.reservation import reservation_for
from pbench.engine.scheduler import Scheduler
from pbench.engine.static_memory import StaticMemory
from pbench.engine.text_stream import Decode

_WARM_UP = SamplingParams(max_tokens=2, ignore_eos=True, detokenize=False)


class StepOutput(NamedTuple):
    """All that came out of a step."""

    record: StepRecord
    tokens: list[TokenOutput]
    finished: list[RequestRecord]


def make_memory(config: EngineConfig) -> KVMemory:
    """The memory that ``config.memory`` names, empty."""
    if config.memory == "paged":
        return PagedMemory(
            config.num_slots // config.block_size,
            config.block_size,
            is_prefix_cached=config.is_prefix_cached,
            has_partial_hits=config.has_partial_hits,
            num_host_blocks=config.num_host_blocks,
            eviction=config.eviction,
        )
    if config.memory == "contiguous:pow2":
        return BuddyMemory(config.num_slots)
    if config.memory == "static":
        return StaticMemory(config.num_slots, config.max_running)
    return ContiguousMemory(config.num_slots, reservation_for(config.memory, config.max_length))


class PendingChoices(Protocol):
    """What a step chooses, while it may still be running; a tensor of tokens is one."""

    def tolist(self) -> Sequence[Choice]:
        """Wait for the step and return the choice for every sample of its plan, in order."""
        ...


class StepRunner(Protocol):
    """What carries plans out."""

    weights_bytes: int  # of the model that it holds

    def launch(self, plan: StepPlan) -> PendingChoices:
        """Start a step, without waiting for it or for those before it.

        At most one step runs already; the plan's placeholders stand for what that one chooses.
        """
        ...

    def memory_bytes(self) -> dict[str, int]:
        """What it holds on the device: "weights", "pool", "buffers", "graphs"."""
        ...

    def time_swap(self, num_blocks: int) -> int:
        """Nanoseconds to copy so many blocks to host memory and back; only where the configuration swaps."""
        ...

    def compile_ahead(self, prompt_lengths: Sequence[int]) -> None:
        """Compile what steps will need, and a prompt of each length alone; called once, before the first step."""
        ...

    def warm_up(self) -> None:
        """Prepare what the first steps did not: called once they have run, before any request counts."""
        ...


@runtime_checkable
class AnnouncingRunner(Protocol):
    """A runner that tells of the phases within a launch."""

    def announce(self, phases: Phases) -> None:
        """See ``Engine.announce``."""


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that was launched, and what is known of it before it has run."""

    plan: StepPlan
    counts: StepCounts
    pending: PendingChoices
    usage: KVUsage
    events: MemoryCounters  # of planning it
    start_ns: int


class Engine:
    """A KV memory, a scheduler and a runner. ``pbench.engine.loading.load_engine`` makes one with a real model.

    Requests may be added and aborted between any two steps.

    With ``config.has_async_steps`` a step is planned and launched while the one before it still runs, so that the
    device never waits for the host: ``step`` launches the next step, then waits for the tokens of the last. A step
    with beams is waited for before the next is planned, for its outcome decides which sequences there are.

    Args:
        config: what to run.
        runner: carries the plans out.
        clock: nanoseconds; everything that the engine times is on it.
        decode: token ids to text, for text beside the tokens and for stop strings; None: there is neither.

    Raises:
        ConfigError: the pool cannot hold the smallest request.
    """

    def __init__(
        self,
        config: EngineConfig,
        runner: StepRunner,
        clock: Callable[[], int] = time.monotonic_ns,
        decode: Decode | None = None,
    ) -> None:
        assert config.gpu_memory_utilization is None, "load_engine measures how large the pool may be"
        config.check_pool(1, 1)
        self.config = config
        self.runner = runner
        self.clock = clock
        self.memory = make_memory(config)
        self.scheduler = Scheduler(
            self.memory,
            max_batch_tokens=config.max_batch_tokens,
            max_running=config.max_running,
            is_prefill_chunked=config.is_prefill_chunked,
            slot_bytes=config.slot_bytes,
            swapping=self.memory if config.num_host_blocks and isinstance(self.memory, PagedMemory) else None,
            decode=decode,
        )
        self.preemption_costs: PreemptionCosts | None = None  # measured by ``warm_up``, where they decide
        self.weights_bytes = runner.weights_bytes
        self.num_slots = config.num_slots
        self.slot_bytes = config.slot_bytes
        self.pool_bytes = self.num_slots * self.slot_bytes
        self.block_size = config.block_size if config.memory == "paged" else self.num_slots
        self._live_request_ids: set[int] = set()
        self._aborted_since_step: set[int] = set()
        self._in_flight: _Flight | None = None
        self._counters = self.memory.counters()  # up to here they stand in a record
        self._last_end_ns = 0
        self._phases: Phases = no_phases

    def announce(self, phases: Phases) -> None:
        """Tell ``phases`` of the phases of every step from now on. Call it once, after ``warm_up``."""
        self._phases = phases
        if isinstance(self.runner, AnnouncingRunner):
            self.runner.announce(phases)

    @property
    def has_unfinished(self) -> bool:
        """Whether a request waits or runs, or a step is still on the device."""
        return bool(self._live_request_ids) or self._in_flight is not None

    def add_request(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestError: it could never run here; the message says why and what to change.

        """
        self._check(request)
        self._live_request_ids.add(request.request_id)
        self.scheduler.add(self._with_eos(request), self.clock())

    def _check(self, request: Request) -> None:
        if request.request_id in self._live_request_ids:
            raise RequestError(f"request {request.request_id} is here already; give every request an id of its own")
        check_request(request, self.config, self.memory, can_decode=self.scheduler.decode is not None)

    def _with_eos(self, request: Request) -> Request:
        """The request with the model's own ends among its stop tokens, where they are to be heeded."""
        eos_token_ids, sampling = self.config.model.eos_token_ids, request.sampling
        if sampling.ignore_eos or not eos_token_ids:
            return request
        stop_token_ids = tuple(dict.fromkeys((*sampling.stop_token_ids, *eos_token_ids)))
        return replace(request, sampling=replace(sampling, stop_token_ids=stop_token_ids))

    def abort(self, request_id: int) -> RequestRecord | None:
        """Drop a request and free its memory; None when it is not here (any more)."""
        state = self.scheduler.abort(request_id) if request_id in self._live_request_ids else None
        if state is None:
            return None
        self._live_request_ids.remove(request_id)
        self._aborted_since_step.add(request_id)
        return self.scheduler.record(state, "aborted", self.clock())

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingParams | Sequence[SamplingParams]
    ) -> list[list[Completion]]:
        """Run prompts to their end, all together, and nothing else.

        Args:
            prompts: token ids of each.
            sampling: of all prompts, or one for each.

        Returns:
            The completions of each prompt: of its n samples, or its n best hypotheses.

        Raises:
            RequestError: a prompt could never run here, or other requests are unfinished; then nothing has begun.
        """
        each = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else sampling
        if len(each) != len(prompts):
            raise RequestError(
                f"{len(prompts)} prompts have {len(each)} sampling parameters; give one for each, or one"
            )
        if self.has_unfinished:
            raise RequestError("generate runs alone, and other requests are unfinished; use add_request and stream")
        requests = [Request(index, prompt, one) for index, (prompt, one) in enumerate(zip(prompts, each, strict=True))]
        for request in requests:
            self._check(request)
        for request in requests:
            self.add_request(request)
        outputs: list[list[list[TokenOutput]]] = [[[] for _ in range(one.n)] for one in each]
        for token in self.stream():
            outputs[token.request_id][token.sample_index].append(token)
        return [[_completion(tokens) for tokens in samples] for samples in outputs]

    def stream(self) -> Iterator[TokenOutput]:
        """Step until nothing is unfinished, and give out every token as soon as it is known.

        Requests may be added and aborted between any two tokens; an aborted one has no further token.
        """
        while self.has_unfinished:
            for token in self.step().tokens:
                if token.request_id not in self._aborted_since_step:
                    yield token

    def step(self) -> StepOutput:
        """Bring one step to its end, after launching the next where steps overlap. Something must be unfinished."""
        assert self.has_unfinished, "a step without requests"
        self._aborted_since_step.clear()
        flight = self._in_flight or self._launch()
        assert flight is not None, "nothing runs, and nothing can be planned"
        can_overlap = self.config.has_async_steps and self.scheduler.can_plan_ahead
        self._in_flight = self._launch() if can_overlap else None
        return self._complete(flight)

    def _launch(self) -> _Flight | None:
        """Plan and launch a step; None when nothing can be planned before the one that runs is complete."""
        if not self.scheduler.has_requests:
            return None
        start_ns = self.clock()
        with self._phases("schedule"):
            planned = self.scheduler.schedule(start_ns)
        if planned is None:
            return None
        plan, counts = planned
        with self._phases("launch"):
            pending = self.runner.launch(plan)
        usage = self.memory.usage(self.scheduler.head)  # while the device computes
        return _Flight(plan, counts, pending, usage, self._take_events(), start_ns)

    def _take_events(self) -> MemoryCounters:
        """What the memory has counted since the last call."""
        before, self._counters = self._counters, self.memory.counters()
        return self._counters.minus(before)

    def _complete(self, flight: _Flight) -> StepOutput:
        """Wait for a step, take its tokens, and record it.

        The device runs one step after the other: a step that was launched earlier begins when the one before it ends.
        """
        plan, counts = flight.plan, flight.counts
        with self._phases("wait"):
            choices = flight.pending.tolist()
        end_ns = self.clock()
        with self._phases("complete"):
            tokens, finished = self.scheduler.complete(choices, end_ns)
        events = flight.events.plus(self._take_events())
        start_ns, self._last_end_ns = max(flight.start_ns, self._last_end_ns), end_ns
        self._live_request_ids.difference_update(record.request_id for record in finished)
        record = StepRecord(
            step=plan.step,
            start_ns=start_ns,
            end_ns=end_ns,
            num_prefill_tokens=counts.num_prefill_tokens,
            num_decode_tokens=counts.num_decode_tokens,
            num_output_tokens=len(tokens),
            num_prefix_hit_tokens=counts.num_prefix_hit_tokens,
            num_near_miss_tokens=events.num_near_miss_tokens,
            num_recomputed_tokens=counts.num_recomputed_tokens,
            num_running=counts.num_running,
            num_waiting=counts.num_waiting,
            num_finished=len(finished),
            num_preempted=counts.num_preempted,
            num_forks=events.num_forks,
            num_copied_blocks=events.num_copied_blocks,
            num_evicted_blocks=events.num_evicted_blocks,
            num_swapped_out_blocks=events.num_swapped_out_blocks,
            num_swapped_in_blocks=events.num_swapped_in_blocks,
            num_moved_slots=events.num_moved_slots,
            is_memory_blocked=counts.is_memory_blocked,
            usage=flight.usage,
        )
        return StepOutput(record, tokens, finished)

    def memory_bytes(self) -> dict[str, int]:
        """What the engine holds on the device, in bytes: "weights", "pool", "buffers", "graphs"."""
        return self.runner.memory_bytes()

    def pool_map(self) -> PoolMap:
        """What lies where in the pool now; O(pool), so not after every step."""
        return self.memory.pool_map()

    def unfinished(self) -> list[RequestRecord]:
        """Records of the requests that are still here, with status "unfinished"."""
        now_ns = self.clock()
        return [self.scheduler.record(state, "unfinished", now_ns) for state in self.scheduler.states()]

    def warm_up(self) -> int:
        """Run requests of several lengths, so that nothing is compiled later; leaves pool and prefix cache empty.

        Kernels are compiled for the shape of a step: prompts of each length alone, then as many decodes as may run.
        Returns the number of steps that ran.
        """
        assert not self.has_unfinished, "warm up before the first request"
        config = self.config
        longest = min(config.max_length, config.max_batch_tokens, config.num_slots) - 2
        prompt_lengths = [length for length in (1, 2, 4, 8, 16, 32, 64, longest // 2, longest) if 0 < length <= longest]
        self.runner.compile_ahead(prompt_lengths)
        for prompt_length in prompt_lengths:
            self._warm_up_with(1, prompt_length)
        if prompt_lengths:
            self._warm_up_with(config.max_running, 1)
        self.runner.warm_up()
        if config.num_host_blocks and config.preemption == "auto":
            self.preemption_costs = self._measure_preemption(longest)
            self.scheduler.is_swapping = self.preemption_costs.is_swap_cheaper
        self._reset_memory()
        return self.scheduler.reset()

    def _reset_memory(self) -> None:
        self.memory.reset()
        self._counters = self.memory.counters()

    def _warm_up_with(self, num_requests: int, prompt_length: int) -> None:
        prompt = [index % self.config.model.vocab_size for index in range(prompt_length)]
        requests = [Request(-1 - index, prompt, _WARM_UP) for index in range(num_requests)]
        if self.memory.can_ever_hold(requests[0]):
            for request in requests:
                self.add_request(request)
        while self.has_unfinished:
            self.step()
        self._reset_memory()  # the next prompt must not hit this one

    def _measure_preemption(self, num_tokens: int) -> PreemptionCosts:
        """Time a prefill of so many tokens, or of as many as are possible, and the swap of as many blocks."""
        num_tokens = max(num_tokens, 1)
        prompt = [index % self.config.model.vocab_size for index in range(num_tokens)]
        self.add_request(Request(-1, prompt, replace(_WARM_UP, max_tokens=1)))
        prefill_ns = 0
        while self.has_unfinished:
            record = self.step().record
            prefill_ns += record.end_ns - record.start_ns
        num_blocks = min(max(num_tokens // self.block_size, 1), self.config.num_host_blocks)
        swap_ns = self.runner.time_swap(num_blocks)
        return PreemptionCosts(prefill_ns / num_tokens, swap_ns / (num_blocks * self.block_size))


def _completion(tokens: list[TokenOutput]) -> Completion:
    reason = tokens[-1].finish_reason
    assert reason is not None, "a sequence without an end"
    scores = [token.score for token in tokens if token.score is not None]
    return Completion([token.token_id for token in tokens], "".join(token.text for token in tokens), scores, reason)
