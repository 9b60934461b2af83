"""``pbench history``: the trends of many runs over commits, with step changes marked."""

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

import click

from pbench.units import display_path


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="A figure to follow, as run.json names it; repeatable.  [default: nine that matter most]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The page.  [default: history.html in DIR]",
)
@click.option("--open", "is_opened", is_flag=True, help="Open the page in the browser.")
@click.option(
    "--plotlyjs",
    type=click.Choice(["inline", "cdn", "directory"]),
    default="inline",
    show_default=True,
    help="Where the page finds plotly.js: inside itself, on plotly's server, or in a file beside it.",
)
def history(folder: Path, metrics: tuple[str, ...], out: Path | None, is_opened: bool, plotlyjs: str) -> None:
    """Show how the figures of all runs at and below DIR developed, and where they changed their level.

    Runs of one workload, model, machine and size of pool lie on one line, in order of time. A step is told when it is
    at least 1 % and not explained by the runs' noise (E-divisive, Matteson and James 2014).
    """
    from pbench.history_view import write_table
    from pbench.reports.embedding import PLOTLYJS_FILE, plotlyjs_source
    from pbench.reports.history import TREND_METRICS, read_history
    from pbench.reports.history_page import render_history
    from pbench.results import write_atomically
    from pbench.text_output import check_out

    check_out(out)
    path = out or folder / "history.html"
    found = read_history(folder, metrics or TREND_METRICS)
    write_table(found, sys.stdout)

    def write(stream: BinaryIO) -> None:
        text = TextIOWrapper(stream, encoding="utf-8", write_through=True)
        render_history(found, folder.resolve().name, text, plotlyjs=plotlyjs)
        text.detach()  # the file is closed by who opened it

    write_atomically(path, write)
    if plotlyjs == "directory":
        write_atomically(path.parent / PLOTLYJS_FILE, lambda stream: stream.write(plotlyjs_source().encode()))
    click.echo(f"history: {display_path(path)}")
    if is_opened:
        click.launch(path.resolve().as_uri())
