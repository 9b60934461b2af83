"""The prefill kernel of Hopper GPUs, which Triton's interpreter cannot run: that it compiles is tested everywhere."""

from dataclasses import replace

import pytest
import torch

from pbench.kernels.prefill_attention import prefill_attention, prefill_attention_reference, suits_hopper

pytestmark = pytest.mark.gpu

TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 4e-3}
# Contexts and queries: alone, empty, within and across tiles of 128 tokens, one past a block, behind cached prefixes.
BATCHES = {
    "one token": ([1], [1]),
    "a tile": ([128], [128]),
    "one past a tile": ([129], [129]),
    "one query": ([1000], [1]),
    "chunks": ([300, 700, 65, 130], [44, 130, 1, 128]),
    "ragged": ([0, 17, 513, 1, 257, 0, 400], [0, 17, 300, 1, 257, 0, 16]),
    "long": ([2050], [2050]),
}


@pytest.fixture(autouse=True)
def hopper():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("this GPU is no Hopper")


def random_queries(num_tokens, num_heads, head_dim, dtype):
    """A slice of a wider tensor."""
    packed = torch.randn(num_tokens, num_heads + 2, head_dim, generator=torch.Generator().manual_seed(1))
    return packed.to("cuda", dtype)[:, :num_heads]


def starts(query_lens, first=0):
    return (torch.tensor([0, *query_lens]).cumsum(0) + first).to("cuda", torch.int32)


def attend(query, cache, query_start, **options):
    """Into poison, which stays in the rows that are nobody's."""
    from pbench.kernels.hopper_prefill import hopper_prefill_attention

    out = torch.full(query.shape, float("nan"), dtype=query.dtype, device="cuda")
    return hopper_prefill_attention(query, cache.kv, cache.table, query_start, cache.context_lens, out, **options)


def assert_right(out, query, cache, query_start, **options):
    exact = cache.double()
    expected = prefill_attention_reference(
        query.double(), exact["kv"], exact["table"], query_start, exact["context_lens"], **options
    )
    rows = slice(int(query_start[0]), int(query_start[-1]))
    tolerance = TOLERANCES[query.dtype]
    torch.testing.assert_close(out[rows].double(), expected[rows], rtol=tolerance, atol=tolerance)
    assert out[: rows.start].isnan().all()
    assert out[rows.stop :].isnan().all()


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(
    ("dtype", "head_dim", "block_size", "num_heads", "num_kv_heads"),
    [
        (torch.bfloat16, 128, 16, 8, 2),
        (torch.float16, 128, 32, 6, 6),
        (torch.bfloat16, 64, 64, 4, 1),
        (torch.bfloat16, 64, 16, 14, 2),
        (torch.float16, 128, 128, 8, 1),
        (torch.bfloat16, 128, 256, 32, 8),
    ],
    ids=["grouped", "multi-head", "multi-query", "groups of seven", "tile-sized blocks", "large blocks"],
)
def test_equals_the_reference(build_cache, batch, dtype, head_dim, block_size, num_heads, num_kv_heads):
    context_lens, query_lens = batch
    layout = {"head_dim": head_dim, "block_size": block_size, "is_contiguous": False, "dtype": dtype}
    cache = build_cache(context_lens, num_kv_heads=num_kv_heads, device="cuda", **layout)
    query, query_start = random_queries(sum(query_lens), num_heads, head_dim, dtype), starts(query_lens)
    out = attend(query, cache, query_start, scale=head_dim**-0.5)
    assert_right(out, query, cache, query_start, scale=head_dim**-0.5)


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_short_prompts_in_the_tiles_of_long_ones(grouped, monkeypatch, batch):
    monkeypatch.setattr("pbench.kernels.hopper_prefill.MAX_SHORT", 0)
    context_lens, query_lens = batch
    cache, query_start = grouped(context_lens), starts(query_lens)
    query = random_queries(sum(query_lens), 8, 128, torch.bfloat16)
    for options in ({}, {"window": 100}):
        assert_right(
            attend(query, cache, query_start, scale=0.1, **options), query, cache, query_start, scale=0.1, **options
        )


