"""One streamed completion of an OpenAI-compatible server: the body that asks for it, and what its events say."""

import json
from array import array
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pbench.engine.request import Request
from pbench.units import printable

DONE = b"[DONE]"

_MAX_MESSAGE_CHARACTERS = 200


class CompletionError(Exception):
    """The server refused, or sent what is no completion. The message is the same for the same cause."""


class Extras(NamedTuple):
    """What not every server takes."""

    has_usage: bool = True  # stream_options: the number of tokens with the last event
    ignores_eos: bool = True  # ignore_eos: requests end at their length and nowhere else

    def fewer(self) -> Iterator["Extras"]:
        """What to ask for instead, when a server does not take these: the more important last."""
        yield self._replace(ignores_eos=False)
        yield Extras(has_usage=False, ignores_eos=False)


class Chunk(NamedTuple):
    """What one event says."""

    num_tokens: int  # that it brought: as many as it names, else 1 for a choice that goes on or has text
    token_ids: tuple[int, ...]  # where the server names them
    num_ended: int  # choices that ended
    usage_tokens: int | None  # generated so far, by the server's own count


def request_body(request: Request, model: str, extras: Extras) -> bytes:
    """The JSON that asks for ``request``'s tokens, streamed."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(request.prompt_token_ids),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "stream": True,
    }
    if sampling.n > 1:
        body["n"] = sampling.n
    if sampling.temperature > 0:
        body["seed"] = sampling.seed
    if extras.has_usage:
        body["stream_options"] = {"include_usage": True}
    if extras.ignores_eos:
        body["ignore_eos"] = True
    return json.dumps(body, separators=(",", ":")).encode()


def probe_request() -> Request:
    """A request that any server can answer at once."""
    from pbench.engine.request import SamplingParams

    return Request(-1, array("i", [1, 2, 3, 4]), SamplingParams(max_tokens=2))


def read_chunk(data: bytes) -> Chunk:
    """Read an event's data.

    Raises:
        CompletionError: it is no JSON object, or says that the server failed.

    """
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise CompletionError("the server sent an event that is no JSON object")
    if event.get("error"):
        raise CompletionError(f"the server failed: {error_text(event)}")
    num_tokens = num_ended = 0
    token_ids: list[int] = []
    for choice in event.get("choices") or ():
        has_ended = choice.get("finish_reason") is not None
        num_ended += has_ended
        if isinstance(named := choice.get("token_ids"), list):
            token_ids += named
            num_tokens += len(named)
        else:
            num_tokens += bool(choice.get("text")) or not has_ended
    usage = event.get("usage")
    completion_tokens = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    usage_tokens = completion_tokens if isinstance(completion_tokens, int) else None
    return Chunk(num_tokens, tuple(token_ids), num_ended, usage_tokens)


def http_error(status: int, reason: str | None, body: bytes) -> CompletionError:
    """The error of an answer that is no stream."""
    try:
        said = error_text(json.loads(body))
    except ValueError:
        said = " ".join(body.decode(errors="replace").split())
    title = f"HTTP {status} {reason}" if reason else f"HTTP {status}"
    return CompletionError(printable(f"{title}: {said[:_MAX_MESSAGE_CHARACTERS]}" if said else title))


def error_text(answer: Any) -> str:
    """What a server's JSON says went wrong, wherever it says it."""
    if isinstance(answer, Mapping):
        for name in ("error", "message", "detail"):
            if answer.get(name):
                return error_text(answer[name])
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return printable(" ".join(text.split()))[:_MAX_MESSAGE_CHARACTERS]
