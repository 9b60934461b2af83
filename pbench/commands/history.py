"""``pbench history``: the trends of many runs over commits, with step changes marked."""

import sys
from pathlib import Path
from typing import TextIO

import click


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
    from pbench.page_output import write_page
    from pbench.reports.history import TREND_METRICS, read_history
    from pbench.reports.history_page import render_history
    from pbench.text_output import check_out

    path = out or folder / "history.html"
    check_out(path)
    found = read_history(folder, metrics or TREND_METRICS)
    write_table(found, sys.stdout)

    def render(stream: TextIO) -> None:
        render_history(found, folder.resolve().name, stream, plotlyjs=plotlyjs)

    write_page(path, "history", render, plotlyjs=plotlyjs, is_opened=is_opened)
