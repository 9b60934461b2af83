"""The page about a history in a browser."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pbench.reports.history import read_history
from pbench.reports.history_page import render_history
from pbench.results import write_result


@pytest.fixture(scope="module")
def page(builder: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight simulated runs; the fifth and all after it are slower."""
    made = builder(num_requests=4).add_engine("paged").add_engine("contiguous:max").write().result
    folder = tmp_path_factory.mktemp("history")
    for index in range(8):
        speed = 100.0 if index < 4 else 90.0
        slower = replace(made.engines[0], summary=dict(made.engines[0].summary) | {"output_tokens_per_s": speed})
        result = replace(
            made,
            run_id=f"run-{index}",
            created_at=f"2026-10-{index + 1:02d}T00:00:00Z",
            environment={"is_simulated": True, "pbench": {"git_commit": f"{index}" * 40}},
            engines=(slower, *made.engines[1:]),
        )
        (folder / f"run-{index}").mkdir()
        write_result(folder / f"run-{index}", result)
    path = folder / "history.html"
    with path.open("w", encoding="utf-8") as stream:
        render_history(read_history(folder), "history", stream)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_draws_everything_without_a_complaint_a_request_or_a_barrier(page: Path, tab: Any, scheme: str) -> None:
    tab.prefer(scheme)
    tab.open(page)
    tab.draw_all()
    assert tab.complaints() == []
    assert tab.requested_urls() == [page.as_uri()]
    assert tab.barriers() == []


def test_the_step_is_marked_at_its_run(page: Path, tab: Any) -> None:
    tab.open(page)
    tab.show("g0-output_tokens_per_s")
    texts = (
        "[...document.querySelectorAll('#g0-output_tokens_per_s .textpoint')].map((node) => node.textContent.trim())"
    )
    assert tab.evaluate(texts) == ["\u221210.0\u00a0%"]


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_sticks_out_of_the_window(page: Path, tab: Any, width: int) -> None:
    tab.resize(width)
    tab.open(page)
    tab.draw_all()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
