"""What the harness asks of an engine that is not ours: it runs by itself, takes requests, and gives out tokens.

Such an engine tells nothing of its steps and of its KV memory. What it does tell is when tokens came, and how its
requests ended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from pbench.engine.request import Request


class Receipt(NamedTuple):
    """Tokens of one request that came at one moment."""

    request_id: int
    time_ns: int  # of ``time.monotonic_ns()``
    num_tokens: int | None  # None: the engine does not tell how many


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """How a request stands. None: the engine cannot tell.

    It has the fields of ``pbench.engine.records.RequestRecord``, so that both fill the same table.
    """

    request_id: int
    status: str  # "finished" | "failed" | "unfinished"
    arrival_ns: int  # when the request was meant to arrive
    added_ns: int  # when it was given to the engine
    num_prompt_tokens: int
    num_output_tokens: int  # over all its sequences
    num_sequences: int
    first_scheduled_ns: int | None = None
    first_token_ns: int | None = None
    finished_ns: int | None = None  # its last token
    num_prefix_hit_tokens: int | None = None
    num_recomputed_tokens: int | None = None
    num_preemptions: int | None = None
    kv_byte_seconds: float | None = None
    reason: str | None = None  # why it failed
    output_token_ids: tuple[int, ...] | None = None


class Received(NamedTuple):
    """What came out of the engine since the last look."""

    receipts: Sequence[Receipt] = ()
    ended: Sequence[RequestOutcome] = ()
    num_tokens: int = 0  # that came, as far as is known by now: receipts may come with the request's end


@runtime_checkable
class ExternalTarget(Protocol):
    """An engine that runs by itself. All its methods are called by one thread."""

    @property
    def has_unfinished(self) -> bool:
        """Whether something is still to be received."""

    def add_request(self, request: Request) -> None:
        """Send a request, with the next ``receive`` at the latest; does not wait for the engine."""

    def receive(self, timeout_ns: int) -> Received:
        """What has come; waits until a request ends, at most ``timeout_ns``."""

    def warm_up(self) -> int | None:
        """Make sure that the engine answers, and run what it would otherwise run first while it is measured.

        Returns the number of steps that ran; None where nobody counts them.
        """

    def pool(self) -> Mapping[str, int]:
        """The figures of ``EngineResult.pool`` that are known."""

    def memory_bytes(self) -> Mapping[str, int]:
        """What it holds on the device, by ``pbench.memory_account.KNOWN_PARTS``, as far as is known."""

    def facts(self) -> Mapping[str, Any]:
        """What the engine says of itself, for the record of its configuration."""

    def notes(self) -> Sequence[str]:
        """What a reader must know of the figures, once everything was received."""

    def give_up(self) -> Received:
        """Stop what is not finished, and tell what else came and how those requests stood."""

    def close(self) -> None:
        """Let go of what the engine holds; also after an error."""
