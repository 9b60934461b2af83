"""How the gate's result is written: for a terminal, a program, a pull request, or a CI server's list of tests."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO
from xml.etree import ElementTree

from pbench.gate.check import WORSE, Difference, GateResult
from pbench.units import format_number

if TYPE_CHECKING:
    from rich.console import Console

_HEADINGS = ("workload", "engine", "counter", "baseline", "now", "change", "verdict")
_NUM_TEXT_COLUMNS = 3

REMEDY = "record and commit a new baseline where a change is meant: pbench gate record"


def summary(result: GateResult) -> str:
    """The result in one line."""
    num_counters = sum(len(case.counters) for case in result.cases)
    counted = f"{num_counters} counters of {len(result.cases)} cases"
    if not result.differences:
        return f"passed: {counted} are those of the baseline"
    verdict = "passed" if result.has_passed else "failed"
    allowed = f" than {result.allowed_pct:g} % allowed" if result.allowed_pct else ""
    return f"{verdict}: of {counted}, {len(result.differences)} differ, {result.num_worse} worse{allowed}; {REMEDY}"


def write_table(result: GateResult, stream: TextIO) -> None:
    """Write the differences as a table, and the summary below it."""
    from pbench.console import console_for

    console = console_for(stream)
    if result.differences:
        _print_table(result, console)
        console.print()
    console.print(summary(result), markup=False, soft_wrap=True)


def write_json(result: GateResult, stream: TextIO) -> None:
    """Write the result as one JSON document, with all that was counted."""
    document: dict[str, Any] = {
        "has_passed": result.has_passed,
        "allowed_pct": result.allowed_pct,
        "num_worse": result.num_worse,
        "differences": [asdict(one) | {"change_pct": one.change_pct} for one in result.differences],
        "cases": [asdict(case) for case in result.cases],
    }
    stream.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_markdown(result: GateResult, stream: TextIO) -> None:
    """Write the result for a pull request's comment."""
    stream.write(f"**pbench gate** {summary(result)}\n")
    if result.differences:
        rule = ["---"] * _NUM_TEXT_COLUMNS + ["---:"] * (len(_HEADINGS) - _NUM_TEXT_COLUMNS - 1) + ["---"]
        stream.write("\n")
        for row in (_HEADINGS, rule, *(_row(one) for one in result.differences)):
            stream.write(f"| {' | '.join(row)} |\n")


def write_junit(result: GateResult, stream: TextIO) -> None:
    """Write the result as JUnit XML: one test for each case, failed by what is worse than allowed."""
    suite = ElementTree.Element("testsuite", name="pbench gate", errors="0", skipped="0")
    num_failures = 0
    for case in result.cases:
        test = ElementTree.SubElement(suite, "testcase", classname=f"pbench.gate.{case.scenario}", name=case.engine)
        differences = result.differences_of(case)
        worse = [one for one in differences if one.verdict == WORSE]
        if worse:
            num_failures += 1
            failure = ElementTree.SubElement(test, "failure", message=f"{len(worse)} counters are worse")
            failure.text = "\n".join(_line(one) for one in worse)
        if differences:
            ElementTree.SubElement(test, "system-out").text = "\n".join(_line(one) for one in differences)
    suite.set("tests", str(len(result.cases)))
    suite.set("failures", str(num_failures))
    ElementTree.indent(suite)
    stream.write(f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(suite, encoding="unicode")}\n')


WRITERS: Mapping[str, Callable[[GateResult, TextIO], None]] = {
    "table": write_table,
    "json": write_json,
    "markdown": write_markdown,
    "junit": write_junit,
}


def _print_table(result: GateResult, console: "Console") -> None:
    from rich.table import Table

    table = Table(pad_edge=False, show_edge=False)
    for index, heading in enumerate(_HEADINGS):
        is_number = _NUM_TEXT_COLUMNS <= index < len(_HEADINGS) - 1
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for one in result.differences:
        table.add_row(*_row(one))
    console.print(table, markup=False)


def _row(one: Difference) -> tuple[str, ...]:
    change = "from 0" if one.change_pct is None else f"{one.change_pct:+.2f} %"
    old, new = _exact(one.baseline), _exact(one.now)
    return (one.scenario, one.engine, one.counter, old, new, change, one.verdict)


def _line(one: Difference) -> str:
    _, _, counter, old, new, change, verdict = _row(one)
    return f"{counter}: {old} -> {new} ({change}), {verdict}"


def _exact(value: float) -> str:
    """A counter with all its digits: two that differ must not look alike."""
    return format_number(value) if isinstance(value, int) else repr(value)
