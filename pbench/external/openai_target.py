"""Any server with an OpenAI-compatible completions endpoint: ``--engine openai:URL``.

Prompts are sent as token ids and answers are streamed. One thread does it all: requests are sent and answers read while
the measured loop waits in ``receive``. aiohttp, because its parser is compiled: of answers that come a token at a time
it reads about three times as many in a second as httpx.
"""

import asyncio
import os
import resource
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp

from pbench.engine.request import Request
from pbench.external.address import parse_address
from pbench.external.completion import (
    DONE,
    Chunk,
    CompletionError,
    Extras,
    http_error,
    probe_request,
    read_chunk,
    request_body,
)
from pbench.external.errors import ExternalError
from pbench.external.event_stream import EventStream
from pbench.external.target import Receipt, Received, RequestOutcome

if TYPE_CHECKING:
    from pbench.job import EngineOptions, ServerAccess

CONNECT_S = 30.0
# Above this share of a core, the one that sends and reads may be what limits the throughput.
BUSY_SHARE = 0.8
_MAX_ERROR_BYTES = 4096

T = TypeVar("T")


@dataclass(slots=True)
class _Answer:
    """What has come of one request."""

    request: Request
    sent_ns: int
    tokens_at: dict[int, int] = field(default_factory=dict)  # tokens that came, by the time
    num_counted: int = 0  # all of them
    token_ids: list[int] = field(default_factory=list)  # where the server names them
    usage_tokens: int | None = None
    num_ended: int = 0  # choices
    is_done: bool = False

    def note(self, chunk: Chunk, now_ns: int) -> None:
        """Take over what an event says."""
        if chunk.num_tokens:
            self.tokens_at[now_ns] = self.tokens_at.get(now_ns, 0) + chunk.num_tokens
            self.num_counted += chunk.num_tokens
        self.num_ended += chunk.num_ended
        self.token_ids += chunk.token_ids
        if chunk.usage_tokens is not None:
            self.usage_tokens = chunk.usage_tokens

    @property
    def num_output_tokens(self) -> int:
        """Tokens, by the server's own count where it gave one."""
        return self.num_counted if self.usage_tokens is None else self.usage_tokens

    def receipts(self) -> list[Receipt]:
        """When tokens came; how many each time is known only where the events' count is the server's."""
        is_exact = self.num_counted == self.num_output_tokens
        return [
            Receipt(self.request.request_id, time_ns, num_tokens if is_exact else None)
            for time_ns, num_tokens in self.tokens_at.items()
        ]

    def outcome(self, status: str, reason: str | None = None) -> RequestOutcome:
        """How the request stands."""
        times_ns = list(self.tokens_at)
        return RequestOutcome(
            request_id=self.request.request_id,
            status=status,
            arrival_ns=self.request.arrival_ns,
            added_ns=self.sent_ns,
            num_prompt_tokens=len(self.request.prompt_token_ids),
            num_output_tokens=self.num_output_tokens,
            num_sequences=self.request.sampling.n,
            first_token_ns=times_ns[0] if times_ns else None,
            finished_ns=times_ns[-1] if times_ns and status == "finished" else None,
            reason=reason,
            output_token_ids=tuple(self.token_ids) or None,
        )


