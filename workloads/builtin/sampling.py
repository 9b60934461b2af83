"""Several answers to one prompt: samples, or beams."""

from collections.abc import Iterator

from pbench.workloads.definition import Definition, Draw, lognormal, num_requests
from pbench.workloads.parameters import Parameter
from pbench.workloads.row import Row, private_row


def _prompts(draw: Draw) -> Iterator[Row]:
    count = draw["num_requests"]
    lengths = zip(draw.lognormal_lengths("input", count), draw.lognormal_lengths("output", count), strict=True)
    for line, (input_length, output_length) in enumerate(lengths, start=1):
        yield private_row(line, None, input_length, output_length)


def _sampled(draw: Draw) -> Iterator[Row]:
    return (row._replace(n=draw["samples"]) for row in _prompts(draw))


def _searched(draw: Draw) -> Iterator[Row]:
    return (row._replace(beam_width=draw["beam_width"]) for row in _prompts(draw))


PARALLEL_SAMPLING = Definition(
    name="parallel-sampling",
    description="several samples of each prompt, which share its blocks until they differ",
    stands_for="parallel sampling in PagedAttention (SOSP 2023), section 6.3: 2, 4 and 6 samples, lengths of Alpaca",
    parameters=(
        num_requests(500),
        Parameter("samples", 4, "samples of each prompt", 1, 64),
        *lognormal("input", 19.31, 0.5, 1024, "prompt"),
        *lognormal("output", 58.45, 0.9, 1024, "answer"),
    ),
    build=_sampled,
    block_size=4,
)

BEAM_SEARCH = Definition(
    name="beam-search",
    description="beam search over each prompt: beams share blocks until they differ, and leave as others fork",
    stands_for="beam search in PagedAttention (SOSP 2023), section 6.3: widths 2, 4 and 6, lengths of Alpaca",
    parameters=(
        num_requests(500),
        Parameter("beam_width", 4, "beams of each prompt", 2, 64),
        *lognormal("input", 19.31, 0.5, 1024, "prompt"),
        *lognormal("output", 58.45, 0.9, 1024, "answer"),
    ),
    build=_searched,
    block_size=2,  # a beam has a dozen tokens of its own, in a last block that is on average half empty
)
