"""The verdict: what was found, in one sentence, and what to know before believing it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pbench.reports.quantity import EQUAL_RATIO, TIMES, format_number, format_quantity
from pbench.reports.ratios import ratio_bounds
from pbench.reports.subjects import Subject
from pbench.reports.text import shorten
from pbench.results import CONFIDENCE

_SPEED = "output_tokens_per_s"
_REASON_CHARS = 240  # the whole reason stands with the engine's notes
_NOTE_CHARS = 240
_BLOCKED_SHARE_OF_NOTE = 0.01  # below this share of the time, memory was as good as never the limit


class Pair(NamedTuple):
    """What is compared: the candidate's figures over the baseline's. Without a second engine, ``baseline`` is None."""

    candidate: Subject
    baseline: Subject | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A word and an icon for a glance, a sentence to quote, caveats to read. ``tone``: good | bad | neutral."""

    word: str
    icon: str
    tone: str
    sentence: str
    caveats: tuple[str, ...] = ()


def choose_pair(subjects: Sequence[Subject]) -> Pair | None:
    """The first paged engine against the first contiguous one; lacking those, the first two engines.

    None when there is no engine at all.
    """
    if not subjects:
        return None
    candidate = next((subject for subject in subjects if subject.is_paged), subjects[0])
    others = [subject for subject in subjects if subject is not candidate]
    baseline = next((subject for subject in others if subject.is_contiguous), others[0] if others else None)
    return Pair(candidate, baseline)


def comparable_pair(subjects: Sequence[Subject]) -> Pair | None:
    """The pair whose figures may be set against each other: complete engines that were given the same workload."""
    pair = choose_pair(subjects)
    is_comparable = all(subject.engine.status == "complete" for subject in subjects) and has_same_workload(subjects)
    return pair if pair and pair.baseline and is_comparable else None


def reach_verdict(subjects: Sequence[Subject]) -> Verdict:
    """Judge the candidate's output tokens/s against the baseline's; say so when that cannot be judged."""
    pair = choose_pair(subjects)
    if pair is None:
        return Verdict("Nothing ran", "∅", "neutral", "The run holds no engine.")
    for subject in subjects:
        if subject.engine.status != "complete":
            return _judge_incomplete(subject, subjects)
    candidate, baseline = pair
    speed = candidate.metric("output_tokens_per_s")
    if baseline is None:
        sentence = f"{candidate.label} ran alone: {_speed_text(candidate)}. There is nothing to compare it with."
        return Verdict("Measured", "●", "neutral", sentence, _caveats(subjects))
    if not has_same_workload(subjects):
        sentence = "These engines ran different workloads; their figures stand side by side and are not compared."
        return Verdict("Not compared", "≠", "neutral", sentence, _caveats(subjects))
    baseline_speed = baseline.metric("output_tokens_per_s")
    if not speed or not baseline_speed:
        sentence = f"{candidate.label}: {_speed_text(candidate)}; {baseline.label}: {_speed_text(baseline)}."
        return Verdict("Not compared", "≠", "neutral", sentence, _caveats(subjects))
    return _judge_ratio(pair, speed / baseline_speed, _caveats(subjects, pair))


def has_same_workload(subjects: Sequence[Subject]) -> bool:
    """Whether all engines were given the same requests: same content hash, same number, same arrivals."""
    fields = ("sha256", "num_requests", "arrivals", "seed")
    return len({tuple(str(subject.run.workload.get(field)) for field in fields) for subject in subjects}) <= 1


