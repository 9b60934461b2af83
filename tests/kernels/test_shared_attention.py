import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pbench.kernels.decode_attention import (
    decode_attention,
    decode_attention_reference,
    decode_attention_triton,
    plan_for,
)
from pbench.kernels.decode_plan import DecodeTiling, plan_decode
from pbench.kernels.shared_attention import (
    MAX_LEVELS,
    MAX_TILES,
    TILE_FIELDS,
    SharedRuns,
    SharedTiling,
    shared_attention_reference,
    shared_attention_triton,
)

TILING = DecodeTiling(tile_tokens=16, tiles_in_flight=2, num_warps=4, programs_per_sm=1, min_chunk=1)
SHARED_TILING = SharedTiling(tile_rows=16, tile_tokens=16, num_warps=4, tiles_in_flight=1)


def make_runs(num_sequences, runs, members_per_tile, device):
    """Shared runs from (members, first token, end, level), all members side by side in ``range(num_sequences)``."""
    own_start = torch.zeros(num_sequences, dtype=torch.int32)
    num_levels = torch.zeros(num_sequences, dtype=torch.int32)
    tiles = torch.full((MAX_TILES, TILE_FIELDS), 2**30, dtype=torch.int32)  # those behind num_tiles are not read
    num_tiles = 0
    for members, start, end, level in runs:
        own_start[members.start : members.stop] = end
        num_levels[members.start : members.stop] = level + 1
        for first in range(members.start, members.stop, members_per_tile):
            count = min(members_per_tile, members.stop - first)
            tiles[num_tiles] = torch.tensor([first, count, start, end, level])
            num_tiles += 1
    order = torch.arange(num_sequences, dtype=torch.int32)
    return SharedRuns(
        *(
            part.to(device)
            for part in (own_start, num_levels, order, torch.tensor([num_tiles], dtype=torch.int32), tiles)
        )
    )


