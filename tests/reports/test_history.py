"""``pbench history``: what lies on one line, what is told as a step, and the page about it."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbench.__main__ import main
from pbench.reports.history import read_history
from pbench.reports.history_page import render_history
from pbench.results import RunResult, write_result

HOSTILE = "<script>window.hit=1</script>'\"\u202e"


@pytest.fixture
def history(builder: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of runs: ``history([1.0] * 10 + [0.9] * 10)``, factors of the first engine's tokens/s."""
    made = builder(num_requests=4).add_engine("paged").add_engine("contiguous:max").write().result

    def write(factors: list[float], name: str = "runs", **overrides: Any) -> Path:
        for index, factor in enumerate(factors):
            write_run(tmp_path / name / f"run-{index:02d}", made, index, factor, overrides)
        return tmp_path / name

    return write


def write_run(folder: Path, made: RunResult, index: int, factor: float, overrides: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    speed = float(made.engines[0].summary["output_tokens_per_s"] or 0) * factor
    faster = replace(made.engines[0], summary=dict(made.engines[0].summary) | {"output_tokens_per_s": speed})
    environment = dict(made.environment) | {
        "pbench": {"git_commit": f"{index:02d}" + "ab" * 19, "is_git_dirty": index == 0},
        "packages": {"torch": "2.11.0" if factor >= 1 else "2.12.0"},
    }
    fields: dict[str, Any] = {"environment": environment, "engines": (faster, *made.engines[1:])} | overrides
    # Names run backwards: the order is that of the times.
    run_id = f"z{99 - index}"
    write_result(folder, replace(made, run_id=run_id, created_at=f"2026-10-{index + 1:02d}T00:00:00Z", **fields))


def noisy(factor: float, count: int, seed: int = 0) -> list[float]:
    return [float(value) for value in factor * (1 + 0.005 * np.random.default_rng(seed).standard_normal(count))]


@pytest.fixture
def regressed(history: Callable[..., Path]) -> Path:
    return history([*(1.05 * f for f in noisy(1, 12)), *noisy(0.9, 6)])


def test_a_regression_is_told_with_its_commit_in_the_terminal(
    regressed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["history", str(regressed)]) == 0
    said = capsys.readouterr().out
    (step,) = [line for line in said.splitlines() if line.startswith("step:")]
    assert "output tokens/s of paged -14." in step
    assert "worse, at 12abababa" in step
    assert (regressed / "history.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_page_tells_the_step_and_what_else_changed(regressed: Path, page_of: Callable[..., Any]) -> None:
    page = page_of(regressed)
    assert page.by_id("verdict-word").text.endswith("1 step: 1 worse")
    (row,) = [row for row in page.all("tr") if page.by_id("steps-table") in row.parents][1:]
    assert "11abababa → 12abababa" in row.text
    assert "packages, torch: 2.11.0 → 2.12.0" in row.text
    assert "worse" in row.text


def test_the_page_draws_the_records_own_values(regressed: Path, page_of: Callable[..., Any]) -> None:
    page = page_of(regressed)
    recorded = [
        json.loads((regressed / f"run-{index:02d}" / "run.json").read_text())["engines"][0]["summary"]
        for index in range(18)
    ]
    for name in ("output_tokens_per_s", "ttft_ms_p99"):
        trace = page.figures()[f"g0-{name}"]["data"][0]
        assert trace["x"] == list(range(1, 19))
        assert trace["y"] == pytest.approx([summary[name] for summary in recorded], rel=1e-4)
        (told,) = [one for one in page.json("page-data")["trends"] if (one["engine"], one["metric"]) == ("paged", name)]
        assert told["values"] == [summary[name] for summary in recorded]


def test_runs_of_other_workloads_or_machines_lie_on_other_lines(history: Callable[..., Path]) -> None:
    history([1.0] * 3, "all/a")
    history([1.0] * 2, "all/b", workload={"name": "other", "sha256": "cd" * 32})
    folder = history([1.0], "all/c", environment={"gpu": {"name": "NVIDIA H100"}}).parent
    assert [len(group.runs) for group in read_history(folder).groups] == [3, 2, 1]


def test_simulated_runs_have_no_noise_so_every_change_is_a_step(history: Callable[..., Path]) -> None:
    folder = history([1.0, 1.0, 1.02, 1.02], environment={"is_simulated": True})
    (trend,) = read_history(folder, ["output_tokens_per_s"]).trends[:1]
    assert [step.at for step in trend.steps] == [2]


def test_runs_of_repeated_engines_carry_their_intervals(
    history: Callable[..., Path], builder: Callable[..., Any], page_of: Callable[..., Any]
) -> None:
    made = builder("repeated", num_requests=4).add_engine("paged").add_engine("contiguous:max").repeat().write().result
    folder = history([1.0])
    write_run(folder / "run-01", made, 1, 1.0, {})
    engine = made.engines[0]
    interval = engine.intervals["output_tokens_per_s"]
    bars = page_of(folder).figures()["g0-output_tokens_per_s"]["data"][0]["error_y"]
    mean = float(engine.summary["output_tokens_per_s"] or 0)
    assert bars["array"] == pytest.approx([0, interval.high - mean], rel=1e-3)
    assert bars["arrayminus"] == pytest.approx([0, mean - interval.low], rel=1e-3)


def test_incomplete_engines_are_no_points_and_damaged_runs_are_named(
    history: Callable[..., Path], page_of: Callable[..., Any]
) -> None:
    folder = history([1.0] * 3)
    record = folder / "run-01" / "run.json"
    text = json.loads(record.read_text())
    text["engines"][0]["status"] = "failed"
    record.write_text(json.dumps(text))
    (folder / "run-02" / "run.json").write_text("{")
    found = read_history(folder)
    assert len(next(trend for trend in found.trends if trend.spec == "paged").values) == 1
    assert len(next(trend for trend in found.trends if trend.spec == "contiguous:max").values) == 2
    assert "run-02" in page_of(folder).by_id("runs").text


def test_hostile_names_are_text(history: Callable[..., Path], page_of: Callable[..., Any]) -> None:
    page = page_of(history([1.0] * 2, workload={"name": HOSTILE}, config={"model": HOSTILE * 500}))
    assert HOSTILE.replace("\u202e", "[U+202E]") in page.by_id("g0-title").text
    assert not [script for script in page.all("script") if "window.hit" in script.text]


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--metric", "speed"], "'speed'"), (["--out", "missing/x.html"], "missing")]
)
def test_bad_input_is_one_line_and_leaves_nothing(
    regressed: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["history", str(regressed), *arguments]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert len(message.splitlines()) == 1
    assert not list(regressed.glob("*.html"))


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err


@pytest.fixture
def page_of(read_page: Callable[[str], Any]) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        stream = io.StringIO()
        render_history(read_history(folder), folder.name, stream, plotlyjs="directory")
        return read_page(stream.getvalue())

    return make
