"""What ``pbench compare`` sets against each other: a run, or a folder of runs that repeat one another."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pbench.errors import IncomparableError, UsageError
from pbench.results import EngineResult, Repeat, RunResult, read_result
from pbench.salvage import salvage
from pbench.summary.aggregation import aggregate
from pbench.units import display_path, printable


@dataclass(frozen=True, slots=True)
class LabelledRun:
    """A run and what the user calls it."""

    label: str  # its path
    result: RunResult


def read_side(folder: Path) -> LabelledRun:
    """The run in ``folder``, or the runs in the folders in it as one whose repeats are all of theirs.

    Raises:
        ResultError: there is no run, or one cannot be read.
        IncomparableError: the folders' runs are not repeats of one another.

    """
    label = display_path(folder)
    if not (folder / "run.json").exists() and folder.is_dir():
        paths = sorted(path.parent for path in folder.glob("*/run.json"))
        if paths:
            return LabelledRun(label, pool_runs([LabelledRun(display_path(path), _read(path)) for path in paths]))
    return LabelledRun(label, _read(folder))


def _read(folder: Path) -> RunResult:
    """The record of a run; of one that was left in the middle it is made whole first."""
    salvage(folder)
    return read_result(folder)


def pool_runs(runs: Sequence[LabelledRun]) -> RunResult:
    """Runs of the same thing as one, in their order.

    Raises:
        IncomparableError: they differ in workload, configuration, engines, or GPU.
        UsageError: an engine has no complete repeat to go by.

    """
    first = runs[0]
    for other in runs[1:]:
        for name, ours, theirs in zip(_SAME, _identity(first.result), _identity(other.result), strict=True):
            if ours != theirs:
                raise IncomparableError(
                    f"{other.label} is no repeat of {first.label}: another {name}; compare them one against the other"
                )
    engines = []
    for engine in first.result.engines:
        repeats = [one for run in runs for each in run.result.engines if each.spec == engine.spec for one in _of(each)]
        numbered = [replace(repeat, repeat=number) for number, repeat in enumerate(repeats, start=1)]
        if not numbered:
            raise UsageError(f"{printable(engine.spec)} was never started in {first.label}")
        engines.append(aggregate(engine, numbered, len(numbered)))
    return replace(first.result, engines=tuple(engines))


_SAME = ("workload", "configuration", "set of engines", "GPU or driver")


def _identity(result: RunResult) -> tuple[object, ...]:
    config = {name: value for name, value in result.config.items() if name != "num_repeats"}
    specs = [engine.spec for engine in result.engines]
    workload = tuple(result.workload.get(name) for name in ("sha256", "seed"))
    gpu = result.environment.get("gpu") or {}
    return workload, config, specs, tuple(gpu.get(name) for name in ("name", "driver_version"))


def _of(engine: EngineResult) -> tuple[Repeat, ...]:
    """The repeats of an engine; itself as the only one where the record has none (version 2, simulations)."""
    alone = Repeat(1, engine.status, engine.reason, memory=engine.memory, summary=engine.summary, notes=engine.notes)
    return engine.repeats or (alone,)
