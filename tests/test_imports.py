"""Who imports whom, read from the source: one way only, and always under the name pbench."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKED = ("engine", "kernels", "workloads", "reports")
FOLDERS = (*LINKED, "pbench")

# What each folder may import of ours: a module and everything below it. None: anything.
ALLOWED: dict[str, tuple[str, ...] | None] = {
    "kernels": ("pbench.kernels",),
    "workloads": ("pbench.workloads",),
    "engine": ("pbench.engine", "pbench.kernels"),
    "reports": (
        "pbench.reports",
        "pbench.results",
        "pbench.gate.throughput_result",
        "pbench.summary.intervals",
        "pbench.errors",
    ),
    "pbench": None,
}


def source_files(root: Path, folder: str) -> list[Path]:
    """The folder's own Python files. pbench's links are left out: they lead to folders of their own."""
    links = {root / "pbench" / name for name in LINKED}
    return sorted(path for path in (root / folder).rglob("*.py") if links.isdisjoint(path.parents))


def module_name(root: Path, path: Path) -> str:
    """The file's one importable name: pbench.engine.model for engine/model.py."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts if parts[0] == "pbench" else ("pbench", *parts))


def imported_modules(root: Path, path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of all that the file imports, at the top, nested, relative, or through importlib.

    ``from a import b`` gives ``a.b``, for b may be a module.
    """
    package = module_name(root, path).split(".")[:-1]  # right for __init__.py too: its last part is __init__
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                start = package[: len(package) - level + 1] if level else []
                base = ".".join([*start, *([module] if module else [])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def violations(root: Path, folder: str) -> list[str]:
    """All imports of the folder's files that the rules forbid, as ``file:line: what``."""
    found = []
    allowed = ALLOWED[folder]
    for path in source_files(root, folder):
        for line, name in imported_modules(root, path):
            top = name.split(".")[0]
            is_ours = top == "pbench"
            if top in LINKED:
                found.append(f"{path.relative_to(root)}:{line}: {name} must be imported as pbench.{name}")
            elif is_ours and allowed is not None and not is_below(name, allowed):
                found.append(f"{path.relative_to(root)}:{line}: {folder} must not import {name}")
    return found


def is_below(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_one_way(folder: str) -> None:
    assert violations(ROOT, folder) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_has_files_to_check(folder: str) -> None:
    assert source_files(ROOT, folder)


def test_the_links_of_pbench_are_relative_and_lead_to_the_folders() -> None:
    for name in LINKED:
        link = ROOT / "pbench" / name
        assert link.is_symlink(), f"{link} is no link"
        assert link.readlink() == Path("..") / name
        assert link.resolve() == (ROOT / name).resolve()


def test_kernels_is_no_regular_package() -> None:
    # From the repository's root a regular package of this name would hide Hugging Face's from transformers.
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree of the project's layout without any violation."""
    for folder in FOLDERS:
        (tmp_path / folder / "part").mkdir(parents=True)
    for name in LINKED:
        (tmp_path / "pbench" / name).symlink_to(Path("..") / name)
    (tmp_path / "engine" / "good.py").write_text("import torch\nfrom pbench.kernels.rms_norm import rms_norm\n")
    (tmp_path / "engine" / "__init__.py").write_text("from .good import x\nfrom . import good\n")
    (tmp_path / "kernels" / "good.py").write_text("from pbench.kernels import launch\n")
    (tmp_path / "reports" / "good.py").write_text("import pbench.results\nfrom pbench.errors import PbenchError\n")
    (tmp_path / "pbench" / "good.py").write_text("from pbench import engine, reports\n")
    return tmp_path


def test_a_tree_that_keeps_the_rules_has_no_violations(tree: Path) -> None:
    assert [violation for folder in FOLDERS for violation in violations(tree, folder)] == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("kernels/bad.py", "import pbench.engine"),
        ("kernels/bad.py", "from pbench import engine"),
        ("kernels/bad.py", "from pbench.engine import model"),
        ("kernels/bad.py", "import pbench"),
        ("kernels/part/bad.py", "from ...engine import model"),
        ("kernels/part/bad.py", "from ... import results"),
        ("workloads/bad.py", "import json, pbench.kernels.launch"),
        ("workloads/bad.py", "from pbench.results import Run"),
        ("engine/bad.py", "from pbench.results import Run"),
        ("engine/bad.py", "from pbench.workloads.errors import WorkloadError"),
        ("engine/bad.py", "from pbench.kernels_extra import x"),
        ("engine/bad.py", "from .. import cli"),
        ("engine/bad.py", "from ..results import Run"),
        ("engine/__init__.py", "from .. import results"),
        ("engine/bad.py", "def f():\n    if True:\n        from pbench import cli"),
        ("engine/bad.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pbench.cli"),
        ("engine/bad.py", "import importlib\nimportlib.import_module('pbench.cli')"),
        ("engine/bad.py", "from importlib import import_module\nimport_module('pbench.cli')"),
        ("engine/bad.py", "__import__('pbench.cli')"),
        ("reports/bad.py", "from pbench.engine.records import StepRecord"),
        ("reports/bad.py", "from pbench import engine as e"),
        ("reports/bad.py", "try:\n    x = 1\nfinally:\n    import pbench.summary.metrics"),
        ("pbench/bad.py", "import engine"),
        ("pbench/bad.py", "from kernels.launch import ceil_div"),
        ("pbench/part/bad.py", "import workloads.errors as errors"),
        ("engine/bad.py", "from engine import model"),
        ("reports/bad.py", "import reports"),
    ],
)
def test_a_planted_violation_is_found(file: str, source: str, tree: Path) -> None:
    (tree / file).write_text(source)
    folder = file.split("/", maxsplit=1)[0]
    found = violations(tree, folder)
    assert len(found) == 1
    assert found[0].startswith(f"{file}:{len(source.splitlines())}: ")
