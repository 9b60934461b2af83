"""``pbench gate power``: how often the throughput gate is right, on a simulated machine."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pbench.units import display_path

if TYPE_CHECKING:
    from rich.table import Table

    from pbench.gate.power import Outcomes

LOSSES = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1)
NAIVE_ALPHA = 0.05
_SPREAD = click.FloatRange(min=0)


@click.command()
@click.option("--drift", type=_SPREAD, default=3.0, show_default=True, metavar="PCT", help="Spread of the drift.")
@click.option(
    "--autocorrelation",
    type=click.FloatRange(min=-1, max=1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="Of the drift, from one run to the next.",
)
@click.option(
    "--noise", type=_SPREAD, default=1.0, show_default=True, metavar="PCT", help="Spread of a run's own noise."
)
@click.option("--experiments", type=click.IntRange(min=1), default=10_000, show_default=True, help="For every loss.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the figures too.",
)
def power(
    drift: float, autocorrelation: float, noise: float, experiments: int, seed: int, json_path: Path | None
) -> None:
    """Show how often `pbench gate throughput` is right, on a simulated machine whose speed drifts.

    Beside it a naive design: all runs of base, then all of head, and a Mann-Whitney test whether head is slower.
    """
    from pbench.console import console_for
    from pbench.gate.paired_statistics import Design
    from pbench.gate.power import Machine, naive_outcomes, paired_outcomes
    from pbench.text_output import check_out, write_out

    check_out(json_path, "--json")
    design, machine = Design(), Machine(drift / 100, autocorrelation, noise / 100)
    paired = list(paired_outcomes(LOSSES, machine, design, experiments, seed))
    naive = {
        num_runs: list(naive_outcomes(LOSSES, machine, num_runs, NAIVE_ALPHA, experiments, seed))
        for num_runs in design.looks
    }
    console = console_for()
    console.print(_paired_table(paired))
    console.print(
        f"delta {design.delta:.0%}, alpha {design.alpha:.0%}, looks at {', '.join(map(str, design.looks))} pairs,"
        f" {design.aa_pairs} pairs of A/A; {experiments:,} experiments for every loss\n",
        soft_wrap=True,
    )
    console.print(_naive_table(naive))
    console.print(f"so many runs of each side; failed: one-sided Mann-Whitney test, p at most {NAIVE_ALPHA:.0%}")
    if json_path is not None:
        document = {
            "machine": asdict(machine),
            "design": asdict(design),
            "num_experiments": experiments,
            "seed": seed,
            "paired": [asdict(one) for one in paired],
            "naive": {num_runs: [asdict(one) for one in outcomes] for num_runs, outcomes in naive.items()},
        }
        write_out(json_path, json.dumps(document, indent=1) + "\n")
        click.echo(f"written: {display_path(json_path)}")


def _paired_table(outcomes: "Sequence[Outcomes]") -> "Table":
    from rich.table import Table

    table = Table(title="The gate: pairs in ABBA order", title_justify="left", show_edge=False, pad_edge=False)
    for heading in ("true loss", "failed", "passed", "inconclusive", "refused by A/A", "pairs, mean"):
        table.add_column(heading, justify="right")
    for one in outcomes:
        shares = (one.failed, one.passed, one.inconclusive, one.refused)
        table.add_row(f"{one.loss:.0%}", *(f"{share:.2%}" for share in shares), f"{one.mean_pairs:.1f}")
    return table


def _naive_table(outcomes: "dict[int, list[Outcomes]]") -> "Table":
    from rich.table import Table

    title = "The naive design: all of base, then all of head"
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("true loss", justify="right")
    for num_runs in outcomes:
        table.add_column(f"failed, {num_runs} + {num_runs} runs", justify="right")
    for row in zip(*outcomes.values(), strict=True):
        table.add_row(f"{row[0].loss:.0%}", *(f"{one.failed:.2%}" for one in row))
    return table
