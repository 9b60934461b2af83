"""``pbench kernels tune``: what cuts up the launches of attention best on this GPU, into the table of the kernels."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pbench.errors import UsageError
from pbench.units import display_path

if TYPE_CHECKING:
    from pbench.kernel_bench.search import Outcome
    from pbench.kernel_bench.trials import TuningPlan
    from pbench.kernels.tuning_table import Entry, Tuned

_KERNELS = ("decode", "prefill", "shared")


@click.command()
@click.option(
    "--kernel",
    "kernels",
    type=click.Choice(_KERNELS),
    multiple=True,
    help="Tune this one only; repeatable.  [default: all]",
)
@click.option("--heads", type=click.IntRange(min=1), default=32, show_default=True, help="Query heads.")
@click.option("--kv-heads", type=click.IntRange(min=1), default=8, show_default=True, help="KV heads; divides --heads.")
@click.option("--head-dim", type=click.IntRange(16, 256), default=128, show_default=True, help="A multiple of 16.")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Of all.",
)
@click.option("--fp8-kv", is_flag=True, help="Keep K and V in 8-bit floats.")
@click.option("--samples", type=click.IntRange(min=3), default=10, show_default=True, help="Of every timing.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of lengths and of the order of blocks.")
@click.option(
    "--limit-s",
    type=click.FloatRange(min=0, min_open=True),
    default=150.0,
    show_default=True,
    help="No candidate is started later than that.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The table to change or to begin.  [default: the one that the kernels read]",
)
def tune(
    kernels: tuple[str, ...],
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: str,
    fp8_kv: bool,
    samples: int,
    seed: int,
    limit_s: float,
    out: Path | None,
) -> None:
    """Look for faster ways to cut up the launches of attention on this GPU.

    Begins with what the kernels' own rules say and goes on to neighbours (tile sizes, warps, tiles in flight, programs
    of a multiprocessor) as long as one is faster over all shapes, timed as `pbench kernels` times. Only results that
    are as near to float64 as the default's count. What is found is measured once more beside the default, and goes
    into the table if it saves more than the spread and loses on no shape. Engines never tune: they read the table when
    they start.
    """
    import torch

    from pbench.console import console_for
    from pbench.kernel_bench.shapes import Heads
    from pbench.kernel_bench.trials import TuningPlan
    from pbench.kernel_bench.view import print_outcome
    from pbench.kernels.launch import FP8_CAPABILITY
    from pbench.kernels.tuning_table import TABLE_PATH, Entry, table_text
    from pbench.text_output import check_out, write_out

    if heads % kv_heads:
        raise UsageError(f"--heads {heads} is no multiple of --kv-heads {kv_heads}")
    if head_dim % 16:
        raise UsageError(f"--head-dim {head_dim}: the kernels need a multiple of 16")
    check_out(out)
    path = out or TABLE_PATH
    table = _table_in(path)
    if not torch.cuda.is_available():
        raise UsageError("pbench kernels tune measures on a GPU, and torch finds no NVIDIA GPU here")
    if fp8_kv and torch.cuda.get_device_capability() < FP8_CAPABILITY:
        raise UsageError("--fp8-kv: this GPU does not convert 8-bit floats")
    device = torch.device("cuda", torch.cuda.current_device())
    shape = Heads(heads, kv_heads, head_dim)
    plan = TuningPlan(device, shape, getattr(torch, dtype), has_fp8=fp8_kv, num_samples=samples, seed=seed)
    write_out(path, table_text(table))  # what cannot be written is refused before the work
    console = console_for()
    torch.manual_seed(seed)
    start, chosen = time.monotonic(), kernels or _KERNELS
    for index, kernel in enumerate(chosen):
        end = start + limit_s * (index + 1) / len(chosen)
        with console.status(f"tuning {kernel}"):
            tuned, outcome = _tune(kernel, plan, end)
        print_outcome(kernel, outcome, console)
        table.pop(tuned, None)
        if outcome.has_won:
            gpu = torch.cuda.get_device_name(device)
            table[tuned] = Entry(outcome.best, gpu, round(outcome.gain, 4), round(outcome.spread, 4))
        write_out(path, table_text(table))  # after each kernel: what was found is kept
    console.print(f"\n{display_path(path)}: {len(table)} tilings", markup=False, soft_wrap=True)


def _tune(kernel: str, plan: "TuningPlan", end: float) -> "tuple[Tuned, Outcome]":
    """Search until ``end`` of the monotonic clock."""
    import torch

    from pbench.kernel_bench.neighbours import neighbours
    from pbench.kernel_bench.search import search
    from pbench.kernel_bench.shapes import GPU_SIZE, tuning_shapes
    from pbench.kernel_bench.trials import Trials
    from pbench.kernels.tuning_table import Tuned

    try:
        trials = Trials(kernel, tuning_shapes(kernel, GPU_SIZE, plan.seed), plan)
        limits, operands = trials.limits, trials.operands
        outcome = search(
            trials.default,
            trials.shapes,
            lambda tiling: neighbours(tiling, limits, operands),
            trials.measure,
            lambda: time.monotonic() < end,
        )
    except torch.OutOfMemoryError as error:
        raise UsageError(f"the GPU has too little memory free for the shapes of {kernel}") from error
    except ValueError as error:
        raise UsageError(f"{kernel} cannot be tuned here: {error}") from error
    return Tuned(kernel, limits.capability, operands), outcome


def _table_in(path: Path) -> "dict[Tuned, Entry]":
    from pbench.kernels.tuning_table import read_table

    try:
        return read_table(path) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{error}; remove the file or name another with --out") from error
