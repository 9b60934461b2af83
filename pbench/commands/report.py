"""``pbench report``: one offline HTML page about one or several run folders."""

from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

import click

from pbench.units import display_path


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The page.  [default: report.html in the run folder; with several runs, in the current one]",
)
@click.option("--open", "is_opened", is_flag=True, help="Open the page in the browser.")
@click.option(
    "--plotlyjs",
    type=click.Choice(["inline", "cdn", "directory"]),
    default="inline",
    show_default=True,
    help="Where the page finds plotly.js: inside itself, on plotly's server, or in a file beside it.",
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write every chart into DIR too, as a file of its own, for a paper. Needs kaleido and a Chrome or Chromium.",
)
@click.option(
    "--figure-format",
    type=click.Choice(["svg", "png", "pdf"]),
    default="svg",
    show_default=True,
    help="Of the files of --figures.",
)
def report(
    runs: tuple[Path, ...], out: Path | None, is_opened: bool, plotlyjs: str, figures: Path | None, figure_format: str
) -> None:
    """Write one HTML page about every engine of RUN..., which are folders that `pbench run` made."""
    from pbench.errors import UsageError
    from pbench.reports.embedding import PLOTLYJS_FILE, plotlyjs_source
    from pbench.reports.figures import write_figures
    from pbench.reports.page import build_page
    from pbench.reports.report import render_page
    from pbench.results import Run, write_atomically

    path = out or (runs[0] if len(runs) == 1 else Path()) / "report.html"
    loaded = [Run(folder) for folder in runs]
    for run in loaded:
        _ = run.result  # a path that is no run folder is refused before anything is written
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: there is no folder {path.parent}")

    page = build_page(loaded)
    drawn = write_figures(page, figures, figure_format) if figures is not None else []

    def write(stream: BinaryIO) -> None:
        text = TextIOWrapper(stream, encoding="utf-8", write_through=True)
        render_page(page, text, plotlyjs=plotlyjs)
        text.detach()  # the file is closed by who opened it

    write_atomically(path, write)
    if plotlyjs == "directory":
        write_atomically(path.parent / PLOTLYJS_FILE, lambda stream: stream.write(plotlyjs_source().encode()))
    click.echo(f"report: {display_path(path)}")
    if figures is not None:
        click.echo(f"figures: {len(drawn)} in {display_path(figures)}")
    if is_opened:
        click.launch(path.resolve().as_uri())
