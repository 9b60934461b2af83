"""DecodeGraphs: decode steps replayed from CUDA graphs, one graph per batch size of a small set."""

from bisect import bisect_left
from collections.abc import Callable

import torch
from torch import Tensor


class DecodeGraphs:
    """Captures ``run(size)`` for batch sizes up to ``largest`` and replays it; all graphs share one memory pool.

    ``stage`` uploads inputs for a size, and ``run`` reads them from where they lie, which is the same for a size every
    time: so whatever is staged last is what a replay computes with.
    """

    def __init__(self, largest: int, stage: Callable[[int], None], run: Callable[[int], Tensor]) -> None:
        self.largest = largest
        self._sizes = _sizes(largest)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._outputs: dict[int, Tensor] = {}
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        memory_pool = None
        with torch.cuda.stream(stream):
            for size in reversed(self._sizes):  # the largest first, so that the others fit into its memory
                stage(size)
                run(size)  # compiles what is not compiled yet, which a capture could not
                stream.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=memory_pool, stream=stream):
                    self._outputs[size] = run(size)
                memory_pool = graph.pool()
                self._graphs[size] = graph
        torch.cuda.synchronize()

    def size_for(self, count: int) -> int:
        """The smallest captured size that holds ``count`` sequences."""
        return self._sizes[bisect_left(self._sizes, count)]

    def replay(self, size: int) -> Tensor:
        """Run the graph of ``size``; what it returns is overwritten by the next replay of any size."""
        self._graphs[size].replay()
        return self._outputs[size]


def _sizes(largest: int) -> list[int]:
    """1, 2, 4, then steps of 8 up to 64, steps of 16 above: padding wastes at most a few rows of a GEMM tile."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, largest, 16)]
    return [size for size in sizes if size < largest] + [largest]
