"""StepGraphs: steps replayed from CUDA graphs, one graph for each of a set of layouts."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pbench.engine.batches import Layout

# Of a layer's products in a step with prompts: the fastest GPUs take as long for them as slow hosts for its launches.
MAX_CAPTURED_FLOPS = 3e11


class StepGraphs:
    """Captures a step of every layout and replays it; all graphs share one memory pool.

    Args:
        layouts: the largest first, so that the others fit into its memory.
        stage: uploads a step of this layout that reads and writes nothing.
        run: computes a step from what is staged. For one layout that always lies in the same places, so a replay
            computes with whatever was staged last.
    """

    def __init__(
        self, layouts: Iterable[Layout], stage: Callable[[Layout], None], run: Callable[[Layout], Tensor]
    ) -> None:
        self._graphs: dict[Layout, torch.cuda.CUDAGraph] = {}
        self._outputs: dict[Layout, Tensor] = {}
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        memory_pool = None
        with torch.cuda.stream(stream):
            for layout in layouts:
                stage(layout)
                run(layout)  # compiles what is not compiled yet, which a capture could not
                stream.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=memory_pool, stream=stream):
                    self._outputs[layout] = run(layout)
                memory_pool = graph.pool()
                self._graphs[layout] = graph
        torch.cuda.synchronize()

    def __contains__(self, layout: Layout) -> bool:
        return layout in self._graphs

    def replay(self, layout: Layout) -> Tensor:
        """Run a graph; what it returns is overwritten by the next replay of any."""
        self._graphs[layout].replay()
        return self._outputs[layout]


def decode_sizes(largest: int) -> list[int]:
    """1, 2, 4, then in steps of 8 that double at 64, 256 and 512: padding wastes at most a few rows of a GEMM tile."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, 512, 32), *range(512, largest, 64)]
    return [size for size in sizes if size < largest] + [largest]


def mixed_sizes(max_batch_tokens: int, layer_flops: int) -> list[int]:
    """Tokens of steps with prompts in them: above these a device computes for longer than a host launches.

    Args:
        max_batch_tokens: the most that a step has.
        layer_flops: what the products of a layer compute for one token.
    """
    sizes = [32, 64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024]
    while sizes[-1] < max_batch_tokens:
        sizes.append(sizes[-1] + 2 ** (sizes[-1].bit_length() - 3))
    sizes = [size for size in sizes if size < max_batch_tokens] + [max_batch_tokens]
    return [size for size in sizes if size <= 1024 or size * layer_flops <= MAX_CAPTURED_FLOPS]


def max_prefills(size: int) -> int:
    """Prompts in a captured step of so many tokens: room for more costs attention time, which short steps notice."""
    return min(max(size // 128, 32), 64)
