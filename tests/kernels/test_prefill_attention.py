from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pbench.kernels.launch import FP8, device_limits
from pbench.kernels.prefill_attention import (
    PrefillTiling,
    prefill_attention,
    prefill_attention_reference,
    prefill_attention_triton,
)
from pbench.kernels.tiling import Operands
from pbench.kernels.tuning_table import choose_prefill_tiling

SMALL_TILES = PrefillTiling(tile_rows=16, tile_tokens=16, num_warps=4, tiles_in_flight=2)


def random_queries(cache, query_lens, num_heads, seed=1):
    """Queries as slices of a wider tensor, and where each sequence's begin."""
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randn(sum(query_lens), num_heads + 2, cache.kv.shape[-1], generator=generator)
    query_start = torch.tensor([0, *query_lens]).cumsum(0).to(cache.kv.device, torch.int32)
    return packed.to(cache.kv.device, cache.kv.dtype)[:, :num_heads], query_start


def exact(query, query_start, cache, scale, window=None, soft_cap=None):
    """The formula in float64, query by query."""
    pool = cache.double()["kv"]
    num_kv_heads, block_size = pool.shape[2:4]
    out = torch.zeros(query.shape, dtype=torch.float64, device=query.device)
    for i, length in enumerate(cache.context_lens.tolist()):
        first, last = query_start[i : i + 2].tolist()
        for row in range(first, last):
            end = length - (last - 1 - row)
            tokens = torch.arange(0 if window is None else max(end - window, 0), end, device=query.device)
            if cache.is_contiguous:
                block_ids, slots = torch.zeros_like(tokens), cache.table[i, 0] + tokens
            else:
                block_ids, slots = cache.table[i, tokens // block_size].long(), tokens % block_size
            key, value = pool[block_ids, 0, :, slots], pool[block_ids, 1, :, slots]
            grouped = query[row].double().view(num_kv_heads, -1, query.shape[2])
            scores = torch.einsum("tkd,kgd->kgt", key, grouped) * scale
            if soft_cap is not None:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            out[row] = torch.einsum("kgt,tkd->kgd", scores.softmax(-1), value).flatten(0, 1)
    return out


def window_starts(query_start, cache, window):
    """The first token that some query of each sequence sees."""
    query_lens = query_start.diff().tolist()
    return [
        0 if window is None else max(length - query_len - window + 1, 0)
        for length, query_len in zip(cache.context_lens.tolist(), query_lens, strict=True)
    ]


def run_triton(query, query_start, cache, tiling, scale=0.2, window=None, soft_cap=None):
    out = torch.full(query.shape, float("nan"), dtype=query.dtype, device=query.device)
    return prefill_attention_triton(
        query,
        cache.kv,
        cache.table,
        query_start,
        cache.context_lens,
        out,
        scale=scale,
        is_contiguous=cache.is_contiguous,
        tiling=tiling,
        window=window,
        soft_cap=soft_cap,
    )


@pytest.mark.parametrize("is_contiguous", [False, True])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "block_size"),
    [(4, 4, 16, 16), (8, 2, 80, 8), (8, 1, 64, 1), (6, 2, 96, 32), (16, 2, 128, 64)],
)
def test_kernel_is_the_formula_for_whole_prompts_chunks_and_cached_prefixes(
    build_cache, device, attention_dtype, num_heads, num_kv_heads, head_dim, block_size, is_contiguous
):
    dtype, tolerance = attention_dtype
    query_lens = [1, 17, 5, 0, 16, 1, 2]
    context_lens = [1, 17, 40, 9, 48, 33, 2 * block_size + 1]
    cache = build_cache(
        context_lens,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        is_contiguous=is_contiguous,
        dtype=dtype,
        device=device,
    )
    query, query_start = random_queries(cache, query_lens, num_heads)
    out = run_triton(query, query_start, cache, SMALL_TILES)
    expected = exact(query, query_start, cache, 0.2)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


