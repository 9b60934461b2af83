"""`pbench gate throughput` over a repository with a tiny project, whose `pbench run` writes made-up figures."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pbench.__main__ import main
from pbench.errors import ResultError, UsageError
from pbench.gate import run_conditions
from pbench.gate.run_conditions import THROTTLE_BITS, Watch, sampled_conditions
from pbench.gate.source_tree import SourceTree, source_trees
from pbench.gate.throughput_result import Revision, read_throughput
from pbench.gate.throughput_run import Runner, read_measurement
from pbench.nvml import ComputeProcess

ROOT = Path(__file__).parent.parent.parent

# What stands in for the project. Speeds differ a little from run to run: by the folder's name, so always alike.
MAIN = """
import hashlib, json, os, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
from pbench.cli import BREAK, SPEED, WORKLOAD

arguments = sys.argv[1:]
assert arguments[0] == "run" and "--no-report" in arguments
folder = Path(arguments[arguments.index("--out") + 1])
workload = arguments[arguments.index("--workload") + 1]
if BREAK == "exit":
    print("error: it is broken", file=sys.stderr)
    raise SystemExit(1)
if BREAK == "hang":
    import time
    Path(folder.parent / "hangs").touch()
    time.sleep(60)
folder.mkdir()
root = Path(__file__).parent.parent
commit = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
jitter = int(hashlib.sha256(folder.name.encode()).hexdigest()[:4], 16) / 0xFFFF - 0.5
record = {
    "schema_version": 999,
    "workload": {"sha256": hashlib.sha256((WORKLOAD + workload).encode()).hexdigest(), "seed": 0},
    "config": {"model": "tiny", "arguments": " ".join(arguments[3:])},
    "environment": {"pbench": {"git_commit": commit or None}, "cpu": {"model": "a cpu"}, "gpu": None, "ran": __file__},
    "engines": [{"spec": "paged", "summary": {"output_tokens_per_s": SPEED * (1 + 0.01 * jitter), "num_finished": 9}}],
}
if BREAK == "record":
    del record["engines"][0]["summary"]["output_tokens_per_s"]
