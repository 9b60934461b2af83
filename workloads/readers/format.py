"""What every reader of a trace format is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pbench.workloads.parameters import Parameter, Values
from pbench.workloads.readers.source import Source
from pbench.workloads.row import Row


def no_block_size(_head: str) -> int | None:
    """For formats without prefix hashes."""
    return None


@dataclass(frozen=True, slots=True)
class Format:
    """A file format.

    ``recognise`` looks at the first characters of a file; ``read`` gives the rows one by one and raises WorkloadError,
    naming file, line and field, at the first row that breaks the format; ``hash_block_size`` is how many tokens one
    prefix hash of the file covers.
    """

    name: str
    description: str
    recognise: Callable[[str], bool]
    read: Callable[[Source, Values], Iterator[Row]]
    time_field: str | None  # None: the format has no times
    hash_block_size: Callable[[str], int | None] = no_block_size
    parameters: tuple[Parameter, ...] = ()
