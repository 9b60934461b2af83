"""``pbench workloads``: what can be played, and what is in it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from pbench.commands.workload_options import workload_choice, workload_options
from pbench.errors import UsageError
from pbench.units import display_path, format_number, printable

if TYPE_CHECKING:
    from pbench.workloads.workload import Workload

DEFAULT_BLOCK_SIZE = 16


@click.group()
def workloads() -> None:
    """List, look at, import and export workloads."""


@workloads.command("list")
def list_workloads() -> None:
    """List the built-in workloads, and the file formats that are recognised by their content."""
    from pbench.console import console_for
    from pbench.workload_view import definitions_table, formats_table
    from pbench.workloads.builtin import BUILT_INS
    from pbench.workloads.readers import FORMATS

    console = console_for()
    console.print(definitions_table(BUILT_INS))
    console.print()
    console.print(formats_table(FORMATS))


@workloads.command()
@click.argument("workload", metavar="NAME|FILE")
@workload_options
@click.option(
    "--block-size",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Of the ideal prefix caches.  [default: what a prefix hash of the file covers, or 16]",
)
@click.option(
    "--cache-blocks",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1_000, 10_000, 50_000),
    show_default=True,
    metavar="N",
    help="Blocks of an ideal prefix cache; repeatable.",
)
def show(workload: str, block_size: int | None, cache_blocks: tuple[int, ...], **options: Any) -> None:
    """Show lengths, arrivals, what prompts share, and three requests of a workload."""
    from pbench.console import console_for
    from pbench.workload_view import parameters_table, print_workload
    from pbench.workloads.catalogue import parameter_owner

    loaded = workload_choice(workload, options).load()
    console = console_for()
    print_workload(
        loaded,
        console,
        block_size=block_size or loaded.hash_block_size or DEFAULT_BLOCK_SIZE,
        cache_blocks=cache_blocks,
    )
    owner = parameter_owner(loaded)
    if owner.parameters:
        console.print()
        console.print(parameters_table(owner, loaded))


@workloads.command("import")
@click.argument("workload", metavar="SRC")
@click.argument("out", type=click.Path(path_type=Path))
@workload_options
@click.option("--licence", metavar="TEXT", help="Of the source; goes into the header of OUT.")
@click.option("--force", is_flag=True, help="Replace OUT where it exists.")
def import_workload(workload: str, out: Path, licence: str | None, force: bool, **options: Any) -> None:
    """Write a file or a built-in workload as pbench's own JSONL, gzipped where OUT ends with .gz.

    The header says where the requests are from: source, its hash, the licence if known, and these options. Recorded
    times are kept unless --arrivals says otherwise.
    """
    from pbench.version import __version__
    from pbench.workloads.provenance import provenance
    from pbench.workloads.writers.native import native_lines

    _refuse_to_replace(out, force)
    loaded = _load_with_times(workload, options)
    header = {"written_by": f"pbench {__version__}", **provenance(loaded, licence=licence)}
    _write(out, native_lines(loaded, header))
    click.echo(f"{display_path(out)}: {format_number(loaded.num_requests)} requests, sha256 {loaded.sha256}")


@workloads.command()
@click.argument("workload", metavar="NAME|FILE")
@click.argument("out", type=click.Path(path_type=Path))
@workload_options
@click.option("--force", is_flag=True, help="Replace OUT where it exists.")
def export(workload: str, out: Path, force: bool, **options: Any) -> None:
    """Write a workload as a Mooncake trace, which other tools play; gzipped where OUT ends with .gz.

    Arrivals are rounded to milliseconds, and of common prefixes the whole blocks of 512 tokens are kept.
    """
    from pbench.workloads.catalogue import load_workload
    from pbench.workloads.prefixes import prefix_sharing
    from pbench.workloads.writers.mooncake import mooncake_lines

    _refuse_to_replace(out, force)
    loaded = _load_with_times(workload, options)
    _write(out, mooncake_lines(loaded))
    before, after = (prefix_sharing(each.requests) for each in (loaded, load_workload(str(out.resolve()))))
    click.echo(
        f"{display_path(out)}: {format_number(loaded.num_requests)} requests; prefixes share"
        f" {100 * after.saved_tokens / after.total_tokens:.2f} % of the prompt tokens there, and"
        f" {100 * before.saved_tokens / before.total_tokens:.2f} % in {printable(loaded.name)}"
    )


def _load_with_times(workload: str, options: dict[str, Any]) -> "Workload":
    """The workload, with its recorded times where it has some and nothing else was asked for."""
    choice = workload_choice(workload, options)
    loaded = choice.load()
    if choice.arrivals is None and loaded.arrivals == "all" and loaded.has_recorded_times:
        return replace(choice, arrivals="recorded").load()
    return loaded


def _refuse_to_replace(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise UsageError(f"{display_path(out)} exists; choose another name, or --force to replace it")
    if not out.parent.is_dir():
        raise UsageError(f"{display_path(out)} cannot be written: there is no folder {display_path(out.parent)}")


def _write(out: Path, lines: Iterator[str]) -> None:
    import gzip

    from pbench.results import write_atomically

    def write(stream: BinaryIO) -> None:
        if out.suffix != ".gz":
            stream.writelines(line.encode() for line in lines)
            return
        with gzip.GzipFile(filename="", fileobj=stream, mode="wb", mtime=0) as zipped:
            zipped.writelines(line.encode() for line in lines)

    try:
        write_atomically(out, write)
    except OSError as error:
        raise UsageError(f"{display_path(out)} cannot be written: {error.strerror or error}") from error
