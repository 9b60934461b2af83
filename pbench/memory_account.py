"""Where the memory went that the device, or the process, had in use at its peak.

What the engine knows it holds (weights, pool, buffers, CUDA graphs) is taken from what torch's allocator holds, and
that from what the device counts. The parts sum to the peak exactly; what nobody can explain has a part of its own.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

KNOWN_PARTS = ("weights", "pool", "buffers", "graphs")

PART_HELP = {
    "weights": "parameters of the model",
    "pool": "the KV memory, taken once at the start",
    "buffers": "the rotary table, and where batches are staged",
    "graphs": "what torch reserved while CUDA graphs were captured",
    "activations": "what else torch's allocator holds: activations, and blocks that it keeps for the next ones",
    "unexplained": "in use, but not through torch: CUDA context, kernels, libraries, the interpreter, other processes",
}


def account_memory(known: Mapping[str, int], device: "pd.DataFrame") -> dict[str, int]:
    """Split the peak of the memory in use.

    Args:
        known: bytes by ``KNOWN_PARTS``, as the engine says; parts may be missing.
        device: the samples of one engine (``DEVICE_COLUMNS``).

    Returns:
        Bytes by the keys of ``PART_HELP`` and "peak", of which the others are the parts; parts that the engine does
        not know are not there, and lie in those that stand for the rest. Empty without samples.
    """
    column = "device_used_bytes" if device["device_used_bytes"].notna().any() else "process_rss_bytes"
    device = device[device[column].notna()]
    if device.empty:
        return {}
    row = device.iloc[int(device[column].argmax())]
    parts = {name: int(known[name]) for name in KNOWN_PARTS if name in known}
    explained = sum(parts.values())
    if column == "device_used_bytes" and device["torch_reserved_bytes"].notna().any():
        parts["activations"] = int(row["torch_reserved_bytes"]) - explained
        explained = int(row["torch_reserved_bytes"])
    peak = int(row[column])
    return parts | {"unexplained": peak - explained, "peak": peak}
