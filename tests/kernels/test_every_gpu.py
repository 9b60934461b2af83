"""What every kind of GPU launches, cut up by the rules for it, compiles for it and fits its memory.

Hopper's own kernels are elsewhere (test_compilation.py). No GPU need be there: this file runs itself in another
process, where Triton compiles as if it were.
"""

import json
import multiprocessing
import traceback

import pytest
import torch

from pbench.kernels import launch
from pbench.kernels.choose_tokens import NUM_RULES, choose_tokens_triton
from pbench.kernels.decode_attention import _plan, decode_attention_triton
from pbench.kernels.few_rows_matmul import few_rows_parts_triton
from pbench.kernels.gated_matmul import gated_matmul_triton
from pbench.kernels.launch import FP8, FP8_CAPABILITY, HOPPER, DeviceLimits, next_power_of_2
from pbench.kernels.matmul import matmul_triton
from pbench.kernels.most_likely import most_likely_triton
from pbench.kernels.prefill_attention import prefill_attention_triton
from pbench.kernels.rms_norm import add_parts_rms_norm_triton
from pbench.kernels.rotary_write_kv import HeadNorms, Rotation, rotary_write_kv_triton
from pbench.kernels.shared_attention import MAX_TILES, TILE_FIELDS, SharedRuns
from pbench.kernels.silu_and_mul import silu_and_mul_triton
from pbench.kernels.tiling import Operands, decode_rule, prefill_rule, shared_rule

# That a program can have: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". A
# multiprocessor has one more, and the system takes one for each program.
SHARED_MEMORY_KIB = {80: 163, 89: 99, 90: 227, 100: 227}
CAPABILITIES = pytest.mark.parametrize("capability", SHARED_MEMORY_KIB, ids=lambda capability: f"sm_{capability}")
HEADS, KV_HEADS = 8, 2
BF16 = torch.bfloat16


def limits_of(capability):
    return DeviceLimits(132, SHARED_MEMORY_KIB[capability] * 1024, divmod(capability, 10))


@CAPABILITIES
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128, 256])
@pytest.mark.parametrize("num_bytes", [1, 2, 4])
def test_tiles_that_the_rules_choose_fit_the_memory(capability, head_dim, num_bytes):
    limits = limits_of(capability)
    operands = Operands(head_dim, 4, max(num_bytes, 2), num_bytes)
    decode = decode_rule(limits, operands)
    tiles_bytes = decode.tiles_in_flight * decode.tile_tokens * 2 * next_power_of_2(head_dim) * num_bytes
    assert decode.programs_per_sm * tiles_bytes <= limits.shared_memory_bytes
    assert decode.max_registers * decode.num_warps * 32 * decode.programs_per_sm <= 65536
    for tiling in (
        shared_rule(limits, operands),
        *(prefill_rule(limits, operands, num_rows) for num_rows in (1, 20, 10000)),
    ):
        num_rows = tiling.tile_rows + 2 * tiling.tile_tokens * (tiling.tiles_in_flight + 1)
        assert num_rows * next_power_of_2(head_dim) * operands.query_bytes <= limits.shared_memory_bytes


@pytest.fixture(scope="module")
def failures(run_with_compiler):
    return json.loads(run_with_compiler(__file__).splitlines()[-1])


@CAPABILITIES
def test_what_is_launched_compiles_and_fits(capability, failures):
    tried = failures[str(capability)]
    assert len(tried) >= 5
    assert not any(tried.values()), "\n".join(filter(None, tried.values()))


def integers(*shape):
    return torch.ones(shape, dtype=torch.int32)


def pool(head_dim, kv_dtype):
    return torch.zeros(9, 2, KV_HEADS, 16, head_dim, dtype=kv_dtype)


def decode(head_dim=128, kv_dtype=BF16, num_sequences=3, num_heads=HEADS, is_shared=False):
    """Launch, and return how many programs are meant to be on a multiprocessor together."""
    query, kv = torch.zeros(num_sequences, num_heads, head_dim, dtype=BF16), pool(head_dim, kv_dtype)
    table, lens = integers(num_sequences, 4), integers(num_sequences)
    runs = SharedRuns(lens, lens, lens, integers(1), integers(MAX_TILES, TILE_FIELDS)) if is_shared else None
    plan = _plan(query, kv, lens, runs)
    out = torch.empty_like(query)
    decode_attention_triton(query, kv, table, lens, out, scale=0.1, is_contiguous=False, plan=plan)
    return plan.tiling.programs_per_sm


