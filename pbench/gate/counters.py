"""What the gate counts: figures of one engine on one workload that come out the same on every machine.

None of them is a time. Sums and peaks are integers; averages weigh every step alike and are rounded to DECIMALS, so a
baseline in JSON holds exactly what was counted. For the partition of the pool see ``pbench.engine.records.KVUsage``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from pbench.engine.records import KVUsage, StepRecord
from pbench.results import METRICS

DECIMALS = 4

_Steps = Sequence[StepRecord]


@dataclass(frozen=True, slots=True)
class Counter:
    """A figure of the gate, how it is counted over the steps of an engine (one at least), and how it is judged."""

    name: str
    is_higher_better: bool | None  # None: neither, a difference is shown and fails nothing
    count: Callable[[_Steps], float]


def _judged_as(metric_name: str, is_higher_better: bool | None = None) -> bool | None:
    """The direction of a metric; where metrics judge none, because engines are too different, ``is_higher_better``.

    One engine against itself on the same workload is a narrower question: there, more steps for the same tokens are
    a loss.
    """
    (judgement,) = (metric.is_higher_better for metric in METRICS if metric.name == metric_name)
    return is_higher_better if judgement is None else judgement


def _total(field: str) -> Callable[[_Steps], int]:
    value = attrgetter(field)
    return lambda steps: sum(value(step) for step in steps)


def _held_slots(usage: KVUsage) -> int:
    return usage.token_state + usage.reserved + usage.internal


def _share_pct(part: int, whole: int) -> float:
    return round(100 * part / whole, DECIMALS) if whole else 0.0


def _waste_pct(steps: _Steps) -> float:
    return _share_pct(sum(step.usage.waste for step in steps), sum(step.usage.pool for step in steps))


def _shared_saved_pct(steps: _Steps) -> float:
    saved = sum(step.usage.shared_saved for step in steps)
    return _share_pct(saved, saved + sum(step.usage.token_state for step in steps))


COUNTERS: tuple[Counter, ...] = (
    Counter("finished_requests", _judged_as("num_finished", True), _total("num_finished")),
    Counter("output_tokens", _judged_as("output_tokens_per_s"), _total("num_output_tokens")),
    Counter("steps", _judged_as("num_steps", False), len),
    Counter("prefill_tokens", False, _total("num_prefill_tokens")),
    Counter("peak_running", _judged_as("peak_running"), lambda steps: max(step.num_running for step in steps)),
    Counter(
        "mean_running",
        _judged_as("mean_running"),
        lambda steps: round(sum(step.num_running for step in steps) / len(steps), DECIMALS),
    ),
    # A pool filled further is a gain where memory is the limit and a loss where it is not: held_slot_steps judges.
    Counter("peak_held_slots", None, lambda steps: max(_held_slots(step.usage) for step in steps)),
    # What the requests' memory adds up to over their lives, however many of them run together.
    Counter("held_slot_steps", False, lambda steps: sum(_held_slots(step.usage) for step in steps)),
    Counter("waste_pct", _judged_as("waste_pct"), _waste_pct),
    Counter("shared_saved_pct", _judged_as("shared_saved_pct"), _shared_saved_pct),
    Counter("prefix_hit_tokens", _judged_as("prefix_hit_rate_pct"), _total("num_prefix_hit_tokens")),
    Counter("forks", None, _total("num_forks")),
    Counter("copied_blocks", _judged_as("copied_blocks", False), _total("num_copied_blocks")),
    Counter("preemptions", _judged_as("preemptions"), _total("num_preempted")),
    Counter("recomputed_tokens", _judged_as("recomputed_tokens"), _total("num_recomputed_tokens")),
    Counter("swapped_blocks", _judged_as("swapped_blocks", False), _total("num_swapped_out_blocks")),
    Counter("evicted_blocks", _judged_as("evicted_blocks"), _total("num_evicted_blocks")),
    Counter("moved_slots", _judged_as("moved_slots", False), _total("num_moved_slots")),
    Counter("memory_blocked_steps", False, _total("is_memory_blocked")),
)


def count(steps: _Steps) -> dict[str, float]:
    """All COUNTERS by name, over the steps of one engine: one at least."""
    return {counter.name: counter.count(steps) for counter in COUNTERS}
