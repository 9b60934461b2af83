"""A small OpenAI-compatible server for tests, a process: ``python completion_server.py [--delay S] MODEL...``

It prints its port and serves on the loopback, for at most two minutes. How it behaves is the model that is asked for:

    good         what is asked for, with usage and token ids
    no-usage     takes no stream_options, sends no usage
    strict       refuses what the standard does not name (ignore_eos)
    bursts       three tokens in a piece of the stream, no token ids
    early        ends after half of the tokens
    flaky        answers every third request with HTTP 503
    broken       closes the connection after three tokens
    cut          ends the stream after three tokens, as if it were complete
    babbling     sends what is no JSON after three tokens
    sorry        says in the stream, after three tokens, that it failed
    silent       never answers
    fast         good, without any delay
"""

import argparse
import asyncio
import json
from collections.abc import Iterator
from typing import Any

LIFETIME_S = 120
NUM_BEFORE_FAULT = 3
STANDARD = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options", "n", "seed"}


class Server:
    """Answers; knows how many requests it was asked for, and how many connections were dropped on it."""

    def __init__(self, models: list[str], delay_s: float) -> None:
        self.models = models
        self.delay_s = delay_s
        self.num_asked = 0
        self.num_dropped = 0
        self.keys: list[str | None] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = head.split("\r\n")
                headers = {
                    name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
                }
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.keys.append(headers.get("authorization"))
                await self.answer(lines[0].split()[1], body, writer)
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        except ConnectionError:
            self.num_dropped += 1
        finally:
            writer.close()

    async def answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if path == "/v1/models":
            send_json(writer, 200, {"data": [{"id": name, "max_model_len": 4096} for name in self.models]})
        elif path == "/seen":
            counts = {"num_asked": self.num_asked, "num_dropped": self.num_dropped, "keys": self.keys}
            send_json(writer, 200, counts)
        elif path == "/v1/completions":
            await self.complete(json.loads(body), writer)
        else:
            send_json(writer, 404, {"error": {"message": f"no such path: {path}"}})

    async def complete(self, asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.num_asked += 1
        model = asked["model"]
        if model not in self.models:
            return send_json(writer, 404, {"error": {"message": f"The model `{model}` does not exist."}})
        if model == "strict" and (unknown := sorted(set(asked) - STANDARD)):
            return send_json(writer, 400, {"error": {"message": f"Unrecognized request argument: {unknown[0]}"}})
        if model == "no-usage" and "stream_options" in asked:
            return send_json(writer, 422, {"detail": "stream_options: extra fields not permitted"})
        if model == "flaky" and self.num_asked % 3 == 0:
            return send_json(writer, 503, {"error": {"message": "overloaded, try later"}})
        if model == "silent" and self.num_asked > 1:
            await asyncio.sleep(LIFETIME_S)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for position, event in enumerate(events(asked)):
            if model in ("broken", "cut", "babbling", "sorry") and self.num_asked > 1 and position == NUM_BEFORE_FAULT:
                return break_down(model, writer)
            send_chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")
            await asyncio.sleep(0 if model == "fast" else self.delay_s)
            await writer.drain()
        send_chunk(writer, b"data: [DONE]\n\n")
        send_chunk(writer, b"")
        return None


def events(asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of an answer: token i of choice c is the sum of the prompt, plus i, plus 1000 c."""
    model, num_choices, num_tokens = asked["model"], asked.get("n", 1), asked["max_tokens"]
    if model == "early":
        num_tokens = max(num_tokens // 2, 1)
    stride = 3 if model == "bursts" else 1
    for start in range(0, num_tokens, stride):
        for choice in range(num_choices):
            tokens = [sum(asked["prompt"]) + i + 1000 * choice for i in range(start, min(start + stride, num_tokens))]
            is_last = start + stride >= num_tokens
            said = {"index": choice, "text": "".join(f" {token}" for token in tokens)}
            said |= {"finish_reason": "length" if is_last else None}
            if model in ("good", "fast"):
                said["token_ids"] = tokens
            yield {"object": "text_completion", "choices": [said]}
    if "stream_options" in asked:
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": num_tokens * num_choices}
        yield {"object": "text_completion", "choices": [], "usage": usage}


def break_down(model: str, writer: asyncio.StreamWriter) -> None:
    if model == "babbling":
        send_chunk(writer, b"data: <html>\n\n")
    elif model == "sorry":
        send_chunk(writer, b'data: {"error": {"message": "out of memory"}}\n\n')
    if model == "broken":
        writer.close()
    else:
        send_chunk(writer, b"")


def send_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def send_json(writer: asyncio.StreamWriter, status: int, what: dict[str, Any]) -> None:
    data = json.dumps(what).encode()
    reason = {200: "OK", 400: "Bad Request", 404: "Not Found", 503: "Service Unavailable"}.get(status, "Unprocessable")
    head = f"HTTP/1.1 {status} {reason}\r\nServer: small\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--delay", type=float, default=0.0)
    arguments = parser.parse_args()
    server = Server(arguments.models, arguments.delay)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await asyncio.sleep(LIFETIME_S)


if __name__ == "__main__":
    asyncio.run(main())
