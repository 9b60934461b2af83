"""The measured loop of an engine that runs by itself: sends requests when they are due, and notes what comes back."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from pbench.arrivals import Arrivals
from pbench.engine.request import Request
from pbench.external.target import ExternalTarget, Received
from pbench.journal import Journal
from pbench.playback import IDLE_NS, PlaybackLoop

_NUM_SHOWN_REASONS = 3


class ExternalPlayback(PlaybackLoop):
    """Plays a workload's arrivals through an engine that is not ours."""

    def __init__(
        self,
        target: ExternalTarget,
        arrivals: Arrivals,
        journal: Journal,
        send_progress: Callable[[Mapping[str, Any]], None],
        should_stop: Callable[[], bool],
    ) -> None:
        super().__init__(arrivals, journal, send_progress, should_stop)
        self._target = target
        self._failures: Counter[str] = Counter()

    @property
    def failure(self) -> str | None:
        """How many requests failed and why, the most frequent reasons first; None when none did."""
        if not self._failures:
            return None
        shown = [f"{reason} ({count}x)" for reason, count in self._failures.most_common(_NUM_SHOWN_REASONS)]
        more = f"; and {len(self._failures) - len(shown)} other reasons" if len(self._failures) > len(shown) else ""
        return f"{self._failures.total()} of {self._num_added} requests failed: {'; '.join(shown)}{more}"

    def note_unfinished(self) -> None:
        """See ``PlaybackLoop``. The engine is told to give them up."""
        self._note(self._target.give_up())

    @property
    def _has_unfinished(self) -> bool:
        return self._target.has_unfinished

    def _add(self, request: Request) -> None:
        self._target.add_request(request)

    def _advance(self) -> None:
        received = self._target.receive(min(IDLE_NS, self._arrivals.until_due_ns(time.monotonic_ns())))
        begin_ns = time.monotonic_ns()
        self._note(received)
        self._journal.flush_if_due()
        if begin_ns >= self._next_progress_ns:
            self._report_last()
        self.noting_ns += time.monotonic_ns() - begin_ns

    def _note(self, received: Received) -> None:
        for receipt in received.receipts:
            self._journal.receipt(receipt)
        self._num_output_tokens += received.num_tokens
        for outcome in received.ended:
            self._journal.request(outcome)
            if outcome.status == "failed":
                self._failures[outcome.reason or "no reason was given"] += 1
            self._num_finished += outcome.status != "unfinished"

    def _report_last(self) -> None:
        self._report(time.monotonic_ns(), {"num_sent": self._num_added - self._num_finished})
