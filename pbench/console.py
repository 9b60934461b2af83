"""Where the commands print."""

import os
from typing import IO

from rich.console import Console

LOG_WIDTH = 160  # characters; a file has no width of its own, and a table cut to fit a terminal loses figures


def console_for(stream: IO[str] | None = None) -> Console:
    """What prints to ``stream``, by default standard output: as wide as the terminal, or as ``COLUMNS`` or a log is."""
    console = Console(file=stream, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = LOG_WIDTH
    return console
