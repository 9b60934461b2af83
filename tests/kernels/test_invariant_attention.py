import dataclasses

import pytest
import torch

from pbench.kernels.invariant_attention import fixed_tiling, invariant_attention, invariant_attention_reference
from pbench.kernels.prefill_attention import prefill_attention, prefill_attention_reference, prefill_attention_triton

CONTEXT_LENS = [1, 23, 90, 9, 70]
QUERY_LENS = [1, 23, 41, 0, 1]
CUTS = pytest.mark.parametrize("cut", [{}, {"window": 19, "soft_cap": 5.0}], ids=["full", "cut"])


@pytest.fixture(params=[False, True], ids=["paged", "contiguous"])
def is_contiguous(request):
    return request.param


def build(build_cache, is_contiguous, device="cpu", dtype=torch.float32, head_dim=16, context_lens=CONTEXT_LENS):
    """A pool, and a query for EVERY token of every sequence: those that a test leaves out came in earlier steps."""
    cache = build_cache(
        context_lens,
        num_kv_heads=2,
        head_dim=head_dim,
        block_size=8,
        is_contiguous=is_contiguous,
        device=device,
        dtype=dtype,
    )
    generator = torch.Generator().manual_seed(3)
    queries = [torch.randn(length, 8, head_dim, generator=generator).to(device, dtype) for length in context_lens]
    return cache, queries


def attend(run, cache, queries, context_lens, query_lens, **cut):
    """Attend from the last queries of every sequence, as if it had no more tokens than its context: one result each."""
    parts = [
        query[context - count : context]
        for query, context, count in zip(queries, context_lens, query_lens, strict=True)
    ]
    device = cache.kv.device
    starts = torch.tensor([0, *query_lens]).cumsum(0).to(device, torch.int32)
    lens = torch.tensor(context_lens, dtype=torch.int32, device=device)
    arguments = (torch.cat(parts), cache.kv, cache.table, starts, lens)
    out = run(*arguments, scale=0.3, is_contiguous=cache.is_contiguous, **cut)
    return out.split(query_lens)


@CUTS
def test_reference_is_the_formula(build_cache, is_contiguous, cut):
    cache, queries = build(build_cache, is_contiguous)
    cache = dataclasses.replace(cache, kv=cache.double()["kv"])
    queries = [query.double() for query in queries]
    out = attend(invariant_attention_reference, cache, queries, CONTEXT_LENS, QUERY_LENS, **cut)
    expected = attend(prefill_attention_reference, cache, queries, CONTEXT_LENS, QUERY_LENS, **cut)
    torch.testing.assert_close(torch.cat(out), torch.cat(expected), rtol=1e-12, atol=1e-12)


def run_kernel(query, kv, table, query_start, context_lens, **options):
    """The launch of ``invariant_attention``, also in the interpreter."""
    out = torch.zeros_like(query)
    return prefill_attention_triton(
        query,
        kv,
        table,
        query_start,
        context_lens,
        out,
        tiling=fixed_tiling(query, kv),
        is_masked_throughout=True,
        **options,
    )


@CUTS
def test_kernel_is_the_formula(build_cache, device, attention_dtype, is_contiguous, cut):
    dtype, tolerance = attention_dtype
    cache, queries = build(build_cache, is_contiguous, device, dtype)
    out = attend(run_kernel, cache, queries, CONTEXT_LENS, QUERY_LENS, **cut)
    exact = dataclasses.replace(cache, kv=cache.double()["kv"])
    wide = [query.double() for query in queries]
    expected = attend(invariant_attention_reference, exact, wide, CONTEXT_LENS, QUERY_LENS, **cut)
    torch.testing.assert_close(torch.cat(out).double(), torch.cat(expected), rtol=tolerance, atol=tolerance)


def chunks_that_differ(run, cache, queries, sizes=(1, 2, 7, 16, 33), **cut):
    """Whole prompts, against chunks of several sizes behind what came before, and single tokens among others."""
    lengths = cache.context_lens.tolist()
    whole = attend(run, cache, queries, lengths, lengths, **cut)
    differing = set()
    for size in sizes:
        for step in range(-(-max(lengths) // size)):
            contexts = [min((step + 1) * size, length) for length in lengths]
            counts = [max(context - step * size, 0) for context in contexts]
            for sequence, out in enumerate(attend(run, cache, queries, contexts, counts, **cut)):
                if not torch.equal(out, whole[sequence][contexts[sequence] - counts[sequence] : contexts[sequence]]):
                    differing.add((size, step, sequence))
    return differing


@CUTS
def test_on_the_cpu_a_query_has_the_same_bits_in_any_chunk(build_cache, is_contiguous, cut):
    cache, queries = build(build_cache, is_contiguous)
    assert not chunks_that_differ(invariant_attention, cache, queries, **cut)


def test_plain_attention_gives_a_query_other_bits_in_another_chunk(build_cache, is_contiguous):
    """Else the test above could not fail."""
    cache, queries = build(build_cache, is_contiguous)
    assert chunks_that_differ(prefill_attention, cache, queries)


@CUTS
def test_queries_of_the_kernel_are_independent(build_cache, device, is_contiguous, cut):
    cache, queries = build(build_cache, is_contiguous, device)
    assert not chunks_that_differ(run_kernel, cache, queries, sizes=(33,), **cut)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("head_dim", [64, 128])
@CUTS
def test_on_the_gpu_a_query_has_the_same_bits_in_any_chunk(build_cache, is_contiguous, dtype, head_dim, cut):
    cache, queries = build(build_cache, is_contiguous, "cuda", dtype, head_dim, context_lens=[1, 23, 700, 9, 300])
    assert not chunks_that_differ(invariant_attention, cache, queries, sizes=(1, 7, 33, 64, 100, 256), **cut)


def test_the_tiling_does_not_know_how_many_queries_there_are(device):
    few, many = (torch.zeros(count, 8, 128, device=device, dtype=torch.float16) for count in (1, 3000))
    kv = torch.zeros(1, 2, 2, 16, 128, device=device, dtype=torch.float16)
    assert fixed_tiling(few, kv) == fixed_tiling(many, kv)


def test_launcher_names_the_argument_that_does_not_fit(build_cache):
    cache, queries = build(build_cache, False)
    with pytest.raises(ValueError, match="query_start has shape"):
        invariant_attention(
            queries[0], cache.kv, cache.table, torch.zeros(3, dtype=torch.int32), cache.context_lens, scale=0.3
        )
