"""Random streams that are the same on every machine and with every version of numpy.

Only the raw 64-bit words of numpy's Philox4x64-10 are used, whose stream numpy guarantees (NEP 19); the mappings from
words to numbers are written out here. Logarithms and exponentials come from ``math``, one number at a time: numpy's
vectorised ones differ in the last bit between processors. What is made of them is rounded to whole tokens or
microseconds, so that a last bit does not show.
"""

import hashlib
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import cast

import numpy as np
import numpy.typing as npt

_NORMAL = NormalDist()
_GAMMA_BATCH = 256


class Stream:
    """An endless stream of random words, named by (seed, purpose); streams of different names are independent.

    Each call goes on where the last one ended, so ``uniforms(3)`` then ``uniforms(2)`` are ``uniforms(5)``; gammas, of
    which some are drawn in vain, are the exception.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        digest = hashlib.sha256(f"pbench\x00{seed}\x00{purpose}".encode()).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """``count`` words of 64 random bits. Shape (count,), uint64."""
        return self._bits.random_raw(count)

    def uniforms(self, count: int) -> list[float]:
        """``count`` numbers uniform in the open interval (0, 1), on a grid of 2**-52."""
        numbers = ((self.words(count) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        return cast(list[float], numbers.tolist())

    def integers(self, count: int, low: int, high: int) -> npt.NDArray[np.int64]:
        """``count`` whole numbers uniform in low..high, both included. Shape (count,), int64.

        The upper 32 bits of a word, times the width of the range, shifted right by 32: the bias is below
        width / 2**32. The range holds fewer than 2**31 numbers.
        """
        width = high - low + 1
        assert 0 < width <= 2**31, f"range {low}..{high}"
        scaled = ((self.words(count) >> np.uint64(32)) * np.uint64(width)) >> np.uint64(32)
        return scaled.astype(np.int64) + low

    def normals(self, count: int) -> list[float]:
        """``count`` standard normal numbers, by the inverse of the distribution function."""
        return [_NORMAL.inv_cdf(u) for u in self.uniforms(count)]

    def exponentials(self, count: int) -> list[float]:
        """``count`` exponential numbers of mean 1, by the inverse of the distribution function."""
        return [-math.log(u) for u in self.uniforms(count)]

    def gammas(self, count: int, shape: float) -> list[float]:
        """``count`` gamma numbers of the given shape and scale 1 (Marsaglia and Tsang, ACM TOMS 26, 2000).

        Shapes below 1 are drawn as Gamma(shape + 1) * U**(1 / shape). The method rejects some of what it draws; it
        draws in batches of a fixed size, so that the first numbers do not depend on how many are asked for.
        """
        assert shape > 0
        d = (shape if shape >= 1 else shape + 1) - 1 / 3
        c = 1 / math.sqrt(9 * d)
        numbers: list[float] = []
        while len(numbers) < count:
            draws = (self.uniforms(_GAMMA_BATCH), self.normals(_GAMMA_BATCH), self.uniforms(_GAMMA_BATCH))
            for u, z, boost in zip(*draws, strict=True):
                v = (1 + c * z) ** 3
                if v > 0 and math.log(u) < 0.5 * z * z + d - d * v + d * math.log(v):
                    numbers.append(d * v if shape >= 1 else d * v * boost ** (1 / shape))
        return numbers[:count]

    def choices(self, count: int, weights: Sequence[float]) -> list[int]:
        """``count`` indices into ``weights``, each drawn with a probability proportional to its weight."""
        bounds = np.cumsum(np.asarray(weights, dtype=np.float64))
        assert bounds[-1] > 0
        drawn = np.searchsorted(bounds, np.asarray(self.uniforms(count)) * bounds[-1], side="right")
        return cast(list[int], np.minimum(drawn, len(bounds) - 1).tolist())
