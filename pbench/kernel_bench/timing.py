"""How long a kernel takes: the same call on buffers in rotation, replayed from a CUDA graph, median and spread.

On a GPU a sample is one replay of a graph that holds every call once or several times, divided by their number: launch
gaps of the host do not count, and no call finds in the cache what the call before it read. On the CPU a sample is one
call by the clock: good for seeing that the bench works, and for nothing else.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

# Of one sample. Starting a graph costs microseconds, so a sample is at least so long; and at most, to end one day.
MIN_SAMPLE_US = 400.0
MAX_GRAPH_CALLS = 512
# An H200 that had waited for its inputs took up to 7 ms to reach its speed: some kernels were 10 % slower until then.
WARM_UP_US = 20_000.0
# In a row from the host: fewer than a GPU queues before the host must wait.
HOST_CALLS = 200


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations of one call, in microseconds."""

    samples_us: tuple[float, ...]  # in the order in which they were taken
    num_calls: int  # in each sample

    @property
    def median_us(self) -> float:
        """The middle sample."""
        return self.quantile_us(0.5)

    @property
    def spread(self) -> float:
        """From the 10th to the 90th percentile, as a share of the median."""
        return (self.quantile_us(0.9) - self.quantile_us(0.1)) / self.median_us

    def quantile_us(self, share: float) -> float:
        """Linear between neighbouring samples."""
        ordered = sorted(self.samples_us)
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def time_calls(calls: Sequence[Callable[[], object]], device: torch.device, num_samples: int) -> Timing:
    """Time ``calls``, each of which does the same work on buffers of its own."""
    for call in calls[:2]:  # compiles, loads and allocates whatever only the first calls need
        call()
    return _time_graph(calls, num_samples) if device.type == "cuda" else _time_clock(calls, num_samples)


def time_host(call: Callable[[], object], device: torch.device, num_samples: int) -> Timing:
    """How long the host takes for ``call`` outside a graph: calls in a row, without waiting for the device between."""
    call()
    call()
    num_calls = HOST_CALLS if device.type == "cuda" else 1
    samples = []
    for _ in range(num_samples):
        start_ns = time.perf_counter_ns()
        for _ in range(num_calls):
            call()
        samples.append((time.perf_counter_ns() - start_ns) / 1e3 / num_calls)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return Timing(tuple(samples), num_calls)


def _time_clock(calls: Sequence[Callable[[], object]], num_samples: int) -> Timing:
    samples = []
    for index in range(num_samples):
        start_ns = time.perf_counter_ns()
        calls[index % len(calls)]()
        samples.append((time.perf_counter_ns() - start_ns) / 1e3)
    return Timing(tuple(samples), 1)


def _time_graph(calls: Sequence[Callable[[], object]], num_samples: int) -> Timing:
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
        once_us = _replay_us(_capture(calls, 1, stream), stream, 3)[-1]  # of all calls
        rounds = max(1, min(math.ceil(MIN_SAMPLE_US / once_us), MAX_GRAPH_CALLS // len(calls)))
        graph = _capture(calls, rounds, stream)
        num_calls = rounds * len(calls)
        _replay_us(graph, stream, math.ceil(WARM_UP_US / (once_us * rounds)))
        samples = _replay_us(graph, stream, num_samples)
    torch.cuda.current_stream().wait_stream(stream)
    return Timing(tuple(us / num_calls for us in samples), num_calls)


def _capture(calls: Sequence[Callable[[], object]], rounds: int, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            for call in calls:
                call()
    return graph


def _replay_us(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, num_replays: int) -> list[float]:
    durations = []
    for _ in range(num_replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record(stream)
        graph.replay()
        end.record(stream)
        stream.synchronize()
        durations.append(start.elapsed_time(end) * 1e3)
    return durations
