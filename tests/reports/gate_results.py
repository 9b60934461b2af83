"""Results of a throughput gate as a page shows them."""

from dataclasses import replace
from typing import Any

from pbench.gate.throughput_result import FAIL, Look, Pair, Resolution, Revision, ThroughputResult, WorkloadResult


def pair(number: int, ratio: float, discarded: tuple[str, ...] = ()) -> Pair:
    return Pair(
        number, number % 2 == 1, 1000.0, 1000.0 * ratio, f"runs/{number}-base", f"runs/{number}-head", discarded
    )


def result(verdict: str = FAIL, ratio: float = 0.93, **fields: Any) -> ThroughputResult:
    """Six pairs that count and one that was left out."""
    pairs = (*(pair(n, ratio + 0.002 * (n - 3)) for n in range(1, 4)), pair(4, 0.5, ("head: throttled",)))
    pairs += tuple(pair(n, ratio + 0.002 * (n - 6)) for n in range(5, 8))
    workload = WorkloadResult(
        name="chat-shared-prompt",
        sha256="ab" * 32,
        settings={"engine": "paged", "model": "llama-1b"},
        differing={"max_running": (128, 256)},
        aa=Resolution(tuple(pair(n, 1 + 0.002 * (n - 2)) for n in range(1, 5)), 0.8, 0.003, 4, 0.02),
        pairs=pairs,
        looks=(Look(6, ratio, ratio - 0.01, ratio + 0.01, 0.9833, 0.015625, 0.016667, verdict),),
        verdict=verdict,
        reason="head is slower",
    )
    made = ThroughputResult(
        created_at="2026-01-01T00:00:00+00:00",
        command=("pbench", "gate", "throughput", "--base", "main"),
        base=Revision("main", "c0ffee" * 6, False),
        head=Revision("topic", "beef" * 10, True),
        delta=0.05,
        alpha=0.05,
        looks=(6, 10, 16),
        discard_rules={"throttled": "the GPU throttled in a run"},
        environment={"gpu": {"name": "NVIDIA H200"}},
        workloads=(workload,),
        verdict=verdict,
        notes=("a note",),
    )
    return replace(made, **fields)
