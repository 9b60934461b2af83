"""The measurements of kernels as a table for a person."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pbench.kernel_bench.bench import Measurement
from pbench.kernel_bench.ceilings import Ceilings
from pbench.kernel_bench.search import Outcome
from pbench.kernels.tiling import Tiling
from pbench.units import printable


def print_ceilings(ceilings: Ceilings, console: Console) -> None:
    """One line: what shares are shares of."""
    console.print(
        f"{printable(ceilings.device)}: a copy moves {ceilings.copy_bytes_per_s / 1e9:,.0f} GB/s, a matrix product"
        f" computes {ceilings.matrix_flops_per_s / 1e12:,.3g} TFLOP/s",
        markup=False,
        soft_wrap=True,
    )


def print_measurements(measurements: Sequence[Measurement], ceilings: Ceilings, console: Console) -> None:
    """One table for each kernel, in the order in which they were measured."""
    for kernel in dict.fromkeys(measurement.kernel for measurement in measurements):
        console.print()
        console.print(_table(kernel, [one for one in measurements if one.kernel == kernel], ceilings))


def _table(kernel: str, measurements: Sequence[Measurement], ceilings: Ceilings) -> Table:
    has_flops = any(
        one.flops * ceilings.copy_bytes_per_s > one.num_bytes * ceilings.matrix_flops_per_s for one in measurements
    )
    has_tax = any(one.slowdown is not None for one in measurements)
    table = Table(title=kernel, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("shape", no_wrap=True)
    table.add_column("implementation", no_wrap=True)
    rate = "TFLOP/s" if has_flops else "GB/s"
    for title in ("us", "spread", rate, "ceiling", *(["slowdown"] if has_tax else []), "error"):
        table.add_column(title, justify="right")
    previous = None
    for one in measurements:
        table.add_row("" if one.shape == previous else one.shape, *_cells(one, ceilings, has_flops, has_tax))
        previous = one.shape
    return table


def _cells(one: Measurement, ceilings: Ceilings, has_flops: bool, has_tax: bool) -> list[str]:
    if one.timing is None:
        return [one.implementation, f"failed: {printable(one.failure or '')}"]
    share = one.share(ceilings)
    rate = one.flops / one.timing.median_us / 1e6 if has_flops else one.num_bytes / one.timing.median_us / 1e3
    cells = [
        one.implementation,
        f"{one.timing.median_us:,.1f}",
        f"{one.timing.spread:.1%}",
        *(["", ""] if share is None else [f"{rate:,.1f}", f"{share:.2f}"]),
    ]
    if has_tax:
        cells.append("" if one.slowdown is None else f"{one.slowdown:.3f}")
    return [*cells, "" if one.error is None else f"{one.error:.1e}"]


def print_outcome(kernel: str, outcome: Outcome, console: Console) -> None:
    """What a search for a faster tiling found: every shape, and what is decided."""
    table = Table(title=kernel, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("shape", no_wrap=True)
    for title in ("default us", "best us", "gain", "spread"):
        table.add_column(title, justify="right")
    for pair in outcome.pairs:
        default_us, best_us = f"{pair.default.median_us:,.1f}", f"{pair.best.median_us:,.1f}"
        table.add_row(pair.shape, default_us, best_us, f"{1 - pair.ratio:.1%}", f"{pair.spread:.1%}")
    table.add_row("all", "", "", f"{outcome.gain:.1%}", f"{outcome.spread:.1%}")
    console.print()
    console.print(table)
    tried = f"{outcome.num_candidates} candidates, {outcome.num_failed} of them unfit"
    if not outcome.is_complete:
        tried += "; the time was up before all were tried"
    verdict = "stays: nothing is faster by more than the spread on the whole, and slower on no shape"
    if outcome.has_won:
        verdict = f"-> {_numbers(outcome.best)}"
    console.print(f"{_numbers(outcome.default)} {verdict} ({tried})", markup=False, soft_wrap=True)


def _numbers(tiling: Tiling) -> str:
    return ", ".join(f"{name} {number}" for name, number in tiling._asdict().items())
