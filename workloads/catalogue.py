"""From what a user types to a workload: a built-in name, or a file whose format its content tells."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pbench.workloads.arrivals import dejitter, parse_arrivals, scale_rate
from pbench.workloads.builtin import BUILT_INS
from pbench.workloads.definition import DEFAULT_BLOCK_SIZE, Definition, Draw
from pbench.workloads.errors import WorkloadError
from pbench.workloads.parameters import Values, nearest_name, resolve
from pbench.workloads.readers import FORMATS
from pbench.workloads.readers.fields import first_line
from pbench.workloads.readers.format import Format
from pbench.workloads.readers.source import Source
from pbench.workloads.row import Row
from pbench.workloads.streams import Stream
from pbench.workloads.table import Int64s, RequestTableBuilder
from pbench.workloads.workload import BUILT_IN, Workload

_LOWEST_RATE_SCALE, _HIGHEST_RATE_SCALE = 1e-6, 1e6


def workload_names() -> tuple[str, ...]:
    """Names of the built-in workloads."""
    return tuple(definition.name for definition in BUILT_INS)


def suggested_block_size(spec: str) -> int:
    """Slots in a block of paged memory that suit a workload; no file's lengths are known before it is read."""
    sizes = {definition.name: definition.block_size for definition in BUILT_INS}
    return sizes.get(spec, DEFAULT_BLOCK_SIZE)


def parameter_owner(workload: Workload) -> Definition | Format:
    """Whose parameters a workload was built with: its definition, or its file's format."""
    if workload.is_file:
        return next(each for each in FORMATS if each.name == workload.format)
    return next(each for each in BUILT_INS if each.name == workload.name)


