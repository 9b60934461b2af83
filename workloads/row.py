"""What readers and built-in definitions give out: one request as its source has it."""

from typing import NamedTuple

from pbench.workloads.request import Segment

PRIVATE = -1  # the key of a segment that no other request has

MAX_LENGTH = 2**31 - 1  # tokens; lengths and token ids are kept in 32 bits
MAX_KEY = 2**63 - 1
MAX_ARRIVAL_NS = 2**62  # about 146 years


class Row(NamedTuple):
    """One request of a source. ``segments`` lengths sum to input_length, or are () when token ids are given."""

    line: int  # where it stands in its file, from 1; in a built-in workload its number, from 1
    arrival_ns: int | None  # recorded time; None when the source has no times
    input_length: int  # may be 0: such rows are dropped and counted
    output_length: int  # may be 0, likewise
    segments: tuple[Segment, ...]
    prompt_token_ids: tuple[int, ...] | None = None
    n: int = 1
    beam_width: int = 1


def private_row(line: int, arrival_ns: int | None, input_length: int, output_length: int) -> Row:
    """A row that shares nothing with any other."""
    return Row(line, arrival_ns, input_length, output_length, (Segment(PRIVATE, input_length),))
