"""Prompts that programs put together: examples, retrieved chunks, tools."""

from collections.abc import Iterator

from pbench.workloads.builtin.sessions import Turn, rows_in_order, session_starts, session_turns, starts_ns
from pbench.workloads.definition import Definition, Draw, lognormal, num_requests, tokens, uniform
from pbench.workloads.errors import WorkloadError
from pbench.workloads.parameters import Parameter
from pbench.workloads.request import Segment
from pbench.workloads.row import PRIVATE, Row

_INSTRUCTIONS = 0
_EXAMPLE_TOKENS = {1: 80, 5: 341}  # of the translation prefix, by the number of its examples
_CHOICE_BATCH = 1024


def _build_few_shot(draw: Draw) -> Iterator[Row]:
    count = draw["num_requests"]
    prefix = Segment(_INSTRUCTIONS, _EXAMPLE_TOKENS[draw["shots"]])
    lengths = zip(draw.lognormal_lengths("input", count), draw.lognormal_lengths("output", count), strict=True)
    for line, (own, output) in enumerate(lengths, start=1):
        yield Row(line, None, prefix.length + own, output, (prefix, Segment(PRIVATE, own)))


def _build_rag(draw: Draw) -> Iterator[Row]:
    count, num_chunks, num_retrieved = draw["num_requests"], draw["num_chunks"], draw["num_retrieved"]
    if num_retrieved > num_chunks:
        raise WorkloadError(
            f"workload rag-long-context: num_retrieved={num_retrieved} is above num_chunks={num_chunks}; a request"
            " retrieves different chunks"
        )
    instructions = Segment(_INSTRUCTIONS, draw["instruction_tokens"])
    chunks = _popular_chunks(draw)
    lengths = zip(draw.uniform_lengths("question", count), draw.uniform_lengths("output", count), strict=True)
    for line, (question, output) in enumerate(lengths, start=1):
        retrieved: dict[int, None] = {}
        while len(retrieved) < num_retrieved:
            retrieved[next(chunks)] = None
        segments = (
            instructions,
            *(Segment(1 + chunk, draw["chunk_tokens"]) for chunk in retrieved),
            Segment(PRIVATE, question),
        )
        yield Row(line, None, sum(part.length for part in segments), output, segments)


def _popular_chunks(draw: Draw) -> Iterator[int]:
    """Chunks by Zipf's law: the k-th most popular is drawn with a probability proportional to 1 / k**popularity."""
    weights = [1 / rank ** draw.number("popularity") for rank in range(1, draw["num_chunks"] + 1)]
    stream = draw.stream("chunks")
    while True:
        yield from stream.choices(_CHOICE_BATCH, weights)


def _build_agents(draw: Draw) -> Iterator[Row]:
    return rows_in_order(_agent_sessions(draw), draw["num_requests"])


def _agent_sessions(draw: Draw) -> Iterator[Iterator[Turn]]:
    num_agents, num_tasks = draw["num_agents"], draw["num_tasks"]
    for number, start_ns in enumerate(starts_ns(draw)):
        stream = draw.stream(f"session {number}")
        (agent,) = stream.integers(1, 0, num_agents - 1).tolist()
        (task,) = stream.integers(1, 0, num_tasks - 1).tolist()
        (num_steps,) = stream.integers(1, draw["steps_min"], draw["steps_max"]).tolist()
        shared = (
            Segment(_INSTRUCTIONS, draw["shared_tokens"]),
            Segment(1 + agent, draw["tools_tokens"]),
            Segment(1 + num_agents + agent * num_tasks + task, draw["task_tokens"]),
        )
        results = draw.lognormal_lengths("result", num_steps, stream)
        calls = draw.uniform_lengths("output", num_steps, stream)
        pauses_s = [draw.number("tool_s") * t for t in stream.exponentials(num_steps)]
        yield session_turns(start_ns, number, shared, results, calls, pauses_s)


FEW_SHOT = Definition(
    name="few-shot",
    description="translation with the examples in front: one prefix for all, short own sentences",
    stands_for="the shared prefix of PagedAttention (SOSP 2023), section 6.4: one example is 80 tokens, five are 341;"
    " the lengths of the sentences are ours",
    parameters=(
        num_requests(1000),
        Parameter("shots", 5, "examples in the prefix", choices=tuple(_EXAMPLE_TOKENS)),
        *lognormal("input", 32, 0.5, 256, "sentence"),
        *lognormal("output", 36, 0.5, 256, "translation"),
    ),
    build=_build_few_shot,
    block_size=4,
)

RAG_LONG_CONTEXT = Definition(
    name="rag-long-context",
    description="answers from retrieved chunks: long prompts that share chunks, but seldom in the same place",
    stands_for="retrieval-augmented generation; Zipf-popular chunks, best first, so that only the first ones are a"
    " common prefix",
    parameters=(
        num_requests(256),
        tokens("instruction_tokens", 128, "tokens of the instructions that all share"),
        Parameter("num_chunks", 500, "chunks in the collection", 1, 1_000_000),
        tokens("chunk_tokens", 512, "tokens of a chunk"),
        Parameter("num_retrieved", 12, "different chunks in a prompt", 1, 1000),
        Parameter("popularity", 1.0, "Zipf exponent of the chunks: 0 all alike, 1 as words in a text", 0.0, 3.0),
        *uniform("question", 16, 128, "question"),
        *uniform("output", 64, 384, "answer"),
    ),
    build=_build_rag,
)

AGENT_TOOLS = Definition(
    name="agent-tools",
    description="agents that call tools: a tree of shared prompts, and steps that grow within a session",
    stands_for="tool-using agents: a prompt for all, the tools of an agent, the instructions of a task, then every call"
    " and its result",
    parameters=(
        num_requests(1000),
        tokens("shared_tokens", 256, "tokens of the prompt that all agents share"),
        Parameter("num_agents", 4, "agents, each with its own tools", 1, 10_000),
        tokens("tools_tokens", 768, "tokens that describe an agent's tools"),
        Parameter("num_tasks", 8, "tasks of each agent", 1, 10_000),
        tokens("task_tokens", 192, "tokens that describe a task"),
        Parameter("steps_min", 2, "fewest steps of a session", 1, 1000),
        Parameter("steps_max", 8, "most steps of a session", 1, 1000),
        *lognormal("result", 150, 1.0, 2048, "result of a tool (first: what the user wants)"),
        *uniform("output", 24, 96, "call of a tool"),
        session_starts(4.0),
        Parameter("tool_s", 1.0, "mean time from a call to the next step, s", 0.0, 86_400),
    ),
    build=_build_agents,
    arrivals="recorded",
)
