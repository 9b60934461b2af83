"""Every kernel in each of its variants, once, through its launcher, on shapes that are small and end oddly.

The other tests look at many more shapes, and have their own tiles cut. These are for tools that watch every access to
memory and make a GPU a hundred times slower (test_sanitizer.py); without a GPU the launchers run their references.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pbench
from pbench.engine.plan import Swaps
from pbench.engine.swapper import Swapper
from pbench.kernels.choose_tokens import NUM_RULES, choose_tokens, choose_tokens_reference, noise_keys
from pbench.kernels.copy_blocks import copy_blocks
from pbench.kernels.copy_numbers import copy_numbers
from pbench.kernels.decode_attention import decode_attention, decode_attention_reference, plan_for
from pbench.kernels.few_rows_matmul import few_rows_matmul, few_rows_matmul_reference, few_rows_parts
from pbench.kernels.gated_matmul import gated_matmul, gated_matmul_reference
from pbench.kernels.invariant_attention import invariant_attention, invariant_attention_reference
from pbench.kernels.launch import FP8
from pbench.kernels.matmul import matmul, matmul_reference
from pbench.kernels.most_likely import most_likely, most_likely_next
from pbench.kernels.prefill_attention import prefill_attention, prefill_attention_reference
from pbench.kernels.project_write_kv import project_write_kv, project_write_kv_reference
from pbench.kernels.rms_norm import (
    add_parts_rms_norm,
    add_parts_rms_norm_reference,
    add_rms_norm,
    add_rms_norm_reference,
    rms_norm,
    rms_norm_reference,
)
from pbench.kernels.rotary_write_kv import HeadNorms, Rotation, rotary_write_kv, rotary_write_kv_reference
from pbench.kernels.shared_attention import MAX_TILES, TILE_FIELDS, SharedRuns
from pbench.kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference
from pbench.kernels.update_tables import update_tables, update_tables_reference

# In the order of the tests below. One that is missing fails the last test of this file.
KERNELS = {
    "decode_plan",
    "decode_attention",
    "hopper_decode",
    "shared_attention",
    "prefill_attention",
    "hopper_prefill",
    "rotary_write_kv",
    "hopper_project",
    "rms_norm",
    "silu_and_mul",
    "matmul",
    "few_rows_matmul",
    "gated_matmul",
    "hopper_few_rows",
    "most_likely",
    "hopper_most_likely",
    "choose_tokens",
    "update_tables",
    "copy_numbers",
    "copy_blocks",
}
CONTEXT_LENS = [0, 1, 16, 17, 150, 33]
QUERY_LENS = [0, 1, 16, 5, 100, 1]
NUM_KV_HEADS, NUM_HEADS = 2, 8
SHARED_TOKENS = 64
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

ATTENTION = pytest.mark.parametrize(
    ("dtype", "head_dim", "block_size", "cut"),
    [
        (BF16, 128, 16, {}),
        (BF16, 128, 16, {"window": 40, "soft_cap": 5.0}),
        (FP16, 80, 16, {}),
        (FP32, 64, 32, {}),
        (BF16, 256, 64, {}),
    ],
    ids=["bfloat16", "cut", "float16", "float32", "wide"],
)
ADDRESSING = pytest.mark.parametrize("is_contiguous", [False, True], ids=["paged", "contiguous"])


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.fixture
def build(build_cache, device):
    """Builds a poisoned pool, and so many queries for it."""

    def build_for(dtype, head_dim, block_size, num_queries, is_contiguous=False):
        cache = build_cache(
            CONTEXT_LENS,
            num_kv_heads=NUM_KV_HEADS,
            head_dim=head_dim,
            block_size=block_size,
            is_contiguous=is_contiguous,
            dtype=dtype,
            device=device,
        )
        return cache, random(num_queries, NUM_HEADS, head_dim, dtype=dtype, device=device)

    return build_for


def random(*shape, dtype, device, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def assert_near(result, expected):
    tolerance = TOLERANCES[result.dtype]
    torch.testing.assert_close(result.double(), expected.double(), rtol=tolerance, atol=tolerance)


def assert_decodes(cache, query, plan=None, **options):
    options |= {"scale": 0.1, "is_contiguous": cache.is_contiguous}
    out = decode_attention(query, cache.kv, cache.table, cache.context_lens, plan=plan, **options)
    assert_near(out, decode_attention_reference(query.double(), **cache.double(), **options))


def assert_prefills(cache, query, attend=prefill_attention, reference=prefill_attention_reference, **options):
    options |= {"scale": 0.1, "is_contiguous": cache.is_contiguous}
    query_start = torch.tensor([0, *QUERY_LENS]).cumsum(0).to(query.device, torch.int32)
    out = attend(query, cache.kv, cache.table, query_start, cache.context_lens, **options)
    exact = cache.double()
    assert_near(
        out, reference(query.double(), exact["kv"], exact["table"], query_start, exact["context_lens"], **options)
    )


@ADDRESSING
@ATTENTION
def test_decode(build, dtype, head_dim, block_size, cut, is_contiguous):
    assert_decodes(*build(dtype, head_dim, block_size, len(CONTEXT_LENS), is_contiguous), **cut)


@pytest.mark.gpu
@ADDRESSING
@pytest.mark.parametrize(("dtype", "head_dim", "block_size"), [(BF16, 128, 16), (FP16, 64, 32), (BF16, 128, 256)])
def test_decode_on_hopper(build_cache, dtype, head_dim, block_size, is_contiguous):
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("this GPU is no Hopper")
    layout = {"head_dim": head_dim, "block_size": block_size, "is_contiguous": is_contiguous, "dtype": dtype}
    cache = build_cache(CONTEXT_LENS, num_kv_heads=NUM_KV_HEADS, device="cuda", **layout)
    query = random(len(CONTEXT_LENS), NUM_HEADS, head_dim, dtype=dtype, device="cuda")
    plan = plan_for(query, cache.kv, cache.context_lens)
    assert plan.box
    assert_decodes(cache, query, plan)


@pytest.mark.parametrize("cut", [{}, {"soft_cap": 5.0}], ids=["full", "cut"])
def test_decode_over_shared_blocks(build, device, cut):
    cache, query = build(BF16, 128, 16, len(CONTEXT_LENS))
    sharers, num_blocks = slice(0, 4), SHARED_TOKENS // 16
    cache.context_lens[sharers] = torch.tensor([65, 66, 80, 81], dtype=torch.int32, device=device)
    tails = cache.table[4, num_blocks : num_blocks + 4].clone()
    cache.table[sharers, :num_blocks] = cache.table[4, :num_blocks]
    cache.table[sharers, num_blocks] = tails
    cache.table[3, num_blocks + 1] = cache.table[4, num_blocks + 4]
    own_start, num_levels = (torch.zeros(len(CONTEXT_LENS), dtype=torch.int32) for _ in range(2))
    own_start[sharers], num_levels[sharers] = SHARED_TOKENS, 1
    tiles = torch.full((MAX_TILES, TILE_FIELDS), 2**30, dtype=torch.int32)
    tiles[0] = torch.tensor([0, 4, 0, SHARED_TOKENS, 0])
    members = torch.arange(len(CONTEXT_LENS), dtype=torch.int32)
    parts = (own_start, num_levels, members, torch.ones(1, dtype=torch.int32), tiles)
    runs = SharedRuns(*(part.to(device) for part in parts))
    assert_decodes(cache, query, plan_for(query, cache.kv, cache.context_lens, runs), **cut)


@ADDRESSING
@ATTENTION
def test_prefill(build, dtype, head_dim, block_size, cut, is_contiguous):
    assert_prefills(*build(dtype, head_dim, block_size, sum(QUERY_LENS), is_contiguous), **cut)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "head_dim", "block_size", "cut"),
    [(BF16, 128, 16, {}), (FP16, 64, 32, {}), (BF16, 128, 256, {"window": 40, "soft_cap": 5.0})],
)
def test_prefill_on_hopper(build_cache, dtype, head_dim, block_size, cut):
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("this GPU is no Hopper")
    from pbench.kernels.hopper_prefill import hopper_prefill_attention

    def attend(query, kv, table, query_start, context_lens, *, is_contiguous, **options):
        out = torch.empty_like(query)
        return hopper_prefill_attention(query, kv, table, query_start, context_lens, out, **options)

    layout = {"head_dim": head_dim, "block_size": block_size, "is_contiguous": False, "dtype": dtype}
    cache = build_cache(CONTEXT_LENS, num_kv_heads=NUM_KV_HEADS, device="cuda", **layout)
    query = random(sum(QUERY_LENS), NUM_HEADS, head_dim, dtype=dtype, device="cuda")
    assert_prefills(cache, query, attend, **cut)


def test_invariant_attention(build):
    cache, query = build(BF16, 128, 16, sum(QUERY_LENS))
    assert_prefills(cache, query, invariant_attention, invariant_attention_reference)


@pytest.mark.parametrize("is_prefill", [False, True], ids=["decode", "prefill"])
def test_attention_over_8_bit_floats(build, device, is_prefill):
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not convert 8-bit floats")
    cache, query = build(BF16, 128, 16, sum(QUERY_LENS) if is_prefill else len(CONTEXT_LENS))
    (assert_prefills if is_prefill else assert_decodes)(replace(cache, kv=cache.kv.to(FP8)), query)


@pytest.mark.parametrize("kv_dtype", [None, FP8], ids=["same", "fp8"])
@pytest.mark.parametrize("has_norms", [False, True], ids=["plain", "normed"])
def test_rotary_and_write_kv(device, kv_dtype, has_norms):
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 9) and kv_dtype:
        pytest.skip("this GPU does not convert 8-bit floats")
    num_tokens, head_dim = 7, 80
    angles = torch.rand(64, head_dim // 2, generator=torch.Generator().manual_seed(0))
    weights = random(2, head_dim, dtype=BF16, device=device)
    slots = torch.tensor([0, 47, -1, 13, 30, 31, 2], device=device)
    rotation = Rotation(
        torch.stack((angles.cos(), angles.sin()), 1).to(device), torch.tensor([0, 63, 1, 5, 6, 7, 9], device=device)
    )
    if has_norms:
        rotation = rotation._replace(norms=HeadNorms(*weights, 1e-5))
    results = []
    for write in (rotary_write_kv, rotary_write_kv_reference):
        packed = random(num_tokens, NUM_HEADS + 2 * NUM_KV_HEADS, head_dim, dtype=BF16, device=device)
        parts = packed.split((NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS), dim=1)
        kv = torch.zeros(3, 2, NUM_KV_HEADS, 16, head_dim, device=device).to(kv_dtype or BF16)
        write(*parts, rotation, kv, slots)
        results.append((parts[0], kv.to(BF16)))
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, rtol=0.13 if kv_dtype else 2e-2, atol=2e-2)


@pytest.mark.parametrize("kv_dtype", [None, FP8], ids=["same", "fp8"])
@pytest.mark.parametrize(("num_rows", "head_dim"), [(5, 64), (33, 128), (129, 64)])
def test_projected_heads(device, kv_dtype, num_rows, head_dim):
    if device == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("the kernel is for Hopper")
    depth, has_norms = 520, head_dim == 128
    x, weight = (random(count, depth, dtype=BF16, device=device) for count in (num_rows, 8 * head_dim))
    bias, norm = (random(count, dtype=BF16, device=device) for count in (8 * head_dim, head_dim))
    angles = torch.rand(num_rows, head_dim // 2, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(num_rows, device=device).flip(0)
    norms = HeadNorms(norm, norm, 1e-5) if has_norms else None
    rotation = Rotation(torch.stack((angles.cos(), angles.sin()), 1).to(device), positions, norms)
    slots = 3 * torch.arange(num_rows, device=device)
    slots[2] = -1
    results = []
    for project in (project_write_kv, project_write_kv_reference):
        kv = torch.zeros(num_rows // 5 + 1, 2, NUM_KV_HEADS, 16, head_dim, device=device).to(kv_dtype or BF16)
        query = project(x, weight / depth**0.5, None if has_norms else bias, rotation, kv, slots)
        results.append((query, kv.to(BF16)))
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, rtol=0.13 if kv_dtype else 2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=["bfloat16", "float32"])
def test_rows(device, dtype):
    x, residual, weight = (random(*shape, dtype=dtype, device=device) for shape in ((3, 5, 200), (5, 200), (200,)))
    assert_near(rms_norm(x[0], weight, 1e-5), rms_norm_reference(x[0].double(), weight.double(), 1e-5))
    expected = add_rms_norm_reference(x[1], residual, weight, 1e-5)
    for result, right in zip(add_rms_norm(x[1], residual, weight, 1e-5), expected, strict=True):
        assert_near(result, right)
    assert_near(silu_and_mul(x[2]), silu_and_mul_reference(x[2].double()))


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=["bfloat16", "float32"])
def test_matmul(device, dtype):
    x, weight, bias = (random(*shape, dtype=dtype, device=device) for shape in ((65, 80), (130, 80), (130,)))
    assert_near(matmul(x, weight / 9, bias), matmul_reference(x.double(), weight.double() / 9, bias.double()))


@pytest.mark.parametrize("num_rows", [5, 17, 65, 129])
def test_products_of_few_rows(device, num_rows):
    """Of parts two, one of which is short; each kernel starts while the one before it runs."""
    if device == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("these kernels are for Hopper")
    x, weight = (random(count, 520, dtype=BF16, device=device) for count in (num_rows, 140))
    bias, residual, norm = (random(*shape, dtype=BF16, device=device) for shape in ((140,), (num_rows, 140), (140,)))
    weight /= 23
    assert_near(few_rows_matmul(x, weight, bias), few_rows_matmul_reference(x.double(), weight.double(), bias.double()))
    assert_near(gated_matmul(x, weight), gated_matmul_reference(x.double(), weight.double()))
    parts = few_rows_parts(x, weight)
    assert_near(parts.sum(0), few_rows_matmul_reference(x.double(), weight.double()))
    _, summed = add_parts_rms_norm(parts, residual, norm, 1e-5)
    assert_near(summed, add_parts_rms_norm_reference(parts.double(), residual.double(), norm.double(), 1e-5)[1])


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [5, 65, 129])
def test_products_of_few_rows_on_hopper(num_rows):
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("this GPU is no Hopper")
    from pbench.kernels.hopper_few_rows import hopper_gated, hopper_parts

    x, weight = (random(count, 520, dtype=BF16, device="cuda") for count in (num_rows, 144))
    weight /= 23
    torch.cuda.synchronize()  # weights are read before the kernel before is done
    assert_near(hopper_parts(x, weight, 2).sum(0), few_rows_matmul_reference(x.double(), weight.double()))
    assert_near(hopper_gated(x, weight), gated_matmul_reference(x.double(), weight.double()))


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=["bfloat16", "float32"])
def test_most_likely_tokens(device, dtype):
    logits = random(3, 4097, dtype=dtype, device=device)
    out = torch.empty(3, dtype=torch.int64, device=device)
    most_likely(logits, out)
    assert out.tolist() == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=["bfloat16", "float32"])
def test_next_tokens(device, dtype):
    hidden, head = random(3, 80, dtype=dtype, device=device), torch.eye(97, 80, dtype=dtype, device=device)
    out = torch.empty(3, dtype=torch.int64, device=device)
    most_likely_next(hidden, head, out)
    assert out.tolist() == hidden.argmax(dim=-1).tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [5, 65, 129, 161])
def test_next_tokens_on_hopper(num_rows):
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("this GPU is no Hopper")
    from pbench.kernels.hopper_most_likely import hopper_most_likely

    hidden, head = random(num_rows, 72, dtype=BF16, device="cuda"), torch.eye(72, device="cuda").repeat(9, 1).to(BF16)
    torch.cuda.synchronize()  # the head is read before the kernel before is done
    out = torch.empty(num_rows, dtype=torch.int64, device="cuda")
    hopper_most_likely(hidden, head, out)
    assert out.tolist() == hidden.argmax(dim=-1).tolist()


def test_choices(device):
    """Rows of one launch: greedy, drawn freely, from the likeliest, from a share of the mass, and after a penalty."""
    rules = torch.zeros(NUM_RULES, 5, dtype=torch.float64)
    rules[0] = torch.tensor([0.0, 1.0, 0.5, 1.2, 0.0])  # one over the temperature
    rules[1], rules[2], rules[3], rules[4] = torch.tensor([0, 0, 20, 0, 0]), 1.0, -torch.inf, 1.0
    rules[2, 3], rules[4, 4], rules[5] = 0.9, 1.3, torch.tensor([-1, -1, -1, -1, 0])
    for vocab_size in (97, 4097):
        logits = 3 * random(5, vocab_size, dtype=FP32, device="cpu")
        keys, seen = noise_keys([7] * 5, list(range(5))), (logits[:1] > 3).to(torch.uint8)
        expected = choose_tokens_reference(logits, keys, rules, seen.clone())
        there = [part.to(device) for part in (logits, keys, rules, seen)]
        assert choose_tokens(*there).tolist() == expected.tolist()


def test_tables(device):
    """A change at the end of one, none, all of a third."""
    parts = [[2, 0, 3], [33, 17, 40], [2, 0, 0], [1, 1, 4], [9, 8, 7, 6]]
    there = [torch.tensor(part, dtype=torch.int32, device=device) for part in parts]
    tables, out = (torch.arange(4 * size, dtype=torch.int32, device=device).view(-1, 4) for size in (4, 3))
    others = tables.clone(), out.clone()
    update_tables(tables, *there, 16, out)
    update_tables_reference(others[0], *there, 16, others[1])
    assert torch.equal(tables, others[0])
    assert out.tolist() == [[8, 9, 9, 3], [0, 1, 6, 7], [8, 7, 6, 11]]


def test_numbers(device):
    there, back = (torch.zeros(9, dtype=torch.int64, pin_memory=device == "cuda") for _ in range(2))
    there[:], numbers = torch.arange(9), torch.zeros(9, dtype=torch.int64, device=device)
    copy_numbers(numbers, there)
    copy_numbers(back, numbers)
    assert numbers.tolist() == list(range(9))  # waits for both
    assert torch.equal(back, there)


def test_copies(device):
    pool = random(3, 6, 2, NUM_KV_HEADS, 16, 80, dtype=BF16, device=device)
    expected = pool.clone()
    expected[:, 5], expected[:, 0] = expected[:, 2], expected[:, 4]
    copy_blocks(pool, torch.tensor([[2, 5], [4, 0]], device=device))
    assert torch.equal(pool, expected)


def test_swaps(device):
    pool = random(3, 6, 2, NUM_KV_HEADS, 16, 80, dtype=BF16, device=device)
    expected = pool.clone()
    expected[:, 3], expected[:, 1] = expected[:, 5], expected[:, 2]
    swapper = Swapper(pool, 2)
    swapper.run(Swaps(out=[(5, 1), (2, 0)], back=[]))
    swapper.run(Swaps(out=[], back=[(1, 3), (0, 1)]))
    assert torch.equal(pool, expected)


def test_no_kernel_is_left_out():
    folder = Path(pbench.__file__).parent / "kernels"
    assert {path.stem for path in folder.glob("*.py") if "_kernel(" in path.read_text()} == KERNELS