# Windows below, of and above a tile, and of several; the longest chunk fills several tiles of rows.
@pytest.mark.parametrize("is_contiguous", [False, True])
@pytest.mark.parametrize("block_size", [8, 32])
@pytest.mark.parametrize(("window", "soft_cap"), [(1, None), (5, 2.0), (16, None), (40, 0.5), (None, 3.0)])
def test_window_and_soft_cap_are_the_formula_and_nothing_before_the_windows_is_read(
    build_cache, device, attention_dtype, window, soft_cap, block_size, is_contiguous
):
    dtype, tolerance = attention_dtype
    cache = build_cache(
        [1, 17, 40, 9, 70, 95, 64],
        num_kv_heads=2,
        head_dim=80,
        block_size=block_size,
        is_contiguous=is_contiguous,
        dtype=dtype,
        device=device,
    )
    query, query_start = random_queries(cache, [1, 17, 5, 0, 61, 2, 1], 4)
    expected = exact(query, query_start, cache, 0.2, window, soft_cap)
    cache = cache.without(window_starts(query_start, cache, window))
    out = run_triton(query, query_start, cache, SMALL_TILES, window=window, soft_cap=soft_cap)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_window_wider_than_every_context_changes_no_number(build_cache, device):
    cache = build_cache([100, 30], num_kv_heads=2, head_dim=32, block_size=16, is_contiguous=False, device=device)
    query, query_start = random_queries(cache, [70, 30], 4)
    out = run_triton(query, query_start, cache, SMALL_TILES, window=100)
    assert torch.equal(out, run_triton(query, query_start, cache, SMALL_TILES))


