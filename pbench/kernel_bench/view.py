"""The measurements of kernels as a table for a person."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from pbench.kernel_bench.ceilings import Ceilings
from pbench.kernel_bench.comparison import FASTEST, Comparison, comparisons, peer_ratios
from pbench.kernel_bench.measurement import Measurement
from pbench.kernel_bench.search import Outcome
from pbench.kernels.tiling import Tiling
from pbench.units import printable

# Columns that stand only where something is in them.
OPTIONAL = ("slowdown", "pbench / it")


def print_ceilings(ceilings: Ceilings, console: Console) -> None:
    """One line: what shares are shares of."""
    console.print(
        f"{printable(ceilings.device)}: a copy moves {ceilings.copy_bytes_per_s / 1e9:,.0f} GB/s, a matrix product"
        f" computes {ceilings.matrix_flops_per_s / 1e12:,.3g} TFLOP/s",
        markup=False,
        soft_wrap=True,
    )


def print_measurements(measurements: Sequence[Measurement], ceilings: Ceilings, console: Console) -> None:
    """One table for each kernel, in the order in which they were measured, then how they stand beside others."""
    ratios = peer_ratios(measurements)
    for kernel in dict.fromkeys(measurement.kernel for measurement in measurements):
        rows = [one for one in measurements if one.kernel == kernel]
        console.print()
        console.print(_table(kernel, rows, ratios, ceilings))
        for line in _failures(rows):
            console.print(line, markup=False, soft_wrap=True)
    print_comparisons(list(comparisons(measurements)), console)


def print_comparisons(beside: Sequence[Comparison], console: Console) -> None:
    """Geometric means of ratios, and where ours does worst; nothing where nothing was compared."""
    if not beside:
        return
    table = Table(title="pbench's time over that of others", title_justify="left", show_edge=False, pad_edge=False)
    for title in ("kernel", "beside"):
        table.add_column(title, no_wrap=True)
    for title in ("shapes", "geometric mean", "worst"):
        table.add_column(title, justify="right")
    table.add_column("on", no_wrap=True)
    previous = None
    for one in beside:
        worst = one.worst
        place = f"{worst.shape}: {worst.peer}" if one.peer == FASTEST else worst.shape
        numbers = (str(len(one.ratios)), f"{one.geometric_mean:.3f}", f"{worst.ratio:.3f}")
        table.add_row("" if one.kernel == previous else one.kernel, one.peer, *numbers, place)
        previous = one.kernel
    console.print()
    console.print(table)


def _table(
    kernel: str, measurements: Sequence[Measurement], ratios: Mapping[Measurement, float], ceilings: Ceilings
) -> Table:
    has_flops = any(
        one.flops * ceilings.copy_bytes_per_s > one.num_bytes * ceilings.matrix_flops_per_s for one in measurements
    )
    table = Table(title=kernel, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("shape", no_wrap=True)
    table.add_column("implementation", no_wrap=True)
    rows = [_cells(one, ratios.get(one), ceilings, has_flops) for one in measurements]
    titles = [title for title in rows[0] if title not in OPTIONAL or any(row[title] for row in rows)]
    for title in titles:
        table.add_column(title, justify="right")
    previous = None
    for one, row in zip(measurements, rows, strict=True):
        table.add_row("" if one.shape == previous else one.shape, one.implementation, *(row[title] for title in titles))
        previous = one.shape
    return table


def _cells(one: Measurement, ratio: float | None, ceilings: Ceilings, has_flops: bool) -> dict[str, str]:
    """By the titles of their columns."""
    timing, rate = one.timing, None
    if timing and (one.num_bytes or one.flops):
        rate = one.flops / timing.median_us / 1e6 if has_flops else one.num_bytes / timing.median_us / 1e3
    return {
        "us": f"{timing.median_us:,.1f}" if timing else "failed",
        "spread": f"{timing.spread:.1%}" if timing else "",
        "TFLOP/s" if has_flops else "GB/s": _number(rate, ",.1f"),
        "ceiling": _number(one.share(ceilings), ".2f"),
        "slowdown": _number(one.slowdown, ".3f"),
        "pbench / it": _number(ratio, ".3f"),
        "error": _number(one.error, ".1e"),
    }


def _number(number: float | None, form: str) -> str:
    return "" if number is None else format(number, form)


def _failures(measurements: Sequence[Measurement]) -> list[str]:
    """One line for each implementation and reason, with its shapes."""
    shapes: dict[tuple[str, str], list[str]] = {}
    for one in measurements:
        if one.failure:
            shapes.setdefault((one.implementation, one.failure), []).append(one.shape)
    return [f"{name} failed on {', '.join(names)}: {printable(reason)}" for (name, reason), names in shapes.items()]


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
