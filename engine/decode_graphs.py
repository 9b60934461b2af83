"""DecodeGraphs: decode steps replayed from CUDA graphs, one graph per batch size of a small set."""

from bisect import bisect_left
from collections.abc import Callable

import torch
from torch import Tensor


class DecodeGraphs:
    """Captures decode steps of batch sizes up to ``largest`` and replays them; all graphs share one memory pool.

    ``stage(size, is_shared)`` uploads inputs, and ``run(size, is_shared)`` reads them from where they lie, which is the
    same every time: so whatever is staged last is what a replay computes with.

    Args:
        largest: sequences of a step, at most.
        has_shared: whether to capture every size once more, with attention to shared runs (``is_shared``).
        stage: as above.
        run: as above; returns the logits.
    """

    def __init__(
        self,
        largest: int,
        has_shared: bool,
        stage: Callable[[int, bool], None],
        run: Callable[[int, bool], Tensor],
    ) -> None:
        self.largest = largest
        self.has_shared = has_shared
        self._sizes = _sizes(largest)
        self._graphs: dict[tuple[int, bool], torch.cuda.CUDAGraph] = {}
        self._outputs: dict[tuple[int, bool], Tensor] = {}
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        memory_pool = None
        with torch.cuda.stream(stream):
            for size in reversed(self._sizes):  # the largest first, so that the others fit into its memory
                for is_shared in (True, False) if has_shared else (False,):
                    stage(size, is_shared)
                    run(size, is_shared)  # compiles what is not compiled yet, which a capture could not
                    stream.synchronize()
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph, pool=memory_pool, stream=stream):
                        self._outputs[size, is_shared] = run(size, is_shared)
                    memory_pool = graph.pool()
                    self._graphs[size, is_shared] = graph
        torch.cuda.synchronize()

    def size_for(self, count: int) -> int:
        """The smallest captured size that holds ``count`` sequences."""
        return self._sizes[bisect_left(self._sizes, count)]

    def replay(self, size: int, is_shared: bool) -> Tensor:
        """Run a graph; the logits that it returns are overwritten by the next replay of any."""
        self._graphs[size, is_shared].replay()
        return self._outputs[size, is_shared]


def _sizes(largest: int) -> list[int]:
    """1, 2, 4, then steps of 8 up to 64, steps of 16 above: padding wastes at most a few rows of a GEMM tile."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, largest, 16)]
    return [size for size in sizes if size < largest] + [largest]
