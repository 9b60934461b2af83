"""Chats: many people under one system prompt, who say one thing or go on talking."""

from collections.abc import Iterator

from pbench.workloads.builtin.sessions import Turn, rows_in_order, session_starts, session_turns, starts_ns
from pbench.workloads.definition import Definition, Draw, lognormal, num_requests, tokens, uniform
from pbench.workloads.parameters import Parameter
from pbench.workloads.request import Segment
from pbench.workloads.row import PRIVATE, Row

_SYSTEM_PROMPT = 0


def _build_shared_prompt(draw: Draw) -> Iterator[Row]:
    count = draw["num_requests"]
    shared = draw["shared_tokens"]
    lengths = zip(draw.uniform_lengths("own", count), draw.uniform_lengths("output", count), strict=True)
    for line, (own, output) in enumerate(lengths, start=1):
        segments = (Segment(_SYSTEM_PROMPT, shared), Segment(PRIVATE, own))
        yield Row(line, None, shared + own, output, segments)


def _build_multi_turn(draw: Draw) -> Iterator[Row]:
    return rows_in_order(_conversations(draw), draw["num_requests"])


def _conversations(draw: Draw) -> Iterator[Iterator[Turn]]:
    shared = (Segment(_SYSTEM_PROMPT, draw["shared_tokens"]),)
    for number, start_ns in enumerate(starts_ns(draw)):
        stream = draw.stream(f"session {number}")
        (num_turns,) = stream.integers(1, draw["turns_min"], draw["turns_max"]).tolist()
        messages = draw.lognormal_lengths("message", num_turns, stream)
        answers = draw.lognormal_lengths("output", num_turns, stream)
        thoughts_s = [draw.number("think_s") * t for t in stream.exponentials(num_turns)]
        reading_s = [answer / draw.number("read_tokens_per_s") for answer in answers]
        pauses_s = [sum(pair) for pair in zip(thoughts_s, reading_s, strict=True)]
        yield session_turns(start_ns, number, shared, messages, answers, pauses_s)


CHAT_SHARED_PROMPT = Definition(
    name="chat-shared-prompt",
    description="one long system prompt for everybody, short own messages",
    stands_for="a chat product with a system prompt; prefix sharing as in PagedAttention (SOSP 2023), section 4.4",
    parameters=(
        num_requests(1024),
        tokens("shared_tokens", 1024, "tokens of the system prompt that all share"),
        *uniform("own", 32, 256, "own message"),
        *uniform("output", 64, 512, "answer"),
    ),
    build=_build_shared_prompt,
)

CHAT_MULTI_TURN = Definition(
    name="chat-multi-turn",
    description="conversations whose history grows with every turn",
    stands_for="chat as people use it: every turn sends all that was said before, so its beginning is in the cache, but"
    " for the last answer, which the engine gave in its own tokens",
    parameters=(
        num_requests(1000),
        tokens("shared_tokens", 256, "tokens of the system prompt that all share"),
        Parameter("turns_min", 2, "fewest turns of a conversation", 1, 1000),
        Parameter("turns_max", 6, "most turns of a conversation", 1, 1000),
        *lognormal("message", 60, 0.9, 1024, "message of a person"),
        *lognormal("output", 200, 0.8, 1024, "answer"),
        session_starts(4.0),
        Parameter("think_s", 10.0, "mean time from having read an answer to the next message, s", 0.0, 86_400),
        Parameter("read_tokens_per_s", 50.0, "how fast an answer is made and read", 0.1, 1e6),
    ),
    build=_build_multi_turn,
    arrivals="recorded",
)