def share(cache, runs):
    """Let every run's members name the blocks of its first member; what they had there is poisoned."""
    table, kv, block_size = cache.table.clone(), cache.kv.clone(), cache.kv.shape[3]
    for members, start, end, _ in runs:
        own = table[members.start + 1 : members.stop, start // block_size : end // block_size]
        kv[own.flatten().long()] = float("nan")
        own[:] = table[members.start, start // block_size : end // block_size]
    return dataclasses.replace(cache, kv=kv, table=table)


def random_query(cache, num_heads, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(cache.context_lens), num_heads + 2, cache.kv.shape[-1])
    return torch.randn(shape, generator=generator).to(cache.kv.device, cache.kv.dtype)[:, :num_heads]


def run_triton(query, cache, runs, tiling=TILING, shared_tiling=SHARED_TILING, scale=0.2, soft_cap=None):
    plan = plan_decode(
        cache.context_lens,
        runs,
        num_heads=query.shape[1],
        num_kv_heads=cache.kv.shape[2],
        head_dim=query.shape[2],
        tiling=tiling,
    )
    out = torch.full(query.shape, float("nan"), dtype=query.dtype, device=query.device)
    arguments = (query, cache.kv, cache.table, cache.context_lens, out)
    return decode_attention_triton(
        *arguments, scale=scale, is_contiguous=False, plan=plan, shared_tiling=shared_tiling, soft_cap=soft_cap
    )


def expected_of(query, cache, scale=0.2, soft_cap=None):
    return decode_attention_reference(query.double(), **cache.double(), scale=scale, soft_cap=soft_cap)


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "block_size"),
    [(4, 4, 16, 16), (8, 2, 80, 8), (8, 1, 64, 1), (6, 2, 96, 32), (16, 2, 128, 64)],
)
def test_a_tree_of_shared_runs_changes_nothing(
    build_cache, device, attention_dtype, num_heads, num_kv_heads, head_dim, block_size
):
    dtype, tolerance = attention_dtype
    lens = [65 + 64 * 3, 64 + 1, 64 * 4, 64 * 3 + 17, 3, 0]
    cache = build_cache(
        lens,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        is_contiguous=False,
        dtype=dtype,
        device=device,
    )
    tree = [(range(4), 0, 64, 0), (range(2, 4), 64, 128, 1), (range(2, 4), 128, 192, 2)]
    cache = share(cache, tree)
    runs = make_runs(len(lens), tree, SHARED_TILING.tile_rows // (num_heads // num_kv_heads), device)
    query = random_query(cache, num_heads)
    out = run_triton(query, cache, runs)
    torch.testing.assert_close(out.double(), expected_of(query, cache), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("soft_cap", [None, 0.5])
def test_a_run_that_is_no_multiple_of_a_tile(build_cache, device, soft_cap):
    cache = build_cache([41, 60, 44], num_kv_heads=2, head_dim=32, block_size=8, is_contiguous=False, device=device)
    tree = [(range(3), 0, 40, 0)]
    cache = share(cache, tree)
    query = random_query(cache, 6)
    out = run_triton(query, cache, make_runs(3, tree, 5, device), soft_cap=soft_cap)
    torch.testing.assert_close(out.double(), expected_of(query, cache, soft_cap=soft_cap), rtol=1e-5, atol=1e-5)


def test_shared_runs_and_a_window_are_refused(build_cache, device):
    cache = build_cache([41, 60, 44], num_kv_heads=2, head_dim=32, block_size=8, is_contiguous=False, device=device)
    runs = make_runs(3, [(range(3), 0, 40, 0)], 5, device)
    with pytest.raises(ValueError, match="window 16 cannot go with shared runs"):
        plan_decode(cache.context_lens, runs, num_heads=4, num_kv_heads=2, head_dim=32, tiling=TILING, window=16)


@pytest.mark.parametrize("soft_cap", [None, 0.5])
def test_kernel_is_the_reference_where_sequences_are_members_and_writes_nowhere_else(build_cache, device, soft_cap):
    cache = build_cache([70, 40, 90], num_kv_heads=2, head_dim=16, block_size=8, is_contiguous=False, device=device)
    tree = [(range(2), 0, 32, 0), (range(1), 32, 64, 1)]
    cache = share(cache, tree)
    runs = make_runs(3, tree, 2, device)
    query = random_query(cache, 4)
    partial = torch.full((MAX_LEVELS, 3, 4, 16), float("nan"), device=device)
    log_sum = torch.full((MAX_LEVELS, 3, 4), float("-inf"), device=device)
    arguments, options = (query, cache.kv, cache.table, runs), {"scale": 0.3, "soft_cap": soft_cap}
    shared_attention_triton(*arguments, partial, log_sum, **options, tiling=SHARED_TILING)
    expected = shared_attention_reference(query.double(), cache.double()["kv"], cache.table, runs, **options)
    torch.testing.assert_close(partial.double(), expected[0], rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(log_sum.double(), expected[1], rtol=1e-5, atol=1e-5)


@given(
    num_members=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    shared_blocks=st.integers(1, 5),
    own_tokens=st.integers(1, 40),
    group=st.sampled_from([1, 3, 4]),
    soft_cap=st.none() | st.floats(0.1, 50),
    block_size=st.sampled_from([1, 8, 16, 32]),
    programs_per_sm=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_groups_of_any_size_change_nothing(
    build_cache, device, num_members, shared_blocks, own_tokens, group, soft_cap, block_size, programs_per_sm, seed
):
    shared = shared_blocks * block_size
    lens = [shared + (own_tokens * (i + 1)) % 37 + 1 for i in range(sum(num_members))]
    cache = build_cache(
        lens, num_kv_heads=2, head_dim=16, block_size=block_size, is_contiguous=False, device=device, seed=seed
    )
    ends = [sum(num_members[: i + 1]) for i in range(len(num_members))]
    tree = [(range(end - count, end), 0, shared, 0) for end, count in zip(ends, num_members, strict=True)]
    cache = share(cache, tree)
    runs = make_runs(len(lens), tree, 16 // group, device)
    query = random_query(cache, 2 * group, seed)
    out = run_triton(query, cache, runs, TILING._replace(programs_per_sm=programs_per_sm), soft_cap=soft_cap)
    torch.testing.assert_close(out.double(), expected_of(query, cache, soft_cap=soft_cap), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_one_cuda_graph_serves_any_tree(build_cache):
    lens = [1024 + 17 * i for i in range(1, 41)]
    cache = build_cache(
        lens,
        num_kv_heads=8,
        head_dim=128,
        block_size=16,
        is_contiguous=False,
        dtype=torch.bfloat16,
        device="cuda",
    )
    everyone = [(range(40), 0, 512, 0), (range(40), 512, 1024, 1)]
    cache = share(cache, everyone)
    query = random_query(cache, 32)
    trees = [everyone, [(range(5, 38), 0, 1024, 0)], []]
    runs = make_runs(40, everyone, 32, "cuda")
    arguments = (query, cache.kv, cache.table, cache.context_lens)
    plan = plan_for(query, cache.kv, cache.context_lens, runs)
    decode_attention(*arguments, scale=0.1, plan=plan)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan = plan_for(query, cache.kv, cache.context_lens, runs)
        for _ in range(2):  # two layers
            out = decode_attention(*arguments, scale=0.1, plan=plan)
    expected = expected_of(query, cache, 0.1)
    for tree in trees:
        for name in ("own_start", "num_levels", "num_tiles", "tiles"):
            getattr(runs, name).copy_(getattr(make_runs(40, tree, 32, "cuda"), name))
        out.fill_(float("nan"))
        graph.replay()
        torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-3)
