"""The options that say which requests to play, shared by the commands that play or look at a workload."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pbench.job import WorkloadChoice

Command = TypeVar("Command", bound=Callable[..., Any])

_PLAYING = (
    click.option(
        "--arrivals",
        metavar="PROCESS",
        help="When requests arrive: all, recorded, poisson:RATE, gamma:RATE:CV, constant:RATE, ramp:FROM:TO"
        " (requests/s), or closed:CONCURRENCY.  [default: the workload's own, for a file all]",
    ),
    click.option(
        "--rate-scale",
        type=click.FloatRange(min=0, min_open=True),
        metavar="FACTOR",
        help="Play arrivals at so many times their rate.",
    ),
    click.option(
        "--dejitter",
        is_flag=True,
        help="Spread recorded arrivals of one timestamp until the next, for traces whose clock ticks coarsely.",
    ),
    click.option(
        "--sample",
        type=click.IntRange(min=1),
        metavar="N",
        help="Of what --limit leaves, play N requests taken at random, at their own times.",
    ),
    click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A parameter of the workload; repeatable."
    ),
)

_SELECTING = (
    click.option("--seed", type=int, default=0, show_default=True, help="Of everything random in the workload."),
    click.option(
        "--limit", type=click.IntRange(min=0), metavar="N", help="The first N requests; 0 for all.  [default: all]"
    ),
    click.option(
        "--max-length",
        type=click.IntRange(min=2),
        metavar="TOKENS",
        help="Prompt and output tokens of a request, at most; longer ones are dropped and counted.",
    ),
)


def playing_options(command: Command) -> Command:
    """Add --arrivals, --rate-scale, --dejitter, --sample and --set."""
    return _with(command, _PLAYING)


def workload_options(command: Command) -> Command:
    """Add what ``playing_options`` adds, and --seed, --limit and --max-length; see ``workload_choice``."""
    return _with(command, _SELECTING + _PLAYING)


def workload_choice(spec: str, options: dict[str, Any]) -> "WorkloadChoice":
    """The choice that the values of ``workload_options`` make; takes them out of ``options``.

    Raises:
        UsageError: a --set that is not KEY=VALUE, or is given twice.

    """
    from pbench.job import WorkloadChoice
    from pbench.settings import parse_overrides

    return WorkloadChoice(
        spec=spec,
        seed=options.pop("seed"),
        limit=options.pop("limit") or None,
        max_length=options.pop("max_length"),
        arrivals=options.pop("arrivals"),
        overrides=parse_overrides(options.pop("overrides")),
        rate_scale=options.pop("rate_scale"),
        is_dejittered=options.pop("dejitter"),
        sample=options.pop("sample"),
    )


def _with(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
