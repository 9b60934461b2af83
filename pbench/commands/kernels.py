"""``pbench kernels``: how fast the kernels are, as shares of what this machine reaches."""

from pathlib import Path

import click
from click.core import ParameterSource

from pbench.commands.kernels_tune import tune
from pbench.errors import RunFailedError, UsageError

_ATTENTION = ("decode", "ragged", "prefill", "mixed", "shared", "window", "soft cap")
_KERNELS = (*_ATTENTION, "copy blocks", "rows", "step", "invariant", "products", "most likely", "host")


@click.group(invoke_without_command=True)
@click.option(
    "--kernel",
    "kernels",
    type=click.Choice(_KERNELS),
    multiple=True,
    help="Time this one only; repeatable. Mixed is a step's decodes and prompts, in two launches and otherwise; rows"
    " are the kernels that treat every token apart; step those that a step launches once; invariant those of"
    " --batch-invariant; products those of a decode step's few rows with the weights of a"
    " layer; most likely is the choice of greedy requests; host is the time that the host takes for a call."
    "  [default: all]",
)
@click.option("--paging-tax", is_flag=True, help="Time block tables against contiguous extents instead.")
@click.option("--block-size", type=click.IntRange(min=1), default=16, show_default=True, help="Slots in a block.")
@click.option("--samples", type=click.IntRange(min=3), default=20, show_default=True, help="Of every timing.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of lengths and of the order of blocks.")
@click.option("--no-peers", is_flag=True, help="Leave out other implementations that can be imported.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to time."
)
@click.option(
    "--json",
    "out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write ceilings, raw samples and the environment, while it measures; `pbench simulate --ceilings` reads it.",
)
@click.pass_context
def kernels(
    context: click.Context,
    kernels: tuple[str, ...],
    paging_tax: bool,
    block_size: int,
    samples: int,
    seed: int,
    no_peers: bool,
    device: str,
    out: Path | None,
) -> None:
    """Time every kernel against ceilings that are measured first: a large copy and a large matrix product.

    Buffers rotate, so that a GPU's cache does not flatter; calls are replayed from CUDA graphs; the median of the
    samples counts, with the spread from the 10th to the 90th percentile. Other implementations that can be imported
    (FlashInfer, flash-attn, vLLM's, torch's own) are timed beside ours on the same inputs, if their results are right,
    and geometric means say how ours stands beside each. Without a GPU the shapes are scaled down and the torch
    references are timed: that shows that the bench works, and nothing else. A kernel of ours that fails is named, the
    others go on, and the exit code is 1.

    tune: look for faster ways to cut up the launches of attention on this GPU.
    """
    if context.invoked_subcommand is not None:
        if any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in context.params):
            raise UsageError(f"options of `pbench kernels {context.invoked_subcommand}` stand behind its name")
        return
    import torch

    from pbench.console import console_for
    from pbench.kernel_bench.bench import KernelPlan, measure_ceilings, measure_kernels, measure_paging_tax
    from pbench.kernel_bench.record import KernelRecord
    from pbench.kernel_bench.view import print_ceilings, print_measurements
    from pbench.text_output import check_out

    if block_size & (block_size - 1):
        raise UsageError(f"--block-size {block_size}: block tables need a power of two")
    if paging_tax and kernels:
        raise UsageError("--paging-tax times decode attention alone; leave out --kernel")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no NVIDIA GPU here; leave it out to time on the CPU")
    check_out(out, "--json")
    is_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    plan = KernelPlan(
        torch.device("cuda" if is_cuda else "cpu"), kernels or _KERNELS, block_size, samples, seed, not no_peers
    )
    console = console_for()
    if not is_cuda:
        console.print("no GPU: shapes are scaled down and the torch references are timed, not the kernels")
    torch.manual_seed(seed)
    with console.status("measuring the ceilings"):
        ceilings = measure_ceilings(plan)
    print_ceilings(ceilings, console)
    record = KernelRecord(out, ceilings, plan)
    try:
        with record, console.status("timing") as status:
            for measurement in measure_paging_tax(plan) if paging_tax else measure_kernels(plan):
                record.add(measurement)
                status.update(f"timing: {measurement.kernel}, {measurement.shape} done")
    finally:
        print_measurements(record.measurements, ceilings, console)
    if faults := [f"{one.kernel}, {one.shape}: {one.failure}" for one in record.measurements if one.is_fault]:
        raise RunFailedError("\n".join(faults))


kernels.add_command(tune)
