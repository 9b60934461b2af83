"""``pbench memory-bench``: whether the paged memory's operations cost what they touch, or the size of the pool."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pbench.errors import RunFailedError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from pbench.memory_bench import BenchPlan, OperationCost


@click.command()
@click.option(
    "--pool",
    "pool_sizes",
    type=click.IntRange(min=1),
    multiple=True,
    default=(10_000, 1_000_000),
    show_default=True,
    metavar="BLOCKS",
    help="A pool to time; repeatable, the smallest first.",
)
@click.option(
    "--prompt-tokens", type=click.IntRange(min=16), default=131_072, show_default=True, help="Of the long prompt."
)
@click.option("--block-size", type=click.IntRange(min=1), default=16, show_default=True, help="Slots in a block.")
@click.option("--repeats", type=click.IntRange(min=1), default=15, show_default=True, help="The fastest counts.")
@click.option(
    "--limit",
    type=click.FloatRange(min=1),
    default=1.5,
    show_default=True,
    metavar="RATIO",
    help="Largest cost in the last fresh pool over the first's.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sequences that are freed.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the costs as JSON.")
def memory_bench(
    pool_sizes: tuple[int, ...],
    prompt_tokens: int,
    block_size: int,
    repeats: int,
    limit: float,
    seed: int,
    out: Path | None,
) -> None:
    r"""Time every operation of the paged memory on one long prompt, in pools of different sizes.

    \b
    Exit codes:
      0  in fresh pools every operation costs at most RATIO times as much in the last pool as in the first
      1  one costs more
      2  these options cannot work
    """
    from pbench.console import console_for
    from pbench.memory_bench import LAYOUTS, OPERATIONS, BenchPlan, bench_memory

    if list(pool_sizes) != sorted(set(pool_sizes)) or len(pool_sizes) < 2:
        raise UsageError(f"--pool {', '.join(map(str, pool_sizes))}: give two or more sizes, the smallest first")
    plan = BenchPlan(pool_sizes, prompt_tokens, block_size, repeats, seed)
    console = console_for()
    with console.status("timing"):
        costs = [cost for layout in LAYOUTS for cost in bench_memory(plan, layout)]
    for layout in LAYOUTS:
        console.print(_table(layout, [cost for cost in costs if cost.layout == layout], plan))
        console.print()
    for operation, meaning in OPERATIONS.items():
        console.print(f"{operation}: {meaning}", style="dim")
    if out is not None:
        _write(out, plan, costs)
    over = [cost for cost in costs if cost.layout == "fresh" and cost.ratio > limit]
    if over:
        listed = ", ".join(f"{cost.operation} {cost.ratio:.2f}x" for cost in over)
        raise RunFailedError(f"in a fresh pool of {pool_sizes[-1]} blocks, above {limit:g}x: {listed}")


def _table(layout: str, costs: Sequence["OperationCost"], plan: "BenchPlan") -> "Table":
    from rich.table import Table

    table = Table(title=f"{layout} pools, ns per block", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("operation", no_wrap=True)
    for size in plan.pool_sizes:
        table.add_column(f"{size:,} blocks", justify="right")
    table.add_column("ratio", justify="right")
    for cost in costs:
        shown = (f"{ns:,.1f}" for ns in cost.ns_per_block)
        table.add_row(cost.operation, *shown, f"{cost.ratio:.2f}")
    return table


def _write(out: Path, plan: "BenchPlan", costs: Sequence["OperationCost"]) -> None:
    import json
    from dataclasses import asdict

    from pbench.environment import host_environment
    from pbench.results import write_atomically
    from pbench.units import display_path

    document = {
        "plan": asdict(plan),
        "environment": host_environment(),
        "costs": [asdict(cost) | {"ratio": cost.ratio} for cost in costs],
    }
    text = json.dumps(document, indent=1) + "\n"
    write_atomically(out, lambda stream: stream.write(text.encode()))
    click.echo(f"written: {display_path(out)}")