def _judge_ratio(pair: Pair, ratio: float, caveats: tuple[str, ...]) -> Verdict:
    candidate, baseline = pair
    assert baseline is not None
    pools = [subject.pool_figure("pool_bytes") for subject in pair if subject is not None]
    if pools[0] is None or pools[1] is None:
        pool_text = ""  # an engine that does not tell of its pool
    elif abs(pools[0] - pools[1]) <= EQUAL_RATIO * pools[1]:
        pool_text = f" on the same {format_quantity(pools[1], 'bytes')} KV pool"
    else:
        pool_text = " on KV pools of " + " and ".join(format_quantity(pool, "bytes") for pool in pools)
    bounds = ratio_bounds(candidate, baseline, _SPEED)
    if bounds is not None and bounds.low < bounds.high:
        certainty = (
            f" The {CONFIDENCE:.0%} interval of the ratio is {format_number(bounds.low)} to"
            f" {format_number(bounds.high)}, from {bounds.num_repeats} repeats of each"
            f"{', run in turns' if bounds.is_paired else ''}."
        )
        if bounds.holds(1):
            sentence = (
                f"{candidate.label} and {baseline.label} are not told apart{pool_text}:"
                f" {format_number(ratio)}{TIMES} the output tokens/s.{certainty}"
            )
            return Verdict("No difference shown", "\u2248", "neutral", sentence, caveats)
    else:
        certainty = ""
        if abs(ratio - 1) <= EQUAL_RATIO:
            sentence = f"{candidate.label} and {baseline.label} generated tokens equally fast{pool_text}."
            return Verdict("Equal", "=", "neutral", sentence, caveats)
    sentence = (
        f"{candidate.label} generated {format_number(ratio)}{TIMES} the output tokens/s of {baseline.label}{pool_text}"
    )
    together = [subject.metric("peak_running") for subject in pair if subject is not None]
    if together[0] is not None and together[1] is not None:
        sentence += f", with at most {together[0]:g} requests together against {together[1]:g}"
    sentence += f".{certainty}"
    if ratio > 1:
        return Verdict(f"{format_number(ratio)}{TIMES} faster", "▲", "good", sentence, caveats)
    return Verdict(f"{format_number(1 / ratio)}{TIMES} slower", "▼", "bad", sentence, caveats)


def _judge_incomplete(culprit: Subject, subjects: Sequence[Subject]) -> Verdict:
    words = {"failed": "Failed", "interrupted": "Interrupted", "running": "Unfinished"}
    icons = {"failed": "✕", "interrupted": "‖", "running": "…"}
    status = culprit.engine.status
    reason = culprit.engine.reason or ("it never said how it ended" if status == "running" else "no reason was given")
    done = [subject.label for subject in subjects if subject.engine.status == "complete"]
    rest = f" {', '.join(done)} ran to the end." if done else ""
    return Verdict(
        words.get(status, status),
        icons.get(status, "?"),
        "bad" if status == "failed" else "neutral",
        f"{culprit.label} did not run to its end: {shorten(reason, _REASON_CHARS).rstrip('.')}.{rest}",
        ("Engines that did not run the whole workload are shown, not compared.",),
    )


def _speed_text(subject: Subject) -> str:
    return f"{format_quantity(subject.metric('output_tokens_per_s'), 'tok/s')} of output"


def _caveats(subjects: Sequence[Subject], pair: Pair | None = None) -> tuple[str, ...]:
    """What the run notes of all engines alike (simulated, cut short, ...), then what follows from its figures."""
    notes = [set(subject.engine.notes) for subject in subjects]
    caveats = [shorten(note, _NOTE_CHARS) for note in subjects[0].engine.notes if note in set.intersection(*notes)]
    for subject in subjects:
        share = subject.blocked_share
        if subject.is_contiguous and share is not None and share < _BLOCKED_SHARE_OF_NOTE:
            caveats.append(
                f"Memory was never the limit for {subject.label}: no request had to wait for it."
                " A smaller --kv-memory or more requests would show what paging buys."
            )
    has_noise = not all(subject.is_simulated for subject in subjects)
    if pair and pair.baseline and has_noise and ratio_bounds(pair.candidate, pair.baseline, _SPEED) is None:
        caveats.append("The ratio is of one run of each engine and has no interval: --repeats 5 would tell its spread.")
    return tuple(dict.fromkeys(caveats))
