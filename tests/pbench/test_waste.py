"""Paged memory wastes little of what it holds, on every built-in workload, where memory is the limit."""

from pathlib import Path

import pytest

from pbench.job import WorkloadChoice
from pbench.live import LineView
from pbench.simulation.run import Simulation, SimulationPlan
from pbench.simulation.settings import SimulationOptions, resolve_simulation
from pbench.workloads.builtin import BUILT_INS

MOST_WASTED_PCT = 4.0
NUM_HUNGRIEST = 2  # so many of the hungriest request would fill the pool
SLOT_BYTES = 131_072  # of llama-8b
SHORT = ["few-shot", "parallel-sampling", "beam-search", "alpaca-lengths"]


def held_waste_pct(name: str, folder: Path, block_size: int | None = None) -> float:
    """Share of what is held in a pool that is full; None is the block size that a user gets who names none."""
    choice = WorkloadChoice(name, limit=100, max_length=131_072, arrivals="all")
    requests = choice.load().requests
    hungriest = int(((requests.input_length + requests.output_length) * requests.num_sequences).max())
    options = SimulationOptions(
        engines=("paged",),
        kv_memory=str(NUM_HUNGRIEST * hungriest * SLOT_BYTES),
        max_running=1024,
        block_size=block_size,
    )
    resolved = resolve_simulation(options, choice)
    (size,) = resolved.sizes
    plan = SimulationPlan(folder, "waste", "", (), size.workload, size.engines, resolved.hardware, resolved.speed, {})
    (engine,) = Simulation(plan, LineView(lambda line: None), lambda: False).run().engines
    assert engine.status == "complete"
    assert {check.name: check.outcome for check in engine.checks}["memory was the limit"] == "pass"
    share = engine.summary["held_waste_pct"]
    assert share is not None
    return share


@pytest.mark.parametrize("name", [definition.name for definition in BUILT_INS])
def test_less_than_a_twenty_fifth_is_wasted(name: str, tmp_path: Path) -> None:
    assert held_waste_pct(name, tmp_path) < MOST_WASTED_PCT


@pytest.mark.parametrize("name", SHORT)
def test_short_requests_need_the_small_blocks_that_are_suggested(name: str, tmp_path: Path) -> None:
    assert held_waste_pct(name, tmp_path, block_size=16) > MOST_WASTED_PCT


def test_only_short_requests_are_given_small_blocks() -> None:
    assert [definition.name for definition in BUILT_INS if definition.block_size != 16] == SHORT
