"""What the workflows and the documentation tell CI to run: commands that exist, with options that exist."""

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from pbench.cli import cli

ROOT = Path(__file__).parent.parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCUMENT = ROOT / "docs" / "gate.md"

_COMMAND = re.compile(r"pbench (gate [^#\n|`]+)")


def commands(path: Path) -> list[list[str]]:
    """The arguments of every `pbench gate ...` with options that a file names."""
    found = [shlex.split(match[1]) for match in _COMMAND.finditer(path.read_text(encoding="utf-8"))]
    return [arguments for arguments in found if len(arguments) > 2]


@pytest.mark.parametrize("path", [*WORKFLOWS, DOCUMENT], ids=lambda path: path.name)
def test_every_command_is_understood(path: Path) -> None:
    found = commands(path)
    assert found
    for arguments in found:
        context, command = click.Context(cli), cli
        while isinstance(command, click.Group):
            name, command, arguments = command.resolve_command(context, arguments)  # type: ignore[assignment]
            context = click.Context(command, parent=context, info_name=name)
        command.make_context("gate", arguments)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_pins_its_actions_asks_for_few_rights_and_puts_no_foreign_text_into_a_shell(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"]["contents"] == "read"
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 120
        assert job["defaults"]["run"]["shell"] == "bash"  # with pipefail, or `| tee` would hide the gate's exit code
        for step in job["steps"]:
            assert re.fullmatch(r"[\w./-]+@v\d+", step.get("uses", "x/y@v1"))
            assert "${{" not in step.get("run", "")


def test_code_of_a_fork_never_runs_on_a_machine_of_ones_own() -> None:
    text = (ROOT / ".github" / "workflows" / "throughput.yml").read_text(encoding="utf-8")
    (job,) = yaml.safe_load(text)["jobs"].values()
    assert "self-hosted" in job["runs-on"]
    assert "head.repo.full_name == github.repository" in job["if"]


def test_the_recipe_for_gitlab_is_yaml_with_a_job_for_each_level() -> None:
    recipe, comment = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    jobs = yaml.safe_load(recipe)
    assert [job["script"][-1].split("pbench ")[1].split(" --")[0] for job in jobs.values()] == [
        "gate check",
        "gate throughput",
    ]
    assert jobs["throughput"]["allow_failure"] == {"exit_codes": 3}
    assert "after_script" in yaml.safe_load(comment)
