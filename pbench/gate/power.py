"""How often the throughput gate is right, on a simulated machine whose speed drifts, and how often a naive design is.

The machine: log tokens/s of a run is a drift, which follows that of the run before (autoregressive of order 1,
stationary), plus noise of the run's own, plus log(1 - loss) where the run is head's.

The naive design runs all of base, then all of head, and asks the Mann-Whitney test (1947) whether head is slower. The
test takes runs for independent; under drift they are not, and what the machine did in between is held against head.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from pbench.gate.paired_statistics import (
    Design,
    Flags,
    Floats,
    estimate,
    has_failed,
    has_passed,
    smallest_delta,
    spread_of,
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a simulated machine's speed does; standard deviations are of the natural logarithm."""

    drift: float = 0.03
    autocorrelation: float = 0.9  # of the drift, from a run to the next
    noise: float = 0.01

    def log_speeds(self, num_experiments: int, num_runs: int, rng: np.random.Generator) -> Floats:
        """The log of the speed of every run, (experiments, runs)."""
        innovation = math.sqrt(1 - self.autocorrelation**2)
        drift = rng.standard_normal((num_runs, num_experiments))
        for run in range(1, num_runs):
            drift[run] = self.autocorrelation * drift[run - 1] + innovation * drift[run]
        return self.drift * drift.T + self.noise * rng.standard_normal((num_experiments, num_runs))


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How a design decided, as shares of all experiments; they sum to 1."""

    loss: float  # of head's throughput, in truth
    failed: float
    passed: float
    inconclusive: float
    refused: float  # by the A/A check
    mean_pairs: float  # that count for the verdict, of experiments that were not refused


def paired_outcomes(
    losses: Sequence[float], machine: Machine, design: Design, num_experiments: int, seed: int
) -> Iterator[Outcomes]:
    """What the gate decides for every loss."""
    for index, loss in enumerate(losses):
        rng = np.random.default_rng((seed, index))
        num_runs = 2 * (design.aa_pairs + design.most_pairs)
        ratios = abba_ratios(machine.log_speeds(num_experiments, num_runs, rng))
        is_refused = smallest_delta(spread_of(ratios[:, : design.aa_pairs]), design) > design.delta
        logs = ratios[:, design.aa_pairs :] + math.log(1 - loss)
        yield _decide(loss, logs, is_refused, design)


def abba_ratios(log_speeds: Floats) -> Floats:
    """log(head / base) of every pair, (experiments, pairs), base first in the first and every other."""
    first, second = log_speeds[:, ::2], log_speeds[:, 1::2]
    is_base_first = np.arange(first.shape[1]) % 2 == 0
    return np.where(is_base_first, second - first, first - second)


def _decide(loss: float, logs: Floats, is_refused: Flags, design: Design) -> Outcomes:
    num_experiments = len(logs)
    open_ones = np.flatnonzero(~is_refused)
    num_open_at_first = len(open_ones)
    num_failed = num_passed = num_pairs = last_look = 0
    for look in design.looks:
        num_pairs += (look - last_look) * len(open_ones)
        last_look = look
        estimates = estimate(logs[open_ones, :look], design)
        failed, passed = has_failed(estimates, design.alpha_per_look, design), has_passed(estimates, design)
        num_failed += int(failed.sum())
        num_passed += int(passed.sum())
        open_ones = open_ones[~(failed | passed)]
    return Outcomes(
        loss=loss,
        failed=num_failed / num_experiments,
        passed=num_passed / num_experiments,
        inconclusive=len(open_ones) / num_experiments,
        refused=float(is_refused.mean()),
        mean_pairs=num_pairs / num_open_at_first if num_open_at_first else 0.0,
    )


def naive_outcomes(
    losses: Sequence[float], machine: Machine, num_runs: int, alpha: float, num_experiments: int, seed: int
) -> Iterator[Outcomes]:
    """What ``num_runs`` of base, then as many of head, and a one-sided Mann-Whitney test at ``alpha`` decide."""
    for index, loss in enumerate(losses):
        rng = np.random.default_rng((seed, index))
        log_speeds = machine.log_speeds(num_experiments, 2 * num_runs, rng)
        base, head = log_speeds[:, :num_runs], log_speeds[:, num_runs:] + math.log(1 - loss)
        # How many of all pairs of a run of base and a run of head have head faster.
        num_faster = (head[:, :, None] > base[:, None, :]).sum(axis=(1, 2))
        failed = float((mann_whitney_p_values(num_runs)[num_faster] <= alpha).mean())
        yield Outcomes(loss, failed, 1 - failed, 0.0, 0.0, float(num_runs))


@cache
def mann_whitney_p_values(num_runs: int) -> Floats:
    """P(U <= u) for u = 0 ... n^2, both sides having ``num_runs`` = n runs that are alike: exact, without ties.

    The ways to get each u are the coefficients of the Gaussian binomial (2n over n).
    """
    size = num_runs**2 + 1
    ways = np.zeros(size)
    ways[0] = 1
    for k in range(1, num_runs + 1):
        for u in range(size - 1, num_runs + k - 1, -1):  # times (1 - q^(n + k))
            ways[u] -= ways[u - num_runs - k]
        for u in range(k, size):  # over (1 - q^k)
            ways[u] += ways[u - k]
    return np.asarray(ways.cumsum() / ways.sum())
