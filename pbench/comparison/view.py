"""How a comparison of runs is written: for a terminal, a program, a pull request, a spreadsheet."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TextIO

from pbench.comparison.runs import EngineRows, MetricSide, RunComparison
from pbench.figure_text import legend
from pbench.markdown import escaped
from pbench.text_tables import print_table, write_markdown_table
from pbench.units import printable

FORCED = "FORCED: these runs are not of the same thing, and a difference may come from that alone"
NOTHING_DIFFERS = "no setting differs"


def write_table(comparison: RunComparison, stream: TextIO) -> None:
    """Write tables: the settings that differ, then every engine's figures."""
    from pbench.console import console_for

    console = console_for(stream)

    def line(text: str = "") -> None:
        console.print(text, markup=False, soft_wrap=True)

    for letter, run in zip(comparison.letters, comparison.runs, strict=True):
        line(f"{letter} = {printable(run.label)}")
    for warning in _warnings(comparison):
        line(warning)
    line()
    if comparison.settings:
        rows = ((one.name, *one.values) for one in comparison.settings)
        print_table(console, ("settings that differ", *comparison.letters), rows, num_left=1 + len(comparison.runs))
    else:
        line(NOTHING_DIFFERS)
    for engine in comparison.engines:
        line()
        print_table(console, _headings(comparison, engine), _cells(engine), num_left=1)
    line()
    for mark in _legend(comparison):
        line(mark)
    for note in comparison.notes:
        line(f"note: {note}")


def write_json(comparison: RunComparison, stream: TextIO) -> None:
    """Write the comparison as one JSON document; ratios, their bounds and verdicts start with the second run."""
    document = {
        "runs": [{"path": run.label, "run_id": run.result.run_id} for run in comparison.runs],
        "is_forced": bool(comparison.forbidding),
        "forbidding": [asdict(one) for one in comparison.forbidding],
        "settings": [asdict(one) for one in comparison.settings],
        "engines": [
            {
                "specs": engine.specs,
                "metrics": [
                    {
                        "name": row.metric.name,
                        "unit": row.metric.unit,
                        "is_higher_better": row.metric.is_higher_better,
                        "values": [side.value for side in row.sides],
                        "repeats": [side.repeats for side in row.sides],
                        "intervals": [side.interval and asdict(side.interval) for side in row.sides],
                        "is_supported": [side.is_supported for side in row.sides],
                        "ratios": row.ratios,
                        "ratio_bounds": row.ratio_bounds,
                        "verdicts": row.verdicts,
                    }
                    for row in engine.rows
                ],
            }
            for engine in comparison.engines
        ],
        "notes": comparison.notes,
    }
    stream.write(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_markdown(comparison: RunComparison, stream: TextIO) -> None:
    """Write the comparison for a pull request's comment."""
    for letter, run in zip(comparison.letters, comparison.runs, strict=True):
        stream.write(f"- {letter} = {escaped(printable(run.label))}\n")
    for warning in _warnings(comparison):
        stream.write(f"\n**{escaped(warning)}**\n")
    if comparison.settings:
        rows = ((one.name, *one.values) for one in comparison.settings)
        headings = ("settings that differ", *comparison.letters)
        write_markdown_table(stream, headings, rows, num_left=len(headings))
    else:
        stream.write(f"\n{NOTHING_DIFFERS}\n")
    for engine in comparison.engines:
        write_markdown_table(stream, _headings(comparison, engine), _cells(engine), num_left=1)
    stream.write("\n")
    for note in (*_legend(comparison), *comparison.notes):
        stream.write(f"- {escaped(note)}\n")


def write_csv(comparison: RunComparison, stream: TextIO) -> None:
    """Write one row a fact, told apart by the first column: run, forced, setting, metric, note. Figures unrounded."""
    letters = comparison.letters
    against = [f"{letter}/{letters[0]}" for letter in letters[1:]]
    verdicts = [f"{letter} against {letters[0]}" for letter in letters[1:]]
    bounds = [f"{name} {end}" for name in against for end in ("low", "high")]
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(("kind", "engine", "name", "unit", *letters, *against, *bounds, *verdicts, "flags"))
    rows.writerow(("run", "", "path", "", *(run.label for run in comparison.runs)))
    for one in comparison.forbidding:
        rows.writerow(("forced", "", one.name, "", *one.values))
    for one in comparison.settings:
        rows.writerow(("setting", "", one.name, "", *one.values))
    for engine in comparison.engines:
        for row in engine.rows:
            values = [side.value for side in row.sides]
            ends = [end for pair in row.ratio_bounds for end in pair or (None, None)]
            flags = "; ".join(flag for pair in zip(letters, row.sides, strict=True) for flag in _flags(*pair))
            figures = (*values, *row.ratios, *ends, *row.verdicts, flags)
            rows.writerow(("metric", engine.title, row.metric.name, row.metric.unit, *figures))
    for note in comparison.notes:
        rows.writerow(("note", "", note))


WRITERS: Mapping[str, Callable[[RunComparison, TextIO], None]] = {
    "table": write_table,
    "json": write_json,
    "markdown": write_markdown,
    "csv": write_csv,
}


def _warnings(comparison: RunComparison) -> list[str]:
    if not comparison.forbidding:
        return []
    return [FORCED, *(one.text for one in comparison.forbidding)]


def _headings(comparison: RunComparison, engine: EngineRows) -> tuple[str, ...]:
    first, *others = comparison.letters
    return (engine.title, first, *others, *(f"{letter} against {first}" for letter in others))


def _cells(engine: EngineRows) -> Iterable[tuple[str, ...]]:
    return ((row.metric.label, *(side.text for side in row.sides), *row.verdicts) for row in engine.rows)


def _legend(comparison: RunComparison) -> Iterable[str]:
    return legend(result for engine in comparison.engines for result in engine.results)


def _flags(letter: str, side: MetricSide) -> Iterable[str]:
    if side.interval is not None and side.interval.is_wide:
        yield f"{letter}: wide spread"
    if not side.is_supported:
        yield f"{letter}: unsupported"
