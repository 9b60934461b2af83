"""Checks of single fields. Each raises WorkloadError that names file, line, field, the value, and what is allowed."""

import csv
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeGuard

from pbench.workloads.parameters import nearest_name
from pbench.workloads.readers.source import Source
from pbench.workloads.request import Segment
from pbench.workloads.row import MAX_ARRIVAL_NS, MAX_KEY, MAX_LENGTH, PRIVATE


class Record:
    """One row of a file: its fields by name, and where it stands."""

    def __init__(self, source: Source, line: int, fields: Mapping[str, Any], *, is_text: bool = False) -> None:
        self.line = line
        self._is_text = is_text  # every value is text, as in CSV, so that numbers are written as text
        self._source = source
        self._fields = fields

    def __contains__(self, field: str) -> bool:
        return field in self._fields

    def fault(self, field: str, problem: str) -> NoReturn:
        """Raise an error that names file, line and field."""
        raise self._source.fault(self.line, f"field {field!r} {problem}")

    def refuse_fields_but(self, known: Sequence[str]) -> None:
        """A field that nobody reads is a fault: more likely a slip of the pen than something to pass over."""
        for field in self._fields:
            if field not in known:
                self.fault(field, f"is unknown{nearest_name(field, known)} (known: {', '.join(known)})")

    def get(self, field: str) -> Any:
        """The field's value, unchecked; a missing field is a fault."""
        if field not in self._fields:
            self.fault(field, f"is missing (the row has {', '.join(map(repr, self._fields)) or 'none'})")
        return self._fields[field]

    def length(self, field: str, low: int = 0) -> int:
        """A number of tokens."""
        return self.whole(field, low, MAX_LENGTH)

    def whole(self, field: str, low: int, high: int) -> int:
        """A whole number; in a file of text cells, digits."""
        value = self.get(field)
        number = value
        if self._is_text and value.strip().removeprefix("-").isdecimal() and len(value) < 30:
            number = int(value)
        if not _is_whole(number):
            self.fault(field, f"is {_shown(value)}, not a whole number")
        if not low <= number <= high:
            self.fault(field, f"is {_shown(value)}, outside {low}..{high}")
        return number

    def time_ns(self, field: str, unit_ns: int) -> int:
        """A time that is not negative, in units of ``unit_ns``, rounded to nanoseconds."""
        value = self.get(field)
        if self._is_text:
            try:
                number = float(value)
            except ValueError:
                self.fault(field, f"is {_shown(value)}, not a number")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            number = value
        else:
            self.fault(field, f"is {_shown(value)}, not a number")
        if not (0 <= number <= MAX_ARRIVAL_NS // unit_ns):  # refuses NaN and infinity too
            self.fault(field, f"is {_shown(value)}, outside 0..{MAX_ARRIVAL_NS // unit_ns}")
        return round(number * unit_ns)

    def whole_numbers(self, field: str, high: int) -> list[int]:
        """A list of whole numbers in 0..high."""
        values = self.get(field)
        if not isinstance(values, list):
            self.fault(field, f"is {_shown(values)}, not a list")
        for index, value in enumerate(values):
            if not _is_whole(value):
                self.fault(field, f"has {_shown(value)} at position {index}, not a whole number")
            if not 0 <= value <= high:
                self.fault(field, f"has {_shown(value)} at position {index}, outside 0..{high}")
        return values


class PrefixHashes:
    """Turns the prefix hashes of a file's rows into segments and holds the format's own invariant.

    A prefix hash stands for a block of tokens and for all tokens before it, so wherever it occurs the same hash (or
    nothing) comes before it. A row that breaks this is no prefix hash's row, and is refused.
    """

    def __init__(self, block_size: int, field: str) -> None:
        self._block_size = block_size
        self._field = field
        self._parents: dict[int, int] = {}

    def segments(self, record: Record, input_length: int, fewest: int | None = None) -> tuple[Segment, ...]:
        """Segments of one row: ``block_size`` tokens a hash, the last perhaps fewer; their lengths sum to input_length.

        There must be one hash for every block that the prompt begins, or at least ``fewest`` when that is given; what
        the hashes leave over is tokens that the request shares with none.
        """
        hashes = record.whole_numbers(self._field, MAX_KEY)
        num_blocks = -(-input_length // self._block_size)
        if not (num_blocks if fewest is None else fewest) <= len(hashes) <= num_blocks:
            wanted = str(num_blocks) if fewest is None else f"{fewest}..{num_blocks}"
            record.fault(
                self._field,
                f"has {len(hashes)} hashes; a prompt of {input_length} tokens has {wanted}, one for every"
                f" {self._block_size}",
            )
        parent = PRIVATE
        for index, block_hash in enumerate(hashes):
            known = self._parents.setdefault(block_hash, parent)
            if known != parent:
                record.fault(
                    self._field,
                    f"has hash {block_hash} at position {index} after {_named(parent)}, in an earlier row after"
                    f" {_named(known)}: a prefix hash has one predecessor",
                )
            parent = block_hash
        segments = [Segment(block_hash, self._block_size) for block_hash in hashes]
        surplus = len(hashes) * self._block_size - input_length
        if surplus > 0:
            segments[-1] = Segment(hashes[-1], self._block_size - surplus)
        elif surplus < 0:
            segments.append(Segment(PRIVATE, -surplus))
        return tuple(segments)


def json_records(source: Source) -> Iterator[Record]:
    """The JSON objects of a file, one a line."""
    for line, text in source.lines():
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise source.fault(line, f"not a JSON object: {problem} (cut off?): {_shown(text)}") from None
        if not isinstance(value, dict):
            raise source.fault(line, f"not a JSON object but {_shown(value)}")
        yield Record(source, line, value)


def csv_records(source: Source, columns: Collection[str]) -> Iterator[Record]:
    """The rows of a CSV file whose first row names at least ``columns``, in any order."""
    numbered = source.lines()
    line = 0
    header: list[str] = []
    for line, text in numbered:
        cells = _cells(source, line, text)
        if not header:
            header = [cell.strip() for cell in cells]
            missing = [column for column in columns if column not in header]
            repeated = [column for column in columns if header.count(column) > 1]
            if repeated:
                raise source.fault(line, f"column {repeated[0]!r} stands there twice")
            if missing:
                raise source.fault(line, f"no column {missing[0]!r} (columns: {', '.join(header)})")
            continue
        if len(cells) != len(header):
            absent = f"; field {header[len(cells)]!r} is missing" if len(cells) < len(header) else ""
            raise source.fault(line, f"{len(cells)} cells where the header has {len(header)}{absent}")
        yield Record(source, line, dict(zip(header, cells, strict=True)), is_text=True)


def _cells(source: Source, line: int, text: str) -> list[str]:
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise source.fault(line, f"not a CSV row: {error}") from None
    return rows[0]


def has_keys(head: str, *keys: str) -> bool:
    """The first line looks like a JSON object with these keys."""
    first = first_line(head)
    return first.startswith("{") and all(f'"{key}"' in first for key in keys)


def has_columns(head: str, *columns: str) -> bool:
    """The first line looks like a CSV header with these columns."""
    cells = [cell.strip().strip('"') for cell in first_line(head).split(",")]
    return all(column in cells for column in columns)


def first_line(head: str) -> str:
    """The first line that is not blank, without white space around it."""
    return head.strip().split("\n", 1)[0].strip()


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _named(block_hash: int) -> str:
    return "nothing" if block_hash == PRIVATE else f"hash {block_hash}"


def _shown(value: object) -> str:
    """A value for a message: what it is in JSON, not too long."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
