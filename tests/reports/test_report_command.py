from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pbench.__main__ import main
from pbench.results import Run


@pytest.fixture
def run(builder: Callable[..., Any]) -> Run:
    made: Run = builder(num_requests=4).add_engine("paged").write()
    return made


def test_one_run_gets_its_report_into_its_folder(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run.path)]) == 0
    assert (run.path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "report.html" in capsys.readouterr().out


def test_several_runs_get_one_page_in_the_current_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run.path), str(run.path)]) == 0
    assert (tmp_path / "report.html").exists()


def test_open_shows_the_finished_page_in_the_browser(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "my pages" / "page #1.html"
    page.parent.mkdir()
    opened = []

    def open_in_browser(url: str) -> bool:
        opened.append((url, page.stat().st_size))
        return True

    monkeypatch.setattr("webbrowser.open", open_in_browser)
    assert main(["report", str(run.path), "--out", str(page)]) == 0
    assert opened == []
    assert main(["report", str(run.path), "--out", str(page), "--open"]) == 0
    assert opened == [(page.as_uri(), page.stat().st_size)]


def test_a_page_that_no_browser_opens_is_written_all_the_same_and_it_is_said(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert main(["report", str(run.path), "--open"]) == 0
    assert (run.path / "report.html").exists()
    assert "no browser" in capsys.readouterr().err


def test_directory_mode_puts_plotlyjs_beside_the_page(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(run.path), "--out", str(page), "--plotlyjs", "directory"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "plotly.min.js"}
    assert page.stat().st_size < 1_000_000


def test_a_page_without_the_raw_files_says_where_they_are(run: Run, tmp_path: Path) -> None:
    carrying, bare = tmp_path / "carrying.html", tmp_path / "bare.html"
    assert main(["report", str(run.path), "--out", str(carrying)]) == 0
    assert main(["report", str(run.path), "--out", str(bare), "--no-raw"]) == 0
    assert "data-base64" in carrying.read_text(encoding="utf-8")
    text = bare.read_text(encoding="utf-8")
    assert 'data-base64="' not in text
    assert str(run.path / "steps.parquet") in text


def test_a_folder_that_is_no_run_is_refused_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "run.json" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "missing")]) == 2
    said = capsys.readouterr().err
    assert "missing is not a run folder" in said
    assert "--out" not in said


def test_a_folder_that_is_missing_is_named(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run.path), "--out", str(tmp_path / "missing" / "page.html")]) == 2
    assert "missing" in capsys.readouterr().err


def test_a_damaged_table_is_named_and_leaves_no_page(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.path / "steps.parquet").write_bytes(b"not parquet")
    assert main(["report", str(run.path)]) == 2
    assert "steps.parquet" in capsys.readouterr().err
    assert not (run.path / "report.html").exists()
