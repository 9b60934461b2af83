"""One run of one side: ``pbench run`` of a source tree in a fresh process, and what the gate reads of its record.

The record is of that tree's version, which may be older or newer than ours: it is read by the few names below, whatever
else is in it.
"""

import json
import math
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbench.errors import PbenchError, ResultError, RunFailedError, UsageError
from pbench.gate.run_conditions import Conditions, Watch, open_gpu, sampled_conditions
from pbench.gate.source_tree import SourceTree
from pbench.nvml import NvmlDevice
from pbench.units import display_path, printable

POLL_S = 0.5
STOP_S = 30.0  # for a run that was interrupted to end by itself
EXIT_USAGE = 2

_THROUGHPUT = "engines.0.summary.output_tokens_per_s"
# What must be the same in every run of a workload, by its name in run.json.
_IDENTITY = (
    "workload.sha256",
    "workload.seed",
    "config.model",
    "config.dtype",
    "config.device",
    "engines.0.spec",
    "engines.0.summary.num_finished",
    "environment.cpu.model",
    "environment.gpu.name",
    "environment.gpu.uuid",
    "environment.gpu.driver_version",
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the gate takes from a run."""

    tokens_per_s: float
    identity: Mapping[str, Any]  # equal in all runs of a workload, or they cannot be compared
    settings: Mapping[str, Any]  # config of run.json, resolved by the side's own code
    environment: Mapping[str, Any]
    conditions: Conditions

    @property
    def workload_sha256(self) -> str:
        """Which workload it was."""
        return str(self.identity["workload.sha256"])


class Runner:
    """Runs either side's code. Ctrl-C is passed on to the run, once, and raised when that has ended."""

    def __init__(self, base: SourceTree, head: SourceTree, options: tuple[str, ...]) -> None:
        self._trees = {"base": base, "head": head}
        self._options = options
        self._gpu: NvmlDevice | None = None  # known from the first run on

    def __call__(self, side: str, workload: str, folder: Path) -> Measurement:
        """Run ``workload`` with the code of ``side`` into ``folder``, which must not exist.

        Raises:
            UsageError: the options do not suit that code, or base's fails.
            RunFailedError: head's run failed.
            ResultError: the run's record cannot be read, or is of other code.

        """
        tree = self._trees[side]
        arguments = ("run", "--workload", workload, *self._options, "--no-report", "--out", str(folder))
        log = folder.parent / f"{folder.name}.log"
        watch = Watch(self._gpu)
        code = _run(tree.command(*arguments), tree.environment(), log, watch)
        if code:
            raise _failure(side, tree, code, log)
        log.unlink()
        measurement = read_measurement(folder, tree, watch)
        uuid = measurement.identity.get("environment.gpu.uuid")
        if self._gpu is None and uuid:
            self._gpu = open_gpu(str(uuid))
        return measurement


def _run(command: list[str], environment: Mapping[str, str], log: Path, watch: Watch) -> int:
    with log.open("wb") as stream:
        # A process group of its own: a Ctrl-C of the terminal reaches it only through us.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment, process_group=0
        )
    try:
        while True:
            try:
                return process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                watch.look()
    except BaseException:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def _failure(side: str, tree: SourceTree, code: int, log: Path) -> PbenchError:
    """What a run that ended with ``code`` means: head's own failure is a regression, all else is how it was called."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = printable(lines[-1]) if lines else "nothing"
    text = (
        f"{side} ({printable(tree.revision.name)}): its `pbench run` ended with exit code {code} and said: {said}"
        f" (all of it in {display_path(log)})"
    )
    return RunFailedError(text) if side == "head" and code != EXIT_USAGE else UsageError(text)


def read_measurement(folder: Path, tree: SourceTree, watch: Watch) -> Measurement:
    """Read what the gate needs of a run.

    Raises:
        ResultError: it is not there, or the run was of other code than the tree's.

    """
    path = folder / "run.json"
    who = f"{tree.side} ({printable(tree.revision.name)})"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{who}: {display_path(path)} cannot be read: {error}") from error
    tokens_per_s = _at(document, _THROUGHPUT)
    identity = {name: value for name in _IDENTITY if (value := _at(document, name)) is not None}
    is_speed = isinstance(tokens_per_s, int | float) and 0 < tokens_per_s < math.inf
    if not is_speed or "workload.sha256" not in identity:
        raise ResultError(
            f"{who}: this pbench cannot read what that code writes: {display_path(path)} (schema version"
            f" {_at(document, 'schema_version')!r}) has no {_THROUGHPUT} above 0, or no workload.sha256"
        )
    commit = _at(document, "environment.pbench.git_commit")
    if commit is not None and commit != tree.revision.commit:
        raise ResultError(f"{who}: the run says that commit {printable(str(commit))} ran, not {tree.revision.commit}")
    throttle_bits, sm_clock_mhz = sampled_conditions(folder / "device.parquet")
    conditions = Conditions(throttle_bits, sm_clock_mhz, watch.num_foreign_gpu_processes(), watch.foreign_cpu_share())
    return Measurement(
        float(tokens_per_s), identity, dict(_flat(_at(document, "config"))), _at(document, "environment"), conditions
    )


def _at(document: Any, name: str) -> Any:
    """The value at a dotted name; None where the document has none."""
    for part in name.split("."):
        if isinstance(document, list) and part.isdecimal() and int(part) < len(document):
            document = document[int(part)]
        elif isinstance(document, dict):
            document = document.get(part)
        else:
            return None
    return document


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of nested settings, names dotted."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _flat(value, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, values
