"""What a built-in workload is made of."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import cast

from pbench.workloads.parameters import Parameter, Values
from pbench.workloads.row import Row
from pbench.workloads.streams import Stream

DEFAULT_BLOCK_SIZE = 16

_NORMAL = NormalDist()


class Draw:
    """The values of one build: the parameters, and the random streams of (seed, workload)."""

    def __init__(self, name: str, values: Values, seed: int) -> None:
        self.values = values
        self.seed = seed
        self._name = name

    def __getitem__(self, name: str) -> int:
        """A whole-number parameter."""
        value = self.values[name]
        assert isinstance(value, int), f"parameter {name} is {type(value).__name__}"
        return value

    def number(self, name: str) -> float:
        """A parameter that is any number."""
        value = self.values[name]
        assert not isinstance(value, str), f"parameter {name} is a string"
        return value

    def stream(self, purpose: str) -> Stream:
        """A random stream of its own for each purpose."""
        return Stream(self.seed, f"{self._name}/{purpose}")

    def uniform_lengths(self, prefix: str, count: int, stream: Stream | None = None) -> list[int]:
        """``count`` whole numbers uniform in ``prefix``_min..``prefix``_max, from ``stream`` or one of their own."""
        low, high = self[f"{prefix}_min"], self[f"{prefix}_max"]
        return cast(list[int], (stream or self.stream(prefix)).integers(count, low, high).tolist())

    def lognormal_lengths(self, prefix: str, count: int, stream: Stream | None = None) -> list[int]:
        """``count`` lengths by ``prefix``_mean (before clipping), _sigma and _clip; see ``lognormal_lengths``.

        They are drawn from ``stream``, or from one of their own.
        """
        mean, sigma = self.number(f"{prefix}_mean"), self.number(f"{prefix}_sigma")
        return lognormal_lengths(stream or self.stream(prefix), count, mean, sigma, self[f"{prefix}_clip"])


@dataclass(frozen=True, slots=True)
class Definition:
    """A built-in workload: declared by its parameters and one short function that lays out its rows.

    ``build`` gives rows in order of arrival, each with a recorded time or all without, the first N of which do not
    depend on how many more are asked for.
    """

    name: str
    description: str
    stands_for: str  # the paper or the practice
    parameters: tuple[Parameter, ...]
    build: Callable[[Draw], Iterator[Row]]
    arrivals: str = "all"  # when the user says nothing else
    block_size: int = DEFAULT_BLOCK_SIZE  # suggested, so small that little of last blocks is empty


def num_requests(default: int) -> Parameter:
    """The parameter that every built-in workload has."""
    return Parameter("num_requests", default, "requests in all", 1, 10_000_000)


def tokens(name: str, default: int, what: str, low: int = 1) -> Parameter:
    """A parameter that is a number of tokens."""
    return Parameter(name, default, what, low, 16_777_216)


def uniform(prefix: str, low: int, high: int, what: str) -> tuple[Parameter, ...]:
    """Parameters of a length between two bounds, uniform where ``uniform_lengths`` draws it."""
    return (
        tokens(f"{prefix}_min", low, f"shortest {what}, tokens"),
        tokens(f"{prefix}_max", high, f"longest {what}, tokens"),
    )


def lognormal(prefix: str, mean: float, sigma: float, clip: int, what: str) -> tuple[Parameter, ...]:
    """Parameters of a length that is lognormal and clipped."""
    return (
        Parameter(f"{prefix}_mean", float(mean), f"mean {what} before clipping, tokens", 1, 16_777_216),
        Parameter(f"{prefix}_sigma", float(sigma), f"standard deviation of the logarithm of the {what}", 0.0, 5.0),
        tokens(f"{prefix}_clip", clip, f"longest {what}; longer ones become this, tokens"),
    )


def lognormal_lengths(stream: Stream, count: int, mean: float, sigma: float, clip: int) -> list[int]:
    """``count`` whole numbers: exp(mu + sigma * normal) rounded and clipped to 1..clip.

    mu = log(mean) - sigma**2 / 2, so ``mean`` is the mean before clipping.
    """
    mu = math.log(mean) - sigma * sigma / 2
    # A normal of this stream is below 9 in size, so with sigma <= 5 the exponent stays far below overflow.
    return [min(max(round(math.exp(mu + sigma * z)), 1), clip) for z in stream.normals(count)]


def clipped_lognormal_mean(mean: float, sigma: float, clip: float) -> float:
    """Mean of min(X, clip) for a lognormal X of the given mean and sigma (partial expectation, Johnson et al. 1994)."""
    if sigma == 0:
        return min(mean, clip)
    mu = math.log(mean) - sigma * sigma / 2
    below = _NORMAL.cdf((math.log(clip) - mu - sigma * sigma) / sigma)
    above = 1 - _NORMAL.cdf((math.log(clip) - mu) / sigma)
    return mean * below + clip * above
