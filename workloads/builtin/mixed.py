"""A weighted mix of other built-in workloads."""

from collections.abc import Iterator

from pbench.workloads.builtin.chat import CHAT_SHARED_PROMPT
from pbench.workloads.builtin.lengths import CODE_COMPLETION, REASONING, SHAREGPT_LENGTHS, SUMMARISE
from pbench.workloads.definition import Definition, Draw, num_requests
from pbench.workloads.errors import WorkloadError
from pbench.workloads.parameters import Parameter
from pbench.workloads.request import Segment
from pbench.workloads.row import PRIVATE, Row

# What is mixed, with the default weights; none of it has times of its own.
_PARTS = (
    (CHAT_SHARED_PROMPT, "chat_weight", 4.0),
    (SHAREGPT_LENGTHS, "sharegpt_weight", 3.0),
    (CODE_COMPLETION, "code_weight", 2.0),
    (SUMMARISE, "summarise_weight", 0.7),
    (REASONING, "reasoning_weight", 0.3),
)


def _build(draw: Draw) -> Iterator[Row]:
    weights = [draw.number(weight) for _, weight, _ in _PARTS]
    if sum(weights) == 0:
        raise WorkloadError(f"workload mixed: all weights are 0; give one of {', '.join(p[1] for p in _PARTS)} more")
    count = draw["num_requests"]
    sources = [definition.build(_draw_of(definition, draw)) for definition, _, _ in _PARTS]
    for line, part in enumerate(draw.stream("parts").choices(count, weights), start=1):
        row = next(sources[part])
        yield row._replace(line=line, segments=_renamed(row.segments, part))


def _draw_of(definition: Definition, draw: Draw) -> Draw:
    values = {parameter.name: parameter.default for parameter in definition.parameters}
    return Draw(f"mixed/{definition.name}", values | {"num_requests": draw["num_requests"]}, draw.seed)


def _renamed(segments: tuple[Segment, ...], part: int) -> tuple[Segment, ...]:
    """Keys such that those of different parts never meet."""
    return tuple(
        segment if segment.key == PRIVATE else Segment(segment.key * len(_PARTS) + part, segment.length)
        for segment in segments
    )


MIXED = Definition(
    name="mixed",
    description="chat, code, summaries and reasoning on one engine, by weight",
    stands_for="a shared deployment: long and short requests in one batch; each part with its own default lengths",
    parameters=(
        num_requests(1000),
        *(
            Parameter(weight, default, f"weight of requests of {definition.name}", 0.0, 1e6)
            for definition, weight, default in _PARTS
        ),
    ),
    build=_build,
)
