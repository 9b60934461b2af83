"""The table at the end of a run: the engines side by side, and the first one's figures over each other's."""

from collections.abc import Mapping

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pbench.results import METRICS, EngineResult, RunResult
from pbench.units import format_bytes, format_quantity, printable

NOT_MEASURED = "-"

# What a reader asks first; the rest is in run.json and in the report.
_SHOWN = (
    "output_tokens_per_s",
    "total_tokens_per_s",
    "requests_per_s",
    "duration_s",
    "ttft_ms_p50",
    "ttft_ms_p99",
    "tpot_ms_p50",
    "tpot_ms_p99",
    "e2e_ms_p50",
    "e2e_ms_p99",
    "peak_running",
    "mean_running",
    "token_state_pct",
    "waste_pct",
    "held_waste_pct",
    "reserved_pct",
    "internal_pct",
    "external_pct",
    "cached_pct",
    "free_pct",
    "prefix_hit_rate_pct",
    "shared_saved_pct",
    "shared_part_bytes",
    "shared_part_saved_pct",
    "mean_sharers",
    "preemptions",
    "peak_device_used_bytes",
    "peak_torch_reserved_bytes",
    "peak_process_rss_bytes",
    "joules_per_output_token",
)


def print_comparison(result: RunResult, console: Console) -> None:
    """Print the table, and below it how engines failed and what to know before believing the figures."""
    console.print(_table(result.engines))
    if len(result.engines) > 2:
        console.print(Text(_ratio_line(result.engines)), soft_wrap=True)
    for engine in result.engines:
        if engine.memory:
            console.print(Text(f"memory at its peak ({engine.spec}): {_memory_line(engine.memory)}"), soft_wrap=True)
    for engine in result.engines:
        if engine.reason is not None:
            console.print(Text(f"{engine.spec} {engine.status}: {printable(engine.reason)}"), soft_wrap=True)
    for note in dict.fromkeys(note for engine in result.engines for note in engine.notes):
        who = [engine.spec for engine in result.engines if note in engine.notes]
        scope = "" if len(who) == len(result.engines) else f" ({', '.join(who)})"
        console.print(Text(f"note{scope}: {printable(note)}"), soft_wrap=True)


def _ratio_line(engines: tuple[EngineResult, ...]) -> str:
    first, *others = engines
    name = "output_tokens_per_s"
    ratios = (f"{format_ratio(first.summary.get(name), other.summary.get(name))} {other.spec}" for other in others)
    return f"output tokens/s of {first.spec}: {', '.join(ratios)}"


def _memory_line(memory: Mapping[str, int]) -> str:
    parts = [f"{name} {format_bytes(held)}" for name, held in memory.items() if name != "peak" and held]
    return f"{format_bytes(memory['peak'])} = {' + '.join(parts)}"


def format_ratio(first: float | None, other: float | None) -> str:
    """``first`` over ``other`` as ``3.21x``; NOT_MEASURED where the quotient has no meaning."""
    if first is None or other is None or other <= 0 or first < 0:
        return NOT_MEASURED
    ratio = first / other
    return f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x" if ratio >= 0.1 else f"{ratio:.2g}x"


def _table(engines: tuple[EngineResult, ...]) -> RenderableType:
    first = engines[0]
    others = engines[1:] if len(engines) == 2 else ()  # more ratios than one would not fit beside the figures
    table = Table(pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    for engine in engines:
        table.add_column(Text(printable(engine.spec)), justify="right", overflow="fold")
    for other in others:
        table.add_column(Text(f"{first.spec} / {other.spec}"), justify="right")
    table.add_row(Text("status"), *(Text(engine.status) for engine in engines), *([""] * len(others)))
    metrics = {metric.name: metric for metric in METRICS}
    for name in _SHOWN:
        values = [engine.summary.get(name) for engine in engines]
        if all(value is None for value in values):
            continue
        metric = metrics[name]
        table.add_row(
            Text(metric.label),
            *(Text(NOT_MEASURED if value is None else format_quantity(value, metric.unit)) for value in values),
            *(format_ratio(values[0], other.summary.get(name)) for other in others),
        )
    return table
