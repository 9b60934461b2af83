"""K and V in 8-bit floats: what is written, and attention over it."""

import dataclasses

import pytest
import torch

from pbench.kernels.copy_blocks import copy_blocks_reference, copy_blocks_triton
from pbench.kernels.decode_attention import (
    decode_attention,
    decode_attention_reference,
    decode_attention_triton,
)
from pbench.kernels.decode_plan import DecodeTiling, plan_decode
from pbench.kernels.launch import FP8, FP8_MAX
from pbench.kernels.prefill_attention import (
    PrefillTiling,
    prefill_attention_reference,
    prefill_attention_triton,
)
from pbench.kernels.rotary_write_kv import Rotation, rotary_write_kv_reference, rotary_write_kv_triton

SCALES = {"key_scale": 0.5, "value_scale": 2.0}


@pytest.fixture
def can_fp8(device):
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not convert 8-bit floats")


@pytest.fixture(params=[torch.float32, torch.float16], ids=["float32", "float16"])
def cache_and_query(request, build_cache, device, can_fp8):
    lens = [0, 1, 17, 48, 70]
    cache = build_cache(lens, num_kv_heads=2, head_dim=32, block_size=16, is_contiguous=False, device=device)
    query = torch.randn(len(lens), 8, 32, generator=torch.Generator().manual_seed(1)).to(device, request.param)
    return dataclasses.replace(cache, kv=cache.kv.to(FP8)), query


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_kernel_writes_what_the_reference_writes(device, can_fp8, dtype):
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn(2, 6, 2, 32, generator=generator) * 300
    if device == "cpu":  # Triton's interpreter does not round to 8 bits as a GPU does: numbers that need no rounding
        key, value = (x.clamp(-FP8_MAX, FP8_MAX).to(FP8).float() for x in (key, value))
    key[0, 0, 0], value[5, 1, 3] = 2 * FP8_MAX, -4 * FP8_MAX
    slots = torch.tensor([3, -1, 40, 17, 0, 31], device=device)
    pools = [torch.zeros((3, 2, 2, 16, 32), device=device).to(FP8) for _ in range(2)]
    cos_sin = torch.stack((torch.ones(1, 16), torch.zeros(1, 16)), 1)  # an angle of 0, which changes no number
    rotation = Rotation(cos_sin.to(device), torch.zeros(6, dtype=torch.int64, device=device))
    parts = [x.to(device, dtype) for x in (torch.zeros_like(key), key, value)]
    rotary_write_kv_triton(*parts, rotation, pools[0], slots, **SCALES)
    rotary_write_kv_reference(*parts, rotation, pools[1], slots, **SCALES)
    assert torch.equal(pools[0].float(), pools[1].float())
    held_key, held_value = pools[0].float()[0, :, :, 3]
    largest = FP8_MAX * SCALES["value_scale"]
    written = value[0].clamp(-largest, largest)
    torch.testing.assert_close(held_value.cpu() * SCALES["value_scale"], written, rtol=2**-4, atol=2**-6)
    assert held_key[0, 0] == FP8_MAX, "what is too large is cut"


def test_decode_attends_to_the_numbers_that_are_held(cache_and_query, device):
    cache, query = cache_and_query
    tiling = DecodeTiling(tile_tokens=16, tiles_in_flight=2, num_warps=4, programs_per_sm=1, min_chunk=1)
    plan = plan_decode(cache.context_lens, num_heads=8, num_kv_heads=2, head_dim=32, tiling=tiling)
    out = torch.full_like(query, float("nan"))
    arguments = (cache.kv, cache.table, cache.context_lens)
    decode_attention_triton(query, *arguments, out, scale=0.2, is_contiguous=False, plan=plan, **SCALES)
    expected = decode_attention_reference(query.double(), **cache.double(), scale=0.2, **SCALES)
    tolerance = 1e-5 if query.dtype is torch.float32 else 4e-3
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    if device == "cpu":
        result = decode_attention(query, *arguments, scale=0.2, **SCALES)
        torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


def test_prefill_attends_to_the_numbers_that_are_held(cache_and_query, device):
    cache, query = cache_and_query
    query_start = torch.tensor([0, 0, 1, 1, 3, 5], dtype=torch.int32, device=device)
    tiling = PrefillTiling(tile_rows=16, tile_tokens=16, num_warps=4, tiles_in_flight=1)
    out = torch.full_like(query, float("nan"))
    arguments = (cache.kv, cache.table, query_start, cache.context_lens)
    prefill_attention_triton(query, *arguments, out, scale=0.2, is_contiguous=False, tiling=tiling, **SCALES)
    expected = prefill_attention_reference(
        query.double(), query_start=query_start, **cache.double(), scale=0.2, **SCALES
    )
    tolerance = 1e-5 if query.dtype is torch.float32 else 4e-3
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_blocks_are_copied_bit_by_bit(device, can_fp8):
    pools = [
        torch.randn(2, 6, 2, 1, 16, 16, generator=torch.Generator().manual_seed(2)).to(device).to(FP8) for _ in "ab"
    ]
    pairs = torch.tensor([[0, 3], [5, 1]], device=device)
    copy_blocks_triton(pools[0], pairs)
    copy_blocks_reference(pools[1], pairs)
    assert torch.equal(pools[0].view(torch.uint8), pools[1].view(torch.uint8))


def test_a_query_of_8_bits_is_refused(build_cache):
    cache = build_cache([5], num_kv_heads=2, head_dim=16, block_size=16, is_contiguous=False)
    with pytest.raises(ValueError, match="query is float8_e4m3fn; expected float32 or bfloat16 or float16"):
        decode_attention(torch.zeros(1, 2, 16).to(FP8), cache.kv.to(FP8), cache.table, cache.context_lens, scale=1.0)
