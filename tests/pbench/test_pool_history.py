from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from pbench.engine.pool_map import HeldExtent, PoolMap, map_extents
from pbench.job import WorkloadChoice
from pbench.live import LineView
from pbench.pool_history import COST_SHARE, FIRST_INTERVAL_NS, MAX_MOMENTS, PoolHistory, gather_pool_maps
from pbench.results import POOL_MAP_COLUMNS, Run, read_result
from pbench.simulation.run import Simulation, SimulationPlan
from pbench.simulation.settings import SimulationOptions, resolve_simulation

PARTS = ["token_state", "reserved", "internal", "cached", "free"]


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def play(history: PoolHistory, clock: Clock, num_steps: int, step_ns: int) -> None:
    for _ in range(num_steps):
        clock.now_ns += step_ns
        history.look(clock.now_ns)


def one_extent() -> PoolMap:
    return map_extents([HeldExtent(2, 5, 1, 1, 3, 1)], num_slots=10)


def written(history: PoolHistory, folder: Path) -> pd.DataFrame:
    history.write(folder, "paged")
    gather_pool_maps(folder, [folder])
    return Run(folder).pool_map()


@given(num_steps=st.integers(2, 4000), step_ns=st.integers(FIRST_INTERVAL_NS // 8, 4 * FIRST_INTERVAL_NS))
def test_moments_are_bounded_and_spread_evenly_over_the_run(num_steps: int, step_ns: int) -> None:
    clock = Clock()
    history = PoolHistory(one_extent, clock, start_ns=0)
    play(history, clock, num_steps, step_ns)
    assert 1 <= len(history.times_ns) <= MAX_MOMENTS
    gaps = np.diff([0, *history.times_ns, num_steps * step_ns])
    assert gaps.max() <= max(4 * num_steps * step_ns / MAX_MOMENTS, 2 * FIRST_INTERVAL_NS, 2 * step_ns)


def test_looks_take_no_more_than_their_share_of_the_time_however_long_one_takes(tmp_path: Path) -> None:
    clock = Clock()
    look_ns = 5_000_000

    def slow_look() -> PoolMap:
        clock.now_ns += look_ns
        return one_extent()

    history = PoolHistory(slow_look, clock, start_ns=0)
    play(history, clock, num_steps=30_000, step_ns=2_000_000)
    assert history.spent_ns <= COST_SHARE * clock.now_ns + look_ns
    assert history.spent_ns >= 0.9 * COST_SHARE * clock.now_ns
    table = written(history, tmp_path)
    assert list(table.columns) == list(POOL_MAP_COLUMNS)
    assert table["length"].sum() == 10 * table["time_ns"].nunique()


def test_an_engine_that_never_stepped_leaves_no_file(tmp_path: Path) -> None:
    assert written(PoolHistory(one_extent, Clock(), start_ns=0), tmp_path).empty
    assert list(tmp_path.iterdir()) == []


def test_a_run_keeps_maps_of_every_engine_that_tile_its_pool_and_name_its_requests(tmp_path: Path) -> None:
    options = SimulationOptions(kv_memory="1GiB", engines=("paged", "contiguous:max", "contiguous:pow2", "static"))
    settings = resolve_simulation(options, WorkloadChoice("chat-shared-prompt", limit=60))
    (size,) = settings.sizes
    plan = SimulationPlan(
        folder=tmp_path,
        run_id="test",
        created_at="2026-01-01T00:00:00+00:00",
        command=(),
        workload=size.workload,
        engines=size.engines,
        hardware=settings.hardware,
        speed=settings.speed,
        environment={},
    )
    Simulation(plan, LineView(lambda line: None), lambda: False).run()
    table, requests = Run(tmp_path).pool_map(), Run(tmp_path).requests()
    assert (table[PARTS].sum(axis=1) == table["length"]).all()
    for engine in read_result(tmp_path).engines:
        mine = table[table["engine"] == engine.spec]
        assert mine["time_ns"].nunique() > 10
        assert (mine.groupby("time_ns")["length"].sum() == engine.pool["num_slots"]).all()
        owners = set(mine.loc[mine["token_state"] > 0, "request_id"])
        assert owners <= set(requests.loc[requests["engine"] == engine.spec, "request_id"])
        assert len(owners) > 10