class OpenAITarget:
    """A server, and the requests that are on their way to it and back."""

    def __init__(self, spec: str, access: "ServerAccess", key: str | None) -> None:
        self._address = parse_address(spec)
        self._access = access
        self._extras = Extras()
        self._model = ""
        self._facts: dict[str, Any] = {}
        self._num_early = self._num_counted = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._receipts: list[Receipt] = []
        self._ended: list[RequestOutcome] = []
        self._num_tokens = 0
        self._began: tuple[float, float] | None = None  # wall and processor time at the first request
        self._loop = asyncio.new_event_loop()
        self._session = self._wait_for(self._open(key))

    async def _open(self, key: str | None) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._access.timeout_s, sock_connect=CONNECT_S),
            headers={"Authorization": f"Bearer {key}"} if key is not None else None,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def _wait_for(self, what: Awaitable[T]) -> T:
        return self._loop.run_until_complete(what)

    @property
    def has_unfinished(self) -> bool:
        """See ``ExternalTarget``."""
        return bool(self._tasks or self._ended)

    def add_request(self, request: Request) -> None:
        """See ``ExternalTarget``."""
        if self._began is None:
            self._began = (time.monotonic(), time.process_time())
        task = self._loop.create_task(self._play(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def receive(self, timeout_ns: int) -> Received:
        """See ``ExternalTarget``."""
        self._wait_for(self._wait(timeout_ns / 1e9))
        received = Received(self._receipts, self._ended, self._num_tokens)
        self._receipts, self._ended, self._num_tokens = [], [], 0
        return received

    async def _wait(self, timeout_s: float) -> None:
        self._news.clear()
        if self._ended:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            pass

    async def _play(self, request: Request) -> None:
        """Send a request and read its answer to the end; whatever happens becomes its outcome."""
        answer = _Answer(request, time.monotonic_ns())
        try:
            await self._ask(answer, self._extras, self._count)
            outcome = answer.outcome("finished")
            wanted = request.sampling.max_tokens * request.sampling.n
            self._num_early += answer.num_output_tokens < wanted
            self._num_counted += answer.usage_tokens is None
        except asyncio.CancelledError:
            outcome = answer.outcome("unfinished")
        except CompletionError as error:
            outcome = answer.outcome("failed", str(error))
        self._receipts += answer.receipts()
        self._ended.append(outcome)
        self._news.set()

    def _count(self, num_tokens: int) -> None:
        self._num_tokens += num_tokens

    async def _ask(self, answer: _Answer, extras: Extras, count: Callable[[int], None]) -> None:
        """Read the answer to a request as it comes.

        Raises:
            CompletionError: there is none, or it is not whole.

        """
        body = request_body(answer.request, self._model, extras)
        url = f"{self._address.base_url}/completions"
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                if response.status != 200:
                    error = await response.content.read(_MAX_ERROR_BYTES)
                    raise http_error(response.status, response.reason, error)
                stream = EventStream()
                async for piece in response.content.iter_any():
                    self._read(answer, stream.feed(piece), count)
        except TimeoutError:
            raise CompletionError(f"no answer within {self._access.timeout_s:g} s (--request-timeout)") from None
        except (aiohttp.ClientError, OSError) as error:
            raise CompletionError(_connection_text(error)) from error
        if not answer.is_done and answer.num_ended < answer.request.sampling.n:
            raise CompletionError("the stream ended before the answer did")

    def _read(self, answer: _Answer, events: Sequence[bytes], count: Callable[[int], None]) -> None:
        """Note what events say that came together.

        Raises:
            CompletionError: one says what it must not; those before it are noted.

        """
        now_ns = time.monotonic_ns()
        num_before = answer.num_counted
        for data in events:
            if data == DONE:
                answer.is_done = True
                continue
            answer.note(read_chunk(data), now_ns)
        if num_new := answer.num_counted - num_before:
            count(num_new)

    def warm_up(self) -> int | None:
        """See ``ExternalTarget``.

        Raises:
            ExternalError: the server does not answer, or has no such model.

        """
        _allow_many_connections()
        try:
            self._model = self._wait_for(self._find_model())
            self._extras = self._wait_for(self._find_extras())
        except CompletionError as error:
            raise ExternalError(f"{self._address.base_url}: {error}") from error
        return None

    async def _find_model(self) -> str:
        """The model to ask for: the one that was named, or the only one that there is.

        Raises:
            CompletionError: the server is not there, or which model it is to be is not clear.

        """
        try:
            async with self._session.get(f"{self._address.base_url}/models") as response:
                self._facts["server"] = response.headers.get("Server")
                if response.status != 200:
                    if self._address.model is not None:
                        return self._address.model  # some servers have no list
                    body = await response.content.read(_MAX_ERROR_BYTES)
                    raise http_error(response.status, response.reason, body)
                listed = await response.json(content_type=None)
        except TimeoutError:
            raise CompletionError(f"no answer within {self._access.timeout_s:g} s") from None
        except ValueError as error:
            raise CompletionError(f"/models did not answer with JSON: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise CompletionError(_connection_text(error)) from error
        if not isinstance(listed, Mapping) or not isinstance(listed.get("data"), list):
            raise CompletionError("/models did not answer with a list of models")
        models = {str(one.get("id")): one for one in listed["data"] if isinstance(one, Mapping)}
        name = self._address.model or (next(iter(models)) if len(models) == 1 else None)
        if name is None or name not in models:
            known = ", ".join(models) or "none"
            raise CompletionError(f"name one of the server's models after a # in --engine; it serves: {known}")
        self._facts["max_model_len"] = models[name].get("max_model_len")
        return name

    async def _find_extras(self) -> Extras:
        """Ask for two tokens, with ever fewer of the extras while the server refuses the request itself."""
        refusal: CompletionError | None = None
        for extras in (Extras(), *Extras().fewer()):
            answer = _Answer(probe_request(), time.monotonic_ns())
            try:
                await self._ask(answer, extras, lambda num_tokens: None)
            except CompletionError as error:
                if not str(error).startswith(("HTTP 400", "HTTP 422")):
                    raise
                refusal = refusal or error
            else:
                return extras
        assert refusal is not None
        raise refusal

    def pool(self) -> Mapping[str, int]:
        """See ``ExternalTarget``. A server tells nothing of it."""
        return {}

    def memory_bytes(self) -> Mapping[str, int]:
        """See ``ExternalTarget``. A server tells nothing of it."""
        return {}

    def facts(self) -> Mapping[str, Any]:
        """See ``ExternalTarget``."""
        return self._facts | {"server_model": self._model, "request_timeout_s": self._access.timeout_s}

    def notes(self) -> Sequence[str]:
        """See ``ExternalTarget``."""
        notes = ["the server tells nothing of its steps and its memory; neither is sampled, for it may be elsewhere"]
        if self._num_counted:
            notes.append(
                "output tokens are counted from the pieces of the stream, for the server sends no usage: a piece may"
                " hold several tokens, or none"
            )
        if not self._extras.ignores_eos:
            notes.append("the server does not take ignore_eos: requests may end before their length")
        if self._num_early:
            notes.append(f"{self._num_early} requests ended before their length")
        if self._began is not None:
            wall_s, busy_s = time.monotonic() - self._began[0], time.process_time() - self._began[1]
            if busy_s > BUSY_SHARE * wall_s:
                notes.append(
                    f"the process that sent the requests was busy for {100 * busy_s / wall_s:.0f} % of the time: it may"
                    " have been the limit, and not the server"
                )
        return notes

    def give_up(self) -> Received:
        """See ``ExternalTarget``. Connections are closed, by which a server knows."""
        self._wait_for(self._cancel())
        return self.receive(0)

    async def _cancel(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """See ``ExternalTarget``."""
        self._wait_for(self._cancel())
        self._wait_for(self._session.close())
        self._loop.close()


def connect(options: "EngineOptions", access: "ServerAccess") -> OpenAITarget:
    """A target for the server that ``options`` names.

    Raises:
        ExternalError: the variable that should hold the API key is not set.

    """
    key = None
    if access.key_variable is not None:
        key = os.environ.get(access.key_variable)
        if not key:
            raise ExternalError(f"--api-key-env {access.key_variable}: this environment variable is not set")
    return OpenAITarget(options.memory, access, key)


def _connection_text(error: Exception) -> str:
    """What went wrong with a connection, without what differs from request to request."""
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        return f"no connection: {os.strerror(number) if number else error.os_error}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection"
    return f"the connection broke: {type(error).__name__}: {error}".removesuffix(": ")


def _allow_many_connections() -> None:
    """Every request that is on its way has a connection, and every connection takes a file descriptor."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
