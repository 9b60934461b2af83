"""The paper's experiments for a person: tables of what was measured here beside what was published."""

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from pbench.paper.experiments import BAR_NOTES, Bar, SharingSaving

NOT_PUBLISHED = "-"

_PARTS = (("token states", "token_state"), ("reserved", "reserved"), ("internal", "internal"), ("external", "external"))


def figure_2_table(bars: Sequence[Bar]) -> Table:
    """Two rows for every bar: what was measured, and the paper's figures."""
    table = Table(title="KV memory, % of the pool", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("memory", no_wrap=True)
    table.add_column("")
    for label, _ in _PARTS:
        table.add_column(label, justify="right")
    table.add_column("running", justify="right")
    for bar in bars:
        measured = bar.measured
        parts = (measured.token_state_pct, measured.reserved_pct, measured.internal_pct, measured.unusable_pct)
        table.add_row(Text(bar.label), "here", *(f"{part:.1f}" for part in parts), f"{measured.mean_running:.2f}")
        published = [bar.published.get(name) for _, name in _PARTS]
        shown = (NOT_PUBLISHED if part is None else f"{part:.1f}" for part in published)
        table.add_row("", "paper", *shown, f"{bar.published_mean_running:.2f}", style="dim", end_section=True)
    return table


def figure_2_notes(bars: Sequence[Bar]) -> Iterator[str]:
    """What the columns mean, and how every bar differs from the paper's."""
    yield "external: with what was never allocated. running: requests that hold KV memory together."
    for bar in bars:
        costs = [
            f"{count:,} {what}"
            for count, what in (
                (bar.measured.num_preemptions, "preemptions"),
                (bar.measured.num_moved_slots, "slots moved"),
            )
            if count
        ]
        yield f"{bar.label}: {BAR_NOTES[bar.label]}" + (f" ({', '.join(costs)})" if costs else "")


def sharing_table(savings: Sequence[SharingSaving], title: str) -> Table:
    """A row for every dataset, a column for every number of sequences of a request."""
    numbers = sorted({saving.num_sequences for saving in savings})
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("lengths", no_wrap=True)
    for number in numbers:
        table.add_column(f"n = {number}", justify="right")
    table.add_column(f"paper, n = {numbers[0]} to {numbers[-1]}", justify="right")
    for dataset in dict.fromkeys(saving.dataset for saving in savings):
        mine = {saving.num_sequences: saving for saving in savings if saving.dataset == dataset}
        low, high = mine[numbers[0]].published_range_pct
        saved = (f"{mine[number].measured.saved_pct:.1f}" for number in numbers)
        table.add_row(dataset, *saved, f"{low:.1f} to {high:.1f}")
    return table
