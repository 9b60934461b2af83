"""When the requests of a workload arrive: the processes, and how a user spells them.

``all``             every request is offered at the start
``recorded``        at the times of the source
``poisson:RATE``    independent arrivals, RATE requests/s on average
``gamma:RATE:CV``   gamma-distributed gaps of mean 1/RATE and coefficient of variation CV; CV above 1 is bursty
``constant:RATE``   evenly spaced
``ramp:FROM:TO``    a Poisson process whose rate rises (or falls) linearly from FROM to TO over the workload
``closed:N``        N users, each sending the next request when the last one is answered

The first request arrives at 0. Gaps of random processes are rounded to microseconds.
"""

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from pbench.workloads.errors import WorkloadError
from pbench.workloads.parameters import nearest_name
from pbench.workloads.row import MAX_ARRIVAL_NS
from pbench.workloads.streams import Stream

Int64s = npt.NDArray[np.int64]

_ARGUMENTS = {
    "all": (),
    "recorded": (),
    "poisson": ("RATE",),
    "gamma": ("RATE", "CV"),
    "constant": ("RATE",),
    "ramp": ("FROM", "TO"),
    "closed": ("CONCURRENCY",),
}
ARRIVALS = tuple(":".join((kind, *arguments)) for kind, arguments in _ARGUMENTS.items())

_LOWEST, _HIGHEST = 1e-3, 1e6  # of a rate in requests/s, and of a coefficient of variation
_MAX_CONCURRENCY = 1_000_000


@dataclass(frozen=True, slots=True)
class Arrivals:
    """A parsed arrival process."""

    kind: str
    numbers: tuple[float, ...] = ()

    def __str__(self) -> str:
        return ":".join((self.kind, *(f"{number:.10g}" for number in self.numbers)))

    @property
    def is_timed(self) -> bool:
        """Requests arrive at times of their own, which a rate scale can stretch."""
        return self.kind not in ("all", "closed")

    @property
    def concurrency(self) -> int | None:
        """Users of a closed loop; None for an open one."""
        return int(self.numbers[0]) if self.kind == "closed" else None

    def times_ns(self, recorded_ns: Int64s, stream: Stream) -> Int64s:
        """Arrival of each request, nanoseconds after the first. Shape (N,), int64, not decreasing.

        ``recorded_ns``, shape (N,), counts for ``recorded`` only, and N for the others.

        Raises:
            WorkloadError: the last time is beyond MAX_ARRIVAL_NS.
        """
        count = len(recorded_ns)
        if count == 0 or not self.is_timed:
            return np.zeros(count, dtype=np.int64)
        match self.kind, self.numbers:
            case "recorded", ():
                return recorded_ns - int(recorded_ns[0])
            case "constant", (rate,):
                _refuse_too_late((count - 1) * 1e9 / rate)
                return np.asarray([round(i * 1e9 / rate) for i in range(count)], dtype=np.int64)
            case "poisson", (rate,):
                return _cumulative_ns([gap / rate for gap in stream.exponentials(count - 1)])
            case "gamma", (rate, cv):
                shape = 1 / (cv * cv)
                return _cumulative_ns([gap / (rate * shape) for gap in stream.gammas(count - 1, shape)])
            case "ramp", (first, last):
                return _ramp_ns(stream.exponentials(count - 1), first, last)
            case _:
                raise AssertionError(f"arrivals {self}")


def parse_arrivals(text: str) -> Arrivals:
    """Parse one of the spellings above.

    Raises:
        WorkloadError: the kind is unknown, or a number is missing, left over, not a number, or out of range.
    """
    kind, *words = text.strip().split(":")
    if kind not in _ARGUMENTS:
        raise WorkloadError(
            f"arrivals {text!r} are unknown{nearest_name(kind, list(_ARGUMENTS))} (known: {', '.join(ARRIVALS)})"
        )
    names = _ARGUMENTS[kind]
    if len(words) != len(names):
        raise WorkloadError(f"arrivals {text!r} are not of the form {':'.join((kind, *names))}")
    return Arrivals(kind, tuple(_number(text, name, word) for name, word in zip(names, words, strict=True)))


