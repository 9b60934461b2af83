"""What is refused before an engine that is not ours is started."""

from dataclasses import replace
from typing import TYPE_CHECKING

from pbench.engine.config import EngineConfig
from pbench.errors import UsageError
from pbench.external.address import parse_address
from pbench.external.kinds import external_kind
from pbench.units import format_number, printable

if TYPE_CHECKING:
    from pbench.job import EngineOptions
    from pbench.workloads.workload import Workload


# transformers' own default, which its attention over a block table needs.
BLOCK_SIZE = 256


def config_of_transformers(options: "EngineOptions") -> EngineConfig:
    """What ``options`` come to for transformers' engine: its KV has the dtype of the model.

    Raises:
        ConfigError: they could not work in an engine of ours either.

    """
    return replace(options, memory="paged", kv_dtype="auto").config()


def check_external(options: "EngineOptions", workload: "Workload") -> None:
    """Refuse an engine that could not play the workload; one of ours is not looked at.

    Raises:
        UsageError: naming what cannot work.
        ConfigError: settings that could not work in an engine of ours either.

    """
    kind = external_kind(options.memory)
    if kind is None:
        return
    requests = workload.requests
    spec = printable(options.memory)
    if int(requests.beam_width.max()) > 1:
        raise UsageError(
            f"workload {printable(workload.name)} wants beam search, which {spec} cannot do; use --engine paged"
        )
    if kind.name == "openai":
        parse_address(options.memory)
        return
    if int(requests.n.max()) > 1:
        raise UsageError(
            f"workload {printable(workload.name)} wants several samples of a request, which {spec} cannot give:"
            " its continuous batching chooses greedily for all or samples for all; use --engine paged or openai:URL"
        )
    config = config_of_transformers(options)
    block_bytes = BLOCK_SIZE * config.slot_bytes
    longest = int((requests.input_length + requests.output_length).max())
    num_needed = (longest + 1) // BLOCK_SIZE + 1  # as its scheduler counts them
    if num_needed > options.kv_memory_bytes // block_bytes:
        raise UsageError(
            f"KV memory of {options.kv_memory_bytes} bytes is too small for {spec}: the longest request"
            f" ({format_number(longest)} tokens) needs {num_needed} of its blocks of {BLOCK_SIZE} tokens,"
            f" {num_needed * block_bytes} bytes; use --kv-memory {num_needed * block_bytes} or more"
        )
