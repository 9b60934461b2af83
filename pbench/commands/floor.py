"""``pbench floor``: where the time of runs went, and how far it is from the least that the machine allows."""

import sys
from io import StringIO
from pathlib import Path

import click

from pbench.units import display_path


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--kernels",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="What `pbench kernels --json FILE` measured on the same machine: the ceilings.  [default: data sheets]",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["table", "json", "markdown"]),
    default="table",
    show_default=True,
    help="How it is written.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where it is written.  [default: to the terminal]",
)
def floor(runs: tuple[Path, ...], kernels: Path | None, format_name: str, out: Path | None) -> None:
    """Hold every engine of RUN... against the floor: weights, KV and arithmetic at the machine's ceilings.

    The time is split by kinds of steps, and the largest gap is named. RUNs are folders that `pbench run` or
    `pbench simulate` made.
    """
    from pbench.errors import UsageError
    from pbench.floor.engine_floor import engine_floor
    from pbench.floor.view import WRITERS
    from pbench.machine_limits import known_limits
    from pbench.reports.subjects import load_subjects
    from pbench.results import Run
    from pbench.salvage import salvage
    from pbench.text_output import check_out, write_out
    from pbench.units import printable

    check_out(out)
    read = [Run(folder) for folder in runs]
    for run in read:
        _ = run.result  # a path that is no run folder is refused before any table is read
        if salvage(run.path):
            click.echo(f"{display_path(run.path)} was left in the middle: its figures are from its journal", err=True)
    bench = known_limits(read, kernels)
    floors = []
    for subject in load_subjects(read):
        found = engine_floor(subject, bench)
        if found is None:
            click.echo(f"{printable(subject.label)} has no steps whose cost is known: left out", err=True)
        else:
            floors.append(found)
    if not floors:
        raise UsageError("no engine of these runs has steps whose cost is known; run one of pbench's own engines")
    write = WRITERS[format_name]
    if out is None:
        write(floors, sys.stdout)
        return
    text = StringIO()
    write(floors, text)
    write_out(out, text.getvalue())
    click.echo(f"floor: {display_path(out)}")
