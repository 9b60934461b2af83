"""A synthetic run of any size, made column by column: a page about it must stay small and quick.

    python tests/reports/big_run.py FOLDER --steps 500000 --requests 50000

The figures are plausible rather than true (the summary is made from the same columns); every partition sums to the
pool, and one step in the middle takes a hundred times as long as the others.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pbench.results import (
    DEVICE_COLUMNS,
    METRICS,
    POOL_MAP_COLUMNS,
    POOL_MAP_FILE,
    PREFIX_COLUMNS,
    PREFIX_FILE,
    REQUEST_COLUMNS,
    STEP_COLUMNS,
    EngineResult,
    Run,
    RunResult,
    write_result,
    write_table,
)

if TYPE_CHECKING:
    import pandas as pd

NUM_SLOTS = 1_048_576
SLOT_BYTES = 131_072
BLOCK_SIZE = 16
STEP_NS = 10_000_000
PEAK_FACTOR = 100  # the one long step, over an ordinary one
NUM_MOMENTS = 128  # of the pool's map, as many as a run keeps
NUM_STRETCHES = 2_000  # of a moment
NUM_PREFIXES = 1_554  # as many as a run keeps


def write_big_run(folder: Path, num_steps: int, num_requests: int) -> Run:
    """A run of ``paged`` and ``contiguous:max``, each of so many steps and requests."""
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[pd.DataFrame]] = {"steps": [], "requests": [], "device": [], "map": []}
    engines = []
    for index, spec in enumerate(("paged", "contiguous:max")):
        rng = np.random.default_rng(index)
        steps = _steps(spec, num_steps, rng)
        end_ns = int(steps["end_ns"].iloc[-1])
        requests, device = _requests(spec, num_requests, end_ns, rng), _device(spec, end_ns, rng)
        engines.append(_engine(spec, steps, requests, device))
        for name, table in (("steps", steps), ("requests", requests), ("device", device)):
            tables[name].append(table)
        tables["map"].append(_map(spec, end_ns, rng))
    write_result(folder, _result(folder.name, engines, num_requests))
    for file_name, columns, name in (
        ("steps.parquet", STEP_COLUMNS, "steps"),
        ("requests.parquet", REQUEST_COLUMNS, "requests"),
        ("device.parquet", DEVICE_COLUMNS, "device"),
        (POOL_MAP_FILE, POOL_MAP_COLUMNS, "map"),
    ):
        write_table(folder / file_name, pd.concat(tables[name], ignore_index=True), columns)
    write_table(folder / PREFIX_FILE, _prefixes(np.random.default_rng(9)), PREFIX_COLUMNS)
    return Run(folder)


def _steps(spec: str, num_steps: int, rng: np.random.Generator) -> "pd.DataFrame":
    import pandas as pd

    lengths = (STEP_NS * rng.gamma(20, 0.05, num_steps)).astype(np.int64)
    lengths[num_steps // 2] = PEAK_FACTOR * STEP_NS
    end_ns = np.cumsum(lengths)
    fill = (0.85 if spec == "paged" else 0.4) + 0.1 * np.sin(np.arange(num_steps) / num_steps * 60)
    token_state = (NUM_SLOTS * fill * rng.uniform(0.95, 1, num_steps)).astype(np.int64)
    columns: dict[str, object] = dict.fromkeys(STEP_COLUMNS, 0) | {"repeat": 1}
    rest = NUM_SLOTS - token_state
    for part, share in (("reserved", 0.3), ("internal", 0.3), ("external", 0.1), ("cached", 0.2)):
        columns[part] = (rest * share).astype(np.int64)
    rest = rest - sum(columns[part] for part in ("reserved", "internal", "external", "cached"))  # type: ignore[misc]
    num_running = (200 * fill).astype(np.int64)
    is_event = rng.random(num_steps) < 0.01
    columns |= {
        "engine": spec,
        "step": np.arange(num_steps),
        "start_ns": end_ns - lengths,
        "end_ns": end_ns,
        "num_prefill_tokens": np.where(rng.random(num_steps) < 0.1, rng.integers(1, 2048, num_steps), 0),
        "num_decode_tokens": num_running,
        "num_output_tokens": num_running,
        "num_running": num_running,
        "num_waiting": rng.integers(0, 500, num_steps),
        "num_preempted": is_event.astype(np.int64),
        "num_copied_blocks": 4 * is_event,
        "num_evicted_blocks": 9 * is_event,
        "is_memory_blocked": rng.random(num_steps) < 0.6,
        "token_state": token_state,
        "free": rest,
        "shared_saved": token_state // 3 if spec == "paged" else 0,
        "blocks_of_1": token_state // BLOCK_SIZE if spec == "paged" else 0,
    }
    return pd.DataFrame(columns)


def _requests(spec: str, num_requests: int, end_ns: int, rng: np.random.Generator) -> "pd.DataFrame":
    import pandas as pd

    arrival_ns = np.sort(rng.integers(0, int(end_ns * 0.9), num_requests))
    marks = arrival_ns + np.cumsum(rng.gamma(2, end_ns / 200, (3, num_requests)), axis=0).astype(np.int64)
    marks = np.minimum(marks, end_ns)
    columns: dict[str, object] = dict.fromkeys(REQUEST_COLUMNS, 0) | {"repeat": 1}
    prompts = np.clip(rng.lognormal(6, 1, num_requests), 4, 8000).astype(np.int64)
    columns |= {
        "engine": spec,
        "request_id": np.arange(num_requests),
        "status": "finished",
        "arrival_ns": arrival_ns,
        "added_ns": arrival_ns,
        "first_scheduled_ns": marks[0],
        "first_token_ns": marks[1],
        "finished_ns": marks[2],
        "num_prompt_tokens": prompts,
        "num_output_tokens": np.clip(rng.lognormal(5, 1, num_requests), 1, 4000).astype(np.int64),
        "num_sequences": 1,
        "num_prefix_hit_tokens": prompts // 2 if spec == "paged" else 0,
        "num_preemptions": rng.random(num_requests) < 0.02,
    }
    return pd.DataFrame(columns)


def _device(spec: str, end_ns: int, rng: np.random.Generator) -> "pd.DataFrame":
    import pandas as pd

    times_ns = np.arange(0, end_ns, 100_000_000)
    used = NUM_SLOTS * SLOT_BYTES + rng.integers(0, 10**9, len(times_ns))
    columns: dict[str, object] = dict.fromkeys(DEVICE_COLUMNS) | {"repeat": 1}
    columns |= {
        "engine": spec,
        "time_ns": times_ns,
        "source": "nvml",
        "device_used_bytes": used + 2 * 10**9,
        "torch_allocated_bytes": used,
        "torch_reserved_bytes": used + 10**9,
        "gpu_utilization_pct": 90 + rng.uniform(0, 10, len(times_ns)),
        "power_w": 500 + rng.uniform(0, 200, len(times_ns)),
        "energy_j": times_ns * 0.6e-6,
        "sm_clock_mhz": 1980.0,
        "memory_clock_mhz": 3201.0,
        "temperature_c": 55.0,
        "throttle_reasons": 0,
    }
    return pd.DataFrame(columns)


def _map(spec: str, end_ns: int, rng: np.random.Generator) -> "pd.DataFrame":
    import pandas as pd

    length = NUM_SLOTS // NUM_STRETCHES // BLOCK_SIZE * BLOCK_SIZE
    lengths = np.full(NUM_STRETCHES, length)
    lengths[-1] = NUM_SLOTS - length * (NUM_STRETCHES - 1)
    moments = []
    for time_ns in np.linspace(STEP_NS, end_ns, NUM_MOMENTS).astype(np.int64):
        tokens = (lengths * rng.uniform(0.2, 1, NUM_STRETCHES)).astype(np.int64)
        moments.append(
            pd.DataFrame(
                {
                    "engine": spec,
                    "time_ns": time_ns,
                    "start": np.cumsum(lengths) - lengths,
                    "length": lengths,
                    "request_id": rng.integers(0, 100_000, NUM_STRETCHES),
                    "num_sharers": rng.integers(1, 4, NUM_STRETCHES) if spec == "paged" else 1,
                    "token_state": tokens,
                    "reserved": lengths - tokens,
                    "internal": 0,
                    "cached": 0,
                    "free": 0,
                }
            )
        )
    return pd.concat(moments, ignore_index=True)


def _prefixes(rng: np.random.Generator) -> "pd.DataFrame":
    import pandas as pd

    num_requests = rng.zipf(1.5, NUM_PREFIXES).clip(2, 10_000)
    return pd.DataFrame(
        {
            "engine": "paged",
            "prefix": np.arange(NUM_PREFIXES),
            "parent": -1,
            "start": 0,
            "num_tokens": 64,
            "num_requests": num_requests,
            "num_hit_requests": num_requests - 1,
            "hit_tokens": 64 * (num_requests - 1),
        }
    )


def _engine(spec: str, steps: "pd.DataFrame", requests: "pd.DataFrame", device: "pd.DataFrame") -> EngineResult:
    duration_s = float(steps["end_ns"].iloc[-1]) / 1e9
    summary: dict[str, float | int | None] = {metric.name: None for metric in METRICS}
    summary |= {
        "output_tokens_per_s": float(steps["num_output_tokens"].sum()) / duration_s,
        "duration_s": duration_s,
        "peak_running": int(steps["num_running"].max()),
        "waste_pct": float(steps[["reserved", "internal", "external"]].sum(axis=1).mean()) * 100 / NUM_SLOTS,
        "peak_device_used_bytes": int(device["device_used_bytes"].max()),
        "ttft_ms_p99": float(np.percentile(requests["first_token_ns"] - requests["arrival_ns"], 99)) / 1e6,
        "num_steps": len(steps),
        "num_finished": len(requests),
    }
    for part in ("token_state", "reserved", "internal", "external", "cached", "free"):
        summary[f"{part}_pct"] = float(steps[part].mean()) * 100 / NUM_SLOTS
    pool = {"num_slots": NUM_SLOTS, "slot_bytes": SLOT_BYTES, "pool_bytes": NUM_SLOTS * SLOT_BYTES}
    block_size = BLOCK_SIZE if spec == "paged" else NUM_SLOTS
    return EngineResult(spec=spec, status="complete", summary=summary, pool=pool | {"block_size": block_size})


def _result(run_id: str, engines: list[EngineResult], num_requests: int) -> RunResult:
    return RunResult(
        run_id=run_id,
        created_at="2026-11-23T04:05:06Z",
        status="complete",
        command=("pbench", "run", "--workload", "synthetic"),
        workload={"name": "synthetic", "sha256": "ab" * 32, "seed": 0, "num_requests": num_requests},
        config={"model": "llama-8b", "dtype": "bfloat16", "device": "cuda"},
        environment={"gpu": {"name": "NVIDIA H200"}},
        engines=tuple(engines),
    )


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(description="Write a synthetic run folder of any size.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1_000_000, help="of each engine")
    parser.add_argument("--requests", type=int, default=100_000, help="of each engine")
    arguments = parser.parse_args()
    write_big_run(arguments.folder, arguments.steps, arguments.requests)


if __name__ == "__main__":
    main()
