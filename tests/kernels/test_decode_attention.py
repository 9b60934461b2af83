import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pbench.kernels.decode_attention import (
    MAX_SPLITS,
    DecodeTiling,
    choose_tiling,
    decode_attention,
    decode_attention_reference,
    decode_attention_triton,
)

SMALL_TILES = DecodeTiling(num_splits=3, min_split_tiles=1, tile_tokens=16, tiles_in_flight=2)


def random_query(cache, num_heads, seed=1):
    """Rows of a wider tensor, as a model's packed projection gives them."""
    num_sequences, head_dim = len(cache.context_lens), cache.kv.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randn(num_sequences, num_heads + 2, head_dim, generator=generator)
    return packed.to(cache.kv.device, cache.kv.dtype)[:, :num_heads]


def exact(query, cache, scale):
    """The formula in float64, sequence by sequence and head by head."""
    pool = cache.double()["kv"]
    group = query.shape[1] // pool.shape[2]
    block_size = pool.shape[3]
    out = torch.zeros(query.shape, dtype=torch.float64, device=query.device)
    for i, length in enumerate(cache.context_lens.tolist()):
        if length == 0:
            continue
        tokens = torch.arange(length, device=query.device)
        if cache.is_contiguous:
            block_ids, slots = torch.zeros_like(tokens), cache.table[i, 0] + tokens
        else:
            block_ids, slots = cache.table[i, tokens // block_size].long(), tokens % block_size
        for head in range(query.shape[1]):
            key, value = (pool[block_ids, which, head // group, slots] for which in (0, 1))
            out[i, head] = torch.softmax(scale * key @ query[i, head].double(), 0) @ value
    return out


def run_triton(query, cache, tiling, scale=0.2):
    out = torch.full(query.shape, float("nan"), dtype=query.dtype, device=query.device)
    return decode_attention_triton(
        query,
        cache.kv,
        cache.table,
        cache.context_lens,
        out,
        scale=scale,
        is_contiguous=cache.is_contiguous,
        tiling=tiling,
    )


@pytest.mark.parametrize("is_contiguous", [False, True])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "block_size"),
    [(4, 4, 16, 16), (8, 2, 80, 8), (8, 1, 64, 1), (6, 2, 96, 32), (16, 2, 128, 64)],
)
def test_kernel_is_the_formula_at_every_edge_of_a_block_and_tile(
    build_cache, device, attention_dtype, num_heads, num_kv_heads, head_dim, block_size, is_contiguous
):
    dtype, tolerance = attention_dtype
    lens = [0, 1, block_size, 2 * block_size + 1, 15, 16, 17, 47, 48, 49]
    lens += [block_size - 1] if block_size > 1 else []
    cache = build_cache(
        lens,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        is_contiguous=is_contiguous,
        dtype=dtype,
        device=device,
    )
    query = random_query(cache, num_heads)
    expected = exact(query, cache, 0.2)
    torch.testing.assert_close(run_triton(query, cache, SMALL_TILES).double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("is_contiguous", [False, True])
@pytest.mark.parametrize("num_heads", [2, 8, 12])
def test_reference_is_the_formula(build_cache, num_heads, is_contiguous):
    cache = build_cache([5, 0, 33, 1], num_kv_heads=2, head_dim=16, block_size=8, is_contiguous=is_contiguous)
    query = random_query(cache, num_heads)
    arguments = cache.double()
    out = decode_attention_reference(query.double(), **arguments, scale=0.3, is_contiguous=is_contiguous)
    torch.testing.assert_close(out, exact(query, cache, 0.3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_contiguous", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_launcher_on_cpu_reads_no_poison_and_writes_where_told(build_cache, dtype, is_contiguous):
    cache = build_cache(
        [7, 0, 40], num_kv_heads=2, head_dim=32, block_size=16, is_contiguous=is_contiguous, dtype=dtype
    )
    query = random_query(cache, 4)
    out = torch.full(query.shape, float("nan"), dtype=dtype)
    arguments = (query, cache.kv, cache.table, cache.context_lens)
    result = decode_attention(*arguments, scale=0.2, is_contiguous=is_contiguous, out=out)
    assert result is out
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(out.double(), exact(query, cache, 0.2), rtol=tolerance, atol=tolerance)
    assert torch.equal(decode_attention(*arguments, scale=0.2, is_contiguous=is_contiguous), out)


@pytest.mark.parametrize("num_splits", [1, 2, 9, 17])
def test_number_of_splits_does_not_change_the_result(build_cache, device, num_splits):
    cache = build_cache(
        [150, 16, 0, 129, 2],
        num_kv_heads=1,
        head_dim=32,
        block_size=16,
        is_contiguous=False,
        device=device,
    )
    query = random_query(cache, 4)
    tiling = SMALL_TILES._replace(num_splits=num_splits)
    torch.testing.assert_close(
        run_triton(query, cache, tiling).double(), exact(query, cache, 0.2), rtol=1e-5, atol=1e-5
    )


def test_short_sequences_are_not_split(build_cache, device):
    cache = build_cache([300, 40], num_kv_heads=1, head_dim=16, block_size=16, is_contiguous=False, device=device)
    query = random_query(cache, 1)
    tiling = DecodeTiling(num_splits=4, min_split_tiles=8, tile_tokens=16, tiles_in_flight=1)
    torch.testing.assert_close(
        run_triton(query, cache, tiling).double(), exact(query, cache, 0.2), rtol=1e-5, atol=1e-5
    )


def test_more_query_heads_per_kv_head_than_one_tile_holds(build_cache, device):
    cache = build_cache([33, 5], num_kv_heads=1, head_dim=16, block_size=16, is_contiguous=False, device=device)
    query = random_query(cache, 71)
    torch.testing.assert_close(
        run_triton(query, cache, SMALL_TILES).double(), exact(query, cache, 0.2), rtol=1e-5, atol=1e-5
    )


def test_scores_of_large_magnitude_do_not_overflow(build_cache, device):
    cache = build_cache([70, 3], num_kv_heads=1, head_dim=16, block_size=16, is_contiguous=False, device=device)
    query = random_query(cache, 2) * 100
    out = run_triton(query, cache, SMALL_TILES, scale=30.0)
    torch.testing.assert_close(out.double(), exact(query, cache, 30.0), rtol=1e-2, atol=1e-2)


@given(
    context_lens=st.lists(st.integers(0, 70), min_size=1, max_size=4),
    num_kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 3, 4, 17]),
    block_size=st.sampled_from([1, 8, 16, 32]),
    is_contiguous=st.booleans(),
    num_splits=st.integers(1, 5),
    min_split_tiles=st.integers(1, 2),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_kernel_is_the_reference_for_any_lengths(
    build_cache,
    device,
    context_lens,
    num_kv_heads,
    group,
    block_size,
    is_contiguous,
    num_splits,
    min_split_tiles,
    seed,
):
    cache = build_cache(
        context_lens,
        num_kv_heads=num_kv_heads,
        head_dim=16,
        block_size=block_size,
        is_contiguous=is_contiguous,
        device=device,
        seed=seed,
    )
    query = random_query(cache, num_kv_heads * group, seed=seed)
    tiling = DecodeTiling(num_splits, min_split_tiles, tile_tokens=16, tiles_in_flight=1)
    expected = decode_attention_reference(query.double(), **cache.double(), scale=0.2, is_contiguous=is_contiguous)
    torch.testing.assert_close(run_triton(query, cache, tiling).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_sequences", [1, 2, 17, 256, 4096])
@pytest.mark.parametrize("max_context", [1, 64, 300, 4096, 131072])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tiling_has_room_for_its_splits(num_sequences, max_context, dtype):
    query = torch.empty(num_sequences, 32, 128, dtype=dtype)
    tiling = choose_tiling(query, torch.empty(1, 2, 8, 16, 128, dtype=dtype), max_context)
    assert 1 <= tiling.num_splits <= MAX_SPLITS
    assert tiling.min_split_tiles >= 1
    split_tokens = tiling.min_split_tiles * tiling.tile_tokens
    assert (tiling.num_splits - 1) * split_tokens < max_context  # the last split of the longest may have work


@pytest.mark.gpu
@pytest.mark.parametrize("is_contiguous", [False, True])
@pytest.mark.parametrize("block_size", [16, 128])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(32, 8, 128), (16, 8, 128), (8, 1, 256)])
def test_launcher_is_right_at_the_sizes_of_a_model(
    build_cache, num_heads, num_kv_heads, head_dim, block_size, is_contiguous
):
    generator = torch.Generator().manual_seed(3)
    lens = [*torch.randint(1, 3000, (48,), generator=generator).tolist(), 0, 9000]
    cache = build_cache(
        lens,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        is_contiguous=is_contiguous,
        dtype=torch.bfloat16,
        device="cuda",
    )
    query = random_query(cache, num_heads)
    scale = head_dim**-0.5
    out = decode_attention(query, cache.kv, cache.table, cache.context_lens, scale=scale, is_contiguous=is_contiguous)
    expected = decode_attention_reference(query.double(), **cache.double(), scale=scale, is_contiguous=is_contiguous)
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-3)


@pytest.mark.gpu
def test_one_cuda_graph_serves_all_lengths(build_cache):
    lens = [2000, 1, 517, 64]
    cache = build_cache(
        lens,
        num_kv_heads=8,
        head_dim=128,
        block_size=16,
        is_contiguous=False,
        dtype=torch.bfloat16,
        device="cuda",
    )
    query = random_query(cache, 32)
    arguments = (query, cache.kv, cache.table, cache.context_lens)
    decode_attention(*arguments, scale=0.1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode_attention(*arguments, scale=0.1)
    for shorter in (lens, [0, 1, 300, 63], [1999, 0, 0, 1], [0, 0, 0, 0]):
        cache.context_lens.copy_(torch.tensor(shorter))
        graph.replay()
        expected = decode_attention_reference(query.double(), **cache.double(), scale=0.1)
        torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(2, 4, 32)}, "query has head_dim 32 and kv 16"),
        ({"query": torch.zeros(2, 3, 16)}, "query has 3 heads; expected a multiple of kv's 2"),
        ({"query": torch.zeros(3, 4, 16)}, "query has shape"),
        ({"query": torch.zeros(2, 4, 16, dtype=torch.float16)}, "query is float16; expected float32"),
        ({"query": torch.zeros(2, 16, 4).mT}, "query has strides"),
        ({"kv": torch.zeros(3, 2, 2, 8, 16, dtype=torch.float64)}, "kv is float64"),
        ({"kv": torch.zeros(3, 2, 2, 8, 16).transpose(2, 3)}, "must be contiguous"),
        ({"kv": torch.zeros(3, 1, 2, 8, 16)}, "dimension 1 must hold K and V"),
        ({"kv": torch.zeros(3, 2, 2, 12, 16)}, "block_size 12; paged addressing needs a power of two"),
        ({"kv": torch.zeros(3, 2, 2, 8, 24), "query": torch.zeros(2, 4, 24)}, "kv has head_dim 24"),
        ({"table": torch.zeros(2, 1)}, "table is float32; expected int32"),
        ({"table": torch.zeros(2, dtype=torch.int32)}, "table has shape"),
        ({"context_lens": torch.zeros(2, dtype=torch.int64)}, "context_lens is int64; expected int32"),
        ({"context_lens": torch.zeros(3, dtype=torch.int32)}, "context_lens has shape"),
        ({"is_contiguous": True}, "contiguous addressing needs one block"),
        ({"out": torch.zeros(2, 4, 32)}, "out has shape"),
        ({"out": torch.zeros(2, 16, 4).mT}, "out of shape"),
    ],
)
def test_launcher_names_the_argument_that_does_not_fit(change, message):
    arguments = {
        "query": torch.zeros(2, 4, 16),
        "kv": torch.zeros(3, 2, 2, 8, 16),
        "table": torch.zeros(2, 1, dtype=torch.int32),
        "context_lens": torch.zeros(2, dtype=torch.int32),
        "scale": 1.0,
    }
    assert decode_attention(**arguments).shape == (2, 4, 16)
    with pytest.raises(ValueError, match=message):
        decode_attention(**(arguments | change))
