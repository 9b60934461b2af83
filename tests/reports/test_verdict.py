from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pbench.reports.subjects import Subject, load_subjects
from pbench.reports.verdict import choose_pair, comparable_pair, reach_verdict
from pbench.results import Run

Builder = Callable[..., Any]


def with_speed(subject: Subject, speed: float | None) -> Subject:
    engine = replace(subject.engine, summary=dict(subject.engine.summary) | {"output_tokens_per_s": speed})
    return replace(subject, engine=engine)


@pytest.fixture(scope="module")
def pair(two_engines: Run) -> list[Subject]:
    return load_subjects([two_engines])


@pytest.mark.parametrize(
    ("paged", "contiguous", "word", "tone"),
    [
        (300.0, 100.0, "3\u00d7 faster", "good"),
        (100.0, 250.0, "2.50\u00d7 slower", "bad"),
        (100.0, 100.5, "Equal", "neutral"),
        (None, 100.0, "Not compared", "neutral"),
        (0.0, 100.0, "Not compared", "neutral"),
    ],
)
def test_the_word_follows_the_ratio(
    pair: list[Subject], paged: float | None, contiguous: float, word: str, tone: str
) -> None:
    verdict = reach_verdict([with_speed(pair[0], paged), with_speed(pair[1], contiguous)])
    assert (verdict.word, verdict.tone) == (word, tone)


def test_the_paged_engine_is_judged_whatever_the_order(pair: list[Subject]) -> None:
    assert reach_verdict(pair).word == reach_verdict(pair[::-1]).word
    chosen = choose_pair(pair[::-1])
    assert chosen is not None
    assert chosen.candidate is pair[0]


def test_the_sentence_names_both_the_pool_and_the_requests_together(pair: list[Subject]) -> None:
    sentence = reach_verdict(pair).sentence
    for part in ("paged", "contiguous:max", "2\u00a0GiB", "requests together"):
        assert part in sentence


def test_one_run_of_each_is_said_to_have_no_interval(pair: list[Subject]) -> None:
    assert any("no interval" in caveat for caveat in reach_verdict(pair).caveats)


def test_what_the_run_notes_of_all_engines_is_said_first_and_what_it_notes_of_one_is_not(pair: list[Subject]) -> None:
    both, one = "simulated, not measured", "something about the first"
    noted = [
        replace(subject, engine=replace(subject.engine, notes=notes))
        for subject, notes in zip(pair, ((one, both), (both,)), strict=True)
    ]
    assert reach_verdict(noted).caveats[0] == both
    assert one not in reach_verdict(noted).caveats


def test_memory_that_was_never_the_limit_is_pointed_out(pair: list[Subject]) -> None:
    idle = [replace(subject, steps=subject.steps.assign(is_memory_blocked=False)) for subject in pair]
    assert any("never the limit" in caveat for caveat in reach_verdict(idle).caveats)
    assert not any("never the limit" in caveat for caveat in reach_verdict(pair).caveats)


def test_other_workloads_are_not_compared(builder: Builder) -> None:
    one = builder("one").add_engine("paged").write()
    other = builder("other").add_engine("contiguous:max").write(workload={"name": "another", "sha256": "cd"})
    subjects = load_subjects([one, other])
    assert reach_verdict(subjects).word == "Not compared"
    assert comparable_pair(subjects) is None


def test_a_failed_engine_is_the_verdict_and_its_reason_is_given(builder: Builder) -> None:
    reason = "CUDA out of memory " + "x" * 5000
    run = builder().add_engine("paged").add_failed_engine("contiguous:max", reason).write()
    verdict = reach_verdict(load_subjects([run]))
    assert (verdict.word, verdict.tone) == ("Failed", "bad")
    assert "contiguous:max" in verdict.sentence
    assert "CUDA out of memory" in verdict.sentence
    assert len(verdict.sentence) < 400
    assert comparable_pair(load_subjects([run])) is None


def test_an_interruption_is_no_failure(builder: Builder) -> None:
    run = builder().add_engine("paged").add_engine("contiguous:max").interrupt().write()
    verdict = reach_verdict(load_subjects([run]))
    assert (verdict.word, verdict.tone) == ("Interrupted", "neutral")


def test_an_engine_alone_is_measured_not_compared(builder: Builder) -> None:
    run = builder().add_engine("paged").write()
    assert reach_verdict(load_subjects([run])).word == "Measured"


def test_without_an_engine_nothing_ran(builder: Builder) -> None:
    assert reach_verdict(load_subjects([builder().write()])).word == "Nothing ran"
