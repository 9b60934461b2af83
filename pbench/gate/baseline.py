"""The gate's baseline: what was counted, of what, in a JSON file that is committed beside the code.

History of the format (``SCHEMA_VERSION``):

1   the first.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from pbench.errors import IncomparableError, ResultError
from pbench.text_output import write_out
from pbench.units import display_path, printable

SCHEMA_VERSION = 1

REMEDY = "if that is what you want, record a new baseline with `pbench gate record`"

Setting = str | int | bool


@dataclass(frozen=True, slots=True)
class Case:
    """What was counted of one engine in one scenario, and all that decided it but the code."""

    scenario: str
    engine: str
    workload_sha256: str
    workload_seed: int
    settings: Mapping[str, Setting]
    counters: Mapping[str, float]  # by Counter.name

    @property
    def key(self) -> str:
        """What names the case."""
        return f"{self.scenario}, {self.engine}"


def write_baseline(path: Path, cases: Sequence[Case]) -> None:
    """Write the cases, atomically, one value a line, so that a difference reads well in a review.

    Raises:
        UsageError: the file cannot be written.

    """
    document = {"schema_version": SCHEMA_VERSION, "cases": [asdict(case) for case in cases]}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_out(path, text)


def read_baseline(path: Path) -> tuple[Case, ...]:
    """Read what ``write_baseline`` wrote.

    Raises:
        ResultError: the file is missing or damaged.
        IncomparableError: it is of another schema version.

    """
    where = display_path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(f"baseline {where} does not exist; make it with `pbench gate record`") from None
    except OSError as error:
        raise ResultError(f"baseline {where} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ResultError(f"baseline {where} is not JSON: {error}") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if type(version) is not int:  # a truth value is none
        raise ResultError(f"baseline {where} is no baseline of the gate: it has no schema_version")
    if version != SCHEMA_VERSION:
        raise IncomparableError(
            f"baseline {where} has schema version {version}, this pbench counts by version {SCHEMA_VERSION}; {REMEDY}"
        )
    cases = document.get("cases")
    if not isinstance(cases, list):
        raise ResultError(f"baseline {where}: cases is not a list")
    read = tuple(_read_case(case, f"baseline {where}: cases[{index}]") for index, case in enumerate(cases))
    keys = [case.key for case in read]
    for key in keys:
        if keys.count(key) > 1:
            raise ResultError(f"baseline {where} has {printable(key)} twice")
    return read


def _read_case(data: Any, where: str) -> Case:
    if not isinstance(data, dict):
        raise ResultError(f"{where} is not an object")
    fields = {
        name: _field(data, name, kind, where)
        for name, kind in (
            ("scenario", str),
            ("engine", str),
            ("workload_sha256", str),
            ("workload_seed", int),
            ("settings", dict),
            ("counters", dict),
        )
    }
    for name, value in fields["settings"].items():
        if not isinstance(value, get_args(Setting)):
            raise ResultError(f"{where}: settings.{printable(name)} is {value!r}, not text, a number or a truth value")
    for name, value in fields["counters"].items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ResultError(f"{where}: counters.{printable(name)} is {value!r}, not a number")
    return Case(**fields)


def _field(data: dict[str, Any], name: str, kind: type, where: str) -> Any:
    if type(data.get(name)) is not kind:  # a truth value is an int, but no seed
        raise ResultError(f"{where}: {name} is missing or not of type {kind.__name__}")
    return data[name]
