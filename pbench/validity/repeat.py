"""The checks of one repeat: what a careful reader would verify before believing its figures.

Each has an outcome (pass, warn, fail, or unknown where this machine cannot tell) and the figure that was judged. They
are made once, here, and kept in the record: terminal, comparison and report show the same ones.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pbench.results import Check, Sampling, SteadyState
from pbench.summary.support import is_supported, min_samples
from pbench.tables import Tables
from pbench.units import format_number, format_quantity
from pbench.validity.machine import check_gpu, check_host

_PARTS = ["token_state", "reserved", "internal", "external", "cached", "free"]

# Shares of the intended rate, in %, and of a repeat's time, in %
_FULL_RATE_PCT, _POOR_RATE_PCT = 99.0, 95.0
_CHEAP_PCT, _DEAR_PCT = 1.0, 5.0
_SAMPLES_LATE_BY = 3  # intervals


class Watching(NamedTuple):
    """What measuring took."""

    noting_s: float  # between the engine's steps
    sampling_s: float  # of CPU, in a thread beside the engine


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the checks of one repeat judge."""

    tables: Tables
    pool: Mapping[str, Any]  # EngineResult.pool
    workload: Mapping[str, Any]  # RunResult.workload
    duration_s: float | None
    steady: SteadyState | None
    sampling: Sampling | None
    gpu: Mapping[str, Any] | None = None  # as in the environment
    num_cached_slots: int | None = None  # before the first request
    watching: Watching | None = None
    num_cores: int = 1  # that the worker might run on
    is_simulated: bool = False


def check_repeat(evidence: Evidence) -> tuple[Check, ...]:
    """All checks of one repeat, in the order in which a reader asks."""
    return tuple(_checks(evidence))


def _checks(evidence: Evidence) -> Iterator[Check]:
    yield _finished(evidence)
    yield _accounted(evidence)
    yield _many_requests(evidence)
    yield _memory_was_limit(evidence)
    if evidence.is_simulated:
        return  # there is no machine, and simulated time is not late
    yield _rate_reached(evidence)
    yield _cache_cold(evidence)
    yield _steady(evidence)
    if evidence.gpu is not None:
        yield from check_gpu(evidence.tables.device, evidence.gpu)
    yield from check_host(evidence.tables.device, evidence.num_cores)
    yield _sampled(evidence)
    yield _watched_cheaply(evidence)


def _finished(evidence: Evidence) -> Check:
    name, requests = "every request finished", evidence.tables.requests
    num_asked = int(evidence.workload.get("num_requests") or len(requests))
    num_finished = int((requests["status"] == "finished").sum())
    outcome = "pass" if num_finished == num_asked and num_asked else "fail"
    return Check(name, outcome, f"{format_number(num_finished)} of {format_number(num_asked)}", num_finished)


def _accounted(evidence: Evidence) -> Check:
    """The partition's parts sum to the pool after every step."""
    name, steps = "every slot accounted for", evidence.tables.steps
    num_slots = evidence.pool.get("num_slots")
    if steps.empty or num_slots is None:
        return Check(name, "unknown", "there is no step to look at")
    num_wrong = int((steps[_PARTS].sum(axis=1) != num_slots).sum())
    if num_wrong:
        detail = f"the parts do not sum to the pool in {format_number(num_wrong)} of {format_number(len(steps))} steps"
        return Check(name, "fail", detail, num_wrong)
    return Check(name, "pass", f"the parts sum to the pool in all {format_number(len(steps))} steps", 0)


def _many_requests(evidence: Evidence) -> Check:
    name = "enough requests"
    num = int((evidence.tables.requests["status"] == "finished").sum())
    percentiles = ("_p50", "_p90", "_p99")
    missing = [f"{one[1:]} needs {min_samples(one)}" for one in percentiles if not is_supported(one, num)]
    outcome = "pass" if not missing else "fail" if len(missing) == len(percentiles) else "warn"
    detail = f"{format_number(num)} finished"
    return Check(name, outcome, f"{detail}; {', '.join(missing)}" if missing else detail, num)


def _memory_was_limit(evidence: Evidence) -> Check:
    name, steps = "memory was the limit", evidence.tables.steps
    step_ns = (steps["end_ns"] - steps["start_ns"]).to_numpy(dtype=np.float64)
    if not step_ns.sum():
        return Check(name, "unknown", "there is no step to look at")
    share_pct = 100 * float(step_ns[steps["is_memory_blocked"].to_numpy(dtype=bool)].sum() / step_ns.sum())
    if not share_pct:
        detail = "no request waited for memory; a smaller --kv-memory would show what paging buys"
        return Check(name, "warn", detail, share_pct, "%")
    detail = f"requests waited for memory in {format_quantity(share_pct, '%')} of the time"
    return Check(name, "pass", detail, share_pct, "%")


