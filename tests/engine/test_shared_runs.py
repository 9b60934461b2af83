"""What sequences are said to share, they share; and the tiles hold all of it exactly once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbench.engine import shared_runs
from pbench.engine.shared_runs import RunLimits, find_runs

LIMITS = RunLimits(members_per_tile=3, num_kv_heads=2, num_programs=5, max_levels=4, max_tiles=64)


@pytest.fixture(autouse=True)
def everything_pays(monkeypatch):
    for name in ("MIN_SAVED_TOKENS", "MIN_SAVED_TOKENS_OF_LAUNCH", "MIN_PART_TOKENS"):
        monkeypatch.setattr(shared_runs, name, 1)


@st.composite
def tables(draw):
    """Block tables that grew by forking: a new sequence keeps some leading blocks of an earlier one."""
    rows, next_block = [], 1
    for _ in range(draw(st.integers(1, 9))):
        kept = []
        if rows:
            parent = draw(st.sampled_from(rows))
            kept = parent[: draw(st.integers(0, len(parent)))]
        num_own = draw(st.integers(0, 4))
        rows.append(kept + list(range(next_block, next_block + num_own)))
        next_block += num_own
    order = draw(st.permutations(range(len(rows))))
    rows = [rows[index] for index in order]
    width = max(map(len, rows)) + 1
    garbage = draw(st.integers(0, 3))  # behind a row's blocks: even what others have there
    table = np.full((len(rows), width), garbage, np.int32)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table, np.array([len(row) for row in rows])


@given(tables(), st.sampled_from([1, 16]))
def test_tiles_hold_what_sequences_share_once_each(case, block_size):
    table, num_full = case
    found = find_runs(table, num_full, block_size, LIMITS)
    if found is None:
        return
    assert sorted(found.members) == list(range(len(table)))
    held = {row: [] for row in range(len(table))}
    for first, count, start, end, level in found.tiles.tolist():
        assert 1 <= count <= LIMITS.members_per_tile
        assert start < end
        members = found.members[first : first + count]
        blocks = table[members, start // block_size : -(-end // block_size)]
        assert (blocks == blocks[0]).all(), "not all members have these blocks"
        for member in members:
            held[int(member)].append((level, start, end))
    for row, parts in held.items():
        position = 0
        for index, (level, start, end) in enumerate(sorted(parts)):
            assert (level, start) == (index, position)
            position = end
        assert position == found.own_start[row] <= num_full[row] * block_size
        assert len(parts) == found.num_levels[row] <= LIMITS.max_levels


@given(tables())
def test_what_two_sequences_share_is_found_unless_levels_run_out(case):
    table, num_full = case
    found = find_runs(table, num_full, 1, LIMITS._replace(max_levels=100, max_tiles=1000))
    own_start = np.zeros(len(table), int) if found is None else found.own_start
    for row in range(len(table)):
        others = (other for other in range(len(table)) if other != row)
        longest = max((common(table, num_full, row, other) for other in others), default=0)
        assert own_start[row] == longest


def common(table, num_full, row, other):
    limit = min(num_full[row], num_full[other])
    differs = table[row, :limit] != table[other, :limit]
    return int(differs.argmax()) if differs.any() else int(limit)


def test_a_run_is_cut_so_that_all_programs_have_work():
    table = np.zeros((256, 513), np.int32)
    table[:, :512] = np.arange(512)
    table[:, 512] = 1000 + np.arange(256)
    found = find_runs(table, np.full(256, 513), 16, RunLimits(32, 8, 132, 8, 512))
    assert len(found.tiles) * 8 == 128  # of 132 programs: eight tiles of members, two parts
    assert set(found.own_start) == {8192}
    assert set(found.num_levels) == {2}


def test_little_that_is_shared_is_left_alone(monkeypatch):
    table = np.zeros((8, 5), np.int32)
    table[:, 4] = np.arange(8)
    assert find_runs(table, np.full(8, 5), 16, LIMITS) is not None
    monkeypatch.setattr(shared_runs, "MIN_SAVED_TOKENS_OF_LAUNCH", 7 * 4 * 16 + 1)
    assert find_runs(table, np.full(8, 5), 16, LIMITS) is None


def test_more_groups_than_a_launch_has_room_for_are_left_alone():
    table = np.repeat(np.arange(40, dtype=np.int32), 2)[:, None]
    assert find_runs(table, np.ones(80, int), 16, LIMITS._replace(max_tiles=39)) is None
    assert find_runs(table, np.ones(80, int), 16, LIMITS._replace(max_tiles=40)) is not None
