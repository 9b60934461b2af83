"""A page about a long run: as small as one about a short run, quick to make, and without a peak lost."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from pbench.results import Run

MEBIBYTE = 2**20
SIZES = (10_000, 100_000)  # steps of each of two engines; a tenth as many requests


@pytest.fixture(scope="module")
def runs(big_run: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("big")
    return [big_run.write_big_run(folder / str(size), size, size // 10) for size in SIZES]


@pytest.fixture(scope="module")
def pages(runs: list[Run], render: Callable[..., Any]) -> list[tuple[Any, float]]:
    """Each run's page and the processor's seconds that it took, reading its HTML included."""
    made = []
    for run in runs:
        start = time.process_time()
        page = render(run, plotlyjs="inline")
        made.append((page, time.process_time() - start))
    return made


def test_the_charts_of_ten_times_the_steps_take_no_more_room(pages: list[tuple[Any, float]]) -> None:
    short, long = (len(json.dumps(page.figures())) for page, _ in pages)
    assert long < 1.3 * short


def test_a_page_is_below_twelve_megabytes_whatever_the_run(pages: list[tuple[Any, float]]) -> None:
    for page, _ in pages:
        assert len(page.source.encode()) < 12 * MEBIBYTE


def test_a_million_steps_would_be_rendered_in_twenty_seconds(pages: list[tuple[Any, float]]) -> None:
    """The time grows at most in proportion, so a fifth of the steps may take what is fixed and a fifth of the rest."""
    (_, short_s), (_, long_s) = pages
    per_step_s = max(long_s - short_s, 0) / (2 * (SIZES[1] - SIZES[0]))
    assert short_s + per_step_s * 1_000_000 < 20


def test_the_one_long_step_is_on_the_page(big_run: Any, pages: list[tuple[Any, float]]) -> None:
    for page, _ in pages:
        peaks = [max(trace["y"]) for trace in page.figures()["steps-duration"]["data"]]
        assert peaks == [big_run.PEAK_FACTOR * big_run.STEP_NS / 1e6] * 2


def test_every_extreme_of_the_partition_and_of_the_requests_together_is_on_the_page(
    big_run: Any, runs: list[Run], pages: list[tuple[Any, float]]
) -> None:
    for run, (page, _) in zip(runs, pages, strict=True):
        steps = run.steps()
        for index, spec in enumerate(("paged", "contiguous:max")):
            mine = steps[steps["engine"] == spec]
            drawn = page.figures()[f"partition-e{index}"]["data"]
            for trace, column in zip(drawn, ("token_state", "reserved"), strict=False):
                share = mine[column] * 100 / big_run.NUM_SLOTS
                assert max(trace["y"]) == pytest.approx(share.max(), rel=1e-5)
                assert min(trace["y"]) == pytest.approx(share.min(), rel=1e-5)
            waiting = page.figures()["progress-requests"]["data"][2 * index + 1]
            assert max(waiting["y"]) == mine["num_waiting"].max()


def test_the_page_names_the_method(pages: list[tuple[Any, float]]) -> None:
    assert "reduced before they are drawn by M4" in pages[0][0].visible_text()
