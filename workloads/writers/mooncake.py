"""Writes Mooncake's trace format, which other tools play: lengths, milliseconds, and a prefix hash every 512 tokens."""

import json
from collections.abc import Iterator

from pbench.workloads.blocks import prompt_blocks
from pbench.workloads.errors import WorkloadError
from pbench.workloads.readers.mooncake import HASH_BLOCK_SIZE
from pbench.workloads.workload import Workload

_NS_PER_MS = 10**6


def mooncake_lines(workload: Workload) -> Iterator[str]:
    """The lines of a file with the same lengths, arrivals in whole milliseconds, and the same whole shared blocks.

    What prompts share beyond whole blocks of 512 tokens, and token ids, the format cannot say.

    Raises:
        WorkloadError: a request has several samples, which the format cannot say either.

    """
    requests = workload.requests
    most = int(max(requests.n.max(), requests.beam_width.max()))
    if most > 1:
        raise WorkloadError(
            f"{workload.name} asks for up to {most} samples or beams of a prompt, which Mooncake's format cannot say;"
            " pbench workloads import writes pbench's own format"
        )
    columns = zip(
        requests.arrival_ns.tolist(),
        requests.input_length.tolist(),
        requests.output_length.tolist(),
        prompt_blocks(requests, HASH_BLOCK_SIZE),
        strict=True,
    )
    for arrival_ns, input_length, output_length, blocks in columns:
        row = {
            "timestamp": round(arrival_ns / _NS_PER_MS),
            "input_length": input_length,
            "output_length": output_length,
            "hash_ids": [*blocks.names, *blocks.own_names],
        }
        yield json.dumps(row) + "\n"
