from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from pbench.reports.checks import OUTCOMES, run_checks, tally
from pbench.reports.subjects import Subject, load_subjects
from pbench.results import Check, Run

Builder = Callable[..., Any]


@pytest.fixture(scope="module")
def subjects(two_engines: Run) -> list[Subject]:
    return load_subjects([two_engines])


def outcome(subjects: Sequence[Subject], name: str) -> str:
    (found,) = [check.outcome for check in run_checks(subjects) if check.name == name]
    return found


def changed(table: pd.DataFrame, column: str, row: int, value: int) -> pd.DataFrame:
    values = table[column].to_list()
    values[row] = value
    return table.assign(**{column: values})


def test_a_sound_run_passes_every_check(subjects: list[Subject]) -> None:
    assert {check.outcome for check in run_checks(subjects)} == {"pass"}


def test_failures_come_first(builder: Builder) -> None:
    run = builder().add_engine("paged").add_failed_engine("contiguous:max", "OOM").write()
    outcomes = [OUTCOMES.index(check.outcome) for check in run_checks(load_subjects([run]))]
    assert outcomes == sorted(outcomes)
    assert outcomes[0] == 0
    assert outcome(load_subjects([run]), "every engine ran to its end") == "fail"


def test_one_slot_too_many_in_one_step_is_found(subjects: list[Subject]) -> None:
    num_free = subjects[0].steps["free"].to_list()
    steps = changed(subjects[0].steps, "free", 5, num_free[5] + 1)
    assert outcome([replace(subjects[0], steps=steps), subjects[1]], "every slot accounted for") == "fail"


def test_an_unfinished_request_is_found(builder: Builder) -> None:
    run = builder().add_engine("paged").add_engine("contiguous:max").interrupt().write()
    assert outcome(load_subjects([run]), "every request finished") == "fail"


def test_engines_that_generated_different_amounts_are_found(subjects: list[Subject]) -> None:
    requests = changed(subjects[0].requests, "num_output_tokens", 0, 1_000_000)
    assert outcome([replace(subjects[0], requests=requests), subjects[1]], "same tokens in and out") == "fail"


def test_unequal_pools_are_a_warning(subjects: list[Subject]) -> None:
    engine = replace(subjects[0].engine, pool=dict(subjects[0].engine.pool) | {"pool_bytes": 1})
    assert outcome([replace(subjects[0], engine=engine), subjects[1]], "equal KV pools") == "warn"


def test_dropped_requests_are_a_warning(builder: Builder) -> None:
    run = builder().add_engine("paged").write(workload={"num_dropped_too_long": 3})
    assert outcome(load_subjects([run]), "no request dropped") == "warn"


def test_a_hole_in_the_samples_is_a_warning(subjects: list[Subject]) -> None:
    device = subjects[0].device.drop(index=range(10, 60))
    assert outcome([replace(subjects[0], device=device), subjects[1]], "memory sampled throughout") == "warn"


@pytest.mark.parametrize(
    ("mask", "expected"), [(0x0, "pass"), (0x1, "pass"), (0x4, "warn"), (0x40, "fail"), (0x8, "fail")]
)
def test_a_gpu_that_was_held_back_is_found(subjects: list[Subject], mask: int, expected: str) -> None:
    device = changed(subjects[0].device, "throttle_reasons", 3, mask)
    assert outcome([replace(subjects[0], device=device), subjects[1]], "GPU not slowed down") == expected


def test_without_nvml_throttling_is_not_known(builder: Builder) -> None:
    run = builder().add_engine("paged", has_nvml=False).write()
    assert outcome(load_subjects([run]), "GPU not slowed down") == "unknown"


def test_a_single_engine_is_not_compared(builder: Builder) -> None:
    names = {check.name for check in run_checks(load_subjects([builder().add_engine("paged").write()]))}
    assert not names & {"same workload", "same tokens in and out", "equal KV pools"}


def test_the_tally_names_what_did_not_pass_worst_first_and_counts_the_rest() -> None:
    checks = [Check("same workload", "fail", ""), *(Check(f"check {n}", "warn", "") for n in range(6))]
    assert tally([*checks, Check("sound", "pass", "")]) == (
        "fail",
        "Failed: same workload. Caution: check 0, check 1, check 2, check 3, 2 more. All other checks passed.",
    )
    assert tally([Check("sound", "pass", "")] * 2) == ("pass", "All 2 checks passed.")
    assert tally([]) is None


def test_the_tally_stands_with_the_verdict_and_leads_to_the_checks(builder: Builder, render: Builder) -> None:
    run = builder().add_engine("paged").add_failed_engine("contiguous:max", "OOM").write()
    page = render(run)
    (link,) = [link for link in page.all("a", href="#checks") if page.by_id("verdict") in link.parents]
    assert link.text == tally(run_checks(load_subjects([run]))).text  # type: ignore[union-attr]
    assert "Failed: every engine ran to its end" in link.text
