"""Engine: requests in, tokens and records out, one step at a time. Imports no torch: a runner brings it."""

import math
import time
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, get_args

import numpy as np

from pbench.engine.beam_search import EarlyStopping
from pbench.engine.buddy_memory import BuddyMemory
from pbench.engine.config import EngineConfig
from pbench.engine.contiguous_memory import ContiguousMemory
from pbench.engine.errors import RequestError
from pbench.engine.memory import KVMemory
from pbench.engine.paged_memory import PagedMemory
from pbench.engine.plan import Choice, StepPlan
from pbench.engine.pool_map import PoolMap
from pbench.engine.preemption import PreemptionCosts
from pbench.engine.records import RequestRecord, StepRecord, TokenOutput
from pbench.engine.request import Request, SamplingParams
from pbench.engine.reservation import reservation_for
from pbench.engine.scheduler import Scheduler
from pbench.engine.static_memory import StaticMemory


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
        """Start a step, without waiting for it."""
        ...

    def memory_bytes(self) -> dict[str, int]:
        """What it holds on the device: "weights", "pool", "buffers", "graphs"."""
        ...

    def time_swap(self, num_blocks: int) -> int:
        """Nanoseconds to copy so many blocks to host memory and back; only where the configuration swaps."""
        ...

    def warm_up(self) -> None:
        """Prepare what the first steps did not: called once they have run, before any request counts."""
        ...


