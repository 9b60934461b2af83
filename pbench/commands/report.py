"""``pbench report``: one offline HTML page about one or several run folders, or about a throughput gate."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from pbench.units import display_path

if TYPE_CHECKING:
    from pbench.reports.charts.panel import Panel


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
@click.option("--no-raw", "has_no_raw", is_flag=True, help="Do not carry the raw files in the page: it stays smaller.")
@click.option(
    "--kernels",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="What `pbench kernels --json FILE` measured on the same machine: the roofline's ceilings.",
)
def report(
    runs: tuple[Path, ...],
    out: Path | None,
    is_opened: bool,
    plotlyjs: str,
    figures: Path | None,
    figure_format: str,
    kernels: Path | None,
    has_no_raw: bool,
) -> None:
    """Write one HTML page about every engine of RUN..., which are folders that `pbench run` made.

    The folder of a throughput gate gives a page about the gate, pair by pair.
    """
    from pbench.page_output import write_page
    from pbench.reports.figures import write_figures
    from pbench.text_output import check_out

    path = out or (runs[0] if len(runs) == 1 else Path()) / "report.html"
    check_out(out)
    panels, labels, render = (
        _gate_page(runs[0]) if _is_gate(runs) else _run_page(runs, kernels, carries_raw=not has_no_raw)
    )
    drawn = write_figures(panels, labels, figures, figure_format) if figures is not None else []
    write_page(path, "report", partial(render, plotlyjs=plotlyjs), plotlyjs=plotlyjs, is_opened=is_opened)
    if figures is not None:
        click.echo(f"figures: {len(drawn)} in {display_path(figures)}")


class _Page(NamedTuple):
    panels: "Sequence[Panel]"
    labels: Mapping[str, str]  # of the engines, by their keys
    render: Callable[..., None]  # takes a stream and ``plotlyjs``


def _run_page(folders: Sequence[Path], kernels: Path | None, *, carries_raw: bool) -> _Page:
    from pbench.machine_limits import known_limits
    from pbench.reports.page import build_page
    from pbench.reports.report import render_page
    from pbench.results import Run
    from pbench.salvage import salvage

    runs = [Run(folder) for folder in folders]
    for run in runs:
        _ = run.result  # a path that is no run folder is refused before any table is read
        if salvage(run.path):
            click.echo(f"{display_path(run.path)} was left in the middle: its figures are from its journal", err=True)
    page = build_page(runs, known_limits(runs, kernels), carries_raw=carries_raw)
    return _Page(page.panels, {subject.key: subject.label for subject in page.subjects}, partial(render_page, page))


def _gate_page(folder: Path) -> _Page:
    from pbench.gate.throughput_result import FILE_NAME, read_throughput
    from pbench.reports.gate_page import build_gate_page, render_gate_page

    page = build_gate_page(read_throughput(folder / FILE_NAME))
    return _Page(page.panels, {}, partial(render_gate_page, page))


def _is_gate(folders: Sequence[Path]) -> bool:
    """Whether a throughput gate is asked about.

    Raises:
        UsageError: among other folders.
    """
    from pbench.errors import UsageError
    from pbench.gate.throughput_result import FILE_NAME

    gates = [folder for folder in folders if (folder / FILE_NAME).is_file() and not (folder / "run.json").exists()]
    if gates and len(folders) > 1:
        raise UsageError(f"{display_path(gates[0])} is a throughput gate's folder: give it alone")
    return bool(gates)