def load_workload(
    spec: str,
    *,
    seed: int = 0,
    limit: int | None = None,
    max_length: int | None = None,
    arrivals: str | None = None,
    overrides: Mapping[str, str] | None = None,
    rate_scale: float | None = None,
    is_dejittered: bool = False,
    sample: int | None = None,
) -> Workload:
    """Load a workload.

    Args:
        spec: a built-in name, or a path: of a file that exists, or anything with a separator or a suffix.
        seed: of a built-in workload's lengths, of random arrivals, of the sample, and of the prompts' tokens.
        limit: take the first so many of the requests that are kept. Reading stops there.
        max_length: drop (and count) requests whose input and output tokens exceed it. Nothing is ever truncated.
        arrivals: a spelling of ``pbench.workloads.arrivals``; None is the workload's own, ``all`` unless its
            definition says otherwise.
        overrides: parameters by name, of the built-in workload or of the file's format.
        rate_scale: play arrivals at so many times their rate.
        is_dejittered: spread recorded arrivals that share a timestamp until the next one.
        sample: of what the limit leaves, take so many at random, in their order and at their recorded times.

    Raises:
        WorkloadError: an unknown name, a missing or damaged file, an option that cannot be, or nothing left to play.
    """
    for name, value in (("limit", limit), ("max_length", max_length), ("sample", sample)):
        if value is not None and value < 1:
            raise WorkloadError(f"{name} is {value}; it is at least 1")
    origin = _origin(spec, seed, overrides or {})
    process = parse_arrivals(arrivals or origin.arrivals)
    if rate_scale is not None:
        if not process.is_timed:
            raise WorkloadError(f"a rate scale of {rate_scale:g} needs arrivals in time, not {str(process)!r}")
        if not _LOWEST_RATE_SCALE <= rate_scale <= _HIGHEST_RATE_SCALE:
            raise WorkloadError(f"rate scale {rate_scale:g} is outside {_LOWEST_RATE_SCALE:g}..{_HIGHEST_RATE_SCALE:g}")
    if is_dejittered and process.kind != "recorded":
        raise WorkloadError(f"dejittering needs recorded arrivals, not {str(process)!r}; use --arrivals recorded")
    kept = _Kept(origin, limit, max_length)
    if process.kind == "recorded" and not kept.rows.has_times:
        raise WorkloadError(f"{spec} has no recorded times; use arrivals such as poisson:RATE, or all")
    requests = kept.rows.build(_sampled(len(kept.rows), sample, seed))
    times_ns = requests.arrival_ns
    if is_dejittered:
        times_ns = dejitter(times_ns)
    times_ns = process.times_ns(times_ns, Stream(seed, "arrivals"))
    if rate_scale is not None:
        times_ns = scale_rate(times_ns, rate_scale)
    options: dict[str, int | float | None] = {
        "limit": limit,
        "max_length": max_length,
        "sample": sample,
        "rate_scale": rate_scale,
        "is_dejittered": is_dejittered or None,
    }
    return Workload(
        name=origin.name,
        description=origin.description,
        source=origin.source,
        format=origin.format,
        parameters=origin.parameters,
        options={name: value for name, value in options.items() if value is not None},
        seed=seed,
        arrivals=str(process),
        requests=requests.with_arrivals(times_ns),
        num_offered=kept.num_offered,
        num_dropped_too_long=kept.num_dropped_too_long,
        num_dropped_empty=kept.num_dropped_empty,
        has_recorded_times=kept.rows.has_times,
        concurrency=process.concurrency,
        hash_block_size=origin.hash_block_size,
    )


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where rows come from: a definition or a file."""

    name: str
    description: str
    source: str
    format: str
    parameters: Values
    arrivals: str
    rows: Iterator[Row]
    fault_place: str  # how the place of a row is told, with {line}
    time_field: str | None
    hash_block_size: int | None = None


class _Kept:
    """The rows that pass the filters, and counts of those that do not."""

    def __init__(self, origin: _Origin, limit: int | None, max_length: int | None) -> None:
        self.rows = RequestTableBuilder()
        self.num_offered = 0
        self.num_dropped_too_long = 0
        self.num_dropped_empty = 0
        last_ns = 0
        shortest_dropped: int | None = None
        for row in origin.rows:
            self.num_offered += 1
            if row.arrival_ns is not None:
                if row.arrival_ns < last_ns:
                    place = origin.fault_place.format(line=row.line)
                    raise WorkloadError(
                        f"{place}: field {origin.time_field!r} is {(last_ns - row.arrival_ns) / 1e9:g} s before the row"
                        " above; sort the rows by time"
                    )
                last_ns = row.arrival_ns
            length = row.input_length + row.output_length
            if row.input_length < 1 or row.output_length < 1:
                self.num_dropped_empty += 1
            elif max_length is not None and length > max_length:
                self.num_dropped_too_long += 1
                shortest_dropped = min(length, shortest_dropped or length)
            else:
                self.rows.append(row)
                if len(self.rows) == limit:
                    break
        if len(self.rows) == 0:
            raise WorkloadError(self._nothing_left(origin, max_length, shortest_dropped))

    def _nothing_left(self, origin: _Origin, max_length: int | None, shortest_dropped: int | None) -> str:
        what = origin.name if origin.source == BUILT_IN else origin.source
        empty = f"{self.num_dropped_empty} had no input or no output tokens"
        if shortest_dropped is None:
            return f"{what} has no requests to play: of {self.num_offered} rows {empty}"
        return (
            f"{what} has no requests of at most {max_length} tokens: of {self.num_offered} rows"
            f" {self.num_dropped_too_long} were dropped as too long, {empty}; the shortest needs"
            f" --max-length {shortest_dropped}"
        )


def _origin(spec: str, seed: int, overrides: Mapping[str, str]) -> _Origin:
    definitions = {definition.name: definition for definition in BUILT_INS}
    if spec in definitions:
        return _built_in(definitions[spec], seed, overrides)
    path = Path(spec)
    if path.exists() or os.sep in spec or path.suffix:
        return _file(path, overrides)
    raise WorkloadError(
        f"workload {spec!r} is unknown{nearest_name(spec, list(definitions))} (known: {', '.join(definitions)}; or a"
        " file)"
    )


def _built_in(definition: Definition, seed: int, overrides: Mapping[str, str]) -> _Origin:
    values = resolve(definition.parameters, overrides, f"workload {definition.name}")
    return _Origin(
        name=definition.name,
        description=definition.description,
        source=BUILT_IN,
        format=BUILT_IN,
        parameters=values,
        arrivals=definition.arrivals,
        rows=definition.build(Draw(definition.name, values, seed)),
        fault_place=f"workload {definition.name}, request {{line}}",
        time_field="arrival",
    )


def _file(path: Path, overrides: Mapping[str, str]) -> _Origin:
    source = Source(path)
    head = source.head()
    file_format = _recognised(path, head)
    values = resolve(file_format.parameters, overrides, f"{path} ({file_format.name} format)")
    return _Origin(
        name=path.name,
        description=file_format.description,
        source=str(path),
        format=file_format.name,
        parameters=values,
        arrivals="all",
        rows=file_format.read(source, values),
        fault_place=f"{path}, line {{line}}",
        time_field=file_format.time_field,
        hash_block_size=file_format.hash_block_size(head),
    )


def _recognised(path: Path, head: str) -> Format:
    for file_format in FORMATS:
        if file_format.recognise(head):
            return file_format
    listed = "\n".join(f"  {known.name}: {known.description}" for known in FORMATS)
    raise WorkloadError(
        f"{path}, line 1: no known format begins like this: {first_line(head)[:80]!r}. Known formats:\n{listed}"
    )


def _sampled(count: int, sample: int | None, seed: int) -> Int64s | None:
    if sample is None or sample >= count:
        return None
    order = np.argsort(Stream(seed, "sample").words(count), kind="stable")
    return np.sort(order[:sample])
