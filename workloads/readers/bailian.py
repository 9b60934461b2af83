"""Qwen-Bailian's usage traces: JSONL with arrival in seconds and one prefix hash for every 16 tokens of the prompt."""

from collections.abc import Iterator

from pbench.workloads.parameters import Values
from pbench.workloads.readers.fields import PrefixHashes, has_keys, json_records
from pbench.workloads.readers.format import Format
from pbench.workloads.readers.source import Source
from pbench.workloads.row import Row

HASH_BLOCK_SIZE = 16


def read(source: Source, _parameters: Values) -> Iterator[Row]:
    """Rows of the trace; equal hashes become equal runs of tokens. A last block that is not full may lack its hash."""
    hashes = PrefixHashes(HASH_BLOCK_SIZE, "hash_ids")
    for record in json_records(source):
        arrival_ns = record.time_ns("timestamp", unit_ns=10**9)
        input_length = record.length("input_length")
        output_length = record.length("output_length")
        segments = hashes.segments(record, input_length, fewest=input_length // HASH_BLOCK_SIZE)
        yield Row(record.line, arrival_ns, input_length, output_length, segments)


BAILIAN = Format(
    name="bailian",
    description="Qwen-Bailian trace: JSONL with chat_id, timestamp (s), input_length, output_length, hash_ids (one per"
    " 16 tokens)",
    recognise=lambda head: has_keys(head, "chat_id", "timestamp", "hash_ids"),
    read=read,
    time_field="timestamp",
    hash_block_size=lambda _head: HASH_BLOCK_SIZE,
)
