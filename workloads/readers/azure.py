"""Azure's LLM inference traces of 2023 and 2024 (AzurePublicDataset): CSV, wall-clock times, lengths, no content."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from pbench.workloads.parameters import Values
from pbench.workloads.readers.fields import Record, csv_records, has_columns
from pbench.workloads.readers.format import Format
from pbench.workloads.readers.source import Source
from pbench.workloads.row import MAX_ARRIVAL_NS, Row, private_row

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIME = re.compile(
    r"(?P<second>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(?P<fraction>\d{1,9}))?(?P<zone>Z|[+-]\d\d:\d\d)?",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = _EPOCH + timedelta(seconds=MAX_ARRIVAL_NS // 10**9)


def read(source: Source, _parameters: Values) -> Iterator[Row]:
    """Rows of the trace. Times are nanoseconds since 1970, of which only differences count."""
    for record in csv_records(source, _COLUMNS):
        yield private_row(
            record.line,
            _time_ns(record),
            record.length("ContextTokens"),
            record.length("GeneratedTokens"),
        )


def _time_ns(record: Record) -> int:
    text = record.get("TIMESTAMP").strip()
    match = _TIME.fullmatch(text)
    if match is None:
        record.fault("TIMESTAMP", f"is {text!r}, not a time such as 2023-11-16 18:15:46.6805900")
    try:
        seconds = _seconds(match["second"], match["zone"] or "Z")
    except ValueError as error:
        record.fault("TIMESTAMP", f"is {text!r}: {error}")
    if seconds < 0:
        record.fault("TIMESTAMP", f"is {text!r}, before 1970")
    if seconds >= MAX_ARRIVAL_NS // 10**9:
        record.fault("TIMESTAMP", f"is {text!r}, later than {_LAST:%Y-%m-%d}")
    return seconds * 10**9 + int((match["fraction"] or "0").ljust(9, "0"))


@lru_cache(maxsize=64)  # neighbouring rows share their second
def _seconds(second: str, zone: str) -> int:
    return (datetime.fromisoformat(second + zone) - _EPOCH) // timedelta(seconds=1)


AZURE = Format(
    name="azure",
    description="Azure LLM inference trace, 2023 or 2024: CSV with TIMESTAMP, ContextTokens, GeneratedTokens",
    recognise=lambda head: has_columns(head, *_COLUMNS),
    read=read,
    time_field="TIMESTAMP",
)
