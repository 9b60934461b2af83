"""How the throughput gate's result is written: for a terminal, a pull request, or a CI server's list of tests."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import geometric_mean
from typing import TYPE_CHECKING, TextIO
from xml.etree import ElementTree

from pbench.gate.throughput_result import FAIL, INCONCLUSIVE, PASS, Pair, Revision, ThroughputResult, WorkloadResult
from pbench.markdown import escaped
from pbench.units import format_number, printable

if TYPE_CHECKING:
    from rich.console import Console

_HEADINGS = ("workload", "pairs", "base", "head", "ratio", "interval", "verdict")
_NUM_TEXT_COLUMNS = 1
_PAIR_HEADINGS = ("workload", "pair", "first", "base", "head", "ratio", "discarded")
_WORDS = {PASS: "passed", FAIL: "failed", INCONCLUSIVE: "inconclusive"}


def summary(result: ThroughputResult) -> str:
    """The result in one line: the reasons of the workloads that made it what it is."""
    decisive = [one for one in result.workloads if one.verdict == result.verdict]
    reasons = "; ".join(f"{printable(one.name)}: {printable(one.reason)}" for one in decisive)
    return f"{_WORDS[result.verdict]}: {reasons}"


def write_table(result: ThroughputResult, stream: TextIO) -> None:
    """Write the table, what a reader must know, and the summary below it."""
    from pbench.console import console_for

    console = console_for(stream)
    _print_table(result, console)
    console.print()
    for line in (*_details(result), summary(result)):
        console.print(line, markup=False, soft_wrap=True)


def write_markdown(result: ThroughputResult, stream: TextIO) -> None:
    """Write the result for a pull request's comment, every pair folded away below it."""
    stream.write(f"**pbench gate throughput** {escaped(summary(result))}\n\n")
    _write_markdown_table(stream, _HEADINGS, (_row(one) for one in result.workloads), _NUM_TEXT_COLUMNS)
    stream.write("\n")
    for line in _details(result):
        stream.write(f"- {escaped(line)}\n")
    stream.write("\n<details><summary>Every pair</summary>\n\n")
    rows = (_pair_row(one.name, pair, is_aa=is_aa) for one in result.workloads for pair, is_aa in _all_pairs(one))
    _write_markdown_table(stream, _PAIR_HEADINGS, rows, 3)
    stream.write("\n</details>\n")


def write_junit(result: ThroughputResult, stream: TextIO) -> None:
    """Write the result as JUnit XML: one test for each workload, an error where it is inconclusive."""
    counts = {verdict: sum(one.verdict == verdict for one in result.workloads) for verdict in _WORDS}
    suite = ElementTree.Element(
        "testsuite",
        name="pbench gate throughput",
        tests=str(len(result.workloads)),
        failures=str(counts[FAIL]),
        errors=str(counts[INCONCLUSIVE]),
        skipped="0",
    )
    for one in result.workloads:
        test = ElementTree.SubElement(suite, "testcase", classname="pbench.gate.throughput", name=printable(one.name))
        pairs = "\n".join(" | ".join(_pair_row(one.name, pair, is_aa=is_aa)) for pair, is_aa in _all_pairs(one))
        if one.verdict != PASS:
            tag = "failure" if one.verdict == FAIL else "error"
            ElementTree.SubElement(test, tag, message=printable(one.reason)).text = pairs
        ElementTree.SubElement(test, "system-out").text = f"{' | '.join(_row(one))}\n{pairs}"
    ElementTree.indent(suite)
    stream.write(f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(suite, encoding="unicode")}\n')


# Beside throughput.json in the gate's folder.
FILES: Mapping[str, Callable[[ThroughputResult, TextIO], None]] = {
    "comment.md": write_markdown,
    "junit.xml": write_junit,
}


