"""The options that say which engines run and how they schedule, shared by the commands that run them."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_ENGINE = (
    click.option(
        "--engine",
        "engines",
        multiple=True,
        metavar="SPEC",
        help="paged, contiguous:max, contiguous:pow2, contiguous:oracle or static; to run, also transformers (its"
        " continuous batching) or openai:URL (a server; #MODEL names one of its models); repeatable."
        "  [default: paged and contiguous:max]",
    ),
    click.option(
        "--block-size",
        type=click.IntRange(min=1),
        help="Slots in a block of the paged memory.  [default: as the workload suggests, 16 for most]",
    ),
    click.option(
        "--kv-dtype",
        type=click.Choice(["auto", "fp8"]),
        default="auto",
        show_default=True,
        help="Of K and V in the pool: as --dtype, or 8-bit floats (e4m3): more tokens fit, and results are less exact.",
    ),
    click.option("--max-batch-tokens", type=click.IntRange(min=1), help="Tokens that one step computes, at most."),
    click.option("--max-running", type=click.IntRange(min=1), help="Sequences that hold KV at once, at most."),
    click.option(
        "--eviction",
        type=click.Choice(["lru", "fifo"]),
        default="lru",
        show_default=True,
        help="Which cached block the prefix cache gives up first.",
    ),
    click.option(
        "--preemption",
        type=click.Choice(["recompute", "swap", "auto"]),
        default="recompute",
        show_default=True,
        help="What happens to a request that must make room in the paged pool; auto takes what is cheaper.",
    ),
    click.option(
        "--host-memory", metavar="SIZE", help="Host memory for swapped blocks, where swapped.  [default: as the pool]"
    ),
    click.option("--no-prefix-cache", is_flag=True, help="Compute every prompt anew."),
    click.option(
        "--partial-hits",
        is_flag=True,
        help="Let the prefix cache hit parts of blocks too; the rest of such a block is copied.",
    ),
    click.option("--no-chunked-prefill", is_flag=True, help="Compute every prompt in one step."),
    click.option(
        "--no-async-steps",
        is_flag=True,
        help="Wait for the tokens of a step before the next is planned, as on the CPU.",
    ),
)


def engine_options(command: Command) -> Command:
    """Add the options to a command, in the order of this file."""
    for option in reversed(_ENGINE):
        command = option(command)
    return command