def _number(text: str, name: str, word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if name == "CONCURRENCY":
        if not (1 <= number <= _MAX_CONCURRENCY and number == int(number)):
            raise WorkloadError(f"arrivals {text!r}: {name} is {word}; it is a whole number in 1..{_MAX_CONCURRENCY}")
    elif not _LOWEST <= number <= _HIGHEST:
        raise WorkloadError(f"arrivals {text!r}: {name} is {word}; it is a number in {_LOWEST:g}..{_HIGHEST:g}")
    return number


def scale_rate(times_ns: Int64s, rate_scale: float) -> Int64s:
    """Arrivals at ``rate_scale`` times the rate: 2.0 halves every time. Shape (N,), int64, not decreasing.

    Raises:
        WorkloadError: the last time is beyond MAX_ARRIVAL_NS.
    """
    scaled_ns = times_ns / rate_scale
    _refuse_too_late(scaled_ns[-1] if len(scaled_ns) else 0)
    return np.rint(scaled_ns).astype(np.int64)


def dejitter(times_ns: Int64s) -> Int64s:
    """Spread requests that share a timestamp evenly over the time until the next distinct one.

    For traces whose clock ticks coarsely. The order stays; those of the last timestamp are spread over the gap
    before it. With fewer than two distinct timestamps nothing changes. Shape (N,), int64.
    """
    ticks, group, counts = np.unique(times_ns, return_inverse=True, return_counts=True)
    if len(ticks) < 2:
        return times_ns
    gaps = np.append(np.diff(ticks), ticks[-1] - ticks[-2])
    rank = np.arange(len(times_ns)) - np.searchsorted(times_ns, times_ns)  # among those of the same timestamp
    width, num_sharing = gaps[group], counts[group]
    # width * rank // num_sharing, in a form that does not overflow.
    shift = width // num_sharing * rank + width % num_sharing * rank // num_sharing
    return np.add(times_ns, shift, dtype=np.int64)


def _cumulative_ns(gaps_s: list[float]) -> Int64s:
    return _from_us(list(accumulate((round(gap * 1e6) for gap in gaps_s), initial=0)))


def _ramp_ns(exponentials: list[float], first: float, last: float) -> Int64s:
    """Invert the expected number of arrivals, first * t + (last - first) * t**2 / (2 * T), of a unit Poisson process.

    T, the length of the ramp, is such that as many requests are expected as there are; what comes after T comes at
    the last rate.
    """
    count = len(exponentials) + 1
    length_s = 2 * count / (first + last)
    slope = (last - first) / length_s
    times_us = []
    for expected in accumulate(exponentials, initial=0.0):
        if expected > count:
            time = length_s + (expected - count) / last
        else:  # the root of the quadratic, in the form that holds for a slope of 0 as well
            time = 2 * expected / (first + math.sqrt(max(first * first + 2 * slope * expected, 0.0)))
        times_us.append(round(time * 1e6))
    return _from_us(times_us)


def _from_us(times_us: list[int]) -> Int64s:
    """Times in nanoseconds, from at least one in microseconds, not decreasing."""
    _refuse_too_late(times_us[-1] * 1000)
    return np.asarray(times_us, dtype=np.int64) * 1000


def _refuse_too_late(last_ns: float) -> None:
    """Refuse times before they are put into 64 bits, where they would wrap round."""
    if last_ns > MAX_ARRIVAL_NS:
        raise WorkloadError(
            f"the last request would arrive after {last_ns / 1e9:.4g} s, and times end at {MAX_ARRIVAL_NS / 1e9:.4g} s;"
            " use a higher rate or rate scale, or fewer requests"
        )