@pytest.mark.parametrize("is_contiguous", [False, True])
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (7, None), (None, 1.5), (20, 0.7)])
@pytest.mark.parametrize("num_heads", [2, 8])
def test_reference_is_the_formula(build_cache, num_heads, window, soft_cap, is_contiguous):
    cache = build_cache([9, 20, 0, 33, 4], num_kv_heads=2, head_dim=16, block_size=8, is_contiguous=is_contiguous)
    query, query_start = random_queries(cache, [9, 4, 0, 1, 0], num_heads)
    out = prefill_attention_reference(
        query.double(),
        query_start=query_start,
        **cache.double(),
        scale=0.3,
        is_contiguous=is_contiguous,
        window=window,
        soft_cap=soft_cap,
    )
    torch.testing.assert_close(out, exact(query, query_start, cache, 0.3, window, soft_cap), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_contiguous", [False, True])
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_launcher_on_cpu_reads_no_poison_and_writes_where_told(build_cache, dtype, window, is_contiguous):
    cache = build_cache([7, 40], num_kv_heads=2, head_dim=32, block_size=16, is_contiguous=is_contiguous, dtype=dtype)
    query, query_start = random_queries(cache, [7, 3], 4)
    out = torch.full(query.shape, float("nan"), dtype=dtype)
    # The blocks before a window stay in the table.
    kv = cache.without(window_starts(query_start, cache, window)).kv
    arguments = (query, kv, cache.table, query_start, cache.context_lens)
    options = {"scale": 0.2, "is_contiguous": is_contiguous, "window": window}
    assert prefill_attention(*arguments, **options, out=out) is out
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    expected = exact(query, query_start, cache, 0.2, window)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(prefill_attention(*arguments, **options), out)


@pytest.mark.parametrize("window", [None, 12])
def test_a_prompt_in_chunks_gives_what_it_gives_at_once(build_cache, device, window):
    cache = build_cache([50], num_kv_heads=2, head_dim=32, block_size=16, is_contiguous=False, device=device)
    query, query_start = random_queries(cache, [50], 6)
    at_once = run_triton(query, query_start, cache, SMALL_TILES, window=window)
    for first, last in ((0, 7), (7, 40), (40, 50)):
        cache.context_lens.fill_(last)
        starts = torch.tensor([0, last - first], dtype=torch.int32, device=device)
        chunk = run_triton(query[first:last], starts, cache, SMALL_TILES, window=window)
        torch.testing.assert_close(chunk, at_once[first:last], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_triton", [False, True])
def test_rows_that_are_nobodys_are_left_as_they_are(build_cache, device, is_triton):
    """As in a step that decodes too, and in a CUDA graph with room for more sequences and tokens."""
    lens = [20, 3, 0, 0]
    cache = build_cache(lens, num_kv_heads=1, head_dim=16, block_size=8, is_contiguous=False, device=device)
    query, _ = random_queries(cache, [5, 6, 3, 4], 2)
    query_start = torch.tensor([5, 11, 14, 14, 14], dtype=torch.int32, device=device)
    out = torch.full(query.shape, 7.0, device=device)
    arguments = (query, cache.kv, cache.table, query_start, cache.context_lens)
    if is_triton:
        prefill_attention_triton(*arguments, out, scale=0.2, is_contiguous=False, tiling=SMALL_TILES)
    else:
        prefill_attention(*arguments, scale=0.2, out=out)
    expected = exact(query, query_start, cache, 0.2)
    torch.testing.assert_close(out[5:14].double(), expected[5:14], rtol=1e-5, atol=1e-5)
    assert (out[:5] == 7).all()
    assert (out[14:] == 7).all()


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 100])
def test_one_cuda_graph_serves_all_lengths(build_cache, window):
    lens = [700, 90, 513, 0]
    cache = build_cache(
        lens, num_kv_heads=8, head_dim=128, block_size=16, is_contiguous=False, dtype=torch.bfloat16, device="cuda"
    )
    query, query_start = random_queries(cache, [300, 90, 33, 0], 32)
    arguments = (query, cache.kv, cache.table, query_start, cache.context_lens)
    prefill_attention(*arguments, scale=0.1, window=window)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = prefill_attention(*arguments, scale=0.1, window=window)
    for starts, contexts in (([0, 300, 390, 423, 423], lens), ([7, 8, 90, 90, 90], [1, 90, 0, 0])):
        query_start.copy_(torch.tensor(starts))
        cache.context_lens.copy_(torch.tensor(contexts))
        graph.replay()
        expected = prefill_attention_reference(
            query.double(), query_start=query_start, **cache.double(), scale=0.1, window=window
        )
        rows = slice(starts[0], starts[-1])
        torch.testing.assert_close(out[rows].double(), expected[rows], rtol=2e-2, atol=5e-3)


@st.composite
def query_and_context_lens(draw):
    lens = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=3))
    return [query_len for query_len, _ in lens], [query_len + prefix_len for query_len, prefix_len in lens]


