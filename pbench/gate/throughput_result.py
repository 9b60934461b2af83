"""The throughput gate's record: ``throughput.json``, all that was measured pair by pair and what was made of it.

Ratios are head / base: below 1 head is slower. An interval's bounds are ratios too. A report draws it so::

    forest plot      one row a workload: its last look's ratio, low and high, beside the band 1 - delta ... 1
    pair by pair     Pair.ratio over Pair.number, those with ``discarded`` hollow; ``aa.pairs`` before them

History of the format (``SCHEMA_VERSION``):

1   the first.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pbench.errors import ResultError
from pbench.results import write_atomically

SCHEMA_VERSION = 1
FILE_NAME = "throughput.json"  # in the gate's folder

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
VERDICTS = (PASS, FAIL, INCONCLUSIVE)


@dataclass(frozen=True, slots=True)
class Revision:
    """Whose code ran on one side."""

    name: str  # as the user gave it: a git ref or a folder
    commit: str | None  # None: the folder is no checkout
    is_dirty: bool | None  # files differ from the commit; None: not known


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs, one right after the other. In an A/A check both are of base's code."""

    number: int  # from 1, in the order in which they ran
    is_base_first: bool
    base_tokens_per_s: float
    head_tokens_per_s: float
    base_run: str  # run folder, relative to the gate's folder
    head_run: str
    discarded: tuple[str, ...] = ()  # why it does not count; empty: it counts

    @property
    def ratio(self) -> float:
        """Head's tokens/s over base's."""
        return self.head_tokens_per_s / self.base_tokens_per_s


@dataclass(frozen=True, slots=True)
class Resolution:
    """The A/A check: base against itself. What the machine can tell apart."""

    pairs: tuple[Pair, ...]
    power: float  # with which an unchanged head is to pass
    spread: float | None = None  # standard deviation of log(ratio) of a pair; None: too few pairs counted
    needed_pairs: int | None = None  # for an unchanged head to pass with ``power``; None: not known, or far too many
    smallest_delta: float | None = None  # that the last look resolves with ``power``


@dataclass(frozen=True, slots=True)
class Look:
    """What the pairs that count said at one of the looks."""

    num_pairs: int
    ratio: float  # geometric mean
    low: float  # t interval of the ratio
    high: float
    confidence: float  # of the interval: 1 - alpha / number of looks
    p_value: float  # exact one-sided sign-flip test of "head is not slower"
    p_threshold: float  # at or below which it is significant: alpha over looks, and after Holm over workloads
    verdict: str  # one of VERDICTS; INCONCLUSIVE: go on, if pairs are left


@dataclass(frozen=True, slots=True)
class WorkloadResult:
    """One workload on both sides."""

    name: str
    sha256: str
    settings: Mapping[str, Any]  # common to both: engine, model, dtype, device, kv_memory_bytes, ...
    differing: Mapping[str, tuple[Any, Any]]  # settings that base and head resolved differently
    aa: Resolution | None  # None: not reached
    pairs: tuple[Pair, ...]
    looks: tuple[Look, ...]
    verdict: str
    reason: str  # in one line

    @property
    def counted_pairs(self) -> tuple[Pair, ...]:
        """The pairs that were not discarded."""
        return tuple(pair for pair in self.pairs if not pair.discarded)


@dataclass(frozen=True, slots=True)
class ThroughputResult:
    """The contents of ``throughput.json``."""

    created_at: str  # ISO 8601, UTC
    command: tuple[str, ...]
    base: Revision
    head: Revision
    delta: float  # the loss that fails: 0.05 is 5 %
    alpha: float  # chance of a false failure over all looks and workloads, at most
    looks: tuple[int, ...]  # pairs that count at each
    discard_rules: Mapping[str, str]  # reasons for which a pair was to be discarded, declared before the first run
    environment: Mapping[str, Any]  # of the machine: as in run.json
    workloads: tuple[WorkloadResult, ...]
    verdict: str
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION


def write_throughput(path: Path, result: ThroughputResult) -> None:
    """Write the record, atomically."""
    text = json.dumps(asdict(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda stream: stream.write(text.encode()))


def read_throughput(path: Path) -> ThroughputResult:
    """Read what ``write_throughput`` wrote.

    Raises:
        ResultError: it is missing, not JSON, of another schema version, or lacks a field.

    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(f"{path} does not exist; `pbench gate throughput` makes it") from None
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} cannot be read: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise ResultError(f"{path} has schema version {version!r}; this pbench reads version {SCHEMA_VERSION}")
    try:
        return _result(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{path} is not a complete record of the throughput gate: {error}") from error


def _result(data: dict[str, Any]) -> ThroughputResult:
    nested = {
        "base": Revision(**data["base"]),
        "head": Revision(**data["head"]),
        "workloads": tuple(_workload(one) for one in data["workloads"]),
    }
    return ThroughputResult(**(data | nested | _tuples(data, "command", "looks", "notes")))


def _workload(data: dict[str, Any]) -> WorkloadResult:
    aa = data["aa"]
    nested = {
        "aa": None if aa is None else Resolution(**(aa | {"pairs": _pairs(aa)})),
        "pairs": _pairs(data),
        "looks": tuple(Look(**look) for look in data["looks"]),
        "differing": {name: tuple(values) for name, values in data["differing"].items()},
    }
    return WorkloadResult(**(data | nested))


def _pairs(data: dict[str, Any]) -> tuple[Pair, ...]:
    return tuple(Pair(**(pair | _tuples(pair, "discarded"))) for pair in data["pairs"])


def _tuples(data: dict[str, Any], *names: str) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(data[name]) for name in names}
