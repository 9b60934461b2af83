import json
import subprocess
from pathlib import Path

import pytest

from pbench.__main__ import main
from pbench.environment import PACKAGES, git_state, host_environment


def test_the_host_is_described_in_plain_data() -> None:
    environment = host_environment()
    assert json.loads(json.dumps(environment)) == environment
    assert environment["cpu"]["num_usable_cores"] >= 1
    assert environment["memory_bytes"] > 2**20
    assert set(environment["packages"]) == set(PACKAGES)
    assert environment["packages"]["torch"] is not None


def test_the_commit_and_its_dirtiness_are_told(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {}

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init")
    assert git_state(tmp_path) == {"git_commit": None, "is_git_dirty": False}  # no commit yet
    git("commit", "--allow-empty", "-m", "first")
    assert git_state(tmp_path) == {"git_commit": git("rev-parse", "HEAD"), "is_git_dirty": False}
    (tmp_path / "new").write_text("")
    assert git_state(tmp_path)["is_git_dirty"] is True


def test_env_as_json_and_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["measurable"]["process memory"] == "yes"
    assert ("NVML" in document["measurable"]) is True
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert document["cpu"]["model"] in text
    assert "measurable" in text
