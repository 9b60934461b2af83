"""The phases of a step on the page: the record's own, split by where they were and how the step ran."""

from collections.abc import Callable
from typing import Any

import pytest

Render = Callable[..., Any]


def test_each_kind_of_step_is_a_bar_of_the_records_own_times(builder: Callable[..., Any], render: Render) -> None:
    made = builder(num_requests=6).add_engine("paged").add_engine("contiguous:max").time_phases().write()
    page = render(made)
    bars = {bar["name"]: bar for bar in page.figures()["phases-bars"]["data"]}
    assert list(bars) == ["schedule", "launch", "wait", "attention", "mlp"]
    host, within, *_ = bars["launch"]["y"]
    assert host == "paged, host, all steps"
    assert within == "paged, within 32 launched steps"
    assert bars["launch"]["x"] == [8.5, 0, 8.5, 0]
    assert bars["attention"]["x"] == [0, 6, 0, 6]
    assert "launch 85.0\u00a0%" in page.by_id("phases-bars-summary").text
    rows = [row.text for row in page.all("tr") if page.by_id("phases-table") in row.parents]
    assert len(rows) == 1 + 2 * 5


@pytest.mark.parametrize("has_steps", [True, False])
def test_without_phases_the_section_says_so(builder: Callable[..., Any], render: Render, has_steps: bool) -> None:
    made = builder(num_requests=6).add_engine("paged")
    page = render((made if has_steps else made.forget_tables()).write())
    assert ("Nobody timed" if has_steps else "kept a step") in page.by_id("phases").text
