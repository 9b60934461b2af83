"""The search for a faster tiling: from one to its neighbours, as long as a neighbour is faster.

It knows neither kernels nor GPUs: how long a tiling takes on a shape is what ``measure`` says. The winner of many
noisy measurements looks better than it is, so it is measured again, in turns with the tiling where the search began,
and those figures alone decide.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pbench.kernel_bench.timing import Timing
from pbench.kernels.tiling import Tiling

# A candidate that is so much slower than the best one on the shapes so far is not measured on the others.
HOPELESS = 1.05


@dataclass(frozen=True, slots=True)
class Pair:
    """The same shape with both tilings."""

    shape: str
    default: Timing
    best: Timing

    @property
    def ratio(self) -> float:
        """The best one's time over the default's."""
        return self.best.median_us / self.default.median_us

    @property
    def spread(self) -> float:
        """Of the noisier of the two."""
        return max(self.default.spread, self.best.spread)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found."""

    default: Tiling
    best: Tiling  # the default itself where nothing was faster at first sight
    pairs: tuple[Pair, ...]  # one for each shape; of the second measurement
    num_candidates: int  # measured, at least on one shape
    num_failed: int  # of them: did not run, or gave a wrong result
    is_complete: bool  # False: the time was up first

    @property
    def gain(self) -> float:
        """Share of the time that the best one saves, in the geometric mean of the shapes."""
        return 1 - math.exp(sum(math.log(pair.ratio) for pair in self.pairs) / len(self.pairs))

    @property
    def spread(self) -> float:
        """Mean of the shapes."""
        return sum(pair.spread for pair in self.pairs) / len(self.pairs)

    @property
    def has_won(self) -> bool:
        """The best one saves more than the spread, and on no shape loses more than the shape's own."""
        return (
            self.best != self.default
            and self.gain > self.spread
            and all(pair.ratio <= 1 + pair.spread for pair in self.pairs)
        )


def search(
    default: Tiling,
    shapes: tuple[str, ...],
    neighbours: Callable[[Tiling], Iterable[Tiling]],
    measure: Callable[[Tiling, str], Timing | None],
    has_time: Callable[[], bool],
) -> Outcome:
    """Look for a tiling that is faster than ``default``.

    Args:
        default: where the search begins.
        shapes: on which every tiling is measured, by name.
        neighbours: what is worth trying beside a tiling.
        measure: how long a tiling takes on a shape; None if it does not run or its result is wrong.
        has_time: False when no candidate may be measured any more.

    Raises:
        ValueError: the default itself cannot be measured.

    """
    base_us = [_needed(measure, default, shape).median_us for shape in shapes]
    best, best_ratios = default, [1.0] * len(shapes)
    tried = {default}
    num_candidates = num_failed = 0
    is_searching = is_complete = True
    while is_searching:
        is_searching = False
        center = best
        for candidate in neighbours(center):
            if candidate in tried:
                continue
            if not has_time():
                is_complete = False
                break
            tried.add(candidate)
            num_candidates += 1
            ratios: list[float] = []
            for shape, us in zip(shapes, base_us, strict=True):
                timing = measure(candidate, shape)
                if timing is None:
                    num_failed += 1
                    break
                ratios.append(timing.median_us / us)
                if _mean(ratios) > HOPELESS * _mean(best_ratios[: len(ratios)]):
                    break
            if len(ratios) == len(shapes) and _mean(ratios) < _mean(best_ratios):
                best, best_ratios, is_searching = candidate, ratios, True
        is_searching &= is_complete
    pairs = tuple(Pair(shape, _needed(measure, default, shape), _needed(measure, best, shape)) for shape in shapes)
    return Outcome(default, best, pairs, num_candidates, num_failed, is_complete)


def _needed(measure: Callable[[Tiling, str], Timing | None], tiling: Tiling, shape: str) -> Timing:
    timing = measure(tiling, shape)
    if timing is None:
        raise ValueError(f"{tiling} does not run on {shape}, or gives a wrong result")
    return timing


def _mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))
