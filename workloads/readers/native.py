"""pbench's own format: JSONL, one request a line, after an optional header line.

A request, where only the lengths are needed (input_length not even that when prompt_token_ids is there)::

    {"arrival_s": 0.0, "input_length": 161, "output_length": 338, "n": 1, ...}

and one of these, when the prompt is more than its length:

    "prompt_token_ids": [...]     the prompt itself
    "prefix_hashes": [...]        one number for each hash_block_size tokens, equal where the whole prefix is equal;
                                  tokens after the last hash are the request's own
    "segments": [[key, length]]   runs of tokens in order, the first ``length`` tokens of the stream named ``key``

The header says where the requests are from; of it the reader needs the version and the size of a hash's block::

    {"pbench_workload": 1, "hash_block_size": 512, "source": ..., ...}

Without a header a hash covers 16 tokens. Times must stand in every row or in none.
"""

import json
from collections.abc import Iterator
from typing import Any

from pbench.workloads.parameters import Values
from pbench.workloads.readers.fields import PrefixHashes, Record, first_line, has_keys, json_records
from pbench.workloads.readers.format import Format
from pbench.workloads.readers.source import Source
from pbench.workloads.request import Segment
from pbench.workloads.row import MAX_KEY, MAX_LENGTH, PRIVATE, Row

VERSION = 1
DEFAULT_HASH_BLOCK_SIZE = 16
MAX_N = 1024

HEADER = "pbench_workload"
_FIELDS = (
    "arrival_s",
    "input_length",
    "output_length",
    "n",
    "beam_width",
    "prompt_token_ids",
    "prefix_hashes",
    "segments",
)
_PROMPTS = ("prompt_token_ids", "prefix_hashes", "segments")


def read(source: Source, _parameters: Values) -> Iterator[Row]:
    """Rows of the file."""
    hashes = PrefixHashes(DEFAULT_HASH_BLOCK_SIZE, "prefix_hashes")
    has_times: bool | None = None
    is_first = True
    for record in json_records(source):
        if is_first and HEADER in record:
            hashes = PrefixHashes(_header_block_size(record), "prefix_hashes")
        else:
            if has_times is None:
                has_times = "arrival_s" in record
            elif has_times != ("arrival_s" in record):
                record.fault("arrival_s", f"is {'missing' if has_times else 'there'}, unlike in the rows before")
            yield _row(record, hashes)
        is_first = False


def _row(record: Record, hashes: PrefixHashes) -> Row:
    record.refuse_fields_but(_FIELDS)
    prompts = [field for field in _PROMPTS if field in record]
    if len(prompts) > 1:
        record.fault(prompts[1], f"stands beside {prompts[0]!r}; a row has at most one of them")
    token_ids: tuple[int, ...] | None = None
    segments: tuple[Segment, ...] = ()
    if prompts == ["prompt_token_ids"]:
        token_ids = tuple(record.whole_numbers("prompt_token_ids", MAX_LENGTH))
        input_length = record.length("input_length") if "input_length" in record else len(token_ids)
        if input_length != len(token_ids):
            record.fault("input_length", f"is {input_length}, but prompt_token_ids has {len(token_ids)}")
    else:
        input_length = record.length("input_length")
        if prompts == ["prefix_hashes"]:
            segments = hashes.segments(record, input_length, fewest=0)
        elif prompts == ["segments"]:
            segments = _segments(record, input_length)
        else:
            segments = (Segment(PRIVATE, input_length),)
    n, beam_width = (record.whole(name, 1, MAX_N) if name in record else 1 for name in ("n", "beam_width"))
    if 1 < beam_width < n:
        record.fault("n", f"is {n}, more hypotheses than the {beam_width} beams of beam_width")
    return Row(
        line=record.line,
        arrival_ns=record.time_ns("arrival_s", unit_ns=10**9) if "arrival_s" in record else None,
        input_length=input_length,
        output_length=record.length("output_length"),
        segments=segments,
        prompt_token_ids=token_ids,
        n=n,
        beam_width=beam_width,
    )


def _segments(record: Record, input_length: int) -> tuple[Segment, ...]:
    pairs = record.get("segments")
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        record.fault("segments", "is not a list of [key, length] pairs")
    for index, pair in enumerate(pairs):
        for value, low, high in zip(pair, (0, 1), (MAX_KEY, MAX_LENGTH), strict=True):
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                record.fault("segments", f"has {value!r} in pair {index}, not a whole number in {low}..{high}")
    segments = tuple(Segment(key, length) for key, length in pairs)
    total = sum(segment.length for segment in segments)
    if total != input_length:
        record.fault("segments", f"cover {total} tokens, but input_length is {input_length}")
    return segments


def _header_block_size(record: Record) -> int:
    version = record.whole(HEADER, 1, MAX_LENGTH)
    if version != VERSION:
        record.fault(HEADER, f"is version {version}; this pbench reads version {VERSION}")
    if "hash_block_size" not in record:
        return DEFAULT_HASH_BLOCK_SIZE
    return record.length("hash_block_size", low=1)


def header(head: str) -> dict[str, Any] | None:
    """The header at the beginning of a file, unchecked; None when there is none."""
    try:
        first = json.loads(first_line(head))
    except (ValueError, RecursionError):  # a first row longer than the head, or a fault that ``read`` will name
        return None
    return first if isinstance(first, dict) and HEADER in first else None


def _head_block_size(head: str) -> int | None:
    size = (header(head) or {}).get("hash_block_size", DEFAULT_HASH_BLOCK_SIZE)
    return size if isinstance(size, int) and size > 0 else None


NATIVE = Format(
    name="pbench",
    description="pbench's own: JSONL with arrival_s, input_length, output_length, optional prompt_token_ids,"
    " prefix_hashes or segments, n, beam_width",
    recognise=lambda head: (
        any(has_keys(head, key) for key in (HEADER, "arrival_s", "prompt_token_ids", "prefix_hashes", "segments"))
        or (has_keys(head, "input_length", "output_length") and not has_keys(head, "timestamp"))
    ),
    read=read,
    time_field="arrival_s",
    hash_block_size=_head_block_size,
)
