"""Many requests, in columns: a trace of millions of rows takes tens of bytes a row, not an object each."""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from pbench.workloads.request import Segment, WorkloadRequest
from pbench.workloads.row import PRIVATE, Row

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class RequestTable(Sequence[WorkloadRequest]):
    """An immutable sequence of WorkloadRequest, built when asked for.

    For N requests with S segments and T explicit token ids in all::

        arrival_ns, input_length, output_length, n, beam_width   (N,)
        segment_starts, token_starts                        (N + 1,)  request i has starts[i] .. starts[i + 1]
        segment_keys, segment_lengths                       (S,)
        token_ids                                           (T,)

    Keys are canonical: numbered 0.. in order of first appearance, so a workload's hash and its tokens depend on
    what is shared and not on what its source called it.
    """

    arrival_ns: Int64s
    input_length: Int32s
    output_length: Int32s
    n: Int32s
    beam_width: Int32s
    segment_starts: Int64s
    segment_keys: Int64s
    segment_lengths: Int32s
    token_starts: Int64s
    token_ids: Int32s

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @property
    def num_sequences(self) -> Int32s:
        """Sequences that each request has at once, at most: its samples, or its beams. Shape (N,)."""
        return np.where(self.beam_width > 1, self.beam_width, self.n)

    @overload
    def __getitem__(self, index: int) -> WorkloadRequest: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[WorkloadRequest]: ...
    def __getitem__(self, index: int | slice) -> WorkloadRequest | Sequence[WorkloadRequest]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"request {index} of {len(self)}")
        index %= len(self)
        start, end = self.segment_starts[index : index + 2].tolist()
        keys, lengths = self.segment_keys[start:end].tolist(), self.segment_lengths[start:end].tolist()
        start_token, end_token = self.token_starts[index : index + 2].tolist()
        return WorkloadRequest(
            request_id=index,
            arrival_s=int(self.arrival_ns[index]) / 1e9,
            input_length=int(self.input_length[index]),
            output_length=int(self.output_length[index]),
            segments=tuple(map(Segment, keys, lengths)),
            prompt_token_ids=tuple(self.token_ids[start_token:end_token].tolist()) or None,
            n=int(self.n[index]),
            beam_width=int(self.beam_width[index]),
        )

    def __iter__(self) -> Iterator[WorkloadRequest]:
        return (self[index] for index in range(len(self)))

    def with_arrivals(self, arrival_ns: Int64s) -> "RequestTable":
        """The same requests arriving at other times. Shape (N,), int64, not decreasing."""
        assert len(arrival_ns) == len(self)
        assert len(self) == 0 or (arrival_ns[0] >= 0 and bool((np.diff(arrival_ns) >= 0).all()))
        columns = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return RequestTable(**(columns | {"arrival_ns": arrival_ns.astype(np.int64)}))

    def sha256(self, concurrency: int | None) -> str:
        """Hash of everything that is played: the same for the same requests, whatever file they came from."""
        digest = hashlib.sha256(f"pbench workload 1, concurrency {concurrency}\n".encode())
        for name in self.__dataclass_fields__:
            column = getattr(self, name)
            digest.update(f"{name} {len(column)}\n".encode())
            digest.update(column.astype(column.dtype.newbyteorder("<"), copy=False).tobytes())
        return digest.hexdigest()


class RequestTableBuilder:
    """Collects rows, a few machine words each, and freezes all or some of them into a RequestTable."""

    def __init__(self) -> None:
        self.has_times = True  # every row so far came with a recorded time
        self._arrival_ns = array("q")
        self._lengths = array("i")  # input, output, n, beam width; four a row
        self._segment_ends = array("q")
        self._segment_keys = array("q")
        self._segment_lengths = array("i")
        self._token_ends = array("q")
        self._token_ids = array("i")

    def __len__(self) -> int:
        return len(self._arrival_ns)

    def append(self, row: Row) -> None:
        """Add one row; rows come in order of arrival."""
        self.has_times = self.has_times and row.arrival_ns is not None
        self._arrival_ns.append(row.arrival_ns or 0)
        self._lengths.extend((row.input_length, row.output_length, row.n, row.beam_width))
        for key, length in row.segments:
            self._segment_keys.append(key)
            self._segment_lengths.append(length)
        self._segment_ends.append(len(self._segment_keys))
        if row.prompt_token_ids is not None:
            self._token_ids.extend(row.prompt_token_ids)
        self._token_ends.append(len(self._token_ids))

    def build(self, chosen: npt.NDArray[np.int64] | None = None) -> RequestTable:
        """Freeze the rows, or the ``chosen`` ones (indices, rising), with recorded times and canonical keys."""
        rows: Int64s | slice = slice(None) if chosen is None else chosen  # a slice takes no memory
        lengths = np.asarray(self._lengths).reshape(-1, 4)[rows]
        segments, segment_starts = _chosen_parts(np.asarray(self._segment_ends), rows)
        tokens, token_starts = _chosen_parts(np.asarray(self._token_ends), rows)
        return RequestTable(
            arrival_ns=np.asarray(self._arrival_ns)[rows].copy(),
            input_length=lengths[:, 0].copy(),
            output_length=lengths[:, 1].copy(),
            n=lengths[:, 2].copy(),
            beam_width=lengths[:, 3].copy(),
            segment_starts=segment_starts,
            segment_keys=_canonical_keys(np.asarray(self._segment_keys)[segments]),
            segment_lengths=np.asarray(self._segment_lengths)[segments].copy(),
            token_starts=token_starts,
            token_ids=np.asarray(self._token_ids)[tokens].copy(),
        )


def _chosen_parts(ends: Int64s, rows: Int64s | slice) -> tuple[Int64s | slice, Int64s]:
    """Indices of the parts of the chosen rows, one row after the other, and where each row's parts then start."""
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends])
    if isinstance(rows, slice):
        return rows, starts
    starts = starts[:-1]
    counts = (ends - starts)[rows]
    new_starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
    parts = np.arange(new_starts[-1]) + np.repeat(starts[rows] - new_starts[:-1], counts)
    return parts, new_starts


def _canonical_keys(keys: Int64s) -> Int64s:
    """Number the keys 0.. in order of first appearance; every private one gets a number of its own."""
    if len(keys) == 0:
        return keys.copy()
    is_private = keys == PRIVATE
    if is_private.all():
        return np.arange(len(keys))
    names = np.where(is_private, -2 - np.arange(len(keys)), keys)  # keys of sources are not negative
    _, first, names_index = np.unique(names, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[names_index]
