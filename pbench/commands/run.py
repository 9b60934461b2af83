"""``pbench run``: one workload through several engines, measured and reported."""

from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from pbench.commands.engine_options import engine_options
from pbench.commands.workload_options import playing_options
from pbench.errors import RunFailedError
from pbench.units import display_path, slug

if TYPE_CHECKING:
    from rich.console import Console

    from pbench.results import RunResult

EXIT_INTERRUPTED = 130


# The \b keeps click from filling the lines.
_EXIT_CODES = """\b
Exit codes:
  0    every engine played the whole workload
  1    an engine failed; what it measured is kept
  2    these options cannot work; nothing was started
  130  interrupted; what was measured is kept"""


@click.command(epilog=_EXIT_CODES)
@click.option("--workload", required=True, metavar="NAME|FILE", help="A built-in workload, or a file of requests.")
@engine_options
@click.option(
    "--model",
    metavar="PRESET|DIR",
    help="A preset, or a Hugging Face folder.  [default: tiny; llama-1b on a GPU]",
)
@click.option("--kv-memory", metavar="SIZE", help="The pool of every engine: 8GiB, 24MB, 1048576.")
@click.option(
    "--gpu-memory-utilization",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="SHARE",
    help="Instead: the pool that this share of the GPU's memory leaves room for beside the largest step, as measured.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=2),
    help="Prompt and output tokens of a request, at most; longer ones are dropped and counted.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    help="Play the first N requests; 0 for all.  [default: all on a GPU, a few on the CPU]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the workload, its prompts and random weights.")
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    help="CPU threads of an engine; 0 for torch's own choice.  [default: 1, which is best for the tiny model]",
)
@playing_options
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of weights and KV.  [default: float32; bfloat16 on a GPU]",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the engines run.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The run folder.  [default: runs/<UTC time>-<workload>]",
)
@click.option(
    "--sample-interval",
    type=click.FloatRange(min=0),
    default=0.1,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks at the device; 0 switches them off.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Kill an engine that takes longer, in each repeat.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Run every engine N times, each in a fresh process, in turns; figures then have intervals.",
)
@click.option(
    "--slo",
    metavar="TARGETS",
    help="Count goodput: requests that keep targets of ttft, tpot and e2e, as in ttft=500ms,tpot=50ms.",
)
@click.option(
    "--request-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Of a request to openai:URL, from sending it to its last token; a late one counts as failed.",
)
@click.option(
    "--api-key-env",
    metavar="NAME",
    help="The environment variable with the API key for openai:URL; the key itself is kept nowhere.",
)
@click.option(
    "--profile",
    type=click.Choice(["torch", "memory"]),
    multiple=True,
    help="torch: a trace of some steps for ui.perfetto.dev; memory: a snapshot of torch's allocator for"
    " pytorch.org/memory_viz, on a GPU.",
)
@click.option(
    "--profile-steps",
    type=click.IntRange(min=0),
    nargs=2,
    default=(32, 16),
    show_default=True,
    metavar="FIRST COUNT",
    help="Which steps --profile torch records.",
)
@click.option(
    "--phase-interval",
    type=click.IntRange(min=0),
    default=32,
    show_default=True,
    metavar="STEPS",
    help="Time the phases within every so many steps; 0 times none.",
)
@click.option("--no-cuda-graphs", is_flag=True, help="Launch every kernel of a decode step by itself.")
@click.option(
    "--batch-invariant",
    is_flag=True,
    help="Compute a request's logits so that, to the last bit, they do not depend on what runs with it; slower.",
)
@click.option("--no-report", is_flag=True, help="Write no report.html.")
@click.pass_context
def run(ctx: click.Context, /, **options: Any) -> None:
    """Run one workload through a paged engine and a contiguous baseline, and compare them.

    Every engine runs in a fresh process with a pool of the same size. What is measured is written to the run folder
    while it is measured; Ctrl-C keeps it.
    """
    from pbench.comparison.engines import print_comparison
    from pbench.console import console_for
    from pbench.environment import host_environment
    from pbench.experiment import Experiment, ExperimentPlan
    from pbench.job import ServerAccess
    from pbench.live import view_for
    from pbench.settings import RunOptions, make_folder, resolve, run_id

    asked = RunOptions(**options)
    settings = resolve(asked)
    created = datetime.now(UTC)
    name = run_id(created, slug(settings.workload.name))
    plan = ExperimentPlan(
        folder=make_folder(asked.out, name),
        run_id=name,
        created_at=created.isoformat(timespec="seconds"),
        command=ctx.find_object(tuple) or (),
        workload_choice=settings.choice,
        workload=settings.workload,
        engines=settings.engines,
        environment=host_environment(),
        notes=settings.notes,
        sample_interval_s=asked.sample_interval,
        timeout_s=asked.timeout,
        num_repeats=asked.repeats,
        targets_ms=settings.targets_ms,
        access=ServerAccess(asked.request_timeout, asked.api_key_env),
        profiling=settings.profiling,
    )
    console = console_for()
    for line in settings.lines():
        console.print(line, markup=False, soft_wrap=True)
    result = Experiment(plan, view_for(console)).run()
    console.print()
    print_comparison(result, console)
    console.print()
    console.print(f"run:    {display_path(plan.folder)}", markup=False, soft_wrap=True)
    for path in sorted((*plan.folder.glob("trace-*.json.gz"), *plan.folder.glob("memory-*.pickle"))):
        where = "ui.perfetto.dev" if path.suffix == ".gz" else "pytorch.org/memory_viz"
        console.print(f"opens in {where}: {display_path(path)}", markup=False, soft_wrap=True)
    _end(ctx, result, [] if asked.no_report else _report(plan.folder, console))


def _report(folder: Path, console: "Console") -> list[str]:
    """Write the report and say where it is; returns why it could not be written, if so."""
    try:
        path = _write_report(folder)
    except OSError as error:
        return [f"the report could not be written: {error.strerror or error}"]
    console.print(f"report: {display_path(path)}", markup=False, soft_wrap=True)
    return []


def _write_report(folder: Path) -> Path:
    from pbench.machine_limits import known_limits
    from pbench.reports.report import render_report
    from pbench.results import Run, write_atomically

    runs = [Run(folder)]

    def write(stream: BinaryIO) -> None:
        text = TextIOWrapper(stream, encoding="utf-8", write_through=True)
        render_report(runs, text, bench=known_limits(runs))
        text.detach()  # the file is closed by who opened it

    path = folder / "report.html"
    write_atomically(path, write)
    return path


def _end(ctx: click.Context, result: "RunResult", problems: list[str]) -> None:
    """Turn how the engines ended into the exit code: an interruption first, it is why the rest is missing."""
    if any(engine.status == "interrupted" for engine in result.engines):
        ctx.exit(EXIT_INTERRUPTED)
    failed = [f"{engine.spec}: {engine.reason}" for engine in result.engines if engine.status == "failed"]
    if failed:
        problems = [f"{len(failed)} of {len(result.engines)} engines failed: {'; '.join(failed)}", *problems]
    if problems:
        raise RunFailedError("; ".join(problems))
