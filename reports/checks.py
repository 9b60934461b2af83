"""The checks of a run's validity: what a careful reader would verify before believing the figures."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pbench.reports.palette import KINDS
from pbench.reports.quantity import EQUAL_RATIO, format_number, format_quantity
from pbench.reports.subjects import Subject, floats
from pbench.reports.text import shorten
from pbench.reports.verdict import has_same_workload
from pbench.results import OUTCOMES, Check

# NVML's bit mask of reasons for a lower clock (nvml.h, nvmlClocksEventReason*)
_POWER_CAP = 0x4
_HARDWARE_SLOWDOWNS = {
    0x8: "hardware slowdown",
    0x20: "thermal",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}

_NAME_CHARS = 60
_MAX_NAMES = 4  # of checks that did not pass, beside the verdict
_WORDS = {"fail": "Failed", "warn": "Caution", "unknown": "Not known"}
_MAX_DETAILS = 3  # engines of which a check of many says what was seen
_LONGEST_SAMPLING_GAP_S = 2.0


class Tally(NamedTuple):
    """How the checks came out, for a glance: the worst outcome, and in words what did not pass."""

    outcome: str
    text: str


def tally(checks: Sequence[Check]) -> Tally | None:
    """Of checks with failures first; None without any."""
    if not checks:
        return None
    num_passed = sum(check.outcome == "pass" for check in checks)
    if num_passed == len(checks):
        return Tally("pass", f"All {num_passed} checks passed.")
    sentences = []
    for outcome, word in _WORDS.items():
        names = [shorten(check.name, _NAME_CHARS) for check in checks if check.outcome == outcome]
        if len(names) > _MAX_NAMES:
            names[_MAX_NAMES:] = [f"{len(names) - _MAX_NAMES} more"]
        if names:
            sentences.append(f"{word}: {', '.join(names)}.")
    if num_passed:
        sentences.append("All other checks passed.")
    return Tally(checks[0].outcome, " ".join(sentences))


def run_checks(subjects: Sequence[Subject]) -> list[Check]:
    """All checks, failures first: those of the record, and those between the engines that it has not made itself.

    Of an older record, which has none, they are made here.

    Nothing is checked without an engine.
    """
    if not subjects:
        return []
    everyone: tuple[Callable[[Sequence[Subject]], Check], ...] = (
        _ended,
        _finished,
        _accounted,
        _kept,
        _sampled,
        _unthrottled,
    )
    several = (_same_workload, _same_work, _equal_pools)
    recorded = _recorded(subjects)
    names = {check.name for check in recorded}
    own = [check(subjects) for check in (*(() if recorded else everyone), *(several if len(subjects) > 1 else ()))]
    return sorted(
        [*recorded, *(check for check in own if check.name not in names)],
        key=lambda check: OUTCOMES.index(check.outcome),
    )


def _recorded(subjects: Sequence[Subject]) -> list[Check]:
    """Each check of the record once, with its worst outcome; whose it is where it was not passed by all."""
    found: dict[str, list[tuple[str, Check]]] = {}
    for subject in subjects:
        for check in subject.engine.checks:
            found.setdefault(check.name, []).append((subject.label, check))
    for run in dict.fromkeys(subject.run.run_id for subject in subjects):
        for check in next(subject.run for subject in subjects if subject.run.run_id == run).checks:
            found.setdefault(check.name, []).append(("", check))
    checks = []
    for name, made in found.items():
        worst = min((check.outcome for _, check in made), key=OUTCOMES.index)
        details = dict.fromkeys(
            f"{label}: {check.detail}" if label and len(subjects) > 1 else check.detail
            for label, check in made
            if check.outcome == worst
        )
        shown = list(details)
        if len(shown) > _MAX_DETAILS:
            shown[_MAX_DETAILS:] = [f"and {len(shown) - _MAX_DETAILS} more"]
        checks.append(Check(name, worst, "; ".join(shown)))
    return checks


def _ended(subjects: Sequence[Subject]) -> Check:
    broken = [subject for subject in subjects if subject.engine.status != "complete"]
    details = [f"{subject.label}: {subject.engine.status}" for subject in broken]
    return Check("every engine ran to its end", "fail" if broken else "pass", "; ".join(details) or "all complete")


def _finished(subjects: Sequence[Subject]) -> Check:
    if all(subject.requests.empty for subject in subjects):
        return Check("every request finished", "unknown", "the run kept no requests")
    counts = [
        (subject.label, int((subject.requests["status"] == "finished").sum()), len(subject.requests))
        for subject in subjects
    ]
    is_whole = all(num_finished == num_all and num_all for _, num_finished, num_all in counts)
    detail = "; ".join(f"{label}: {num_finished} of {num_all}" for label, num_finished, num_all in counts)
    return Check("every request finished", "pass" if is_whole else "fail", detail)


def _same_workload(subjects: Sequence[Subject]) -> Check:
    is_same = has_same_workload(subjects)
    return Check(
        "same workload",
        "pass" if is_same else "fail",
        "same content hash" if is_same else "the hashes differ",
    )


def _same_work(subjects: Sequence[Subject]) -> Check:
    """The engines computed the same number of tokens for the same requests."""
    name = "same tokens in and out"
    if any(subject.requests.empty for subject in subjects):
        return Check(name, "unknown", "an engine kept no requests")
    totals = {
        (int(subject.requests["num_prompt_tokens"].sum()), int(subject.requests["num_output_tokens"].sum()))
        for subject in subjects
    }
    detail = " against ".join(f"{format_number(given)} in, {format_number(made)} out" for given, made in sorted(totals))
    return Check(name, "pass" if len(totals) == 1 else "fail", detail)


def _equal_pools(subjects: Sequence[Subject]) -> Check:
    name = "equal KV pools"
    pools = [subject.pool_figure("pool_bytes") for subject in subjects]
    known = [pool for pool in pools if pool is not None]
    if len(known) < len(pools):
        return Check(name, "unknown", "an engine ended before it had a pool, or does not tell of it")
    detail = " and ".join(format_quantity(pool, "bytes") for pool in known)
    is_equal = max(known) - min(known) <= EQUAL_RATIO * max(known)
    return Check(name, "pass" if is_equal else "warn", detail)


def _accounted(subjects: Sequence[Subject]) -> Check:
    """The partition's parts sum to the pool after every step."""
    name = "every slot accounted for"
    num_steps = num_wrong = 0
    for subject in subjects:
        num_slots = subject.pool_figure("num_slots")
        if subject.steps.empty or num_slots is None:
            continue
        totals = subject.steps[[kind.column for kind in KINDS]].sum(axis=1)
        num_steps += len(totals)
        num_wrong += int((totals != num_slots).sum())
    if not num_steps:
        return Check(name, "unknown", "the run kept no steps")
    if num_wrong:
        return Check(name, "fail", f"the parts do not sum to the pool in {num_wrong} of {num_steps} steps")
    return Check(name, "pass", f"the parts sum to the pool in all {format_number(num_steps)} steps")


