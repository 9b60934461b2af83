"""The measured loop: offers requests when they are due, steps the engine, and notes what happens."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from pbench.arrivals import Arrivals
from pbench.engine.records import StepRecord
from pbench.engine.request import Request
from pbench.journal import Journal
from pbench.pool_history import PoolHistory
from pbench.target import Target

PROGRESS_INTERVAL_NS = 100_000_000
# An idle engine looks this often for an interruption and for its journal; arrivals are met more exactly.
IDLE_NS = 20_000_000


class PlaybackLoop(ABC):
    """Plays a workload's arrivals through one engine, whoever made it."""

    def __init__(
        self,
        arrivals: Arrivals,
        journal: Journal,
        send_progress: Callable[[Mapping[str, Any]], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._arrivals = arrivals
        self._journal = journal
        self._send_progress = send_progress
        self._should_stop = should_stop
        self._num_added = 0
        self._num_finished = 0
        self._num_output_tokens = 0
        self._next_progress_ns = journal.start_ns
        self.noting_ns = 0  # that noting took, in the engine's own time

    def play(self) -> bool:
        """Run until every request has left the engine. False when it was told to stop before that."""
        is_complete = self._play()
        self._report_last()  # so that the last that is heard is how it ended
        return is_complete

    @abstractmethod
    def note_unfinished(self) -> None:
        """Journal how the requests stand that are still in the engine."""

    @property
    @abstractmethod
    def _has_unfinished(self) -> bool:
        """Whether the engine has something to do."""

    @abstractmethod
    def _add(self, request: Request) -> None:
        """Give the engine a request."""

    @abstractmethod
    def _advance(self) -> None:
        """Let the engine do something, and note it."""

    @abstractmethod
    def _report_last(self) -> None:
        """Send the progress as it stands now."""

    def _play(self) -> bool:
        while not self._should_stop():
            self._offer()
            if self._has_unfinished:
                self._advance()
            elif self._arrivals.has_more:
                self._journal.flush_if_due()
                time.sleep(min(IDLE_NS, self._arrivals.wait_ns(time.monotonic_ns())) / 1e9)
            else:
                return True
        return not (self._has_unfinished or self._arrivals.has_more)

    def _offer(self) -> None:
        for request in self._arrivals.due(time.monotonic_ns(), self._num_added - self._num_finished):
            self._add(request)
            self._journal.offered(request, time.monotonic_ns())
            self._num_added += 1

    def _report(self, now_ns: int, state: Mapping[str, int]) -> None:
        self._next_progress_ns = now_ns + PROGRESS_INTERVAL_NS
        self._send_progress(
            {
                "event": "progress",
                "elapsed_ns": now_ns - self._journal.start_ns,
                "num_finished": self._num_finished,
                "num_output_tokens": self._num_output_tokens,
                **state,
            }
        )


class Playback(PlaybackLoop):
    """Plays through an engine that is driven step by step."""

    def __init__(
        self,
        engine: Target,
        arrivals: Arrivals,
        journal: Journal,
        send_progress: Callable[[Mapping[str, Any]], None],
        should_stop: Callable[[], bool],
        pool_history: PoolHistory | None = None,  # of an engine that can tell
    ) -> None:
        super().__init__(arrivals, journal, send_progress, should_stop)
        self._engine = engine
        self._pool_history = pool_history
        self._last_record: StepRecord | None = None
        self.noting_ns = 0  # that noting took, in the engine's own time

    def note_unfinished(self) -> None:
        """See ``PlaybackLoop``."""
        for request in self._engine.unfinished():
            self._journal.request(request)

    @property
    def _has_unfinished(self) -> bool:
        return self._engine.has_unfinished

    def _add(self, request: Request) -> None:
        self._engine.add_request(request)

    def _advance(self) -> None:
        output = self._engine.step()
        begin_ns = time.monotonic_ns()
        record = self._last_record = output.record
        self._journal.step(record)
        self._journal.tokens(record.step, output.tokens)
        for request in output.finished:
            self._journal.request(request)
        self._num_finished += len(output.finished)
        self._num_output_tokens += record.num_output_tokens
        if self._pool_history is not None:
            self._pool_history.look(record.end_ns)
        if record.end_ns >= self._next_progress_ns:
            self._report_last()
        self.noting_ns += time.monotonic_ns() - begin_ns

    def _report_last(self) -> None:
        record = self._last_record
        if record is None:
            return
        usage = record.usage
        self._report(
            record.end_ns,
            {
                "num_running": record.num_running - record.num_finished,
                "num_waiting": record.num_waiting,
                "token_state": usage.token_state,
                "reserved": usage.reserved,
                "internal": usage.internal,
                "external": usage.external,
                "cached": usage.cached,
                "free": usage.free,
            },
        )
