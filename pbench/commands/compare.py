"""``pbench compare``: run folders side by side."""

import sys
from io import StringIO
from pathlib import Path

import click

from pbench.units import display_path

_EXIT_CODES = """\b
Exit codes:
  0  the runs were compared
  2  a run cannot be read, or the options cannot work
  4  the runs are of other workloads, models or machines; --force compares them all the same
"""


@click.command(epilog=_EXIT_CODES)
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...", type=click.Path(path_type=Path))
@click.option("--force", "is_forced", is_flag=True, help="Compare what is not comparable; the output says so.")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["table", "json", "markdown", "csv"]),
    default="table",
    show_default=True,
    help="How the comparison is written.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where the comparison is written.  [default: to the terminal]",
)
def compare(runs: tuple[Path, ...], is_forced: bool, format_name: str, out: Path | None) -> None:
    """Show how runs were set up differently, and every figure of each against the first RUN's.

    The RUNs are folders that `pbench run` or `pbench simulate` made, of one workload, model and machine; or folders of
    such runs that repeat one another.
    """
    from pbench.comparison.runs import compare_runs
    from pbench.comparison.sides import read_side
    from pbench.comparison.view import WRITERS
    from pbench.text_output import check_out, write_out

    check_out(out)
    comparison = compare_runs([read_side(run) for run in runs], is_forced=is_forced)
    write = WRITERS[format_name]
    if out is None:
        write(comparison, sys.stdout)
        return
    text = StringIO()
    write(comparison, text)
    write_out(out, text.getvalue())
    click.echo(f"comparison: {display_path(out)}")
