"""How a history is written to a terminal."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from pbench.units import format_quantity, printable

if TYPE_CHECKING:
    from pbench.reports.history import History, Trend

_BARS = "▁▂▃▄▅▆▇█"
_MAX_BARS = 16
_MAX_TOLD = 3  # steps of a trend, the latest first


def write_table(history: "History", stream: TextIO) -> None:
    """Write a table for every group of runs that can be compared, and what was left out."""
    from rich.table import Table
    from rich.text import Text

    from pbench.console import console_for

    console = console_for(stream)
    for group in history.groups:
        console.print(f"{printable(group.title)}: {len(group.runs)} runs", markup=False, soft_wrap=True)
        table = Table(pad_edge=False, show_edge=False)
        for heading in ("figure", "engine", "first", "last"):
            table.add_column(heading, justify="right" if heading in ("first", "last") else "left", overflow="fold")
        table.add_column("trend", no_wrap=True)
        for trend in group.trends:
            ends = (format_quantity(value, trend.metric.unit) for value in (trend.values[0], trend.values[-1]))
            cells = (trend.metric.label, printable(trend.spec), *ends, _sparkline(trend.values))
            table.add_row(*map(Text, cells))
        console.print(table)
        for trend in group.trends:
            for line in _steps(trend):
                console.print(line, markup=False, soft_wrap=True)
        console.print()
    for reason in history.left_out:
        console.print(f"left out: {printable(reason)}", markup=False, soft_wrap=True)


def _steps(trend: "Trend") -> Iterator[str]:
    """A line a step, the latest first."""
    name = f"{trend.metric.label} of {printable(trend.spec)}"
    for step in trend.steps[::-1][:_MAX_TOLD]:
        change = f"{step.change * 100:+.1f} %" if step.before else "from 0"
        tone = trend.tone(step)
        commit = printable(trend.points[step.at].commit)
        yield f"step: {name} {change}{'' if tone == 'neutral' else f', {tone},'} at {commit}"
    if len(trend.steps) > _MAX_TOLD:
        yield f"      and {len(trend.steps) - _MAX_TOLD} steps of {name} before"


def _sparkline(values: tuple[float, ...]) -> str:
    """The last values as bars between the least and the greatest of them."""
    shown = values[-_MAX_BARS:]
    low, high = min(shown), max(shown)
    top = len(_BARS) - 1
    return "".join(_BARS[round((value - low) / (high - low) * top) if high > low else top // 2] for value in shown)
