"""How engines are named, and what is refused before any is started."""

from dataclasses import fields, replace

import pytest

from pbench.errors import UsageError
from pbench.external.address import parse_address
from pbench.external.completion import CompletionError, http_error, read_chunk
from pbench.external.event_stream import EventStream
from pbench.external.kinds import EXTERNAL_KINDS, external_kind
from pbench.job import EngineOptions
from pbench.settings import RunOptions, resolve


@pytest.mark.parametrize("spec", ["vllm", "openai", "openai:", "transformers:x", "paged:x", "OpenAI:http://x"])
def test_an_unknown_engine_is_refused_with_those_that_are_known(options: RunOptions, spec: str) -> None:
    with pytest.raises(UsageError) as raised:
        resolve(replace(options, engines=(spec,)))
    assert str(raised.value) == (
        f"--engine {spec} is unknown; known: paged, contiguous:max, contiguous:pow2, contiguous:oracle, static,"
        " transformers, openai:URL"
    )


@pytest.mark.parametrize("kind", EXTERNAL_KINDS)
def test_what_an_engine_does_not_use_are_settings(kind) -> None:  # type: ignore[no-untyped-def]
    assert kind.unused <= {field.name for field in fields(EngineOptions)}
    assert external_kind(kind.form) is kind


@pytest.mark.parametrize(
    ("spec", "base_url", "model"),
    [
        ("openai:http://localhost:8000", "http://localhost:8000/v1", None),
        ("openai:http://localhost:8000/v1/", "http://localhost:8000/v1", None),
        ("openai:https://[::1]/api/v2/completions", "https://[::1]/api/v2", None),
        ("openai:http://host/v1#meta-llama/Llama-3.1-8B", "http://host/v1", "meta-llama/Llama-3.1-8B"),
    ],
)
def test_addresses(spec: str, base_url: str, model: str | None) -> None:
    assert parse_address(spec) == (base_url, model)


@pytest.mark.parametrize(
    "spec",
    [
        "openai:localhost:8000",
        "openai:ftp://host/v1",
        "openai:http:///v1",
        "openai:http://host:99999/v1",
        "openai:http://host/v1?key=3",
        "openai:http://me:secret@host/v1",
    ],
)
def test_what_is_no_address_is_refused_and_no_password_repeated(options: RunOptions, spec: str) -> None:
    with pytest.raises(UsageError) as raised:
        resolve(replace(options, engines=(spec,)))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("spec", "workload", "remedy"),
    [
        ("transformers", "parallel-sampling", "use --engine paged or openai:URL"),
        ("openai:http://host", "beam-search", "use --engine paged"),
        ("transformers", "beam-search", "use --engine paged"),
    ],
)
def test_what_an_engine_cannot_play_is_refused(options: RunOptions, spec: str, workload: str, remedy: str) -> None:
    with pytest.raises(UsageError, match=remedy):
        resolve(replace(options, engines=(spec,), workload=workload, overrides=(), max_length=2048, kv_memory="64MiB"))


STREAM = b'data: {"a": 1}\r\n\r\n: a comment\n\nevent: x\ndata:one\ndata: two\n\ndata: [DONE]\n\ndata: not ended'


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_events_are_the_same_however_they_are_cut(size: int) -> None:
    stream = EventStream()
    events = [event for at in range(0, len(STREAM), size) for event in stream.feed(STREAM[at : at + size])]
    assert events == [b'{"a": 1}', b"one\ntwo", b"[DONE]"]


@pytest.mark.parametrize(
    ("data", "num_tokens"),
    [
        (b'{"choices": [{"text": " a", "finish_reason": null}]}', 1),
        (b'{"choices": [{"text": "", "finish_reason": null}]}', 1),  # half a character is a token too
        (b'{"choices": [{"text": " a", "finish_reason": "length"}]}', 1),
        (b'{"choices": [{"text": "", "finish_reason": "length"}]}', 0),  # only says that it is over
        (b'{"choices": [{"text": "a b", "finish_reason": null, "token_ids": [4, 5]}]}', 2),
        (b'{"choices": [{"text": " a"}, {"text": " b"}]}', 2),
        (b'{"choices": [], "usage": {"completion_tokens": 7}}', 0),
        (b'{"choices": [], "usage": null}', 0),
    ],
)
def test_tokens_of_an_event(data: bytes, num_tokens: int) -> None:
    assert read_chunk(data).num_tokens == num_tokens


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": {"message": "too long", "code": 400}}', "HTTP 400 Bad Request: too long"),
        (b'{"object": "error", "message": "too long"}', "HTTP 400 Bad Request: too long"),
        (b'{"detail": [{"msg": "x"}]}', 'HTTP 400 Bad Request: [{"msg": "x"}]'),
        (b"<html>\n  gone\x1b[2J</html>", "HTTP 400 Bad Request: <html> gone\\x1b[2J</html>"),
        (b"", "HTTP 400 Bad Request"),
    ],
)
def test_errors_say_what_the_server_said(body: bytes, text: str) -> None:
    error = http_error(400, "Bad Request", body)
    assert isinstance(error, CompletionError)
    assert str(error) == text
