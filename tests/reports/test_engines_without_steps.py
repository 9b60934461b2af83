"""Engines that tell nothing of their steps: what they told is on the page, and nothing is made up for the rest."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pbench.results import METRICS, RECEIPT_COLUMNS, REQUEST_COLUMNS, STEP_COLUMNS, Run, write_result, write_table

SPEC = "openai:http://localhost:8000/v1"
TOLD = ("output_tokens_per_s", "duration_s", "ttft_ms_p50", "num_finished")
BLANK = ["first_scheduled_ns", "num_prefix_hit_tokens", "num_recomputed_tokens", "num_preemptions", "kv_byte_seconds"]


@pytest.fixture(scope="module")
def run(two_engines: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of two engines, as if the second one were a server."""
    folder = tmp_path_factory.mktemp("served") / "run"
    shutil.copytree(two_engines.path, folder)
    ours, theirs = two_engines.result.engines
    steps, requests = two_engines.steps(), two_engines.requests()
    for table in (steps, requests):
        table["engine"] = table["engine"].replace(theirs.spec, SPEC)
    is_theirs = requests["engine"] == SPEC
    requests.loc[is_theirs, BLANK] = None
    given = steps[(steps["engine"] == SPEC) & (steps["num_output_tokens"] > 0)]
    receipts = given.assign(request_id=0, time_ns=given["end_ns"], num_tokens=given["num_output_tokens"])
    write_table(folder / "receipts.parquet", receipts[list(RECEIPT_COLUMNS)], RECEIPT_COLUMNS)
    write_table(folder / "steps.parquet", steps[steps["engine"] != SPEC], STEP_COLUMNS)
    write_table(folder / "requests.parquet", requests, REQUEST_COLUMNS)
    summary = {metric.name: theirs.summary.get(metric.name) if metric.name in TOLD else None for metric in METRICS}
    served = replace(theirs, spec=SPEC, summary=summary, pool={}, memory={}, repeats=())
    write_result(folder, replace(two_engines.result, engines=(ours, served)))
    return Run(folder)


def test_its_tokens_are_drawn_over_time(run: Run, render: Callable[..., Any]) -> None:
    page = render(run)
    ours, theirs = page.figures()["progress-speed"]["data"]
    assert theirs["name"] == SPEC
    width_s = np.diff(theirs["x"]).mean()
    assert np.sum(theirs["y"]) * width_s == pytest.approx(run.receipts()["num_tokens"].sum(), rel=0.1)
    requests = page.figures()["progress-requests"]["data"]
    assert {trace["name"] for trace in requests} == {f"{ours['name']}, running", f"{ours['name']}, waiting"}


def test_what_it_does_not_tell_is_not_on_the_page(run: Run, render: Callable[..., Any]) -> None:
    page = render(run)
    assert not any(name.endswith("-e1") and name.startswith(("partition", "timeline")) for name in page.figures())
    for text in ("nan", "<NA>", "None"):
        assert f">{text}<" not in page.source
