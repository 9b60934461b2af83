"""BurstGPT's traces: CSV with arrival in seconds and lengths; columns are found by name, as releases differ in them.

Requests that failed have zero response tokens: they are dropped and counted like every row with nothing to do.
"""

from collections.abc import Iterator

from pbench.workloads.parameters import Values
from pbench.workloads.readers.fields import csv_records, has_columns
from pbench.workloads.readers.format import Format
from pbench.workloads.readers.source import Source
from pbench.workloads.row import Row, private_row

_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def read(source: Source, _parameters: Values) -> Iterator[Row]:
    """Rows of the trace."""
    for record in csv_records(source, _COLUMNS):
        yield private_row(
            record.line,
            record.time_ns("Timestamp", unit_ns=10**9),
            record.length("Request tokens"),
            record.length("Response tokens"),
        )


BURSTGPT = Format(
    name="burstgpt",
    description="BurstGPT trace: CSV with Timestamp (s), Request tokens, Response tokens",
    recognise=lambda head: has_columns(head, *_COLUMNS),
    read=read,
    time_field="Timestamp",
)
