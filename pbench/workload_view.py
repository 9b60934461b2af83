"""A workload for a person: tables and text bars."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from pbench.prefix_view import prefixes
from pbench.units import format_number, printable
from pbench.workloads.catalogue import suggested_block_size
from pbench.workloads.statistics import Bin, length_histogram, summarise_arrivals, summarise_lengths

if TYPE_CHECKING:
    from pbench.workloads.definition import Definition
    from pbench.workloads.readers.format import Format
    from pbench.workloads.request import WorkloadRequest
    from pbench.workloads.workload import Workload

_BAR_WIDTH = 40
_JUSTIFIED: tuple[JustifyMethod, ...] = ("right", "left", "right", "right")  # columns of a histogram
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"


def definitions_table(definitions: "Sequence[Definition]") -> Table:
    """The built-in workloads."""
    table = _table("workload", "what it is", "what it stands for")
    for definition in definitions:
        table.add_row(Text(definition.name, no_wrap=True), definition.description, definition.stands_for)
    return table


def formats_table(formats: "Sequence[Format]") -> Table:
    """The file formats that are recognised."""
    table = _table("format", "files")
    for file_format in formats:
        table.add_row(Text(file_format.name, no_wrap=True), Text(file_format.description))
    return table


def parameters_table(definition: "Definition | Format", workload: "Workload") -> Table:
    """The parameters of a workload: the values that are played, and what may be set."""
    table = _table("parameter", "value", "allowed", "what it is")
    for parameter in definition.parameters:
        value = workload.parameters[parameter.name]
        shown = Text(printable(str(value)), style="bold" if value != parameter.default else "")
        table.add_row(parameter.name, shown, parameter.range, parameter.help)
    return table


def print_workload(workload: "Workload", console: Console, *, block_size: int, cache_blocks: Sequence[int]) -> None:
    """What a workload is: its identity, lengths, arrivals, common prefixes, and some of its requests.

    ``block_size`` and ``cache_blocks`` are of the ideal prefix caches whose hits are told.
    """
    for part in (
        _identity(workload),
        _lengths(workload),
        *_histograms(workload),
        _arrivals(workload),
        prefixes(workload.requests, block_size, cache_blocks),
        _samples(workload),
    ):
        console.print()
        console.print(part, soft_wrap=isinstance(part, Text))


def bar(share: float, width: int = _BAR_WIDTH) -> str:
    """A bar of ``share`` (0..1) of ``width`` characters, in eighths; never empty for a share above 0."""
    eighths = max(round(share * width * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def sparkline(counts: Sequence[int]) -> str:
    """One character a count, as high as the count; a blank for 0."""
    highest = max(counts, default=0)
    return "".join(_LEVELS[max(-(-count * 8 // highest), 1) - 1] if count else " " for count in counts)


def _identity(workload: "Workload") -> Table:
    table = Table.grid(padding=(0, 2))
    dropped = [
        f"{format_number(count)} {why}"
        for count, why in (
            (workload.num_dropped_too_long, "too long"),
            (workload.num_dropped_empty, "without input or output tokens"),
        )
        if count
    ]
    rows = {
        "workload": workload.name,
        "": workload.description,
        "source": f"{workload.source} ({workload.format})",
        "seed": str(workload.seed),
        "options": ", ".join(f"{name} {value}" for name, value in workload.options.items()),
        "requests": f"{format_number(workload.num_requests)} of {format_number(workload.num_offered)} rows read",
        "dropped": ", ".join(dropped),
        "tokens": f"{format_number(workload.total_input_tokens)} in, {format_number(workload.total_output_tokens)} out;"
        f" at most {format_number(workload.largest_request_tokens)} in one sequence",
        "blocks": "" if workload.is_file else f"of {suggested_block_size(workload.name)} slots suit it",
        "sha256": workload.sha256,
    }
    for label, value in rows.items():
        if value:
            table.add_row(Text(label, style="bold"), Text(printable(value)))
    return table


def _lengths(workload: "Workload") -> Table:
    table = _table("tokens", *(Text(name, justify="right") for name in ("min", "mean", "p50", "p90", "p99", "max")))
    for column in table.columns[1:]:
        column.justify = "right"
    requests = workload.requests
    columns = {"input": requests.input_length, "output": requests.output_length}
    if int(requests.n.max()) > 1:
        columns["samples (n)"] = requests.n
    for name, lengths in columns.items():
        table.add_row(name, *(format_number(round(value, 1)) for value in summarise_lengths(lengths)))
    return table


def _histograms(workload: "Workload") -> Iterator[RenderableType]:
    requests = workload.requests
    for name, lengths in (("input", requests.input_length), ("output", requests.output_length)):
        yield _histogram(f"{name} tokens", length_histogram(lengths))


def _histogram(label: str, bins: Sequence[Bin]) -> Table:
    counts = [each.num_requests for each in bins]
    table = Table.grid(padding=(0, 1))
    for justify in _JUSTIFIED:
        table.add_column(justify=justify)
    table.add_row(Text(label, style="bold"), "", Text("requests", style="bold"), "")
    for low, high, count in bins:
        span = format_number(low) if low == high else f"{format_number(low)}..{format_number(high)}"
        share = f"{100 * count / sum(counts):.1f} %"
        table.add_row(span, bar(count / max(counts)).ljust(_BAR_WIDTH), format_number(count), share)
    return table


def _arrivals(workload: "Workload") -> Text:
    summary = summarise_arrivals(workload.requests.arrival_ns)
    text = Text.assemble(("arrivals ", "bold"), printable(workload.arrivals))
    if summary.mean_rate is None or summary.gap_cv is None:
        text.append(f": {workload.concurrency} at a time" if workload.concurrency else ": all at the start")
        if workload.has_recorded_times:
            text.append("; its times are there, for --arrivals recorded")
        return text
    text.append(
        f": {format_number(summary.mean_rate)} requests/s over {format_number(round(summary.duration_s, 1))} s; gaps"
        f" vary by {format_number(summary.gap_cv)} of their mean (even 0, Poisson 1)"
    )
    if summary.num_distinct < 0.9 * workload.num_requests:
        text.append(f"; {format_number(summary.num_distinct)} timestamps differ (--dejitter spreads those alike)")
    text.append(f"\n{sparkline(summary.counts)}", style="cyan")
    part_s = summary.duration_s / len(summary.counts)
    text.append(f"  at most {format_number(max(summary.counts))} requests in {format_number(part_s)} s")
    return text


def _samples(workload: "Workload") -> RenderableType:
    table = _table("request", "arrival (s)", "input", "output", "n", "prompt")
    for column in table.columns[1:5]:
        column.justify = "right"
    last = workload.num_requests - 1
    for index in sorted({0, last // 2, last}):
        request = workload.requests[index]
        table.add_row(
            str(request.request_id),
            f"{request.arrival_s:.3f}",
            format_number(request.input_length),
            format_number(request.output_length),
            str(request.n),
            _prompt(request),
        )
    return Group(Text("three requests" if last > 1 else "requests", style="bold"), table)


def _prompt(request: "WorkloadRequest", num_shown: int = 4) -> str:
    """The prompt's parts, as runs of tokens by their key: equal keys are equal tokens."""
    if request.prompt_token_ids is not None:
        ids = " ".join(map(str, request.prompt_token_ids[: 2 * num_shown]))
        return f"token ids {ids}{' ...' if request.input_length > 2 * num_shown else ''}"
    parts = [f"{segment.length} of run {segment.key}" for segment in request.segments]
    if len(parts) > num_shown:
        parts = [*parts[: num_shown - 1], f"... {len(parts) - num_shown} more", parts[-1]]
    return " + ".join(parts)


def _table(*headings: str | Text) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading)
    return table
