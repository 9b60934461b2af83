"""Where an HTML page goes: as a whole into a file, with plotly.js beside it if that is asked for, and the browser."""

from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO, TextIO

import click

from pbench.results import write_atomically
from pbench.text_output import check_out
from pbench.units import display_path


def write_page(path: Path, name: str, render: Callable[[TextIO], None], *, plotlyjs: str, is_opened: bool) -> None:
    """Let ``render`` write the page, and tell where it is.

    Raises:
        UsageError: the file's folder does not exist.
    """
    from pbench.reports.embedding import PLOTLYJS_FILE, plotlyjs_source

    check_out(path)

    def write(stream: BinaryIO) -> None:
        text = TextIOWrapper(stream, encoding="utf-8", write_through=True)
        render(text)
        text.detach()  # the file is closed by who opened it

    write_atomically(path, write)
    if plotlyjs == "directory":
        write_atomically(path.parent / PLOTLYJS_FILE, lambda stream: stream.write(plotlyjs_source().encode()))
    click.echo(f"{name}: {display_path(path)}")
    if is_opened:
        import webbrowser

        if not webbrowser.open(path.resolve().as_uri()):
            click.echo(f"no browser was found to open it in: open {display_path(path)} yourself", err=True)
