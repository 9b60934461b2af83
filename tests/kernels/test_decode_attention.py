from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pbench.kernels import decode_attention as decode_attention_module
from pbench.kernels.compiler import jit, let_next_launch, tl, wait_for_previous
from pbench.kernels.decode_attention import (
    decode_attention,
    decode_attention_reference,
    decode_attention_triton,
    plan_for,
)
from pbench.kernels.decode_plan import DecodeTiling, plan_decode
from pbench.kernels.launch import FP8

SMALL_TILES = DecodeTiling(tile_tokens=16, tiles_in_flight=2, num_warps=4, programs_per_sm=1, min_chunk=1)


def random_query(cache, num_heads, seed=1):
    """Rows of a wider tensor, as a model's packed projection gives them."""
    num_sequences, head_dim = len(cache.context_lens), cache.kv.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randn(num_sequences, num_heads + 2, head_dim, generator=generator)
    return packed.to(cache.kv.device, cache.kv.dtype)[:, :num_heads]


def exact(query, cache, scale, window=None, soft_cap=None):
    """The formula in float64, sequence by sequence and head by head."""
    pool = cache.double()["kv"]
    group = query.shape[1] // pool.shape[2]
    block_size = pool.shape[3]
    out = torch.zeros(query.shape, dtype=torch.float64, device=query.device)
    for i, length in enumerate(cache.context_lens.tolist()):
        if length == 0:
            continue
        tokens = torch.arange(0 if window is None else max(length - window, 0), length, device=query.device)
        if cache.is_contiguous:
            block_ids, slots = torch.zeros_like(tokens), cache.table[i, 0] + tokens
        else:
            block_ids, slots = cache.table[i, tokens // block_size].long(), tokens % block_size
        for head in range(query.shape[1]):
            key, value = (pool[block_ids, which, head // group, slots] for which in (0, 1))
            scores = scale * key @ query[i, head].double()
            if soft_cap is not None:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            out[i, head] = torch.softmax(scores, 0) @ value
    return out


def window_starts(cache, window):
    return [0 if window is None else max(length - window, 0) for length in cache.context_lens.tolist()]


def plan_of(query, cache, tiling, window=None, is_kv_settled=None):
    return plan_decode(
        cache.context_lens,
        is_kv_settled=is_kv_settled,
        window=window,
        num_heads=query.shape[1],
        num_kv_heads=cache.kv.shape[2],
        head_dim=query.shape[2],
        tiling=tiling,
    )


def run_triton(query, cache, tiling, scale=0.2, plan=None, window=None, soft_cap=None):
    out = torch.full(query.shape, float("nan"), dtype=query.dtype, device=query.device)
    return decode_attention_triton(
        query,
        cache.kv,
        cache.table,
        cache.context_lens,
        out,
        scale=scale,
        is_contiguous=cache.is_contiguous,
        plan=plan or plan_of(query, cache, tiling, window),
        soft_cap=soft_cap,
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
@pytest.mark.parametrize("block_size", [1, 32])
@pytest.mark.parametrize(("window", "soft_cap"), [(1, None), (15, 2.0), (17, None), (40, 0.5)])
def test_window_and_soft_cap_are_the_formula_and_nothing_before_the_window_is_read(
    build_cache, device, attention_dtype, window, soft_cap, block_size, is_contiguous
):
    dtype, tolerance = attention_dtype
    cache = build_cache(
        [0, 1, window, window + 1, 47, 48, 49, 2 * window + 33],
        num_kv_heads=2,
        head_dim=80,
        block_size=block_size,
        is_contiguous=is_contiguous,
        dtype=dtype,
        device=device,
    )
    query = random_query(cache, 8)
    expected = exact(query, cache, 0.2, window, soft_cap)
    cache = cache.without(window_starts(cache, window))
    out = run_triton(query, cache, SMALL_TILES, window=window, soft_cap=soft_cap)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_window_wider_than_every_context_changes_no_bit(build_cache, device):
    cache = build_cache([100, 3, 0], num_kv_heads=2, head_dim=32, block_size=16, is_contiguous=False, device=device)
    query = random_query(cache, 4)
    out = run_triton(query, cache, SMALL_TILES, window=100)
    assert torch.equal(out, run_triton(query, cache, SMALL_TILES))


def test_a_soft_cap_bounds_scores_of_any_magnitude(build_cache, device):
    """Where tanh is one to the last bit, every score is the cap or its negative."""
    cache = build_cache([70, 3], num_kv_heads=1, head_dim=16, block_size=16, is_contiguous=False, device=device)
    query = random_query(cache, 2) * 1e6
    out = run_triton(query, cache, SMALL_TILES, scale=1e6, soft_cap=2.0)
    torch.testing.assert_close(out.double(), exact(query, cache, 1e6, None, 2.0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_contiguous", [False, True])
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (7, None), (None, 1.5), (20, 0.7)])
@pytest.mark.parametrize("num_heads", [2, 8, 12])
def test_reference_is_the_formula(build_cache, num_heads, window, soft_cap, is_contiguous):
    cache = build_cache([5, 0, 33, 1], num_kv_heads=2, head_dim=16, block_size=8, is_contiguous=is_contiguous)
    query = random_query(cache, num_heads)
    out = decode_attention_reference(
        query.double(),
        **cache.double(),
        scale=0.3,
        is_contiguous=is_contiguous,
        window=window,
        soft_cap=soft_cap,
    )
    torch.testing.assert_close(out, exact(query, cache, 0.3, window, soft_cap), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_contiguous", [False, True])
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_launcher_on_cpu_reads_no_poison_and_writes_where_told(build_cache, dtype, window, is_contiguous):
    cache = build_cache(
        [7, 0, 40], num_kv_heads=2, head_dim=32, block_size=16, is_contiguous=is_contiguous, dtype=dtype
    )
    query = random_query(cache, 4)
    out = torch.full(query.shape, float("nan"), dtype=dtype)
    # The blocks before a window stay in the table.
    arguments = (query, cache.without(window_starts(cache, window)).kv, cache.table, cache.context_lens)
    options = {"scale": 0.2, "is_contiguous": is_contiguous, "window": window}
    assert decode_attention(*arguments, **options, out=out) is out
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(out.double(), exact(query, cache, 0.2, window), rtol=tolerance, atol=tolerance)
    assert torch.equal(decode_attention(*arguments, **options), out)


# From one program that does everything to more programs than there are tiles.
@pytest.mark.parametrize(("programs_per_sm", "min_chunk"), [(1, 1000), (1, 1), (2, 3), (6, 1)])
def test_how_the_work_is_shared_out_does_not_change_the_result(build_cache, device, programs_per_sm, min_chunk):
    cache = build_cache(
        [150, 16, 0, 129, 2],
        num_kv_heads=1,
        head_dim=32,
        block_size=16,
        is_contiguous=False,
        device=device,
    )
    query = random_query(cache, 4)
    tiling = SMALL_TILES._replace(programs_per_sm=programs_per_sm, min_chunk=min_chunk)
    torch.testing.assert_close(
        run_triton(query, cache, tiling).double(), exact(query, cache, 0.2), rtol=1e-5, atol=1e-5
    )


def test_a_plan_serves_one_launch_after_the_other(build_cache, device):
    cache = build_cache([300, 0, 40], num_kv_heads=2, head_dim=16, block_size=16, is_contiguous=False, device=device)
    plan = plan_of(random_query(cache, 2), cache, SMALL_TILES)
    for seed in (1, 2, 3):
        query = random_query(cache, 2, seed)
        out = run_triton(query, cache, SMALL_TILES, plan=plan)
        torch.testing.assert_close(out.double(), exact(query, cache, 0.2), rtol=1e-5, atol=1e-5)
        assert not plan.num_arrived.any()


@given(
    context_lens=st.lists(st.integers(0, 300), min_size=1, max_size=9),
    num_rows=st.sampled_from([1, 2, 3, 4, 6, 12]),
    programs_per_sm=st.integers(1, 3),
    min_chunk=st.integers(1, 9),
    window=st.none() | st.integers(1, 100),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_programs_share_the_tiles_evenly_and_know_their_neighbours(
    device, context_lens, num_rows, programs_per_sm, min_chunk, window
):
    tiling = SMALL_TILES._replace(programs_per_sm=programs_per_sm, min_chunk=min_chunk)
    lens = torch.tensor(context_lens, dtype=torch.int32, device=device)
    is_kv_settled = torch.ones(1, dtype=torch.int32, device=device)
    plan = plan_decode(
        lens,
        None,
        is_kv_settled,
        num_heads=2 * num_rows,
        num_kv_heads=num_rows,
        head_dim=16,
        tiling=tiling,
        window=window,
    )
    assert plan.num_rows == num_rows
    assert num_rows % plan.num_abreast == plan.num_programs % plan.num_abreast == 0
    chunks = [None] * plan.num_programs
    for abreast in range(plan.num_abreast):
        tiles = []  # of every so many-th row, one after the other
        for sequence, length in enumerate(context_lens):
            first = max(length - (window or length), 0) // 16 * 16  # tiles wholly before the window are nobody's
            starts = range(first, max(length, first + 1), 16)
            rows = range(abreast, num_rows, plan.num_abreast)
            tiles += [(sequence, row, start) for row in rows for start in starts]
        programs = range(abreast, plan.num_programs, plan.num_abreast)
        chunk = max(-(-len(tiles) // len(programs)), min_chunk)
        for place, program in enumerate(programs):
            chunks[program] = tiles[place * chunk : (place + 1) * chunk]
    pieces = [{tile[:2] for tile in own} for own in chunks]
    for program, record in enumerate(plan.schedule.tolist()):
        *start, context_len, num_tiles, first_program, head_pieces, tail_pieces, are_tiles_settled = record
        own = chunks[program]
        assert num_tiles == len(own)
        if not own:
            assert tail_pieces == are_tiles_settled == 0
            continue
        assert are_tiles_settled == (start[2] + tiling.tiles_in_flight * 16 < context_len)
        tiles_ahead = own[: tiling.tiles_in_flight] if are_tiles_settled else []
        assert all(first + 16 < context_lens[sequence] for sequence, _, first in tiles_ahead)
        assert tuple(start) == own[0]
        assert context_len == context_lens[own[0][0]]
        sharers = {row: [other for other, rows in enumerate(pieces) if row in rows] for row in pieces[program]}
        head, tail = sharers[own[0][:2]], sharers[own[-1][:2]]
        assert head_pieces == (len(head) if head[0] < program else 0)
        if head_pieces:
            assert first_program == head[0]
        assert tail_pieces == (len(tail) if tail[0] == program < tail[-1] else 0)


@jit()
def _do_nothing() -> None:
    pass


@jit()
def _zero(is_time):
    return 0


@pytest.mark.parametrize(("is_contiguous", "window"), [(False, None), (True, None), (False, 100)])
def test_a_loop_may_have_a_round_before_its_first_tile(build_cache, device, monkeypatch, is_contiguous, window):
    if device == "cpu":  # where no kernel before is waited for
        monkeypatch.setattr(decode_attention_module, "can_launch_early", lambda tensor: True)
        for name in ("wait_for_previous", "let_next_launch"):
            monkeypatch.setattr(decode_attention_module, name, _do_nothing)
        monkeypatch.setattr(decode_attention_module, "wait_and_let_next", _zero)
    layout = {"num_kv_heads": 2, "head_dim": 16, "block_size": 16, "is_contiguous": is_contiguous}
    cache = build_cache([300, 0, 40, 117, 65], **layout, device=device)
    query = random_query(cache, 4)
    is_kv_settled = torch.ones(1, dtype=torch.int32, device=device)
    plan = plan_of(query, cache, SMALL_TILES, window, is_kv_settled)
    assert 0 < plan.schedule[:, 8].sum() < plan.num_programs
    for _ in range(3):
        out = run_triton(query, cache, SMALL_TILES, plan=plan, window=window)
        torch.testing.assert_close(out.double(), exact(query, cache, 0.2, window), rtol=1e-5, atol=1e-5)


@jit()
def _write_late_kernel(to_ptr, from_ptr, places_ptr, num_places, TILE: tl.constexpr):
    """Grid: (1,). Copies numbers, two milliseconds after the next kernel may have begun."""
    wait_for_previous()
    let_next_launch()
    begin = tl.extra.cuda.globaltimer()
    now = begin
    while now - begin < 2_000_000:
        now = tl.extra.cuda.globaltimer()
    for first in range(0, num_places, TILE):
        indices = first + tl.arange(0, TILE)
        places = tl.load(places_ptr + indices, mask=indices < num_places)
        numbers = tl.load(from_ptr + places, mask=indices < num_places)
        tl.store(to_ptr + places, numbers, mask=indices < num_places)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8], ids=str)
def test_what_the_kernel_before_writes_is_read_when_it_is_there(build_cache, dtype):
    """Queries, and of K and V the last tokens; where a plan is told that others are settled, these are read before."""
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("kernels are not launched early")
    lens = [700, 1, 64, 333]
    cache = build_cache(lens, num_kv_heads=8, head_dim=128, block_size=16, is_contiguous=False, device="cuda")
    right_kv = cache.kv.to(dtype)
    right_query = random_query(cache, 16).to(torch.bfloat16).contiguous()
    right = torch.cat([tensor.view(torch.uint8).flatten() for tensor in (right_kv, right_query)])
    numbers = right.clone()
    kv = numbers[: right_kv.nbytes].view(dtype).view(right_kv.shape)
    query = numbers[right_kv.nbytes :].view(torch.bfloat16).view(right_query.shape)
    expected = decode_attention_reference(query.double(), kv.double(), cache.table, cache.context_lens, scale=0.1)
    is_last = torch.zeros_like(kv.view(torch.uint8))
    for row, length in zip(cache.table, lens, strict=True):
        is_last[row[(length - 1) // 16].item(), :, :, (length - 1) % 16, :] = 1

    def is_right(is_kv_settled, is_written):
        flag = torch.tensor([is_kv_settled], dtype=torch.int32, device="cuda")
        plan = plan_for(query, kv, cache.context_lens, is_kv_settled=flag)
        arguments = {"scale": 0.1, "plan": plan}
        numbers.copy_(right)
        decode_attention(query, kv, cache.table, cache.context_lens, **arguments)  # the first launch of a plan waits
        places = torch.cat([is_written.flatten(), torch.ones(query.nbytes, device="cuda")]).nonzero().squeeze(1)
        numbers[places] = 0x7F  # 0x7F is a NaN of 8-bit floats, 0x7F7F is 3e38 of bfloat16
        _write_late_kernel[(1,)](numbers, right, places, len(places), TILE=4096, num_warps=8, launch_pdl=True)
        out = decode_attention(query, kv, cache.table, cache.context_lens, **arguments)
        return torch.allclose(out.double(), expected, rtol=2e-2, atol=2e-3)

    everything = torch.ones_like(is_last)
    for _ in range(2):  # once compiled
        are_right = [is_right(1, is_last), is_right(0, is_last), is_right(0, everything), is_right(1, everything)]
    assert are_right == [True, True, True, False]


def test_a_plan_for_other_shapes_is_refused(build_cache):
    cache = build_cache([30, 4], num_kv_heads=2, head_dim=16, block_size=16, is_contiguous=False)
    query = random_query(cache, 4)
    plan = plan_of(query, cache, SMALL_TILES) if not torch.cuda.is_available() else None
    if plan is None:
        pytest.skip("Triton compiles for the GPU in this process; its interpreter is off")
    fewer = replace(cache, table=cache.table[:1], context_lens=cache.context_lens[:1])
    with pytest.raises(ValueError, match="plan is for 2 sequences of 2 rows"):
        run_triton(query[:1], fewer, SMALL_TILES, plan=plan)


def test_a_plan_for_another_window_is_refused(build_cache):
    cache = build_cache([30, 4], num_kv_heads=2, head_dim=16, block_size=16, is_contiguous=False)
    query = random_query(cache, 4)
    plan = plan_of(query, cache, SMALL_TILES, window=8) if not torch.cuda.is_available() else None
    if plan is None:
        pytest.skip("Triton compiles for the GPU in this process; its interpreter is off")
    arguments = (query, cache.kv, cache.table, cache.context_lens)
    with pytest.raises(ValueError, match="plan is for window 8 and window is None"):
        decode_attention(*arguments, scale=1.0, plan=plan)


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
    context_lens=st.lists(st.integers(0, 70) | st.sampled_from([0, 1, 16, 17, 33, 65]), max_size=4),
    num_kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 3, 4, 17]),
    head_dim=st.sampled_from([16, 64, 80, 96, 128, 256]),
    block_size=st.sampled_from([1, 8, 16, 32, 64, 256]),
    is_contiguous=st.booleans(),
    is_fp8=st.booleans(),
    window=st.none() | st.integers(1, 80),
    soft_cap=st.none() | st.floats(0.1, 50),
    programs_per_sm=st.integers(1, 3),
    min_chunk=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_kernel_is_the_reference_for_any_lengths(
    build_cache,
    device,
    context_lens,
    num_kv_heads,
    group,
    head_dim,
    block_size,
    is_contiguous,
    is_fp8,
    window,
    soft_cap,
    programs_per_sm,
    min_chunk,
    seed,
):
    cache = build_cache(
        context_lens,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        is_contiguous=is_contiguous,
        device=device,
        seed=seed,
    )
    query = random_query(cache, num_kv_heads * group, seed=seed)
    tiling = SMALL_TILES._replace(programs_per_sm=programs_per_sm, min_chunk=min_chunk)
    if is_fp8:
        cache = replace(cache, kv=cache.kv.to(FP8))
    expected = decode_attention_reference(
        query.double(),
        **cache.double(),
        scale=0.2,
        is_contiguous=is_contiguous,
        window=window,
        soft_cap=soft_cap,
    )
    cache = cache.without(window_starts(cache, window))
    out = run_triton(query, cache, tiling, window=window, soft_cap=soft_cap)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


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
    options = {"scale": scale, "is_contiguous": is_contiguous, "window": window, "soft_cap": soft_cap}
    expected = decode_attention_reference(query.double(), **cache.double(), **options)
    cache = cache.without(window_starts(cache, window))
    out = decode_attention(query, cache.kv, cache.table, cache.context_lens, **options)
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 100])
def test_one_cuda_graph_serves_all_lengths(build_cache, window):
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
    decode_attention(*arguments, scale=0.1, window=window)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan = plan_for(query, cache.kv, cache.context_lens, window=window)
        for _ in range(2):  # two layers
            out = decode_attention(*arguments, scale=0.1, plan=plan, window=window)
    for shorter in (lens, [0, 1, 300, 63], [1999, 0, 0, 1], [0, 0, 0, 0]):
        cache.context_lens.copy_(torch.tensor(shorter))
        graph.replay()
        expected = decode_attention_reference(query.double(), **cache.double(), scale=0.1, window=window)
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
        ({"window": 2**31}, "window is 2147483648; it must be at least 1, the query itself, and below"),
        ({"window": 0}, "window is 0; it must be at least 1, the query itself"),
        ({"soft_cap": 0.0}, "soft_cap is 0.0; it must be a finite number above 0"),
        ({"soft_cap": float("nan")}, "soft_cap is nan; it must be a finite number above 0"),
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
