"""The table at the end of a run: the engines side by side, and the first one's figures over each other's."""

from collections.abc import Iterator, Mapping

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pbench.figure_text import NOT_MEASURED, figure_text, legend
from pbench.profiling.phase_lines import phase_lines
from pbench.results import METRICS, OUTCOMES, Check, EngineResult, RunResult
from pbench.summary.intervals import paired_ratio
from pbench.units import format_bytes, format_quantity, printable

# What a reader asks first; the rest is in run.json and in the report.
_SHOWN = (
    "output_tokens_per_s",
    "steady_output_tokens_per_s",
    "total_tokens_per_s",
    "requests_per_s",
    "duration_s",
    "ttft_ms_p50",
    "ttft_ms_p99",
    "itl_ms_p50",
    "itl_ms_p99",
    "tpot_ms_p50",
    "tpot_ms_p99",
    "e2e_ms_p50",
    "e2e_ms_p99",
    "queue_ms_p50",
    "goodput_requests_per_s",
    "slo_attainment_pct",
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
    for mark in legend(result.engines):
        console.print(Text(mark), soft_wrap=True)
    for engine in result.engines:
        if engine.repeats:
            console.print(Text(f"before the clock ({engine.spec}): {_warm_up_line(engine)}"), soft_wrap=True)
    for engine in result.engines:
        if engine.memory:
            console.print(Text(f"memory at its peak ({engine.spec}): {_memory_line(engine.memory)}"), soft_wrap=True)
    for engine in result.engines:
        for line in phase_lines(engine):
            console.print(Text(line), soft_wrap=True)
    for line in check_lines(result):
        console.print(Text(line), soft_wrap=True)
    for engine in result.engines:
        if engine.reason is not None:
            console.print(Text(f"{engine.spec} {engine.status}: {printable(engine.reason)}"), soft_wrap=True)
    for note in dict.fromkeys(note for engine in result.engines for note in engine.notes):
        who = [engine.spec for engine in result.engines if note in engine.notes]
        scope = "" if len(who) == len(result.engines) else f" ({', '.join(who)})"
        console.print(Text(f"note{scope}: {printable(note)}"), soft_wrap=True)


def check_lines(result: RunResult) -> Iterator[str]:
    """The checks that were not passed, worst first, and how many were."""
    found: dict[Check, list[str]] = {}
    for engine in result.engines:
        for check in engine.checks:
            found.setdefault(check, []).append(engine.spec)
    for check in result.checks:
        found[check] = [engine.spec for engine in result.engines]
    for check, specs in sorted(found.items(), key=lambda one: OUTCOMES.index(one[0].outcome)):
        if check.outcome != "pass":
            scope = "" if len(specs) == len(result.engines) else f" ({', '.join(specs)})"
            yield printable(f"{check.outcome}: {check.name}{scope}: {check.detail}")
    num_passed = sum(check.outcome == "pass" for check in found)
    if found:
        yield f"{num_passed} of {len(found)} checks passed; all of them stand in run.json and in the report"


def _ratio_line(engines: tuple[EngineResult, ...]) -> str:
    first, *others = engines
    ratios = (f"{_ratio(first, other, 'output_tokens_per_s')} {other.spec}" for other in others)
    return f"output tokens/s of {first.spec}: {', '.join(ratios)}"


def _ratio(first: EngineResult, other: EngineResult, name: str) -> str:
    """The first's figure over the other's, with its interval: repeats of one round ran side by side, so in pairs."""
    text = format_ratio(first.summary.get(name), other.summary.get(name))
    ours, theirs = first.values_by_repeat(name), other.values_by_repeat(name)
    rounds = sorted(ours.keys() & theirs.keys())
    bounds = paired_ratio([theirs[number] for number in rounds], [ours[number] for number in rounds])
    if bounds is None or bounds[0] == bounds[1]:
        return text
    return f"{text} [{format_ratio(bounds[0], 1)[:-1]}, {format_ratio(bounds[1], 1)[:-1]}]"


def _warm_up_line(engine: EngineResult) -> str:
    """How long the engine warmed up, and from when to when it was steady, over its repeats."""
    warm_ups = [repeat.warm_up for repeat in engine.repeats if repeat.warm_up is not None]
    if not warm_ups:
        return "it never got so far"
    longest = max(warm_ups, key=lambda warm_up: warm_up.duration_s)
    steps = "" if longest.num_steps is None else f", {longest.num_steps} steps"
    at_most = "at most " if len(warm_ups) > 1 else ""
    steady = [repeat.steady for repeat in engine.repeats if repeat.steady is not None]
    text = f"warm-up of {at_most}{format_quantity(longest.duration_s, 's')}{steps}; steady"
    if not steady:
        return f"{text}: never, by MSER"
    first_s, last_s = (format_quantity(value / 1e9, "s") for value in (steady[0].start_ns, steady[0].end_ns))
    if len(engine.repeats) == 1:
        return f"{text} from {first_s} to {last_s}, by MSER"
    return f"{text} in {len(steady)} of {len(engine.repeats)} repeats (the first of them from {first_s} to {last_s})"


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
        table.add_column(Text(printable(engine.spec)), justify="right", overflow="fold", no_wrap=len(engines) == 2)
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
            *(Text(figure_text(engine, metric)) for engine in engines),
            *(_ratio(first, other, name) for other in others),
        )
    return table