@given(
    lens=query_and_context_lens(),
    num_kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 3, 4, 17]),
    head_dim=st.sampled_from([16, 64, 80, 96, 128, 256]),
    block_size=st.sampled_from([1, 8, 16, 32, 64, 256]),
    is_contiguous=st.booleans(),
    is_fp8=st.booleans(),
    window=st.none() | st.integers(1, 80),
    soft_cap=st.none() | st.floats(0.1, 50),
    tile_rows=st.sampled_from([16, 32]),
    tile_tokens=st.sampled_from([16, 32]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_kernel_is_the_reference_for_any_lengths(
    build_cache,
    device,
    lens,
    num_kv_heads,
    group,
    head_dim,
    block_size,
    is_contiguous,
    is_fp8,
    window,
    soft_cap,
    tile_rows,
    tile_tokens,
    seed,
):
    query_lens, context_lens = lens
    cache = build_cache(
        context_lens,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        is_contiguous=is_contiguous,
        device=device,
        seed=seed,
    )
    query, query_start = random_queries(cache, query_lens, num_kv_heads * group, seed)
    tiling = PrefillTiling(tile_rows, tile_tokens, num_warps=4, tiles_in_flight=1)
    if is_fp8:
        cache = replace(cache, kv=cache.kv.to(FP8))
    expected = prefill_attention_reference(
        query.double(),
        query_start=query_start,
        **cache.double(),
        scale=0.2,
        is_contiguous=is_contiguous,
        window=window,
        soft_cap=soft_cap,
    )
    cache = cache.without(window_starts(query_start, cache, window))
    out = run_triton(query, query_start, cache, tiling, window=window, soft_cap=soft_cap)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_contiguous", [False, True])
def test_kernel_is_right_with_the_tiles_that_the_launcher_chooses(build_cache, device, is_contiguous):
    cache = build_cache(
        [150, 90],
        num_kv_heads=1,
        head_dim=64,
        block_size=16,
        is_contiguous=is_contiguous,
        dtype=torch.float16,
        device=device,
    )
    query, query_start = random_queries(cache, [70, 90], 4)
    tiling = choose_prefill_tiling(device_limits(query), Operands.of(query, cache.kv), 70 * 4 + 90 * 4)
    assert tiling.tile_rows == 128
    out = run_triton(query, query_start, cache, tiling)
    expected = prefill_attention_reference(
        query.double(), query_start=query_start, **cache.double(), scale=0.2, is_contiguous=is_contiguous
    )
    torch.testing.assert_close(out.double(), expected, rtol=4e-3, atol=4e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("is_contiguous", [False, True])
@pytest.mark.parametrize("block_size", [16, 128])
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (1024, None), (None, 50.0), (100, 30.0)])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"),
    [(32, 8, 128), (16, 8, 128), (8, 1, 256), (8, 8, 64), (12, 4, 80), (8, 2, 96)],
)
def test_launcher_is_right_at_the_sizes_of_a_model(
    build_cache, num_heads, num_kv_heads, head_dim, window, soft_cap, block_size, is_contiguous
):
    query_lens = [1, 1000, 64, 777, 0, 33]
    context_lens = [500, 1000, 4000, 900, 12, 33]
    cache = build_cache(
        context_lens,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        is_contiguous=is_contiguous,
        dtype=torch.bfloat16,
        device="cuda",
    )
    query, query_start = random_queries(cache, query_lens, num_heads)
    scale = head_dim**-0.5
    options = {"scale": scale, "is_contiguous": is_contiguous, "window": window, "soft_cap": soft_cap}
    expected = prefill_attention_reference(query.double(), query_start=query_start, **cache.double(), **options)
    cache = cache.without(window_starts(query_start, cache, window))
    out = prefill_attention(query, cache.kv, cache.table, query_start, cache.context_lens, **options)
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=5e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_start": torch.zeros(2, dtype=torch.int32)}, "query_start has shape"),
        ({"query_start": torch.zeros(3, dtype=torch.int64)}, "query_start is int64; expected int32"),
        ({"query": torch.zeros(5, 4, 32)}, "query has head_dim 32 and kv 16"),
        ({"query": torch.zeros(5, 64)}, "query has shape"),
        ({"context_lens": torch.zeros(3, dtype=torch.int32)}, "context_lens has shape"),
        ({"out": torch.zeros(4, 4, 16)}, "out has shape"),
        ({"window": -1}, "window is -1; it must be at least 1, the query itself"),
        ({"soft_cap": -2.0}, "soft_cap is -2.0; it must be a finite number above 0"),
        ({"out": torch.zeros(5, 4, 16, dtype=torch.float16)}, "out is float16; expected float32"),
    ],
)
def test_launcher_names_the_argument_that_does_not_fit(change, message):
    arguments = {
        "query": torch.zeros(5, 4, 16),
        "kv": torch.zeros(3, 2, 2, 8, 16),
        "table": torch.zeros(2, 1, dtype=torch.int32),
        "query_start": torch.tensor([0, 2, 5], dtype=torch.int32),
        "context_lens": torch.tensor([2, 3], dtype=torch.int32),
        "scale": 1.0,
    }
    assert prefill_attention(**arguments).shape == (5, 4, 16)
    with pytest.raises(ValueError, match=message):
        prefill_attention(**(arguments | change))