def _kept(subjects: Sequence[Subject]) -> Check:
    name = "no request dropped"
    num_dropped = {
        dropped for subject in subjects if (dropped := subject.run.workload.get("num_dropped_too_long")) is not None
    }
    if not num_dropped:
        return Check(name, "unknown", "the run does not say")
    worst = max(num_dropped)
    if worst:
        return Check(
            name,
            "warn",
            f"{format_number(worst)} requests too long for the model were dropped, in all engines alike",
        )
    return Check(name, "pass", "none of those read was too long for the model")


def _sampled(subjects: Sequence[Subject]) -> Check:
    name = "memory sampled throughout"
    details = []
    longest_gap_s = 0.0
    for subject in subjects:
        if subject.device.empty:
            return Check(name, "unknown", f"{subject.label}: no samples of the device")
        gaps_s = np.diff(subject.device["time_ns"].to_numpy(dtype=np.int64)) / 1e9
        longest_gap_s = max(longest_gap_s, float(gaps_s.max(initial=0.0)))
        sources = ", ".join(sorted(subject.device["source"].unique()))
        details.append(f"{subject.label}: {format_number(len(subject.device))} samples ({sources})")
    detail = f"{'; '.join(details)}; longest gap {format_quantity(longest_gap_s, 's')}"
    return Check(name, "pass" if longest_gap_s <= _LONGEST_SAMPLING_GAP_S else "warn", detail)


def _unthrottled(subjects: Sequence[Subject]) -> Check:
    name = "GPU not slowed down"
    masks = [floats(subject.device, "throttle_reasons") for subject in subjects]
    sampled = np.concatenate(masks)
    known = sampled[~np.isnan(sampled)].astype(np.int64)
    if not len(known):
        return Check(name, "unknown", "no NVML on this machine")
    for bit, reason in _HARDWARE_SLOWDOWNS.items():
        share = float(np.mean(known & bit != 0))
        if share:
            return Check(name, "fail", f"{reason} in {format_quantity(share * 100, '%')} of the samples")
    share = float(np.mean(known & _POWER_CAP != 0))
    if share:
        return Check(name, "warn", f"held at its power limit in {format_quantity(share * 100, '%')} of the samples")
    return Check(name, "pass", f"no reason for a lower clock in {format_number(len(known))} samples")