@pytest.fixture
def grouped(build_cache):
    """Builds a pool for contexts of so many tokens."""

    def build(context_lens):
        layout = {"head_dim": 128, "block_size": 16, "is_contiguous": False, "dtype": torch.bfloat16}
        return build_cache(context_lens, num_kv_heads=2, device="cuda", **layout)

    return build


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(
    ("window", "soft_cap", "head_dim", "block_size"),
    [(1, None, 128, 16), (100, None, 64, 32), (128, 5.0, 128, 256), (700, None, 128, 16), (None, 5.0, 128, 16)],
)
def test_windows_and_soft_caps(build_cache, batch, window, soft_cap, head_dim, block_size):
    context_lens, query_lens = batch
    layout = {"head_dim": head_dim, "block_size": block_size, "is_contiguous": False, "dtype": torch.bfloat16}
    cache = build_cache(context_lens, num_kv_heads=2, device="cuda", **layout)
    seen = cache
    if window is not None:  # poison in what no query sees
        first_queries = [length - count for length, count in zip(context_lens, query_lens, strict=True)]
        seen = cache.without([max(position - window + 1, 0) for position in first_queries])
    query, query_start = random_queries(sum(query_lens), 8, head_dim, torch.bfloat16), starts(query_lens)
    options = {"scale": head_dim**-0.5, "window": window, "soft_cap": soft_cap}
    assert_right(attend(query, seen, query_start, **options), query, cache, query_start, **options)


def test_leaves_rows_that_are_nobodys(grouped):
    cache, query_start = grouped([200, 33]), starts([150, 33], first=40)
    query = random_queries(40 + 183 + 9, 8, 128, torch.bfloat16)
    assert_right(attend(query, cache, query_start, scale=0.1), query, cache, query_start, scale=0.1)


def test_scales_keys_and_values(grouped):
    cache, query_start = grouped([200]), starts([200])
    query = random_queries(200, 8, 128, torch.bfloat16)
    options = {"scale": 0.1, "key_scale": 0.5, "value_scale": 3.0}
    assert_right(attend(query, cache, query_start, **options), query, cache, query_start, **options)


def test_pools_of_the_same_layout_are_told_apart_and_none_is_kept(grouped):
    cache, query_start = grouped([200]), starts([200])
    query = random_queries(200, 8, 128, torch.bfloat16)
    caches = [cache, replace(cache, kv=cache.kv * 2), replace(cache, kv=-cache.kv)]
    for other in caches * 2:
        assert_right(attend(query, other, query_start, scale=0.1), query, other, query_start, scale=0.1)
    used, pool_bytes = torch.cuda.memory_allocated(), cache.kv.nbytes
    del cache, caches, other
    assert used - torch.cuda.memory_allocated() >= 3 * pool_bytes


def test_one_graph_serves_any_lengths(grouped):
    cache, query_lens = grouped([300, 200, 500]), [100, 200, 212]
    query, query_start = random_queries(512, 8, 128, torch.bfloat16), starts(query_lens)
    attend(query, cache, query_start, scale=0.1)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(query, cache, query_start, scale=0.1)
    for context_lens, new_lens in (([300, 200, 500], [12, 0, 500]), ([299, 77, 480], [299, 1, 128])):
        cache.context_lens.copy_(torch.tensor(context_lens))
        query_start.copy_(starts(new_lens))
        graph.replay()
        assert_right(out, query, cache, query_start, scale=0.1)


def test_is_chosen_where_it_suits(grouped):
    cache, query_start = grouped([200]), starts([200])
    query = random_queries(200, 8, 128, torch.bfloat16)
    assert suits_hopper(query, cache.kv, False)
    chosen = prefill_attention(query, cache.kv, cache.table, query_start, cache.context_lens, scale=0.1)
    assert torch.equal(chosen, attend(query, cache, query_start, scale=0.1))
    for other in (
        (query, cache.kv, True),
        (query[:7], cache.kv, False),
        (query.half(), cache.kv, False),
        (query[..., :80], cache.kv[..., :80], False),
        (query, cache.kv[..., :8, :], False),
        (query.as_strided((100, 8, 128), (query.stride(0) + 4, 128, 1)), cache.kv, False),
    ):
        assert not suits_hopper(*other)
