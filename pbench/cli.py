"""The command line's root.

A subcommand's module is imported when it is asked for, and heavy imports stand inside the subcommands' functions, so
that ``pbench --help`` answers at once.
"""

from importlib import import_module

import click

from pbench.version import __version__

_COMMANDS = {
    "compare": "pbench.commands.compare:compare",
    "env": "pbench.commands.env:env",
    "floor": "pbench.commands.floor:floor",
    "gate": "pbench.commands.gate:gate",
    "history": "pbench.commands.history:history",
    "kernels": "pbench.commands.kernels:kernels",
    "memory-bench": "pbench.commands.memory_bench:memory_bench",
    "paper": "pbench.commands.paper:paper",
    "report": "pbench.commands.report:report",
    "run": "pbench.commands.run:run",
    "simulate": "pbench.commands.simulate:simulate",
    "workloads": "pbench.commands.workloads:workloads",
}


class LazyGroup(click.Group):
    """A group whose commands are named by ``module:attribute`` and imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, sorted; imports nothing."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pbench")
def cli() -> None:
    """Measure what paged KV-cache memory buys on your traffic.

    One engine, two memories (paged, and contiguous preallocation), the same workload through both.
    """
