"""The fine print: nested mappings of a run record as rows, and where the engines' configurations differ."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pbench.reports.quantity import NOT_APPLICABLE, format_number, format_quantity
from pbench.reports.subjects import Subject

# Fields of a workload that the page shows by themselves, not among the rest.
_WORKLOAD_HEADLINE = ("name", "description")


class Fact(NamedTuple):
    """One entry of a record: its path in words ("gpu, driver") and its value for people."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One configuration entry in which engines differ: a text for every engine, in order."""

    name: str
    texts: tuple[str, ...]


def facts(record: Mapping[str, Any], prefix: str = "") -> list[Fact]:
    """Every leaf of a nested mapping, in order; a mapping without entries leaves none."""
    return list(_leaves(record, prefix))


def workload_facts(workload: Mapping[str, Any]) -> list[Fact]:
    """The workload's provenance and sizes, without its name and description."""
    return facts({key: value for key, value in workload.items() if key not in _WORKLOAD_HEADLINE})


def config_differences(subjects: Sequence[Subject]) -> list[Difference]:
    """Entries of the resolved configurations, of the pools and of the environments that are not the same for all."""
    records = [
        dict(facts(subject.run.config) + facts(subject.engine.config))
        | dict(facts(subject.engine.pool, "pool, ") + facts(subject.run.environment, "environment, "))
        for subject in subjects
    ]
    names = dict.fromkeys(name for record in records for name in record)
    rows = (Difference(name, tuple(record.get(name, NOT_APPLICABLE) for record in records)) for name in names)
    return [row for row in rows if len(set(row.texts)) > 1]


def command_line(command: Sequence[str]) -> str:
    """``command`` as one line that a POSIX shell splits into the same words."""
    return shlex.join(command)


def describe(key: str, value: object) -> str:
    """A leaf's value for people: ``key`` says what is in bytes; None reads "none"."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if key.endswith("_bytes"):
            return f"{format_quantity(value, 'bytes')} ({format_number(value)} bytes)"
        if key == "seed":
            return str(value)
        digits = format_number(value, significant_digits=6)
        return digits.rstrip("0").rstrip(".") if "." in digits and "e" not in digits else digits
    return str(value)


def _leaves(record: Mapping[str, Any], prefix: str) -> Iterator[Fact]:
    for key, value in record.items():
        name = (
            key.removesuffix("_bytes").removeprefix("num_").removeprefix("is_").removeprefix("has_").replace("_", " ")
        )
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}, ")
        elif isinstance(value, list | tuple):
            yield Fact(f"{prefix}{name}", ", ".join(describe(key, item) for item in value) or "none")
        else:
            yield Fact(f"{prefix}{name}", describe(key, value))