(folder / "run.json").write_text(json.dumps(record))
"""

Git = Callable[..., str]


def write_project(root: Path, speed: float = 100.0, workload: str = "w", broken: str = "") -> None:
    (root / "pbench").mkdir(parents=True, exist_ok=True)
    (root / "pbench" / "__init__.py").touch()
    (root / "pbench" / "__main__.py").write_text(MAIN)
    (root / "pbench" / "cli.py").write_text(f"SPEED, WORKLOAD, BREAK = {speed}, {workload!r}, {broken!r}\n")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's repository, the current folder, with branches of every kind."""
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    for branch, options in {
        "main": {},
        "slow": {"speed": 88.0},
        "other": {"workload": "another"},
        "broken": {"broken": "exit"},
        "hanging": {"broken": "hang"},
        "foreign": {"broken": "record"},
    }.items():
        if branch != "main":
            git(root, "checkout", "-q", "-b", branch, "main")
        write_project(root, **options)  # type: ignore[arg-type]
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", branch)
    git(root, "checkout", "-q", "main")
    monkeypatch.chdir(root)
    return root


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return subprocess.run(
        ["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def gate(out: Path, *options: str) -> int:
    """Whatever else the machine does now: these speeds are made up."""
    return main(["gate", "throughput", "--keep", "foreign-process", "--out", str(out), *options])


def parts(arguments: str) -> set[str]:
    return {f"--{one.strip()}" for one in f" {arguments}".split(" --")}


def worktrees(repository: Path) -> int:
    return len(git(repository, "worktree", "list").splitlines())


def test_a_slower_branch_fails_and_every_run_was_of_its_own_commit(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert gate(out, "--base", "main", "--head", "slow", "--limit", "7", "--", "--seed", "3") == 1
    assert "failed: chat-shared-prompt: head is 1" in capsys.readouterr().out
    result = read_throughput(out / "throughput.json")
    commits = [git(repository, "rev-parse", branch) for branch in ("main", "slow")]
    assert [result.base.commit, result.head.commit] == commits
    (workload,) = result.workloads
    for pair in workload.pairs:
        for folder, revision in ((pair.base_run, result.base), (pair.head_run, result.head)):
            record = json.loads((out / folder / "run.json").read_text())
            assert record["environment"]["pbench"]["git_commit"] == revision.commit
            assert not Path(record["environment"]["ran"]).exists()  # it was a worktree, and is gone
            assert {"--limit 7", "--seed 3", "--engine paged"} <= parts(record["config"]["arguments"])
    assert (out / "comment.md").read_text().startswith("**pbench gate throughput** failed")
    assert 'failures="1"' in (out / "junit.xml").read_text()
    assert worktrees(repository) == 1


def test_the_same_commit_on_both_sides_passes(repository: Path, tmp_path: Path) -> None:
    assert gate(tmp_path / "out", "--base", "main", "--head", "main") == 0


def test_a_folder_runs_as_it_lies_there_changes_included(repository: Path, tmp_path: Path) -> None:
    write_project(repository, speed=80.0)
    out = tmp_path / "out"
    assert gate(out, "--base", "HEAD") == 1  # against the working tree
    head = read_throughput(out / "throughput.json").head
    assert (head.name, head.commit, head.is_dirty) == (".", git(repository, "rev-parse", "HEAD"), True)


def test_a_folder_that_is_no_checkout_can_be_compared(repository: Path, tmp_path: Path) -> None:
    write_project(tmp_path / "copy", speed=80.0)
    out = tmp_path / "out"
    assert gate(out, "--base", "main", "--head", str(tmp_path / "copy")) == 1
    assert read_throughput(out / "throughput.json").head.commit is None


@pytest.mark.parametrize(
    ("base", "head", "code", "reason"),
    [
        ("main", "other", 4, "workload.sha256: "),
        ("main", "broken", 1, "head (broken): its `pbench run` ended with exit code 1 and said: error: it is broken"),
        ("broken", "main", 2, "base (broken): its `pbench run` ended with exit code 1"),
        ("foreign", "main", 2, "base (foreign): this pbench cannot read what that code writes"),
        ("nonsense", "main", 2, "--base nonsense is neither a project folder nor a commit"),
        ("--version", "main", 2, "--base --version is neither a project folder nor a commit"),
        ("empty", "main", 2, "--base empty is no project folder: it has no pbench/__main__.py"),
        ("", "main", 2, "--base is empty; give a git ref or a project folder"),
        ("main", "bare", 2, "--head bare is a commit without pbench/__main__.py"),
    ],
)
def test_what_cannot_be_compared_ends_with_its_code_and_leaves_no_worktree(
    repository: Path, tmp_path: Path, base: str, head: str, code: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "empty").mkdir()
    git(repository, "checkout", "-q", "--orphan", "bare")
    git(repository, "rm", "-q", "-rf", ".")
    git(repository, "commit", "-q", "--allow-empty", "-m", "nothing")
    assert gate(tmp_path / "out", f"--base={base}", f"--head={head}") == code
    assert reason in capsys.readouterr().err
    assert worktrees(repository) == 1


def test_a_ref_needs_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert gate(tmp_path / "out", "--base", "main") == 2
    assert "the current folder is in none" in capsys.readouterr().err


def test_a_workload_is_named_once(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(tmp_path / "out", "--base", "main", "--workload", "a", "--workload", "a") == 2
    assert "--workload a is given twice" in capsys.readouterr().err


def test_code_that_another_pbench_hides_is_refused(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = SourceTree("head", tmp_path / "elsewhere", Revision("elsewhere", None, None))
    with pytest.raises(UsageError, match="--head elsewhere: its code cannot be run: Python finds"):
        tree.check()


def test_a_head_that_fails_is_told_in_every_file_that_ci_shows(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert gate(out, "--base", "main", "--head", "broken") == 1
    result = read_throughput(out / "throughput.json")
    assert (result.verdict, len(result.workloads[0].pairs)) == ("inconclusive", 0)
    for name in ("throughput.json", "comment.md", "junit.xml"):
        assert "exit code 1 and said: error: it is broken" in (out / name).read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_gate_that_is_stopped_stops_its_run_and_leaves_no_worktree(
    repository: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = ("-P", "-m", "pbench", "gate", "throughput", "--base", "hanging", "--out", str(out))
    process = subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("runs/*/hangs")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output.splitlines()[-1]) == (130, "interrupted")
    assert worktrees(repository) == 1


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_this_project_at_its_commit_runs_from_a_worktree_and_names_that_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    commit = git(ROOT, "rev-parse", "HEAD")
    with source_trees("HEAD", ".") as (base, head):
        assert base.root != head.root == ROOT
        options = ("--engine", "paged", "--limit", "2", "--device", "cpu", "--model", "tiny")
        measurement = Runner(base, head, options)("base", "chat-shared-prompt", tmp_path / "run")
    assert measurement.environment["pbench"] == {
        "version": measurement.environment["pbench"]["version"],
        "git_commit": commit,
        "is_git_dirty": False,
    }
    assert measurement.tokens_per_s > 0
    assert measurement.identity["engines.0.summary.num_finished"] == 2
    assert measurement.settings["model"] == "tiny"
    assert 0 <= (measurement.conditions.foreign_cpu_share or 0) <= 1
    assert measurement.conditions.throttle_bits is None


def test_a_run_of_other_code_than_it_should_be_is_refused(tmp_path: Path) -> None:
    record = {
        "engines": [{"summary": {"output_tokens_per_s": 5}}],
        "workload": {"sha256": "ab"},
        "environment": {"pbench": {"git_commit": "1" * 40}},
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    tree = SourceTree("head", tmp_path, Revision("topic", "2" * 40, False))
    with pytest.raises(ResultError, match=f"head \\(topic\\): the run says that commit {'1' * 40} ran, not {'2' * 40}"):
        read_measurement(tmp_path, tree, Watch(None))


@pytest.mark.parametrize("value", [None, 0, "fast", float("inf")])
def test_a_throughput_that_is_no_number_above_zero_is_refused(tmp_path: Path, value: object) -> None:
    record = {"engines": [{"summary": {"output_tokens_per_s": value}}], "workload": {"sha256": "ab"}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ResultError, match="cannot read what that code writes"):
        read_measurement(tmp_path, SourceTree("head", tmp_path, Revision("topic", None, None)), Watch(None))


def test_throttling_and_the_clock_are_read_from_a_runs_samples(tmp_path: Path) -> None:
    import pandas as pd

    path = tmp_path / "device.parquet"
    assert sampled_conditions(path) == (None, None)
    pd.DataFrame(
        {"sm_clock_mhz": [1980.0, None, 1700.0, 1900.0], "throttle_reasons": [0x4, 0x40, None, 0x1]}
    ).to_parquet(path)
    assert sampled_conditions(path) == (0x40, 1900.0)  # the power cap and idling are no throttling
    assert 0x40 & THROTTLE_BITS
    pd.DataFrame({"sm_clock_mhz": [None], "throttle_reasons": [None]}).to_parquet(path)
    assert sampled_conditions(path) == (None, None)
    pd.DataFrame({"time": [1]}).to_parquet(path)  # of a version that did not sample them
    assert sampled_conditions(path) == (None, None)


class FakeGpu:
    """Says how many processes compute on it, look by look."""

    def __init__(self, *counts: int) -> None:
        self._counts = iter(counts)

    def compute_processes(self) -> list[ComputeProcess]:
        return [ComputeProcess(pid, None) for pid in range(next(self._counts))]


@pytest.mark.parametrize(
    ("before", "during", "foreign"),
    [
        (0, (0, 1, 1), 0),  # ours alone
        (0, (0, 1, 2, 1), 1),
        (1, (1, 2), 1),  # there before
        (1, (1, 1), 1),  # gone when ours came
        (0, (0, 0), None),  # not even ours is to be seen from here
        (0, (), None),
    ],
)
def test_processes_on_the_gpu_that_are_not_ours_are_counted(
    before: int, during: tuple[int, ...], foreign: int | None
) -> None:
    watch = Watch(FakeGpu(before, *during))  # type: ignore[arg-type]
    for _ in during:
        watch.look()
    assert watch.num_foreign_gpu_processes() == foreign


def test_cpu_time_of_a_process_that_was_waited_for_is_our_own_and_the_machine_spent_it() -> None:
    own_s, busy_s = run_conditions._own_s(), run_conditions._busy_s()
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert run_conditions._own_s() - own_s >= 0.3
    assert run_conditions._busy_s() - busy_s >= 0.25  # in ticks


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores 1 and 3 are ours."""
    monkeypatch.setattr(run_conditions.os, "sched_getaffinity", lambda process_id: {1, 3}, raising=False)


@pytest.mark.usefixtures("two_cores")
def test_only_the_cores_that_we_may_run_on_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cores = [SimpleNamespace(user=10.0**core, system=0.5, idle=99.0) for core in range(4)]
    monkeypatch.setattr(run_conditions.psutil, "cpu_times", lambda percpu: cores)
    monkeypatch.setattr(run_conditions, "STAT", tmp_path / "there is none")
    assert run_conditions._busy_s() == 10 + 1000 + 1


@pytest.mark.usefixtures("two_cores")
def test_cores_are_known_by_their_numbers_where_some_are_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stat, ticks_per_s = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    lines = (
        [core, *(ticks * ticks_per_s for ticks in (user, 2, 3, 1000, 1000, 4, 5, 6, 1000, 1000))]
        for core, user in (("cpu", 9999), ("cpu0", 500), ("cpu1", 10), ("cpu3", 70), ("cpu7", 500))
    )
    stat.write_text("".join(" ".join(map(str, line)) + "\n" for line in lines) + "intr 5 6\nctxt 7\n")
    monkeypatch.setattr(run_conditions, "STAT", stat)
    assert run_conditions._busy_s() == 10 + 70 + 2 * (2 + 3 + 4 + 5 + 6)


def test_the_cpu_that_others_used_is_what_is_not_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"time": 100.0, "busy": 1000.0, "own": 10.0}
    monkeypatch.setattr(run_conditions, "_busy_s", lambda: now["busy"])
    monkeypatch.setattr(run_conditions, "_own_s", lambda: now["own"])
    monkeypatch.setattr(run_conditions, "_cores", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(run_conditions.time, "monotonic", lambda: now["time"])
    watch = Watch(None)
    now.update(time=110.0, busy=1025.0, own=20.0)
    assert watch.foreign_cpu_share() == 15 / 40
    now.update(busy=1009.0)  # clocks of the two are not quite the same
    assert watch.foreign_cpu_share() == 0


@pytest.mark.gpu
def test_on_a_gpu_its_clock_its_throttling_and_other_processes_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with source_trees(".", ".") as (base, head):
        runner = Runner(base, head, ("--engine", "paged", "--limit", "16"))
        runner("base", "chat-shared-prompt", tmp_path / "first")
        conditions = runner("head", "chat-shared-prompt", tmp_path / "second").conditions
    assert conditions.throttle_bits == 0
    assert conditions.sm_clock_mhz is not None
    assert conditions.sm_clock_mhz > 500
    assert conditions.num_foreign_gpu_processes in (0, None)  # None: a container that hides all processes
