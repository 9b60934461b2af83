"""The account of memory: its parts are the peak, and what cannot be explained is shown."""

from typing import Any

import pandas as pd

from pbench.memory_account import account_memory
from pbench.results import DEVICE_COLUMNS

KNOWN = {"weights": 1000, "pool": 5000, "buffers": 30, "graphs": 70}


def samples(rows: list[dict[str, Any]]) -> pd.DataFrame:
    owned = [{"engine": "paged", "repeat": 1} | row for row in rows]
    return pd.DataFrame(owned, columns=list(DEVICE_COLUMNS)).astype(DEVICE_COLUMNS)


def test_the_parts_sum_to_the_peak_of_the_gpu() -> None:
    device = samples(
        [
            {"source": "nvml", "time_ns": 0, "device_used_bytes": 7000, "torch_reserved_bytes": 6200},
            {"source": "nvml", "time_ns": 1, "device_used_bytes": 8000, "torch_reserved_bytes": 6900},
            {"source": "nvml", "time_ns": 2, "device_used_bytes": 7900, "torch_reserved_bytes": 6900},
        ]
    )
    account = account_memory(KNOWN, device)
    assert account == KNOWN | {"activations": 800, "unexplained": 1100, "peak": 8000}
    assert sum(account.values()) == 2 * account["peak"]


def test_without_nvml_the_process_is_split() -> None:
    device = samples([{"source": "process", "time_ns": 0, "process_rss_bytes": 9000}])
    assert account_memory(KNOWN, device) == KNOWN | {"unexplained": 2900, "peak": 9000}


def test_without_samples_there_is_no_account() -> None:
    assert account_memory(KNOWN, samples([])) == {}
