"""Tables of text, for a terminal and for Markdown. Columns are left-aligned up to a number of them, then right."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from pbench.markdown import escaped

if TYPE_CHECKING:
    from rich.console import Console


def print_table(console: "Console", headings: Sequence[str], rows: Iterable[Sequence[str]], *, num_left: int) -> None:
    """Print a table; cells that are too wide are folded."""
    from rich.table import Table
    from rich.text import Text

    table = Table(pad_edge=False, show_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(Text(heading), justify="left" if index < num_left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def write_markdown_table(
    stream: TextIO, headings: Sequence[str], rows: Iterable[Sequence[str]], *, num_left: int
) -> None:
    """Write a table after an empty line; nothing in its cells is a mark of Markdown."""
    stream.write("\n")
    for row in (headings, *rows):
        stream.write(f"| {' | '.join(map(escaped, row))} |\n")
        if row is headings:
            stream.write(f"| {' | '.join('---' if index < num_left else '---:' for index in range(len(row)))} |\n")
