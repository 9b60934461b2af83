"""``pbench paper``: the PagedAttention paper's memory experiments, measured again, without a model or a GPU."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from pbench.paper.experiments import Decoding
    from pbench.workloads.workload import Workload

Command = TypeVar("Command", bound=Callable[..., Any])
Item = TypeVar("Item")


@click.group()
def paper() -> None:
    """Repeat the memory experiments of the PagedAttention paper (SOSP 2023) in simulated time."""


def _options(num_requests: int) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in (
            click.option(
                "--out",
                type=click.Path(path_type=Path, dir_okay=False),
                metavar="FILE",
                help="Write what was measured as JSON.",
            ),
            click.option("--seed", type=int, default=0, show_default=True, help="Of the lengths."),
            click.option(
                "--requests",
                "num_requests",
                type=click.IntRange(min=1),
                default=num_requests,
                show_default=True,
                metavar="N",
                help="Requests of every dataset, all offered at once.",
            ),
        ):
            command = option(command)
        return command

    return add


@paper.command("figure2")
@_options(num_requests=1000)
def figure2(num_requests: int, seed: int, out: Path | None) -> None:
    """Where the KV memory of OPT-13B goes on ShareGPT's lengths: the four bars of figure 2, beside the paper's.

    The bars show the pool while requests wait for it. Two more rows lay reservations out exactly as the paper's Orca.
    """
    from pbench.console import console_for
    from pbench.paper.experiments import figure_2, lengths
    from pbench.paper.view import figure_2_notes, figure_2_table

    console = console_for()
    bars = list(_watched(console, figure_2(num_requests, seed), "bars"))
    datasets = {"sharegpt": lengths("sharegpt", num_requests, seed)}
    _print_setting(console, datasets)
    console.print(figure_2_table(bars))
    for note in figure_2_notes(bars):
        console.print(note, markup=False, soft_wrap=True)
    _write(out, datasets, {"bars": bars})


@paper.command("sampling")
@_options(num_requests=500)
def sampling(num_requests: int, seed: int, out: Path | None) -> None:
    """How much KV memory parallel samples save by sharing their prompt, beside the paper's ranges."""
    from pbench.console import console_for

    _print_savings(console_for(), "sampling", num_requests, seed, out)


@paper.command("beams")
@_options(num_requests=500)
def beams(num_requests: int, seed: int, out: Path | None) -> None:
    """How much KV memory beams save by sharing what they have in common, beside the paper's ranges.

    No model runs: candidates fall off by a power law whose exponent, between 1 and 6, depends on the context.
    """
    from pbench.console import console_for

    _print_savings(console_for(), "beams", num_requests, seed, out)


def _print_savings(console: "Console", decoding: "Decoding", num_requests: int, seed: int, out: Path | None) -> None:
    from pbench.paper.experiments import MEAN_LENGTHS, lengths, sharing_savings
    from pbench.paper.view import sharing_table

    savings = list(_watched(console, sharing_savings(decoding, num_requests, seed), "settings"))
    datasets = {name: lengths(name, num_requests, seed) for name in MEAN_LENGTHS}
    _print_setting(console, datasets)
    among = "samples" if decoding == "sampling" else "beams"
    console.print(sharing_table(savings, f"KV memory saved by sharing among {among}, %"))
    _write(out, datasets, {"savings": savings})


def _watched(console: "Console", items: Iterable[Item], what: str) -> Iterator[Item]:
    """Say how many items are measured while the next one is."""
    with console.status(f"0 {what} measured") as status:
        for number, item in enumerate(items, start=1):
            status.update(f"{number} {what} measured")
            yield item


def _print_setting(console: "Console", datasets: Mapping[str, "Workload"]) -> None:
    from pbench.paper.experiments import GPU, MAX_LENGTH, MEAN_LENGTHS, MODEL, NUM_SLOTS

    console.print(f"{MODEL}, {NUM_SLOTS} slots, max length {MAX_LENGTH}, simulated on {GPU}")
    for name, workload in datasets.items():
        prompt, output = _means(workload)
        paper_prompt, paper_output = MEAN_LENGTHS[name]
        console.print(
            f"{name}: {workload.num_requests} requests, mean {prompt:.1f} prompt and {output:.1f} output tokens"
            f" (paper: {paper_prompt}, {paper_output})",
            soft_wrap=True,
        )
    console.print()


def _means(workload: "Workload") -> tuple[float, float]:
    """Mean prompt and output tokens of a request."""
    return float(workload.requests.input_length.mean()), float(workload.requests.output_length.mean())


def _write(out: Path | None, datasets: Mapping[str, "Workload"], measured: Mapping[str, list[Any]]) -> None:
    import json
    from dataclasses import asdict

    from pbench.paper.experiments import GPU, MAX_LENGTH, MODEL, NUM_SLOTS
    from pbench.results import write_atomically
    from pbench.units import display_path

    if out is None:
        return
    document = {
        "model": MODEL,
        "gpu": GPU,
        "num_slots": NUM_SLOTS,
        "max_length": MAX_LENGTH,
        "workloads": {name: workload.record() for name, workload in datasets.items()},
    } | {name: [asdict(item) for item in items] for name, items in measured.items()}
    text = json.dumps(document, indent=1) + "\n"
    write_atomically(out, lambda stream: stream.write(text.encode()))
    click.echo(f"written: {display_path(out)}")