def _details(result: ThroughputResult) -> Iterator[str]:
    """What stands between the table and the verdict."""
    yield f"base {_revision(result.base)}, head {_revision(result.head)}; allowed: less than {result.delta:.1%} slower"
    looks = [look for one in result.workloads for look in one.looks[-1:]]
    if looks:
        yield f"base and head in tok/s, their ratio with its {looks[0].confidence:.1%} interval"
    for one in result.workloads:
        name = printable(one.name)
        if one.aa and one.aa.spread is not None:
            yield (
                f"{name}: base against itself spreads by {one.aa.spread:.1%} a pair;"
                f" {result.looks[-1]} pairs resolve {one.aa.smallest_delta:.1%}"
            )
        for look in one.looks[-1:]:
            yield f"{name}: one-sided sign-flip test p = {look.p_value:.2g}, significant up to {look.p_threshold:.2g}"
        for setting, (base, head) in one.differing.items():
            yield f"{name}: {printable(setting)} differs: {printable(str(base))} | {printable(str(head))}"
        for pair, is_aa in _all_pairs(one):
            if pair.discarded:
                yield f"{name}: discarded {'A/A ' if is_aa else ''}pair {pair.number}: {'; '.join(pair.discarded)}"
    yield from (f"note: {printable(note)}" for note in result.notes)


def _revision(revision: Revision) -> str:
    commit = revision.commit[:12] if revision.commit else "no commit"
    return f"{printable(revision.name)} ({printable(commit)}{', with changes' if revision.is_dirty else ''})"


def _all_pairs(one: WorkloadResult) -> Iterator[tuple[Pair, bool]]:
    """Every pair, and whether it is of the A/A check."""
    yield from ((pair, True) for pair in (one.aa.pairs if one.aa else ()))
    yield from ((pair, False) for pair in one.pairs)


def _row(one: WorkloadResult) -> tuple[str, ...]:
    pairs = one.counted_pairs
    if not pairs:
        return (printable(one.name), "0", "-", "-", "-", "-", _WORDS[one.verdict])
    base, head = (geometric_mean(values) for values in zip(*(_speeds(pair) for pair in pairs), strict=True))
    ratio, interval = f"{geometric_mean(pair.ratio for pair in pairs):.3f}", "-"
    if one.looks:
        look = one.looks[-1]
        ratio, interval = f"{look.ratio:.3f}", f"{look.low:.3f} to {look.high:.3f}"
    return (
        printable(one.name),
        str(len(pairs)),
        format_number(base),
        format_number(head),
        ratio,
        interval,
        _WORDS[one.verdict],
    )


def _speeds(pair: Pair) -> tuple[float, float]:
    return pair.base_tokens_per_s, pair.head_tokens_per_s


def _pair_row(name: str, pair: Pair, *, is_aa: bool) -> tuple[str, ...]:
    base, head = map(format_number, _speeds(pair))
    number = f"A/A {pair.number}" if is_aa else str(pair.number)
    first = "base" if pair.is_base_first or is_aa else "head"
    return (printable(name), number, first, base, head, f"{pair.ratio:.3f}", "; ".join(pair.discarded))


def _print_table(result: ThroughputResult, console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(pad_edge=False, show_edge=False)
    for index, heading in enumerate(_HEADINGS):
        is_number = _NUM_TEXT_COLUMNS <= index < len(_HEADINGS) - 1
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold", no_wrap=index > 0)
    for one in result.workloads:
        table.add_row(*map(Text, _row(one)))
    console.print(table)


def _write_markdown_table(
    stream: TextIO, headings: tuple[str, ...], rows: Iterable[tuple[str, ...]], num_text_columns: int
) -> None:
    num_numbers = len(headings) - num_text_columns - 1
    for row in (headings, ("---",) * num_text_columns + ("---:",) * num_numbers + ("---",)):
        stream.write(f"| {' | '.join(row)} |\n")
    for row in rows:
        stream.write(f"| {' | '.join(map(escaped, row))} |\n")
