"""The page about a throughput gate: its ratios are the record's, whatever the gate came to."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pbench.__main__ import main
from pbench.gate.throughput_result import (
    FAIL,
    FILE_NAME,
    INCONCLUSIVE,
    PASS,
    Resolution,
    Revision,
    ThroughputResult,
    WorkloadResult,
    write_throughput,
)
from pbench.reports.gate_page import build_gate_page, render_gate_page

HOSTILE = "<script>window.hit=1</script>\u202e"


@pytest.fixture
def page_of(read_page: Callable[[str], Any]) -> Callable[[ThroughputResult], Any]:
    def make(gate: ThroughputResult) -> Any:
        stream = io.StringIO()
        render_gate_page(build_gate_page(gate), stream, plotlyjs="directory")
        return read_page(stream.getvalue())

    return make


@pytest.mark.parametrize(
    ("verdict", "ratio", "word", "tone"),
    [(FAIL, 0.93, "Failed", "bad"), (PASS, 1.01, "Passed", "good"), (INCONCLUSIVE, 0.96, "Inconclusive", "neutral")],
)
def test_the_verdict_is_the_gates(
    gate_result: Callable[..., ThroughputResult],
    verdict: str,
    ratio: float,
    word: str,
    tone: str,
    page_of: Callable[..., Any],
) -> None:
    page = page_of(gate_result(verdict, ratio))
    assert page.by_id("verdict-word").text.endswith(word)
    assert f"hero {tone}" in page.by_id("verdict").attributes["class"]
    (sentence,) = page.all("p", class_="sentence other")
    assert "topic (beefbeefb*) against main (c0ffeec0f)" in sentence.text
    assert "98.3% interval" in sentence.text
    assert "6 pairs" in sentence.text


def test_the_forest_draws_the_last_look_beside_the_band(
    gate_result: Callable[..., ThroughputResult], page_of: Callable[..., Any]
) -> None:
    figure = page_of(gate_result()).figures()["gate-forest"]
    ratio = next(trace for trace in figure["data"] if trace["name"] == "ratio")
    assert ratio["x"] == [0.93]
    assert (ratio["error_x"]["array"], ratio["error_x"]["arrayminus"]) == ([0.01], [0.01])
    single = next(trace for trace in figure["data"] if trace["name"] == "single pairs")
    assert len(single["x"]) == 6
    (band,) = [shape for shape in figure["layout"]["shapes"] if shape["type"] == "rect"]
    assert (band["x0"], band["x1"]) == (0.95, 1)


def test_every_pair_is_drawn_and_listed_those_left_out_with_their_reason(
    gate_result: Callable[..., ThroughputResult], page_of: Callable[..., Any]
) -> None:
    page = page_of(gate_result())
    traces = {trace["name"]: trace for trace in page.figures()["pairs-w0"]["data"]}
    assert traces["head against base"]["x"] == [1, 2, 3, 5, 6, 7]
    assert (traces["head against base, left out"]["x"], traces["head against base, left out"]["y"]) == ([4], [0.5])
    assert traces["base against itself"]["x"] == [-3, -2, -1, 0]
    assert traces["mean so far, with its interval"]["x"] == [7]
    rows = [row.text for row in page.all("tr") if page.by_id("pairs-table") in row.parents]
    assert len(rows) == 1 + 4 + 7
    assert sum("head: throttled" in row for row in rows) == 1


def test_what_would_make_one_doubt_comes_first(
    gate_result: Callable[..., ThroughputResult], page_of: Callable[..., Any]
) -> None:
    first, *_ = page_of(gate_result()).all("ul", class_="checks")
    assert "6 of 7 pairs count" in first.text
    assert "max_running" in first.text


def test_a_gate_that_was_stopped_before_its_first_look_says_so(
    gate_result: Callable[..., ThroughputResult], page_of: Callable[..., Any]
) -> None:
    for aa in (None, Resolution((), 0.8)):
        none = WorkloadResult("other", "cd" * 32, {}, {}, aa, (), (), INCONCLUSIVE, "not reached")
        page = page_of(gate_result(INCONCLUSIVE, workloads=(none,)))
        assert "No workload came to its first look." in page.by_id("gate").text
        for section in page.all("section"):
            heading = page.by_id(section.attributes["aria-labelledby"])
            assert len(section.text.split()) > len(heading.text.split()), section.attributes["id"]


def test_hostile_names_are_text(gate_result: Callable[..., ThroughputResult], page_of: Callable[..., Any]) -> None:
    gate = gate_result(head=Revision(HOSTILE, None, None))
    page = page_of(replace(gate, workloads=(replace(gate.workloads[0], name=HOSTILE, reason=HOSTILE),)))
    assert HOSTILE.replace("\u202e", "[U+202E]") in page.by_id("verdict").text
    assert not [
        script for script in page.all("script") if "window.hit" in script.text and "type" not in script.attributes
    ]


def test_report_of_a_gates_folder_is_this_page(
    gate_result: Callable[..., ThroughputResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_throughput(tmp_path / FILE_NAME, gate_result())
    assert main(["report", str(tmp_path)]) == 0
    assert 'id="gate-forest"' in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "report.html" in capsys.readouterr().out


def test_a_gate_among_runs_is_refused(
    gate_result: Callable[..., ThroughputResult], tmp_path: Path, two_engines: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_throughput(tmp_path / FILE_NAME, gate_result())
    assert main(["report", str(two_engines.path), str(tmp_path), "--out", str(tmp_path / "x.html")]) == 2
    assert "give it alone" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()