class Engine:
    """A KV memory, a scheduler and a runner. ``pbench.engine.loading.load_engine`` makes one with a real model.

    Requests may be added and aborted between any two steps.

    Args:
        config: what to run.
        runner: carries the plans out.
        clock: nanoseconds; everything that the engine times is on it.

    Raises:
        ConfigError: the pool cannot hold the smallest request.
    """

    def __init__(self, config: EngineConfig, runner: StepRunner, clock: Callable[[], int] = time.monotonic_ns) -> None:
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
        )
        self.preemption_costs: PreemptionCosts | None = None  # measured by ``warm_up``, where they decide
        self.weights_bytes = runner.weights_bytes
        self.num_slots = config.num_slots
        self.slot_bytes = config.slot_bytes
        self.pool_bytes = self.num_slots * self.slot_bytes
        self.block_size = config.block_size if config.memory == "paged" else self.num_slots
        self._live_request_ids: set[int] = set()

    @property
    def has_unfinished(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._live_request_ids)

    def add_request(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestError: it could never run here; the message says why and what to change.

        """
        self._check(request)
        self._live_request_ids.add(request.request_id)
        self.scheduler.add(request, self.clock())

    def abort(self, request_id: int) -> RequestRecord | None:
        """Drop a request and free its memory; None when it is not here (any more)."""
        state = self.scheduler.abort(request_id)
        if state is None:
            return None
        self._live_request_ids.remove(request_id)
        return self.scheduler.record(state, "aborted", self.clock())

    def step(self) -> StepOutput:
        """Run one step. There must be an unfinished request."""
        assert self.has_unfinished, "a step without requests"
        before = self.memory.counters()
        start_ns = self.clock()
        plan, counts = self.scheduler.schedule(start_ns)
        pending = self.runner.launch(plan)
        usage = self.memory.usage(self.scheduler.head)  # while the device computes
        choices = pending.tolist()
        end_ns = self.clock()
        tokens, finished = self.scheduler.complete(plan, choices, end_ns)
        after = self.memory.counters()
        self._live_request_ids.difference_update(record.request_id for record in finished)
        record = StepRecord(
            step=plan.step,
            start_ns=start_ns,
            end_ns=end_ns,
            num_prefill_tokens=counts.num_prefill_tokens,
            num_decode_tokens=counts.num_decode_tokens,
            num_output_tokens=len(tokens),
            num_prefix_hit_tokens=counts.num_prefix_hit_tokens,
            num_recomputed_tokens=counts.num_recomputed_tokens,
            num_running=counts.num_running,
            num_waiting=len(self.scheduler.waiting),
            num_finished=len(finished),
            num_preempted=counts.num_preempted,
            num_forks=after.num_forks - before.num_forks,
            num_copied_blocks=after.num_copied_blocks - before.num_copied_blocks,
            num_evicted_blocks=after.num_evicted_blocks - before.num_evicted_blocks,
            num_swapped_out_blocks=after.num_swapped_out_blocks - before.num_swapped_out_blocks,
            num_swapped_in_blocks=after.num_swapped_in_blocks - before.num_swapped_in_blocks,
            num_moved_slots=after.num_moved_slots - before.num_moved_slots,
            is_memory_blocked=counts.is_memory_blocked,
            usage=usage,
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
        states = [*self.scheduler.running, *self.scheduler.waiting]
        return [self.scheduler.record(state, "unfinished", now_ns) for state in states]

    def warm_up(self) -> None:
        """Run requests of several lengths, so that nothing is compiled later; leaves pool and prefix cache empty.

        Kernels are compiled for the shape of a step: prompts of each length alone, then as many decodes as may run.
        """
        assert not self.has_unfinished, "warm up before the first request"
        config = self.config
        longest = min(config.max_length, config.max_batch_tokens, config.num_slots) - 2
        for prompt_length in (1, 2, 4, 8, 16, 32, 64, longest // 2, longest):
            self._warm_up_with(1, prompt_length, longest)
        self._warm_up_with(config.max_running, 1, longest)
        self.runner.warm_up()
        if config.num_host_blocks and config.preemption == "auto":
            self.preemption_costs = self._measure_preemption(longest)
            self.scheduler.is_swapping = self.preemption_costs.is_swap_cheaper
        self.memory.reset()
        self.scheduler.reset()

    def _warm_up_with(self, num_requests: int, prompt_length: int, longest: int) -> None:
        prompt = [index % self.config.model.vocab_size for index in range(prompt_length)]
        requests = [Request(-1 - index, prompt, SamplingParams(max_tokens=2)) for index in range(num_requests)]
        if 0 < prompt_length <= longest and self.memory.can_ever_hold(requests[0]):
            for request in requests:
                self.add_request(request)
        while self.has_unfinished:
            self.step()
        self.memory.reset()  # the next prompt must not hit this one

    def _measure_preemption(self, num_tokens: int) -> PreemptionCosts:
        """Time a prefill of so many tokens, or of as many as are possible, and the swap of as many blocks."""
        num_tokens = max(num_tokens, 1)
        prompt = [index % self.config.model.vocab_size for index in range(num_tokens)]
        self.add_request(Request(-1, prompt, SamplingParams(max_tokens=1)))
        prefill_ns = 0
        while self.has_unfinished:
            record = self.step().record
            prefill_ns += record.end_ns - record.start_ns
        num_blocks = min(max(num_tokens // self.block_size, 1), self.config.num_host_blocks)
        swap_ns = self.runner.time_swap(num_blocks)
        return PreemptionCosts(prefill_ns / num_tokens, swap_ns / (num_blocks * self.block_size))

    def _check(self, request: Request) -> None:
        config, sampling = self.config, request.sampling
        num_prompt, where = len(request.prompt_token_ids), f"request {request.request_id}"
        if request.request_id in self._live_request_ids:
            raise RequestError(f"{where} is here already; give every request an id of its own")
        if num_prompt < 1 or sampling.max_tokens < 1:
            raise RequestError(
                f"{where} has {num_prompt} prompt tokens and max_tokens {sampling.max_tokens}; both must be at least 1"
            )
        if num_prompt + sampling.max_tokens > config.max_length:
            raise RequestError(
                f"{where} has {num_prompt} prompt tokens and up to {sampling.max_tokens} output tokens, more than"
                f" max_length {config.max_length}; raise --max-length"
            )
        if not 1 <= sampling.num_sequences <= config.max_running:
            raise RequestError(
                f"{where} asks for {sampling.num_sequences} sequences (n {sampling.n}, beam_width"
                f" {sampling.beam_width}); between 1 and max_running {config.max_running} can run"
            )
        if not 0 <= sampling.temperature < math.inf:
            raise RequestError(f"{where} has temperature {sampling.temperature}; it must be 0 or more, and finite")
        if sampling.beam_width > 1:
            if sampling.early_stopping not in get_args(EarlyStopping):
                known = ", ".join(get_args(EarlyStopping))
                raise RequestError(f"{where} has early_stopping {sampling.early_stopping!r}; known: {known}")
            if sampling.n > sampling.beam_width:
                raise RequestError(f"{where} asks for n = {sampling.n} hypotheses of {sampling.beam_width} beams")
            if not self.memory.can_fork:
                raise RequestError(f"{where} wants beam search, which {config.memory} cannot do; use paged")
        smallest, largest = _bounds(request.prompt_token_ids)
        if not 0 <= smallest <= largest < config.model.vocab_size:
            raise RequestError(f"{where} has a token id outside the vocabulary of {config.model.vocab_size}")
        if not self.memory.can_ever_hold(request):
            raise RequestError(f"{where} does not fit the pool of {config.num_slots} slots; raise --kv-memory")


def _bounds(token_ids: Sequence[int]) -> tuple[int, int]:
    """The smallest and the largest id; a packed prompt is not unpacked for it."""
    if isinstance(token_ids, array):
        numbers = np.asarray(token_ids)
        return int(numbers.min()), int(numbers.max())
    return min(token_ids), max(token_ids)
