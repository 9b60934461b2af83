"""Requests that share nothing: only their lengths and their arrivals matter."""

from collections.abc import Iterator

from pbench.workloads.definition import Definition, Draw, lognormal, num_requests, uniform
from pbench.workloads.row import Row, private_row


def _build_lognormal(draw: Draw) -> Iterator[Row]:
    count = draw["num_requests"]
    lengths = zip(draw.lognormal_lengths("input", count), draw.lognormal_lengths("output", count), strict=True)
    for line, (input_length, output_length) in enumerate(lengths, start=1):
        yield private_row(line, None, input_length, output_length)


def _build_uniform(draw: Draw) -> Iterator[Row]:
    count = draw["num_requests"]
    lengths = zip(draw.uniform_lengths("input", count), draw.uniform_lengths("output", count), strict=True)
    for line, (input_length, output_length) in enumerate(lengths, start=1):
        yield private_row(line, None, input_length, output_length)


SHAREGPT_LENGTHS = Definition(
    name="sharegpt-lengths",
    # The sigmas are chosen so that the means after clipping are 156 and 309.
    description="lognormal lengths with ShareGPT's means, clipped at 1024",
    stands_for="ShareGPT as PagedAttention (SOSP 2023) measured it: mean 161.31 tokens in, 337.99 out",
    parameters=(
        num_requests(1000),
        *lognormal("input", 161.31, 1.02, 1024, "prompt"),
        *lognormal("output", 337.99, 0.93, 1024, "answer"),
    ),
    build=_build_lognormal,
)

ALPACA_LENGTHS = Definition(
    name="alpaca-lengths",
    description="lognormal lengths with Alpaca's means: instructions and their answers, both short",
    stands_for="Alpaca as PagedAttention (SOSP 2023) measured it: mean 19.31 tokens in, 58.45 out; the sigmas are ours",
    parameters=(
        num_requests(1000),
        *lognormal("input", 19.31, 0.5, 1024, "prompt"),
        *lognormal("output", 58.45, 0.9, 1024, "answer"),
    ),
    build=_build_lognormal,
    block_size=4,
)

UNIFORM = Definition(
    name="uniform",
    description="uniform lengths in and out",
    stands_for="the plain throughput test of nano-vllm and others: 256 requests of 100..1024 tokens in and out",
    parameters=(
        num_requests(256),
        *uniform("input", 100, 1024, "prompt"),
        *uniform("output", 100, 1024, "answer"),
    ),
    build=_build_uniform,
)

CODE_COMPLETION = Definition(
    name="code-completion",
    description="long prompts, a few tokens out, in bursts",
    stands_for="code completion as Splitwise (ISCA 2024) describes it: median 1500 tokens in, 13 out; the sigmas and"
    " the bursts are ours",
    parameters=(
        num_requests(1000),
        *lognormal("input", 2066, 0.8, 7168, "prompt"),
        *lognormal("output", 21.4, 1.0, 512, "completion"),
    ),
    build=_build_lognormal,
    arrivals="gamma:20:3",
)

SUMMARISE = Definition(
    name="summarise",
    description="long documents in, short summaries out",
    stands_for="summaries of articles and reports: prefill does nearly all the work; the lengths are ours",
    parameters=(
        num_requests(256),
        *lognormal("input", 3000, 0.6, 8192, "document"),
        *lognormal("output", 150, 0.5, 512, "summary"),
    ),
    build=_build_lognormal,
)

REASONING = Definition(
    name="reasoning",
    description="short questions in, thousands of tokens of thought out",
    stands_for="reasoning models: decoding does nearly all the work, and how long it takes is not known before; the"
    " lengths are ours",
    parameters=(
        num_requests(256),
        *lognormal("input", 120, 0.8, 1024, "question"),
        *lognormal("output", 3000, 0.8, 16_384, "thought and answer"),
    ),
    build=_build_lognormal,
)

LONG_CONTEXT = Definition(
    name="long-context",
    description="tens of thousands of tokens in, a page out",
    stands_for="whole books and code bases as prompts: few requests fill the pool; the lengths are ours",
    parameters=(
        num_requests(64),
        *lognormal("input", 24_576, 0.8, 122_880, "prompt"),
        *lognormal("output", 400, 0.6, 2048, "answer"),
    ),
    build=_build_lognormal,
)