def prefill(limits, head_dim=128, kv_dtype=BF16):
    num_tokens = 300
    query, kv = torch.zeros(num_tokens, HEADS, head_dim, dtype=BF16), pool(head_dim, kv_dtype)
    starts = torch.arange(0, num_tokens + 1, num_tokens // 3, dtype=torch.int32)
    tiling = prefill_rule(limits, Operands.of(query, kv), num_tokens * HEADS // KV_HEADS)
    arguments = (query, kv, integers(3, 4), starts, integers(3), torch.empty_like(query))
    prefill_attention_triton(*arguments, scale=0.1, is_contiguous=False, tiling=tiling)


def rotate(has_norm, kv_dtype=BF16):
    packed = torch.zeros(3, HEADS + 2 * KV_HEADS, 128, dtype=BF16)
    query, key, value = packed.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
    positions = torch.zeros(3, dtype=torch.int64)
    norms = HeadNorms(torch.ones(128, dtype=BF16), torch.ones(128, dtype=BF16), 1e-6) if has_norm else None
    rotation = Rotation(torch.zeros(9, 2, 64), positions, norms)
    rotary_write_kv_triton(query, key, value, rotation, pool(128, kv_dtype), positions)


def choose():
    logits, keys = torch.zeros(3, 32000, dtype=BF16), torch.zeros(3, dtype=torch.int64)
    choose_tokens_triton(logits, keys, torch.ones(3, NUM_RULES, dtype=torch.float64), None)


def launches(limits):
    """By name, what a step may launch."""
    few, many = torch.zeros(16, 1024, dtype=BF16), torch.zeros(300, 1024, dtype=BF16)
    weight, row = torch.zeros(2048, 1024, dtype=BF16), torch.ones(1024, dtype=BF16)
    decodes = {
        "decode of many": lambda: decode(num_sequences=300),
        "decode of wide heads": lambda: decode(head_dim=256),
        "decode of many query heads": lambda: decode(num_heads=64 * KV_HEADS),
        "decode with shared runs": lambda: decode(is_shared=True),
    }
    others = {
        "prefill": lambda: prefill(limits),
        "prefill of wide heads": lambda: prefill(limits, head_dim=256),
        "rotation": lambda: rotate(has_norm=False),
        "rotation with norms": lambda: rotate(has_norm=True),
        "parts": lambda: few_rows_parts_triton(few, weight, 4),
        "norm of parts": lambda: add_parts_rms_norm_triton(torch.zeros(4, 16, 1024), few.clone(), row, 1e-6),
        "gated": lambda: gated_matmul_triton(few, weight),
        "product": lambda: matmul_triton(many, weight),
        "silu": lambda: silu_and_mul_triton(weight),
        "most likely": lambda: most_likely_triton(torch.zeros(3, 32000, dtype=BF16), torch.zeros(3, dtype=torch.int64)),
        "choice": choose,
    }
    if limits.capability >= FP8_CAPABILITY:
        decodes["decode of 8 bits"] = lambda: decode(kv_dtype=FP8)
        others["prefill of 8 bits"] = lambda: prefill(limits, kv_dtype=FP8)
        others["rotation to 8 bits"] = lambda: rotate(has_norm=False, kv_dtype=FP8)
    # The others are compiled for Hopper by test_compilation.py, in more variants.
    return decodes if limits.capability == HOPPER else decodes | others


def try_all(capability):
    """Of each launch why it fails, or nothing."""
    from driver_without_gpu import without_a_gpu

    limits, loaded, failures = limits_of(capability), {}, {}
    without_a_gpu(capability, limits.shared_memory_bytes, loaded.__setitem__)
    launch.INTERPRETER_LIMITS = limits  # tensors here are of the CPU
    for name, start in launches(limits).items():
        loaded.clear()
        try:
            programs_per_sm = start()
            failures[name] = ""
        except Exception:
            failures[name] = f"{name}: {traceback.format_exc()}"
            continue
        if name.startswith("decode"):
            needed_kib = programs_per_sm * (loaded["_decode_attention_kernel"] / 1024 + 1)
            if needed_kib > SHARED_MEMORY_KIB[capability] + 1:
                failures[name] = f"{name}: {programs_per_sm} programs together need {needed_kib} KiB"
    return failures


if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as processes:
        every = processes.map(try_all, SHARED_MEMORY_KIB, chunksize=1)
    print(json.dumps(dict(zip(SHARED_MEMORY_KIB, every, strict=True))))
