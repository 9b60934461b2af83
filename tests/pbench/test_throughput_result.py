import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pbench.errors import ResultError
from pbench.gate.throughput_result import (
    FAIL,
    INCONCLUSIVE,
    Look,
    Pair,
    Resolution,
    Revision,
    ThroughputResult,
    WorkloadResult,
    read_throughput,
    write_throughput,
)

PAIRS = (
    Pair(1, True, 100.0, 90.0, "runs/1-base", "runs/1-head"),
    Pair(2, False, 100.0, 50.0, "runs/2-base", "runs/2-head", ("head: throttled",)),
)
WORKLOAD = WorkloadResult(
    name="chat",
    sha256="ab" * 32,
    settings={"engine": "paged", "max_length": 2048},
    differing={"max_running": (128, 256)},
    aa=Resolution((Pair(1, True, 100.0, 101.0, "a", "b"),), 0.8, 0.01, 6, 0.02),
    pairs=PAIRS,
    looks=(Look(6, 0.9, 0.88, 0.92, 0.9833, 0.015625, 0.016667, FAIL),),
    verdict=FAIL,
    reason="slower",
)
RESULT = ThroughputResult(
    created_at="2026-01-01T00:00:00+00:00",
    command=("pbench", "gate", "throughput"),
    base=Revision("main", "c0ffee", False),
    head=Revision(".", None, None),
    delta=0.05,
    alpha=0.05,
    looks=(6, 10, 16),
    discard_rules={"throttle": "the GPU throttled"},
    environment={"gpu": None},
    workloads=(WORKLOAD, WorkloadResult("other", "cd" * 32, {}, {}, None, (), (), INCONCLUSIVE, "not reached")),
    verdict=FAIL,
    notes=("a note",),
)


def test_a_record_reads_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "throughput.json"
    write_throughput(path, RESULT)
    assert read_throughput(path) == RESULT


def test_pairs_know_their_ratio_and_those_discarded_do_not_count() -> None:
    assert [pair.ratio for pair in PAIRS] == [0.9, 0.5]
    assert WORKLOAD.counted_pairs == PAIRS[:1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.update(schema_version=99), "schema version 99"),
        (lambda data: data.update(schema_version=True), "schema version True"),
        (lambda data: data.pop("schema_version"), "schema version None"),
        (lambda data: data.pop("alpha"), "not a complete record"),
        (lambda data: data["base"].pop("commit"), "not a complete record"),
        (lambda data: data["workloads"][0]["pairs"][0].pop("number"), "not a complete record"),
        (lambda data: data["workloads"][0].update(differing=[1]), "not a complete record"),
        (lambda data: data["workloads"][0].update(looks=3), "not a complete record"),
    ],
)
def test_a_damaged_record_is_refused_and_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    path = tmp_path / "throughput.json"
    write_throughput(path, RESULT)
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ResultError, match=reason) as refusal:
        read_throughput(path)
    assert "throughput.json" in str(refusal.value)


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "throughput.json"
    with pytest.raises(ResultError, match="does not exist; `pbench gate throughput` makes it"):
        read_throughput(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ResultError, match="cannot be read"):
        read_throughput(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ResultError, match="schema version None"):
        read_throughput(path)
