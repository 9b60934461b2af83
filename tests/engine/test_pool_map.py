import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pbench.engine.pool_map import NOBODY, SPAN_FIELDS, HeldExtent, Holding, PoolMap, map_blocks, map_extents

BLOCK = 4


def columns(pool_map: PoolMap) -> dict[str, list[int]]:
    return {name: pool_map[:, index].tolist() for index, name in enumerate(SPAN_FIELDS)}


def test_a_block_is_named_after_the_first_who_held_it_and_equal_neighbours_are_one_span() -> None:
    held = [Holding(7, [0, 1, 2], 3, 1), Holding(8, [0, 1, 4], 0, 0)]
    spans = columns(map_blocks(held, [2, 2, 1, 0, 1, 0], [3], num_blocks=6, block_size=BLOCK))
    assert spans == {
        "start": [0, 8, 12, 16, 20],
        "length": [8, 4, 4, 4, 4],
        "request_id": [7, 7, NOBODY, 8, NOBODY],
        "num_sharers": [2, 1, 0, 1, 0],
        "token_state": [8, 1, 0, 4, 0],
        "reserved": [0, 1, 0, 0, 0],
        "internal": [0, 2, 0, 0, 0],
        "cached": [0, 0, 4, 0, 0],
        "free": [0, 0, 0, 0, 4],
    }


@given(
    states=st.lists(st.sampled_from(["held", "cached", "free"]), min_size=1, max_size=60),
    max_cells=st.integers(1, 70),
)
def test_however_coarse_the_cells_they_sum_to_the_same(states: list[str], max_cells: int) -> None:
    held = [index for index, state in enumerate(states) if state == "held"]
    cached = [index for index, state in enumerate(states) if state == "cached"]
    holdings = [Holding(index, [index], index % BLOCK, 0) for index in held]
    num_sharers = [int(state == "held") for state in states]

    def map_with(cells: int) -> PoolMap:
        return map_blocks(holdings, num_sharers, cached, num_blocks=len(states), block_size=BLOCK, max_cells=cells)

    fine, coarse = map_with(len(states)), map_with(max_cells)
    assert len(coarse) <= max_cells
    assert coarse[:, 4:].sum(axis=0).tolist() == fine[:, 4:].sum(axis=0).tolist()
    assert (coarse[:, 4:].sum(axis=1) == coarse[:, 1]).all()
    assert coarse[:, 0].tolist() == [0, *np.cumsum(coarse[:-1, 1]).tolist()]


def test_a_contiguous_pool_is_its_extents_with_what_they_keep_and_never_fill() -> None:
    extents = [HeldExtent(10, 20, 2, 1, 5, 3), HeldExtent(0, 10, 1, 1, 10, 0)]
    spans = columns(map_extents(extents, num_slots=40))
    assert spans["start"] == [0, 10, 30]
    assert spans["request_id"] == [1, 2, NOBODY]
    assert spans["internal"] == [0, 12, 0]
    assert spans["free"] == [0, 0, 10]


def test_an_empty_contiguous_pool_is_one_free_span() -> None:
    spans = columns(map_extents([], num_slots=5))
    assert (spans["start"], spans["length"], spans["free"]) == ([0], [5], [5])
