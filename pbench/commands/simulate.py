"""``pbench simulate``: a workload through scheduler and memories alone, in simulated time, without a GPU."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from pbench.commands.engine_options import engine_options
from pbench.commands.workload_options import workload_choice, workload_options
from pbench.errors import RunFailedError
from pbench.simulation.settings import (
    DEFAULT_GPU,
    DEFAULT_MODEL,
    DEFAULT_OVERHEAD_US,
    SimulationOptions,
    resolve_simulation,
)
from pbench.units import display_path, format_bytes, slug

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from pbench.results import RunResult
    from pbench.settings import Settings
    from pbench.simulation.run import SimulationPlan

EXIT_INTERRUPTED = 130

# The \b keeps click from filling the lines.
_EXIT_CODES = """\b
Exit codes:
  0    every engine played the whole workload
  1    an engine failed; what it came to is kept
  2    these options cannot work; nothing was started
  130  interrupted; what was simulated is kept
"""


@click.command(epilog=_EXIT_CODES)
@click.option("--workload", required=True, metavar="NAME|FILE", help="A built-in workload, or a file of requests.")
@engine_options
@click.option(
    "--model", default=DEFAULT_MODEL, show_default=True, metavar="PRESET|DIR", help="Whose shapes; no weights are read."
)
@click.option(
    "--kv-memory",
    metavar="SIZE",
    help="The pool of every engine: 8GiB, 24MB.  [default: what the weights leave of 90 % of the GPU's memory]",
)
@click.option(
    "--capacity-sweep",
    metavar="SIZE,SIZE,...",
    help="Simulate every size of the pool, in parallel processes, and print the curve.",
)
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Processes of a sweep at a time.  [default: as many as usable cores]"
)
@click.option(
    "--gpu", default=DEFAULT_GPU, show_default=True, metavar="NAME", help="Whose speed: h200, h100, a100, l40s..."
)
@click.option(
    "--ceilings",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Bandwidth and rate that `pbench kernels --json FILE` measured, instead of shares of published ones.",
)
@click.option(
    "--bandwidth",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB/S",
    help="Memory bandwidth that is reached.  [default: 89 % of the GPU's published one, as an H200 does]",
)
@click.option(
    "--flops",
    type=click.FloatRange(min=0, min_open=True),
    metavar="TFLOP/S",
    help="Arithmetic rate that is reached.  [default: 73 % of the GPU's published one, as an H200 does]",
)
@click.option(
    "--efficiency",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    metavar="SHARE",
    help="What the engine reaches of bandwidth and rate.",
)
@click.option(
    "--step-overhead",
    type=click.FloatRange(min=0),
    metavar="MICROSECONDS",
    help=f"What every step costs beside its roofline.  [default: {DEFAULT_OVERHEAD_US:g}]",
)
@click.option(
    "--like",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="RUN",
    help="The machine of that run of `pbench run`: overhead, bandwidth and rate that fit its steps.",
)
@click.option(
    "--dtype", type=click.Choice(["bfloat16", "float16"]), default="bfloat16", show_default=True, help="Of weights, KV."
)
@workload_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The run folder; of a sweep, a folder of run folders.  [default: runs/<UTC time>-<workload>]",
)
@click.pass_context
def simulate(ctx: click.Context, /, workload: str, out: Path | None, jobs: int | None, **options: Any) -> None:
    """Play a workload through the same scheduler and memories without a model or a GPU.

    A step takes the time of a roofline: weights and KV bytes over bandwidth or FLOPs over rate, whichever is longer,
    and a fixed overhead. What fits, waits, is shared, wasted and evicted is not a model: it is what the engine does.
    """
    from pbench.console import console_for
    from pbench.environment import host_environment, own_process
    from pbench.settings import make_folder, run_id
    from pbench.simulation.run import SimulationPlan

    choice = workload_choice(workload, options)
    settings = resolve_simulation(SimulationOptions(**options), choice)
    created = datetime.now(UTC)
    name = run_id(created, slug(settings.sizes[0].workload.name))
    folder = make_folder(out, name)
    environment = host_environment() | {"gpu": None, "is_simulated": True}
    plans = [
        SimulationPlan(
            folder=make_folder(folder / _size_name(size), name) if settings.is_sweep else folder,
            run_id=f"{name}-{_size_name(size)}" if settings.is_sweep else name,
            created_at=created.isoformat(timespec="seconds"),
            command=ctx.find_object(tuple) or (),
            workload=size.workload,
            engines=size.engines,
            hardware=settings.hardware,
            speed=settings.speed,
            environment=environment,
            notes=(settings.note, *size.notes),
            process=own_process(),
        )
        for size in settings.sizes
    ]
    console = console_for()
    for line in settings.lines():
        console.print(line, markup=False, soft_wrap=True)
    num_processes = jobs or environment["cpu"]["num_usable_cores"] or 1
    results = _sweep(plans, num_processes, console) if settings.is_sweep else [_single(plans[0], console)]
    console.print()
    console.print(f"{'runs' if settings.is_sweep else 'run'}: {display_path(folder)}", markup=False, soft_wrap=True)
    _end(ctx, results)


def _single(plan: "SimulationPlan", console: "Console") -> "RunResult":
    from pbench.comparison.engines import print_comparison
    from pbench.live import view_for
    from pbench.simulation.run import Simulation

    is_stopped = False

    def stop() -> None:
        nonlocal is_stopped
        is_stopped = True

    with _when_interrupted(stop):
        result = Simulation(plan, view_for(console), lambda: is_stopped).run()
    console.print()
    print_comparison(result, console)
    return result


def _sweep(plans: "Sequence[SimulationPlan]", num_processes: int, console: "Console") -> "list[RunResult]":
    from pbench.simulation.capacity_sweep import CapacitySweep, SizeDone, print_curve

    sweep = CapacitySweep(plans, num_processes)
    done: list[SizeDone] = []
    with _when_interrupted(sweep.stop):
        for size in sweep.run():
            done.append(size)
            text = f"{format_bytes(size.kv_memory_bytes)}: {size.result.status} ({len(done)} of {len(plans)} sizes)"
            console.print(text, markup=False, soft_wrap=True)
    console.print()
    print_curve(done, console)
    return [size.result for size in done]


@contextmanager
def _when_interrupted(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` at SIGINT and SIGTERM; a second one ends the program at once."""
    num_signals = 0

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal num_signals
        num_signals += 1
        if num_signals > 1:
            raise KeyboardInterrupt
        stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _size_name(size: "Settings") -> str:
    return slug(format_bytes(size.engines[0].kv_memory_bytes))


def _end(ctx: click.Context, results: "Sequence[RunResult]") -> None:
    """Turn how the engines ended into the exit code: an interruption first, it is why the rest is missing."""
    engines = [engine for result in results for engine in result.engines]
    if any(engine.status == "interrupted" for engine in engines):
        ctx.exit(EXIT_INTERRUPTED)
    failed = [f"{engine.spec}: {engine.reason}" for engine in engines if engine.status == "failed"]
    if failed:
        raise RunFailedError(f"{len(failed)} of {len(engines)} engines failed: {'; '.join(failed)}")
