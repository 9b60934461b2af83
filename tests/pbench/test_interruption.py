"""Signals to the command itself, as a terminal or a system sends them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pbench.__main__ import main
from pbench.results import Run
from pbench.tables import read_journal

COMMAND = [
    *(sys.executable, "-m", "pbench", "run", "--workload", "chat-shared-prompt", "--limit", "0", "--device", "cpu"),
    *("--max-length", "1792", "--kv-memory", "4MiB", "--no-report"),
]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start a run that takes minutes, in a process group of its own, and wait until it has run steps."""
    started: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        command = subprocess.Popen(
            [*COMMAND, "--out", str(tmp_path / "run")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(command)
        journal = tmp_path / "run" / ".journal" / "paged" / "steps.jsonl"
        deadline_s = time.monotonic() + 60
        while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
            assert command.poll() is None, command.communicate()[0]
            assert time.monotonic() < deadline_s, "the run did not start"
            time.sleep(0.05)
        return command

    yield begin
    for command in started:
        for process in [*psutil.Process(command.pid).children(recursive=True)] if command.poll() is None else []:
            process.kill()
        command.kill()
        command.communicate()


def test_ctrl_c_keeps_what_was_measured_and_starts_nothing_more(
    start: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    command = start()
    (worker,) = psutil.Process(command.pid).children()
    os.killpg(command.pid, signal.SIGINT)
    output, _ = command.communicate(timeout=60)
    assert command.returncode == 130, output
    assert "Traceback" not in output
    assert not worker.is_running()
    run = Run(tmp_path / "run")
    paged, contiguous = run.result.engines
    assert run.result.status == "interrupted"
    assert (paged.status, paged.reason) == ("interrupted", "interrupted while the engine ran")
    assert (contiguous.status, contiguous.reason) == ("interrupted", "not started")
    assert len(run.steps()) == paged.summary["num_steps"]
    assert len(run.steps()) >= 5
    requests = run.requests()
    assert len(requests) == 1024
    assert requests.query("status == 'unfinished'")["first_token_ns"].notna().any()  # the engine told how they stood
    assert not (tmp_path / "run" / ".journal").exists()


def test_a_killed_harness_leaves_no_worker_and_a_readable_journal(
    start: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    command = start()
    (worker,) = psutil.Process(command.pid).children()
    command.kill()
    command.wait()
    psutil.wait_procs([worker], timeout=20)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    folder = tmp_path / "run"
    assert json.loads((folder / "run.json").read_text())["status"] == "running"  # nobody was left to write another
    result = Run(folder).result
    paged, contiguous = result.engines
    assert (result.status, paged.status, contiguous.status) == ("failed", "failed", "failed")
    assert paged.reason == "pbench itself was killed while it ran"
    tables = read_journal(folder / ".journal" / "paged", "paged")
    assert len(tables.steps) >= 5
    assert len(tables.requests) == 1024
    assert len(tables.device) >= 1
    assert main(["report", str(folder), "--plotlyjs", "directory"]) == 0
    run = Run(folder)
    paged, contiguous = run.result.engines
    assert (run.result.status, paged.status, contiguous.status) == ("failed", "failed", "failed")
    assert paged.summary["num_steps"] == len(tables.steps) == len(run.steps())
    assert paged.pool["pool_bytes"] == 4 * 2**20
    assert [repeat.reason for repeat in paged.repeats] == ["pbench itself was killed while it ran"]
    assert (contiguous.reason, contiguous.repeats) == ("pbench itself was killed while it ran", ())
    assert not (folder / ".journal").exists()
    assert not (folder / ".reserve").exists()
