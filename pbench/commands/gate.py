"""``pbench gate``: exact counters against a committed baseline, and tokens/s of two revisions, for CI."""

import sys
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pbench.commands.gate_power import power
from pbench.commands.gate_throughput import throughput
from pbench.units import display_path

if TYPE_CHECKING:
    from pbench.gate.baseline import Case

DEFAULT_BASELINE = Path("benchmarks/gate.json")
EXIT_REGRESSION = 1

_EXIT_CODES = """\b
Exit codes:
  0  nothing is worse than the baseline
  1  something is worse than allowed
  2  the baseline is missing or damaged, or the options cannot work
  4  the baseline is of other workloads, settings or counters
"""


@click.group()
def gate() -> None:
    """Stop a change that makes the memory, the scheduler or the throughput worse.

    check: small workloads play in simulated time through the paged engine and the contiguous ones. What is counted
    (steps, held slots, prefix hits, copies, preemptions...) comes out the same on every machine: any difference is the
    code's.

    throughput: tokens/s of two revisions, in pairs of runs on this machine. power: how far its verdicts can be trusted.
    """


gate.add_command(throughput)
gate.add_command(power)


@gate.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_BASELINE,
    show_default=True,
    metavar="FILE",
    help="The baseline.",
)
def record(out: Path) -> None:
    """Count, and write the baseline. Commit it with the change that it belongs to."""
    from pbench.gate.baseline import write_baseline
    from pbench.text_output import check_out

    check_out(out)
    cases = _play()
    write_baseline(out, cases)
    click.echo(f"baseline: {display_path(out)}, {len(cases)} cases")


@gate.command(epilog=_EXIT_CODES)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_BASELINE,
    show_default=True,
    metavar="FILE",
    help="What `pbench gate record` wrote.",
)
@click.option(
    "--allow",
    "allowed_pct",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="PCT",
    help="How much worse a counter may be, in % of its baseline.",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["table", "json", "markdown", "junit"]),
    default="table",
    show_default=True,
    help="How the result is written.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where the result is written.  [default: to the terminal]",
)
@click.pass_context
def check(ctx: click.Context, /, baseline: Path, allowed_pct: float, format_name: str, out: Path | None) -> None:
    """Count, and hold every counter against the baseline."""
    from pbench.gate.baseline import read_baseline
    from pbench.gate.check import check as check_against
    from pbench.gate.view import WRITERS, summary
    from pbench.text_output import check_out, write_out

    check_out(out)
    then = read_baseline(baseline)
    write = WRITERS[format_name]
    result = check_against(then, _play(), allowed_pct)
    if out is None:
        write(result, sys.stdout)
    else:
        text = StringIO()
        write(result, text)
        write_out(out, text.getvalue())
        click.echo(summary(result))
    if not result.has_passed:
        ctx.exit(EXIT_REGRESSION)


def _play() -> "list[Case]":
    from pbench.gate.scenarios import SCENARIOS, play

    return [case for scenario in SCENARIOS for case in play(scenario)]
