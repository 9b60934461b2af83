"""Mooncake's traces: JSONL with arrival in milliseconds and one prefix hash for every 512 tokens of the prompt."""

from collections.abc import Iterator

from pbench.workloads.parameters import Values
from pbench.workloads.readers.fields import PrefixHashes, has_keys, json_records
from pbench.workloads.readers.format import Format
from pbench.workloads.readers.source import Source
from pbench.workloads.row import Row

HASH_BLOCK_SIZE = 512


def read(source: Source, _parameters: Values) -> Iterator[Row]:
    """Rows of the trace; equal hashes become equal runs of tokens."""
    hashes = PrefixHashes(HASH_BLOCK_SIZE, "hash_ids")
    for record in json_records(source):
        arrival_ns = record.time_ns("timestamp", unit_ns=10**6)
        input_length = record.length("input_length")
        output_length = record.length("output_length")
        yield Row(record.line, arrival_ns, input_length, output_length, hashes.segments(record, input_length))


MOONCAKE = Format(
    name="mooncake",
    description="Mooncake trace: JSONL with timestamp (ms), input_length, output_length, hash_ids (one per 512 tokens)",
    recognise=lambda head: has_keys(head, "timestamp", "hash_ids") and not has_keys(head, "chat_id"),
    read=read,
    time_field="timestamp",
    hash_block_size=lambda _head: HASH_BLOCK_SIZE,
)
