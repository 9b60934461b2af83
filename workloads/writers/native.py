"""Writes pbench's own format, with a header that says where the requests are from."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pbench.workloads.arrivals import parse_arrivals
from pbench.workloads.readers.native import HEADER, VERSION
from pbench.workloads.request import WorkloadRequest
from pbench.workloads.table import RequestTable
from pbench.workloads.workload import Workload


def native_lines(workload: Workload, provenance: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a file that plays the same requests at the same times; the header first.

    ``provenance`` is what the caller knows of the source; it goes into the header beside what the workload says. Read
    back with recorded arrivals, the file gives the same hash, for times below 2**51 ns (26 days) and beyond that for
    whole seconds.
    """
    has_times = parse_arrivals(workload.arrivals).is_timed
    block_size = workload.hash_block_size
    if block_size is not None and not _are_prefix_hashes(workload.requests, block_size):
        block_size = None
    hashing = {} if block_size is None else {"hash_block_size": block_size}
    # What the reader needs comes first, and nobody's provenance replaces it.
    header = {HEADER: VERSION, **hashing, "sha256": workload.sha256}
    yield _json(header | {key: value for key, value in provenance.items() if key not in header})
    occurrences = np.bincount(workload.requests.segment_keys, minlength=1).tolist()
    for request in workload.requests:
        is_private = len(request.segments) == 1 and occurrences[request.segments[0].key] == 1
        row: dict[str, Any] = {}
        if has_times:
            row["arrival_s"] = _seconds(request.arrival_s)
        row |= {"input_length": request.input_length, "output_length": request.output_length}
        if request.n != 1:
            row["n"] = request.n
        if request.beam_width != 1:
            row["beam_width"] = request.beam_width
        if not is_private:
            row |= _prompt(request, block_size)
        yield _json(row)


def _prompt(request: WorkloadRequest, block_size: int | None) -> dict[str, Any]:
    if request.prompt_token_ids is not None:
        return {"prompt_token_ids": list(request.prompt_token_ids)}
    if block_size is not None:
        return {"prefix_hashes": [segment.key for segment in request.segments]}
    return {"segments": [list(segment) for segment in request.segments]}


def _are_prefix_hashes(requests: RequestTable, block_size: int) -> bool:
    """Every segment is a block, but for the last of a prompt, and every key comes after one and the same."""
    keys, lengths, starts = requests.segment_keys, requests.segment_lengths, requests.segment_starts
    if len(keys) == 0:
        return False
    is_last = np.zeros(len(keys), dtype=np.bool_)
    is_last[starts[1:][np.diff(starts) > 0] - 1] = True
    if not bool(((lengths == block_size) | (is_last & (lengths < block_size))).all()):
        return False
    parents = np.concatenate([np.full(1, -1, dtype=np.int64), np.where(is_last, -1, keys)[:-1]])
    num_pairs = len(np.unique(np.stack([keys, parents]), axis=1).T)
    return num_pairs == len(np.unique(keys))


def _seconds(arrival_s: float) -> float | int:
    return int(arrival_s) if arrival_s == int(arrival_s) else arrival_s


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