def _rate_reached(evidence: Evidence) -> Check:
    """Of an open loop: whether requests were offered as fast as they were meant to be."""
    name, requests = "offered rate reached", evidence.tables.requests
    if evidence.workload.get("concurrency") is not None:
        return Check(name, "pass", "closed loop: a request is due when another leaves")
    if requests.empty:
        return Check(name, "unknown", "no request was offered")
    intended_ns = requests["arrival_ns"].to_numpy(dtype=np.float64)
    late_ns = requests["added_ns"].to_numpy(dtype=np.float64, na_value=np.nan) - intended_ns
    worst_ms = float(np.nanmax(late_ns)) / 1e6
    detail = f"the latest was offered {format_quantity(worst_ms, 'ms')} after it was due"
    span_ns = float(np.ptp(intended_ns))
    if not span_ns:
        return Check(name, "pass", f"all at once; {detail}", 100.0, "%")
    offered_ns = intended_ns + late_ns
    reached_pct = 100 * span_ns / max(span_ns, float(np.nanmax(offered_ns) - np.nanmin(offered_ns)))
    outcome = "pass" if reached_pct >= _FULL_RATE_PCT else "warn" if reached_pct >= _POOR_RATE_PCT else "fail"
    return Check(name, outcome, f"{format_quantity(reached_pct, '%')} of the intended rate; {detail}", reached_pct, "%")


def _cache_cold(evidence: Evidence) -> Check:
    name, num = "cache cold at start", evidence.num_cached_slots
    if num is None:
        return Check(name, "unknown", "the engine does not tell what it has cached")
    detail = f"{format_number(num)} cached slots before the first request"
    return Check(name, "fail" if num else "pass", detail, num)


def _steady(evidence: Evidence) -> Check:
    name, steady = "throughput was steady", evidence.steady
    if not evidence.duration_s:
        return Check(name, "unknown", "no token was given out")
    if steady is None:
        return Check(name, "warn", "MSER finds no steady stretch: the repeat is short, or never levels off")
    share_pct = (steady.end_ns - steady.start_ns) / evidence.duration_s / 1e7
    ends = [format_quantity(time_ns / 1e9, "s") for time_ns in (steady.start_ns, steady.end_ns)]
    detail = f"from {ends[0]} to {ends[1]}, {format_quantity(share_pct, '%')} of the time (MSER)"
    return Check(name, "pass", detail, share_pct, "%")


def _sampled(evidence: Evidence) -> Check:
    name, sampling = "memory sampled throughout", evidence.sampling
    if sampling is None:
        return Check(name, "unknown", "nobody looked: --sample-interval is 0, or it ended before")
    longest_s = sampling.longest_interval_s
    if longest_s is None:
        return Check(name, "warn", f"{sampling.num_samples} sample, no interval")
    intervals = (sampling.asked_interval_s, sampling.median_interval_s or 0.0, longest_s)
    asked, median, longest = (format_quantity(interval_s, "s") for interval_s in intervals)
    detail = f"{format_number(sampling.num_samples)} samples, {asked} asked for, median {median}, longest {longest}"
    outcome = "pass" if longest_s <= _SAMPLES_LATE_BY * sampling.asked_interval_s else "warn"
    return Check(name, outcome, detail, longest_s, "s")


def _watched_cheaply(evidence: Evidence) -> Check:
    """Noting keeps the engine waiting; sampling takes its share of the cores that both may use."""
    name = "measured at little cost"
    watching = evidence.watching
    if watching is None or not evidence.duration_s:
        return Check(name, "unknown", "the repeat did not get to its end")
    noting_pct, sampling_pct = (100 * spent_s / evidence.duration_s for spent_s in watching)
    share_pct = noting_pct + sampling_pct / evidence.num_cores
    outcome = "pass" if share_pct <= _CHEAP_PCT else "warn" if share_pct <= _DEAR_PCT else "fail"
    noting, sampling = (format_quantity(pct, "%") for pct in (noting_pct, sampling_pct))
    detail = f"noting took {noting} of the time, sampling {sampling} of one of {evidence.num_cores} cores"
    return Check(name, outcome, detail, share_pct, "%")
