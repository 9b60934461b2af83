"""Requests whose prompts are made when they are offered: a trace of 100 million tokens never exists as a whole."""

from array import array
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pbench.arrivals import Arrivals, sampling_params
from pbench.engine.request import Request
from pbench.workloads.request import Segment, WorkloadRequest
from pbench.workloads.tokens import prompt_token_ids, token_run

if TYPE_CHECKING:
    from pbench.workloads.workload import Workload

CACHED_TOKENS = 32 * 2**20  # four bytes each


class PromptMaker:
    """Makes prompts out of segments, and keeps those segments' tokens that were used last."""

    def __init__(self, *, vocab_size: int, seed: int, num_cached_tokens: int = CACHED_TOKENS) -> None:
        self._vocab_size = vocab_size
        self._seed = seed
        self._num_spare = num_cached_tokens
        self._runs: OrderedDict[Segment, array[int]] = OrderedDict()  # the one used last at the end

    def make(self, request: WorkloadRequest) -> "array[int]":
        """Token ids of the request's prompt, those that ``prompt_token_ids`` makes, packed as 32-bit integers.

        Raises:
            WorkloadError: the request carries an id that the vocabulary does not have.

        """
        if request.prompt_token_ids is not None:
            return array("i", prompt_token_ids(request, vocab_size=self._vocab_size, seed=self._seed))
        prompt: array[int] = array("i")
        for segment in request.segments:
            prompt.extend(self._run(segment))
        return prompt

    def _run(self, segment: Segment) -> "array[int]":
        run = self._runs.get(segment)
        if run is not None:
            self._runs.move_to_end(segment)
            return run
        run = array("i")
        run.frombytes(token_run(self._seed, segment.key, segment.length, self._vocab_size).tobytes())
        self._runs[segment] = run
        self._num_spare -= len(run)
        while self._num_spare < 0:
            _, oldest = self._runs.popitem(last=False)
            self._num_spare += len(oldest)
        return run


@dataclass(frozen=True, slots=True)
class LazyRequest:
    """Offers what a PreparedRequest offers, without a prompt until it is asked for one."""

    workload: "Workload"
    prompts: PromptMaker
    request_id: int
    arrival_ns: int  # after the start

    def at(self, arrival_ns: int) -> Request:
        """The engine's request, meant to arrive at ``arrival_ns`` of the engine's clock."""
        request = self.workload.requests[self.request_id]
        return Request(
            request_id=self.request_id,
            prompt_token_ids=self.prompts.make(request),
            sampling=sampling_params(request, self.workload.seed),
            arrival_ns=arrival_ns,
        )


def lazy_arrivals(workload: "Workload", vocab_size: int) -> Arrivals:
    """The workload's arrivals after time 0, each prompt made when it is due."""
    prompts = PromptMaker(vocab_size=vocab_size, seed=workload.seed)
    requests = [
        LazyRequest(workload, prompts, request_id, arrival_ns)
        for request_id, arrival_ns in enumerate(workload.requests.arrival_ns.tolist())
    ]
    return Arrivals(requests, 0, workload.concurrency)
