"""Sessions: requests that follow one another, each with all that was said before as its prompt."""

from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from pbench.workloads.definition import Draw
from pbench.workloads.parameters import Parameter
from pbench.workloads.request import Segment
from pbench.workloads.row import Row

_FIRST_SESSION_KEY = 2**32  # keys below are for what sessions share


class Turn(NamedTuple):
    """One request of a session."""

    arrival_ns: int
    segments: tuple[Segment, ...]
    output_length: int


def session_starts(mean_rate: float) -> Parameter:
    """The parameter with the rate at which sessions begin."""
    return Parameter("sessions_per_s", mean_rate, "sessions that begin, on average, in a second (Poisson)", 1e-3, 1e4)


def starts_ns(draw: Draw) -> Iterator[int]:
    """When each session begins, nanoseconds after the first: a Poisson process at ``sessions_per_s``, endless."""
    stream, rate = draw.stream("starts"), draw.number("sessions_per_s")
    time_us = 0
    while True:
        yield time_us * 1000
        time_us += round(stream.exponentials(1)[0] / rate * 1e6)


def session_turns(
    start_ns: int, number: int, shared: tuple[Segment, ...], added: list[int], outputs: list[int], pauses_s: list[float]
) -> Iterator[Turn]:
    """The turns of session ``number``, one a list item.

    A turn's prompt is ``shared``, then all that was said in the session before, then ``added`` tokens of its own. What
    was said is one stream of tokens of which each turn has a longer beginning. ``pauses_s`` come after each turn.
    """
    key = _FIRST_SESSION_KEY + number
    time_ns, num_said = start_ns, 0
    for num_added, output_length, pause_s in zip(added, outputs, pauses_s, strict=True):
        num_said += num_added
        yield Turn(time_ns, (*shared, Segment(key, num_said)), output_length)
        num_said += output_length
        time_ns += round(pause_s * 1e6) * 1000


def rows_in_order(sessions: Iterator[Iterator[Turn]], num_requests: int) -> Iterator[Row]:
    """The first requests of all sessions, in order of arrival. Sessions come in order of their beginning, endless."""
    waiting: list[tuple[int, int, Turn, Iterator[Turn]]] = []  # the next turn of each session that has begun
    lines = count(1)
    for number, session in enumerate(sessions):
        first = next(session)
        while waiting and waiting[0][0] <= first.arrival_ns:
            _, earlier, turn, rest = heappop(waiting)
            line = next(lines)
            yield Row(
                line, turn.arrival_ns, sum(part.length for part in turn.segments), turn.output_length, turn.segments
            )
            if line == num_requests:
                return
            if (following := next(rest, None)) is not None:
                heappush(waiting, (following.arrival_ns, earlier, following, rest))
        heappush(waiting, (first.arrival_ns, number, first, session))
