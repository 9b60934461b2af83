"""When each request of a workload is offered to the engine."""

import sys
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pbench.engine.request import Request, SamplingParams

if TYPE_CHECKING:
    from pbench.workloads.request import WorkloadRequest
    from pbench.workloads.workload import Workload


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request whose prompt exists as tokens, packed: a trace of millions of tokens must fit beside the engine."""

    request_id: int
    arrival_ns: int  # after the start
    prompt_token_ids: "array[int]"
    sampling: SamplingParams

    def at(self, arrival_ns: int) -> Request:
        """The engine's request, meant to arrive at ``arrival_ns`` of the monotonic clock."""
        return Request(self.request_id, self.prompt_token_ids, self.sampling, arrival_ns)


def sampling_params(request: "WorkloadRequest", seed: int) -> SamplingParams:
    """How the engine chooses a request's tokens: greedily, but several samples of one prompt are to differ.

    Sequences end after exactly their recorded number of tokens: no token ends them earlier.
    """
    is_sampled = request.n > 1 and request.beam_width == 1
    return SamplingParams(
        max_tokens=request.output_length,
        temperature=1.0 if is_sampled else 0.0,
        seed=seed,
        n=request.n,
        beam_width=request.beam_width,
        ignore_eos=True,
    )


class Offer(Protocol):
    """A request that can be offered."""

    @property
    def arrival_ns(self) -> int:
        """When it is due, after the start."""

    def at(self, arrival_ns: int) -> Request:
        """The engine's request, meant to arrive at ``arrival_ns`` of the engine's clock."""


def prepare(workload: "Workload", vocab_size: int) -> list[PreparedRequest]:
    """Make all prompts, so that making them takes no time from the measured run."""
    from pbench.workloads.tokens import prompt_token_ids

    return [
        PreparedRequest(
            request_id=request.request_id,
            arrival_ns=round(request.arrival_s * 1e9),
            prompt_token_ids=array("i", prompt_token_ids(request, vocab_size=vocab_size, seed=workload.seed)),
            sampling=sampling_params(request, workload.seed),
        )
        for request in workload.requests
    ]


class Arrivals:
    """The queue of requests still to be offered.

    Open loop (``concurrency`` None): a request is due at its own time after the start, however busy the engine is.
    Closed loop: a request is due as soon as fewer than ``concurrency`` are in the engine.
    """

    def __init__(self, requests: Iterable[Offer], start_ns: int, concurrency: int | None = None) -> None:
        self._requests = deque(requests)
        self._start_ns = start_ns
        self._concurrency = concurrency

    @property
    def has_more(self) -> bool:
        """Whether any request is still to be offered."""
        return bool(self._requests)

    def due(self, now_ns: int, num_in_engine: int) -> Iterator[Request]:
        """Requests to add now. A late one keeps its intended arrival: its latency counts from there."""
        if self._concurrency is not None:
            for _ in range(min(self._concurrency - num_in_engine, len(self._requests))):
                yield self._requests.popleft().at(now_ns)
            return
        while self._requests and self._start_ns + self._requests[0].arrival_ns <= now_ns:
            request = self._requests.popleft()
            yield request.at(self._start_ns + request.arrival_ns)

    def wait_ns(self, now_ns: int) -> int:
        """Nanoseconds until the next request is due in an open loop; 0 when one is due."""
        return max(0, self._start_ns + self._requests[0].arrival_ns - now_ns) if self._requests else 0

    def until_due_ns(self, now_ns: int) -> int:
        """As ``wait_ns``, while others are in the engine: endless where nothing but their end makes a request due."""
        if self._concurrency is not None or not self._requests:
            return sys.maxsize
        return self.wait_ns(now_ns)
