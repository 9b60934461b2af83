"""Every kind of page in a browser: it draws all that it has, complains of nothing and loads nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pbench.reports.gate_page import build_gate_page, render_gate_page
from pbench.results import Run

Make = Callable[..., Any]


def both(made: Any) -> Any:
    return made.add_engine("paged").add_engine("contiguous:max")


CASES: dict[str, Callable[[Make], list[Run]]] = {
    "one engine": lambda make: [make().add_engine("paged").write()],
    "two engines": lambda make: [both(make()).time_phases().write()],
    "four engines": lambda make: [
        both(make(num_requests=20)).add_engine("static").add_engine("contiguous:pow2").write()
    ],
    "repeats": lambda make: [both(make(num_requests=20)).repeat().write()],
    "comparison": lambda make: [both(make(f"run-{name}", num_requests=20)).write() for name in "ab"],
    "sweep": lambda make: [both(make(f"{g}-GiB", num_requests=20)).with_pool(g * 2**30).write() for g in (1, 4)],
    "one failed": lambda make: [make().add_engine("paged").add_failed_engine("contiguous:max", "OOM").write()],
    "all failed": lambda make: [make().add_failed_engine("paged", "no GPU").write()],
    "interrupted": lambda make: [both(make()).interrupt().write()],
    "no rows": lambda make: [make().add_engine("paged").forget_tables().write()],
    "no NVML": lambda make: [make().add_engine("paged", has_nvml=False).write()],
}
WHOLE = ("one engine", "two engines", "four engines", "repeats", "comparison", "sweep")  # nothing failed
AUDITED = ("sweep", "all failed")  # the others are made of the same parts; that of two engines test_browser.py audits


# In the page: sections without a drawing, a table or a list, and charts without a mark.
EMPTY = (
    "[...document.querySelectorAll('section:not(#verdict)')].filter((section) => !section.querySelector("
    "'.main-svg .trace, .main-svg .bars, canvas, table, dl, li')).map((section) => section.id)"
)
BLANK = (
    "[...document.querySelectorAll('.plot')].filter((plot) => !plot.querySelector("
    "'.main-svg path[d], .main-svg .point')).map((plot) => plot.id)"
)


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_page_is_whole_without_a_complaint_a_request_or_a_barrier(
    case: str, builder: Make, write_page: Callable[..., Path], tab: Any
) -> None:
    page = write_page(*CASES[case](builder))
    tab.open(page)
    tab.draw_all()
    assert tab.complaints() == []
    assert tab.requested_urls() == [page.as_uri()]
    assert tab.evaluate(BLANK) == []
    if case in WHOLE:
        untimed = [] if case == "two engines" else ["phases"]  # it says so in words
        assert tab.evaluate(EMPTY) == untimed
    if case in AUDITED:
        assert tab.barriers() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_gates_page_is_whole_too(scheme: str, gate_result: Callable[..., Any], tab: Any, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    with page.open("w", encoding="utf-8") as stream:
        render_gate_page(build_gate_page(gate_result()), stream)
    tab.prefer(scheme)
    tab.open(page)
    tab.draw_all()
    assert tab.complaints() == []
    assert tab.requested_urls() == [page.as_uri()]
    assert tab.evaluate(BLANK) == []
    assert tab.evaluate(EMPTY) == []
    assert tab.barriers() == []
    tab.resize(390)
    tab.wait("document.documentElement.scrollWidth <= 390")  # once the charts have followed
