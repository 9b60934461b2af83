"""Figures for a paper, drawn by kaleido in the system's Chromium. Skipped where either is missing."""

import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pbench.__main__ import main
from pbench.reports.figures import write_figures
from pbench.reports.page import build_page
from pbench.results import Run

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
needs_browser = pytest.mark.skipif(
    not any(map(shutil.which, NAMES)), reason=f"no Chromium on this machine (looked for {', '.join(NAMES)})"
)


@pytest.fixture(autouse=True)
def kaleido_is_there() -> None:
    pytest.importorskip("kaleido", reason="kaleido is not installed: pip install kaleido")


def write_few(run: Run, folder: Path, image_format: str) -> list[Path]:
    """Of the page's charts those of the partition only: a chart takes a third of a second."""
    page = build_page([run])
    panels = [panel for panel in page.panels if panel.key == "partition"]
    return write_figures(panels, {subject.key: subject.label for subject in page.subjects}, folder, image_format)


@needs_browser
def test_every_chart_becomes_a_file_named_by_its_engine(two_engines: Run, tmp_path: Path) -> None:
    paths = write_few(two_engines, tmp_path / "made", "svg")
    assert [path.name for path in paths] == ["partition-paged.svg", "partition-contiguous-max.svg"]
    for path in paths:
        root = ElementTree.parse(path).getroot()
        assert root.tag.endswith("svg")
        words = {"".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")}
        assert {"token states", "reserved", "% of the pool"} <= words


def test_the_pool_is_drawn_slot_by_slot_as_its_map_has_it(two_engines: Run) -> None:
    (panel,) = [panel for panel in build_page([two_engines]).panels if panel.key == "pool-map"]
    assert panel.block_map is not None
    for index, chart in enumerate(panel.block_map.paper_charts()):
        engine, table = two_engines.result.engines[index], two_engines.pool_map()
        maps = table[table["engine"] == engine.spec]
        tokens = maps.groupby("time_ns")["token_state"].sum()
        spans = maps[maps["time_ns"] == tokens.idxmax()]
        drawn = {trace.name.split(",")[0]: sum(trace.x) for trace in chart.figure.data}
        assert drawn["tokens"] == spans["token_state"].sum()
        assert sum(drawn.values()) == engine.pool["num_slots"]


@needs_browser
def test_a_png_is_a_picture_of_three_pixels_a_point(two_engines: Run, tmp_path: Path) -> None:
    path, _ = write_few(two_engines, tmp_path, "png")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(data[16:20], "big") == 3 * 640


@needs_browser
def test_names_of_engines_cannot_leave_the_folder_or_collide(builder: Callable[..., Any], tmp_path: Path) -> None:
    made = builder(num_requests=4).add_engine("paged").add_engine("contiguous:max")
    for table in (made.steps, made.requests, made.device, made.spans, made.prefixes):
        for row in table:
            row["engine"] = {"paged": "../../a b", "contiguous:max": "a?b"}[row["engine"]]
    made.engines = [replace(made.engines[0], spec="../../a b"), replace(made.engines[1], spec="a?b")]
    paths = write_few(made.write(), tmp_path / "in", "svg")
    assert [path.name for path in paths] == ["partition-e0-a-b.svg", "partition-e1-a-b.svg"]
    assert {path.parent for path in paths} == {tmp_path / "in"}
    assert sorted(tmp_path.rglob("*.svg")) == sorted(paths)


def test_without_a_browser_one_line_says_what_to_install(
    two_engines: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "missing"))
    page = tmp_path / "page.html"
    assert main(["report", str(two_engines.path), "--out", str(page), "--figures", str(tmp_path / "figures")]) == 2
    said = capsys.readouterr().err
    assert "apt-get install chromium" in said
    assert len(said.splitlines()) == 1
    assert not page.exists()


def test_without_kaleido_one_line_says_what_to_install(
    two_engines: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    out = str(tmp_path / "page.html")
    assert main(["report", str(two_engines.path), "--out", out, "--figures", str(tmp_path / "figures")]) == 2
    said = capsys.readouterr().err
    assert "[figures]" in said
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
