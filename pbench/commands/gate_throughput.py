"""``pbench gate throughput``: tokens/s of two revisions on one machine, for CI."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import click

from pbench.units import display_path

EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3}
DEFAULT_WORKLOAD = "chat-shared-prompt"

_EPILOG = """\b
Exit codes:
  0  head is not slower than base by DELTA
  1  head is significantly slower, and by DELTA at least; or head's code fails
  2  the options cannot work, or base's code fails
  3  not decided: the machine is too noisy for DELTA, or the pairs do not suffice
  4  the runs of base and head are not of the same thing
"""


@click.command(epilog=_EPILOG)
@click.option("--base", required=True, metavar="REF|DIR", help="What to compare with: a git ref or a project folder.")
@click.option("--head", default=".", show_default=True, metavar="REF|DIR", help="What is to be judged.")
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    default=(DEFAULT_WORKLOAD,),
    show_default=True,
    metavar="NAME|FILE",
    help="Repeatable: all must pass.",
)
@click.option("--engine", default="paged", show_default=True, metavar="SPEC", help="As in `pbench run`.")
@click.option("--model", metavar="PRESET|DIR", help="As in `pbench run`.")
@click.option("--kv-memory", metavar="SIZE", help="As in `pbench run`.")
@click.option("--limit", type=click.IntRange(min=0), help="As in `pbench run`.")
@click.option("--max-length", type=click.IntRange(min=2), help="As in `pbench run`.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="As in `pbench run`.")
@click.option(
    "--delta",
    "delta_pct",
    type=click.FloatRange(min=0, max=100, min_open=True, max_open=True),
    default=5.0,
    show_default=True,
    metavar="DELTA",
    help="The loss of throughput that fails, in %.",
)
@click.option(
    "--keep",
    "kept",
    multiple=True,
    type=click.Choice(["throttle", "foreign-process", "clock-drop"]),
    help="Discard no pair for this reason; repeatable.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Of one run.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where result and runs are kept.  [default: runs/<UTC time>-gate]",
)
@click.argument("run_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTION...]")
@click.pass_context
def throughput(
    ctx: click.Context,
    /,
    base: str,
    head: str,
    workloads: tuple[str, ...],
    delta_pct: float,
    kept: tuple[str, ...],
    out: Path | None,
    run_options: tuple[str, ...],
    **options: Any,
) -> None:
    """Stop a change that costs throughput: tokens/s of two revisions, pair by pair, on this machine.

    Every run is `pbench run` of that revision's own code in a fresh process, with this installation's packages; a git
    ref is checked out into a worktree for the while. First base runs against itself: a machine too noisy for DELTA is
    told at once. Then pairs of base and head run in ABBA order until 6, 10 or 16 of them decide. Any option of
    `pbench run` may stand behind `--`, for both sides.

    Written to DIR: throughput.json, comment.md for a pull request, junit.xml, and every run.
    """
    from pbench.errors import UsageError
    from pbench.gate.paired_statistics import Design
    from pbench.gate.run_conditions import DISCARD_RULES
    from pbench.gate.source_tree import source_trees
    from pbench.gate.throughput import GatePlan, ThroughputGate
    from pbench.gate.throughput_run import Runner
    from pbench.gate.throughput_view import FILES, write_table
    from pbench.settings import make_folder, run_id
    from pbench.text_output import write_out

    for workload in workloads:
        if workloads.count(workload) > 1:
            raise UsageError(f"--workload {workload} is given twice; name every workload once")
    arguments = _run_arguments(options) + run_options
    created = datetime.now(UTC)
    with _terminable(), source_trees(base, head) as (base_tree, head_tree):
        plan = GatePlan(
            folder=make_folder(out, run_id(created, "gate")).resolve(),
            created_at=created.isoformat(timespec="seconds"),
            command=ctx.find_object(tuple) or (),
            base=base_tree.revision,
            head=head_tree.revision,
            workloads=workloads,
            design=Design(delta=delta_pct / 100),
            discard_rules={name: rule for name, rule in DISCARD_RULES.items() if name not in kept},
        )
        gate = ThroughputGate(plan, Runner(base_tree, head_tree, arguments), click.echo)
        try:
            result = gate.run()
        finally:  # CI shows these also when a run failed
            for name, write in FILES.items():
                text = StringIO()
                write(gate.result, text)
                write_out(plan.folder / name, text.getvalue())
    click.echo()
    write_table(result, sys.stdout)
    click.echo(f"result: {display_path(plan.folder)}")
    ctx.exit(EXIT_CODES[result.verdict])


def _run_arguments(options: dict[str, Any]) -> tuple[str, ...]:
    """The options of `pbench run` that were given, as its code reads them, whichever version that is."""
    given = ((f"--{name.replace('_', '-')}", value) for name, value in options.items() if value is not None)
    return tuple(part for name, value in given for part in (name, str(value)))


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that what was started and checked out is cleared away."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
