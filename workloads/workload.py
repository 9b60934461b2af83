"""A workload: the requests that are played, and all that says which they are."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pbench.workloads.parameters import Values
from pbench.workloads.table import RequestTable

BUILT_IN = "built-in"  # the source and the format of a workload that is no file


@dataclass(frozen=True)
class Workload:
    """Requests in order of arrival, and where they are from.

    Not slotted, so that the figures below are computed once.
    """

    name: str
    description: str
    source: str  # the file's path, or BUILT_IN
    format: str  # the name of the file's format, or BUILT_IN
    parameters: Values  # resolved
    options: Values  # what else the user chose: limit, max_length, sample, rate_scale, is_dejittered
    seed: int
    arrivals: str
    requests: RequestTable
    num_offered: int  # rows read, before any was dropped; reading stops when the limit is reached
    num_dropped_too_long: int  # input and output exceed max_length
    num_dropped_empty: int  # no input or no output tokens
    has_recorded_times: bool
    concurrency: int | None = None  # users of a closed loop: the next request is offered when one is answered
    hash_block_size: int | None = None  # tokens that a prefix hash of the file covers

    @property
    def is_file(self) -> bool:
        """Whether the requests were read from a file, and not made by a definition."""
        return self.format != BUILT_IN

    @property
    def num_requests(self) -> int:
        """Requests that are played."""
        return len(self.requests)

    @cached_property
    def total_input_tokens(self) -> int:
        """Prompt tokens of all requests; a prompt of n samples counts once."""
        return int(self.requests.input_length.sum(dtype=np.int64))

    @cached_property
    def total_output_tokens(self) -> int:
        """Tokens to generate, over all samples of all requests."""
        return int(np.dot(self.requests.output_length.astype(np.int64), self.requests.n.astype(np.int64)))

    @cached_property
    def largest_request_tokens(self) -> int:
        """Most tokens, input and output, of one sequence."""
        return int((self.requests.input_length.astype(np.int64) + self.requests.output_length).max())

    @cached_property
    def sha256(self) -> str:
        """Hash of what is played: arrivals, lengths, segments, token ids, n, concurrency. Not of its names.

        Tokens that are made from the seed are not in it: with (sha256, seed) the prompts are fixed.
        """
        return self.requests.sha256(self.concurrency)

    def record(self) -> dict[str, Any]:
        """What a result keeps of the workload: plain values, ready for JSON."""
        return {
            "name": self.name,
            "description": self.description,
            "source": self.source,
            "format": self.format,
            "sha256": self.sha256,
            "seed": self.seed,
            "arrivals": self.arrivals,
            "concurrency": self.concurrency,
            "parameters": dict(self.parameters),
            "options": dict(self.options),
            "num_requests": self.num_requests,
            "num_offered": self.num_offered,
            "num_dropped_too_long": self.num_dropped_too_long,
            "num_dropped_empty": self.num_dropped_empty,
            "total_input_tokens": self.total_input_tokens,
            "total_output_tokens": self.total_output_tokens,
            "largest_request_tokens": self.largest_request_tokens,
        }
