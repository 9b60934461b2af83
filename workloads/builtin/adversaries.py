"""Workloads that are made to hurt: one a contiguous pool, one a prefix cache."""

from collections.abc import Iterator

from pbench.workloads.definition import Definition, Draw, num_requests, tokens, uniform
from pbench.workloads.parameters import Parameter
from pbench.workloads.request import Segment
from pbench.workloads.row import PRIVATE, Row, private_row

_HOLE_OUTPUT = 4


def _build_fragmentation(draw: Draw) -> Iterator[Row]:
    count = draw["num_requests"]
    jitter = draw.stream("jitter").integers(count, 0, draw["jitter"]).tolist()
    hole = float(draw["hole_min"])
    for line in range(1, count + 1):
        extra = jitter[line - 1]
        if line % 2:
            yield private_row(line, None, draw["pin_input"] + extra, draw["pin_output"])
            continue
        yield private_row(line, None, round(hole) + extra, _HOLE_OUTPUT)
        if line % (2 * draw["wave"]) == 0:
            hole *= draw.number("growth")
            if hole > draw["hole_max"]:
                hole = float(draw["hole_min"])


def _build_thrash(draw: Draw) -> Iterator[Row]:
    count, prefix_tokens = draw["num_requests"], draw["prefix_tokens"]
    num_prefixes = -(-round(draw["cache_tokens"] * draw.number("excess")) // prefix_tokens)
    lengths = zip(draw.uniform_lengths("own", count), draw.uniform_lengths("output", count), strict=True)
    for line, (own, output) in enumerate(lengths, start=1):
        segments = (Segment(line % num_prefixes, prefix_tokens), Segment(PRIVATE, own))
        yield Row(line, None, prefix_tokens + own, output, segments)


FRAGMENTATION = Definition(
    name="fragmentation",
    description="requests that stay between requests that go, and the next ones never fit into the gaps",
    stands_for="the worst case of sequential-fit allocators (Wilson et al., IWMM 1995): long-lived small objects pin"
    " the memory between short-lived ones, and each wave is larger than the holes of the one before",
    parameters=(
        num_requests(512),
        tokens("pin_input", 16, "tokens of the prompt of a request that stays"),
        tokens("pin_output", 512, "tokens that it makes"),
        *uniform("hole", 128, 1024, "prompt of a request that goes after four tokens"),
        Parameter("growth", 1.3, "how much longer each wave's prompts are; from hole_max they start anew", 1.01, 10.0),
        Parameter("wave", 8, "requests that go, in a wave", 1, 100_000),
        Parameter("jitter", 8, "tokens by which prompts differ at random", 0, 100_000),
    ),
    build=_build_fragmentation,
)

PREFIX_THRASH = Definition(
    name="prefix-thrash",
    description="prompts that come round again just after the cache has lost them",
    stands_for="the worst case of LRU: a cyclic scan of a working set a little larger than the cache",
    parameters=(
        num_requests(512),
        tokens("cache_tokens", 65_536, "slots that cache prefixes; the default is a pool of 8 GiB for llama-8b"),
        Parameter("excess", 1.05, "size of all prefixes over cache_tokens", 0.01, 100.0),
        tokens("prefix_tokens", 1024, "tokens of a prefix"),
        *uniform("own", 16, 64, "own part of a prompt"),
        *uniform("output", 8, 32, "answer"),
    ),
    build=_build_thrash,
)
