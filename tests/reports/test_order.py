"""The order of a page: what was found, whether to believe it, why, and how to repeat it, whatever the page is about."""

import io
from collections.abc import Callable
from typing import Any

import pytest

from pbench.reports.gate_page import build_gate_page, render_gate_page
from pbench.results import Run

Make = Callable[..., Any]

# The twelve questions of a page, and the sections that answer each.
QUESTIONS = (
    ("verdict",),
    ("checks",),
    ("cards",),
    ("memory", "progress", "account"),
    ("partition", "figure-2"),
    ("pool-map",),
    ("sharing", "prefix-tree"),
    ("latency", "timeline"),
    ("steps", "phases", "roofline", "device"),
    ("repeats", "capacity", "comparison", "gate", "pairs", "rules"),
    ("workload-charts",),
    ("figures", "provenance", "raw", "terms"),
)
ORDER = tuple(name for names in QUESTIONS for name in names)
OF_GATES = {"gate", "pairs", "rules"}
OF_SEVERAL = {"repeats", "capacity", "comparison"}


def both(made: Any) -> Any:
    return made.add_engine("paged").add_engine("contiguous:max")


# Of each kind of page: its runs, and what it has of the sections that not all have.
KINDS: dict[str, tuple[Callable[[Make], list[Run]], set[str]]] = {
    "one run": (lambda make: [make().add_engine("paged").write()], set()),
    "several engines": (lambda make: [both(make()).add_engine("static").write()], {"comparison"}),
    "repeats": (lambda make: [both(make(num_requests=20)).repeat().write()], {"repeats", "comparison"}),
    "several runs": (lambda make: [both(make(name, num_requests=9)).write() for name in "ab"], {"comparison"}),
    "a sweep": (
        lambda make: [both(make(f"{g}-GiB", num_requests=9)).with_pool(g * 2**30).write() for g in (1, 2, 4)],
        {"capacity"},
    ),
    "a failure": (lambda make: [make().add_engine("paged").add_failed_engine("static", "OOM").write()], set()),
}


def sections_of(page: Any) -> list[str]:
    return [section.attributes["id"] for section in page.all("section")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_sections_of_every_kind_of_page_stand_in_one_order(kind: str, builder: Make, render: Make) -> None:
    make_runs, several = KINDS[kind]
    page = render(*make_runs(builder))
    absent = OF_GATES | (OF_SEVERAL - several)
    assert sections_of(page) == [name for name in ORDER if name not in absent]
    for name in sections_of(page):
        section = page.by_id(name)
        shown = [
            element
            for element in page.elements
            if section in element.parents and (element.tag in ("table", "dl", "canvas", "li") or is_note(element))
        ]
        assert shown or name == "verdict", name


def is_note(element: Any) -> bool:
    return element.attributes.get("class") in ("plot", "note")


def test_the_sections_of_a_gates_page_stand_in_the_same_order(gate_result: Make, read_page: Make) -> None:
    stream = io.StringIO()
    render_gate_page(build_gate_page(gate_result()), stream, plotlyjs="directory")
    names = sections_of(read_page(stream.getvalue()))
    assert names == [name for name in ORDER if name in {"verdict", "checks", "provenance"} | OF_GATES]


def test_the_contents_name_every_section_in_its_order(builder: Make, render: Make) -> None:
    page = render(*KINDS["repeats"][0](builder))
    (contents,) = page.all("nav", class_="contents")
    links = [link.attributes["href"][1:] for link in page.all("a") if contents in link.parents]
    assert links == sections_of(page)


def test_the_workload_section_says_where_each_workload_is_from_once(builder: Make, render: Make) -> None:
    page = render(*KINDS["several runs"][0](builder))
    text = page.by_id("workload-charts").text
    assert text.count("one system prompt, many users") == 1
    assert "built-in" in text
    assert "ab" * 32 in text
