"""Where the code of one side of a comparison lies: a git ref checked out into a worktree of its own, or a folder.

A Python of this installation runs it: the tree comes first on the module path, the packages are ours.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pbench.environment import git_state
from pbench.errors import UsageError
from pbench.gate.throughput_result import Revision
from pbench.units import display_path, printable

GIT_TIMEOUT_S = 300
_ENTRY = Path("pbench") / "__main__.py"


@dataclass(frozen=True, slots=True)
class SourceTree:
    """The code of one side."""

    side: str  # base | head
    root: Path  # absolute
    revision: Revision

    def command(self, *arguments: str) -> list[str]:
        """The command line of this tree's pbench; run it in ``environment``."""
        return [sys.executable, "-P", "-m", "pbench", *arguments]

    def environment(self) -> dict[str, str]:
        """The environment in which ``import pbench`` finds this tree, from any folder and in every process below."""
        environment = outside_git()
        others = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{self.root}{os.pathsep}{others}" if others else str(self.root)
        return environment

    def check(self) -> None:
        """Make sure that this tree's code is what runs.

        Raises:
            UsageError: it cannot be imported, or another pbench is found before it.

        """
        code = "import pbench.cli; print(pbench.cli.__file__)"
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], env=self.environment(), capture_output=True, text=True, check=False
        )
        found = done.stdout.strip()
        if done.returncode or not Path(found).resolve().is_relative_to(self.root):
            why = f"Python finds {found}" if found else (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise UsageError(f"--{self.side} {printable(self.revision.name)}: its code cannot be run: {printable(why)}")


@contextmanager
def source_trees(base: str, head: str) -> Iterator[tuple[SourceTree, SourceTree]]:
    """Both sides' trees. What was checked out is gone afterwards, however the block ends.

    Raises:
        UsageError: a side is neither a project folder nor a commit of the repository that the current folder is in.

    """
    with (
        tempfile.TemporaryDirectory(prefix="pbench-gate-") as scratch,
        _tree("base", base, Path(scratch)) as base_tree,
        _tree("head", head, Path(scratch)) as head_tree,
    ):
        for tree in (base_tree, head_tree):
            tree.check()
        yield base_tree, head_tree


def outside_git() -> dict[str, str]:
    """Our environment without what git sets in its hooks, which would make git elsewhere speak of this repository."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


@contextmanager
def _tree(side: str, name: str, scratch: Path) -> Iterator[SourceTree]:
    if not name.strip():  # a variable that is not set in a script must not become the current folder
        raise UsageError(f"--{side} is empty; give a git ref or a project folder")
    folder = Path(name)
    if (folder / _ENTRY).is_file():
        root = folder.resolve()
        state = git_state(root)
        yield SourceTree(side, root, Revision(name, state.get("git_commit"), state.get("is_git_dirty")))
        return
    if folder.is_dir():
        raise UsageError(f"--{side} {display_path(folder)} is no project folder: it has no {_ENTRY}")
    repository = _repository(side, name)
    commit = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if commit is None:
        raise UsageError(
            f"--{side} {printable(name)} is neither a project folder nor a commit of {display_path(repository)};"
            " a shallow clone lacks older ones: fetch it with its history"
        )
    root = scratch.resolve() / side
    try:
        _checked_git(repository, "worktree", "add", "--detach", str(root), commit)
        if not (root / _ENTRY).is_file():
            raise UsageError(f"--{side} {printable(name)} is a commit without {_ENTRY}: it is not of this project")
        yield SourceTree(side, root, Revision(name, commit, False))
    finally:
        _git(repository, "worktree", "remove", "--force", str(root))


def _repository(side: str, name: str) -> Path:
    root = _git(Path(), "rev-parse", "--show-toplevel")
    if root is None:
        raise UsageError(
            f"--{side} {printable(name)} is no project folder, and as a git ref it needs a repository: the current"
            " folder is in none"
        )
    return Path(root)


def _checked_git(repository: Path, *arguments: str) -> None:
    done = _run_git(repository, *arguments)
    if done.returncode:
        raise UsageError(f"git {' '.join(arguments)} failed: {printable(done.stderr.strip())}")


def _git(repository: Path, *arguments: str) -> str | None:
    """What git says; None when it refuses."""
    done = _run_git(repository, *arguments)
    return done.stdout.strip() if done.returncode == 0 else None


def _run_git(repository: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # The repository's hooks are for people who check out to work.
    command = ["git", "-C", str(repository), "-c", f"core.hooksPath={os.devnull}", *arguments]
    try:
        return subprocess.run(
            command, env=outside_git(), capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"git cannot be run: {error}") from error
