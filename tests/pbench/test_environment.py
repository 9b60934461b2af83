import json
import subprocess
from pathlib import Path

import pytest

from pbench.__main__ import main
from pbench.environment import PACKAGES, container_limits, git_state, host_environment


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


@pytest.mark.parametrize(
    ("files", "num_cores", "memory_bytes"),
    [
        ({"cpu.max": "150000 100000\n", "memory.max": "1048576\n"}, 1.5, 2**20),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, None, None),
        (
            {
                "cpu/cpu.cfs_quota_us": "200000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "4096",
            },
            *(2.0, 4096),
        ),
        (
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
            *(None, None),
        ),
        ({}, None, None),
    ],
)
def test_limits_of_a_container_are_read_from_both_versions(
    files: dict[str, str], num_cores: float | None, memory_bytes: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert container_limits(tmp_path) == {"num_cores": num_cores, "memory_bytes": memory_bytes}


def test_env_as_json_and_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["measurable"]["process memory"] == "yes"
    assert ("NVML" in document["measurable"]) is True
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert document["cpu"]["model"] in text
    assert "measurable" in text
