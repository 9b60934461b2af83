"""How long our kernels take beside other implementations: ratios of medians, and their geometric means."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pbench.kernel_bench.cases import OURS
from pbench.kernel_bench.measurement import Measurement

# The peer that is fastest on a shape among those that read blocks through a table, as ours does.
FASTEST = "the fastest on blocks"
# Ours once more, after all peers: what it differs by is no difference between kernels.
AGAIN = "ours again"


class Ratio(NamedTuple):
    """On one shape: our median over the peer's, so below 1 where ours is faster."""

    shape: str
    peer: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Our kernel beside one peer, or beside the fastest, on all shapes that both were timed on."""

    kernel: str
    peer: str
    ratios: tuple[Ratio, ...]  # one at least

    @property
    def geometric_mean(self) -> float:
        """Of the ratios."""
        return math.exp(sum(math.log(one.ratio) for one in self.ratios) / len(self.ratios))

    @property
    def worst(self) -> Ratio:
        """Where ours does worst."""
        return max(self.ratios, key=lambda one: one.ratio)


def peer_ratios(measurements: Sequence[Measurement]) -> dict[Measurement, float]:
    """For every peer that was timed where ours was: our median over its."""
    ours = {(one.kernel, one.shape): one.timing for one in measurements if one.implementation == OURS and one.timing}
    ratios = {}
    for one in measurements:
        own = ours.get((one.kernel, one.shape))
        if own and one.timing and not one.implementation.startswith(OURS):
            ratios[one] = own.median_us / one.timing.median_us
    return ratios


def comparisons(measurements: Sequence[Measurement]) -> Iterator[Comparison]:
    """Of every kernel that has peers: first beside the fastest, then beside each."""
    timed = peer_ratios(measurements)
    for kernel in dict.fromkeys(one.kernel for one in timed):
        beside: dict[str, list[Ratio]] = {FASTEST: []}
        for one, ratio in timed.items():
            if one.kernel == kernel:
                row = Ratio(one.shape, one.implementation, ratio)
                beside.setdefault(row.peer, []).append(row)
                if one.is_paged and row.peer != AGAIN:
                    beside[FASTEST].append(row)
        beside[FASTEST] = _worst_of_each_shape(beside[FASTEST])
        for peer, rows in beside.items():
            if rows:
                yield Comparison(kernel, peer, tuple(rows))


def _worst_of_each_shape(rows: Sequence[Ratio]) -> list[Ratio]:
    worst: dict[str, Ratio] = {}
    for row in rows:
        if row.shape not in worst or row.ratio > worst[row.shape].ratio:
            worst[row.shape] = row
    return list(worst.values())
