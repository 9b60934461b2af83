"""Where a server is: the part of ``openai:URL`` after the colon."""

from typing import NamedTuple
from urllib.parse import urlsplit

from pbench.errors import UsageError
from pbench.units import printable


class ServerAddress(NamedTuple):
    """A server with an OpenAI-compatible API."""

    base_url: str  # of the API, without a slash at its end: http://localhost:8000/v1
    model: str | None  # by the server's name; None: the only one that it serves


def parse_address(spec: str) -> ServerAddress:
    """Read ``openai:URL``: the base of the API, ``/v1`` where the URL has no path; a model's name may follow a ``#``.

    Raises:
        UsageError: it is no such URL.

    """
    url = urlsplit(spec.partition(":")[2])
    shown = f"--engine {printable(spec)}"
    try:
        has_host = bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        has_host = False
    if url.scheme not in ("http", "https") or not has_host:
        raise UsageError(f"{shown} is not the address of a server; write it like openai:http://localhost:8000/v1")
    if url.username is not None or url.password is not None:
        raise UsageError("--engine openai:URL must not hold a user or a password; use --api-key-env for a key")
    if url.query:
        raise UsageError(f"{shown} has a query; give the base of the API, like openai:http://localhost:8000/v1")
    path = url.path.rstrip("/").removesuffix("/completions") or "/v1"
    return ServerAddress(f"{url.scheme}://{url.netloc}{path}", url.fragment or None)
