"""The calls of this project's kernels that are timed, what each must move and compute, and how wrong its result is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pbench.engine.plan import SampleOptions
from pbench.engine.sampling import NO_OPTIONS, token_rules
from pbench.engine.shared_runs import find_runs, num_packed, pack_runs, run_limits, unpack_runs
from pbench.kernel_bench.inputs import AttentionInputs, Buffers, attention_inputs
from pbench.kernel_bench.shapes import INVARIANT_ATTENTION, AttentionShape, BenchSize, Heads
from pbench.kernels.choose_tokens import choose_tokens, choose_tokens_reference, noise_keys
from pbench.kernels.copy_blocks import copy_blocks
from pbench.kernels.copy_numbers import copy_numbers, copy_numbers_triton
from pbench.kernels.decode_attention import decode_attention, decode_attention_reference, plan_for
from pbench.kernels.decode_plan import DecodePlan
from pbench.kernels.invariant_attention import invariant_attention
from pbench.kernels.launch import FP8, runs_on_triton
from pbench.kernels.prefill_attention import prefill_attention, prefill_attention_reference
from pbench.kernels.rms_norm import add_rms_norm, rms_norm
from pbench.kernels.rotary_write_kv import HeadNorms, Rotation, rotary_write_kv
from pbench.kernels.shared_attention import SharedRuns
from pbench.kernels.silu_and_mul import silu_and_mul
from pbench.kernels.update_tables import update_tables

OURS = "pbench"
OURS_FLAT = "pbench, flat"  # reads a shared run again for every sequence
OURS_FP8 = "pbench, fp8 KV"
EPS = 1e-6
CHECKED_QUERIES = 64  # of a prefill, the last ones


@dataclass(frozen=True, slots=True)
class Case:
    """The same work on several sets of buffers."""

    kernel: str
    shape: str
    implementation: str
    calls: tuple[Callable[[], object], ...]
    num_bytes: int  # the least that a call must move
    flops: int  # matrix products only
    error: Callable[[], float] | None = None  # of the first call's result, relative to float64
    unfit: str | None = None  # why it cannot run here


class Builder(NamedTuple):
    """Of a case, which has a name before there are buffers for it."""

    kernel: str
    shape: str
    build: Callable[[], Case]


def attention_case(inputs: AttentionInputs, num_bytes: int, flops: int, implementation: str = OURS) -> Case:
    """Decode or prefill attention of this project on these inputs; with OURS_FP8 on their KV in 8-bit floats.

    The error is the distance from what the numbers before they were rounded give.
    """
    exact = inputs
    if implementation == OURS_FP8:
        inputs = replace(inputs, kv=inputs.kv.to(FP8))
    run: Callable[[AttentionInputs, int], Tensor]
    if inputs.shape.kernel == INVARIANT_ATTENTION:
        run = partial(_prefill, attend=invariant_attention)
    elif inputs.shape.is_prefill:
        run = _prefill
    elif inputs.shape.prompt_lens:
        run = partial(attend_apart, plan=decode_plan(inputs))
    else:  # an engine plans once for all layers of a step, so the plan is not in the time
        shared = None if implementation == OURS_FLAT else shared_runs(inputs)
        plan = plan_for(inputs.queries[0], inputs.kv, inputs.context_lens, shared, inputs.shape.window)
        run = partial(_decode, plan=plan)
    calls = tuple(partial(run, inputs, index) for index in range(len(inputs.tables)))
    return Case(
        inputs.shape.kernel,
        inputs.shape.name,
        implementation,
        calls,
        num_bytes,
        flops,
        lambda: attention_error(exact, run(inputs, 0)),
    )


def attention_error(inputs: AttentionInputs, out: Tensor) -> float:
    """Distance of the first call's result ``(num_queries, num_heads, head_dim)`` from float64, relative: L2 norms.

    Looks at the first and the last sequence; of a prompt, at its last queries.
    """
    options: dict[str, Any] = {
        "scale": inputs.scale,
        "is_contiguous": inputs.is_contiguous,
        "window": inputs.shape.window,
        "soft_cap": inputs.shape.soft_cap,
    }
    difference = norm = 0.0
    for sequence in sorted({0, len(inputs.context_lens) - 1}):
        kv, table = inputs.sequence_kv(0, sequence)
        length = inputs.context_lens[sequence : sequence + 1]
        end = int(inputs.query_start[sequence + 1])
        count = min(end - int(inputs.query_start[sequence]), CHECKED_QUERIES)
        query = inputs.queries[0][end - count : end].double()
        if inputs.shape.is_prefill or inputs.shape.prompt_lens:
            start = torch.tensor([0, count], dtype=torch.int32, device=length.device)
            expected = prefill_attention_reference(query, kv, table, start, length, **options)
        else:
            expected = decode_attention_reference(query, kv, table, length, **options)
        difference += float((out[end - count : end].double() - expected).square().sum())
        norm += float(expected.square().sum())
    return float((difference / norm) ** 0.5)


def copy_case(name: str, size: BenchSize, block_size: int, buffers: Buffers) -> Case:
    """Copy-on-write of many blocks of one layer, each set of pairs its own."""
    heads, count = size.heads, size.num_copied_blocks
    block_bytes = heads.kv_numel * block_size * buffers.dtype.itemsize
    num_calls = buffers.num_rotations(2 * count * block_bytes)
    pool = buffers.random(1, 2 * count * num_calls, 2, heads.num_kv_heads, block_size, heads.head_dim)
    generator = torch.Generator().manual_seed(buffers.seed)
    pairs = torch.randperm(pool.shape[1], generator=generator).view(num_calls, count, 2).to(buffers.device)

    def error() -> float:
        expected = pool[:, pairs[0, :, 0]].clone()
        copy_blocks(pool, pairs[0])
        return float((pool[:, pairs[0, :, 1]] != expected).sum())

    return Case(
        "copy blocks",
        name,
        OURS,
        tuple(partial(copy_blocks, pool, own) for own in pairs.unbind()),
        2 * count * block_bytes,
        0,
        error,
    )


def row_cases(size: BenchSize, block_size: int, num_tokens: int, buffers: Buffers) -> Iterator[Builder]:
    """The kernels that treat every token apart, on a batch of ``num_tokens``."""
    heads, hidden, wide = size.heads, size.hidden_size, size.intermediate_size
    name = f"{num_tokens} tokens"
    element = buffers.dtype.itemsize * num_tokens

    def case(kernel: str, numel: int, make: Callable[[], Callable[[], object]]) -> Case:
        """``numel``: elements that a token reads and writes; ``make`` gives a call on buffers of its own."""
        num_calls = buffers.num_rotations(numel * element)
        return Case(kernel, name, OURS, tuple(make() for _ in range(num_calls)), numel * element, 0)

    weight = buffers.random(hidden)

    def norm() -> Callable[[], object]:
        x = buffers.random(num_tokens, hidden)
        return partial(rms_norm, x, weight, EPS)

    def add_norm() -> Callable[[], object]:
        x, residual = buffers.random(num_tokens, hidden), buffers.random(num_tokens, hidden)
        return partial(add_rms_norm, x, residual, weight, EPS)

    def silu() -> Callable[[], object]:
        gate_up = buffers.random(num_tokens, 2 * wide)
        return partial(silu_and_mul, gate_up)

    rotation = random_rotation(heads.head_dim, num_tokens, buffers)
    normed = rotation._replace(norms=HeadNorms(buffers.random(heads.head_dim), buffers.random(heads.head_dim), EPS))
    rotate = partial(_rotate, heads=heads, block_size=block_size, buffers=buffers)

    rotated_numel = 2 * (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    for kernel, numel, make in (
        ("rms norm", 2 * hidden, norm),
        ("add + rms norm", 4 * hidden, add_norm),
        ("silu and mul", 3 * wide, silu),
        ("rotary + write kv", rotated_numel, partial(rotate, rotation)),
        ("norms + rotary + write kv", rotated_numel, partial(rotate, normed)),
    ):
        yield Builder(kernel, name, partial(case, kernel, numel, make))


def step_cases(size: BenchSize, block_size: int, buffers: Buffers) -> Iterator[Builder]:
    """What a step of decodes launches once, before its layers: the host's numbers, its tables, and on a GPU a plan."""
    heads, device = size.heads, buffers.device
    batch, length = min(256, size.max_batch), 1024 // size.length_divisor
    width, name = -(-length // block_size), f"{batch} x {length}"
    context_lens = torch.full((batch,), length, dtype=torch.int32, device=device)

    def upload() -> Case:
        numbers = torch.zeros(size.num_uploaded, dtype=torch.int64, device=device)
        host = torch.zeros(size.num_uploaded, dtype=torch.int64, pin_memory=device.type == "cuda")
        # Without the checks: they ask the driver about memory, which it may refuse while a graph is captured.
        copy = copy_numbers_triton if runs_on_triton(numbers) else copy_numbers
        return Case("copy numbers", f"{size.num_uploaded} up", OURS, (partial(copy, numbers, host),), numbers.nbytes, 0)

    def update() -> Case:
        """One new entry in every sixteenth table."""
        tables = torch.zeros(batch, width, dtype=torch.int32, device=device)
        out = torch.zeros_like(tables)
        sequences = torch.arange(batch, dtype=torch.int32, device=device)
        starts = torch.full_like(sequences, width - 1)
        ends = sequences // 16 + 1
        entries = torch.ones(batch, dtype=torch.int32, device=device)
        call = partial(update_tables, tables, sequences, context_lens, starts, ends, entries, block_size, out)
        return Case("update tables", name, OURS, (call,), 2 * out.nbytes, 0)

    def plan() -> Case:
        query = buffers.random(batch, heads.num_heads, heads.head_dim)
        kv = buffers.random(1, 2, heads.num_kv_heads, block_size, heads.head_dim)
        return Case("decode plan", name, OURS, (partial(plan_for, query, kv, context_lens),), context_lens.nbytes, 0)

    yield Builder("copy numbers", f"{size.num_uploaded} up", upload)
    yield Builder("update tables", name, update)
    if device.type == "cuda":
        yield Builder("decode plan", name, plan)


def host_cases(size: BenchSize, block_size: int, buffers: Buffers) -> Iterator[Builder]:
    """What a layer of a step calls for its attention; the plan is of the step. For the time of the host."""
    batch, length = min(32, size.max_batch), 512 // size.length_divisor

    def attend(shape: AttentionShape, is_contiguous: bool = False) -> Case:
        inputs = attention_inputs(shape, size.heads, block_size, buffers, is_contiguous=is_contiguous)
        query, kv, table, lens = inputs.queries[0], inputs.kv, inputs.tables[0], inputs.context_lens
        call: Callable[..., Tensor]  # as an engine has it: nothing of the bench's own is in the time
        if shape.is_prefill:
            call = partial(prefill_attention, query, kv, table, inputs.query_start, lens, is_contiguous=is_contiguous)
        else:
            call = partial(decode_attention, query, kv, table, lens, plan=plan_for(query, kv, lens))
        call = partial(call, scale=inputs.scale, out=torch.empty_like(query))
        return Case(shape.kernel, shape.name, OURS, (call,), 0, 0)

    def rotate(name: str) -> Case:
        rotation = random_rotation(size.heads.head_dim, batch, buffers)
        call = _rotate(rotation, heads=size.heads, block_size=block_size, buffers=buffers)
        return Case("host", name, OURS, (call,), 0, 0)

    decode = AttentionShape("host", f"decode, {batch} x {length}", (length,) * batch)
    prompt = AttentionShape("host", f"prefill, 1 x {length}", (length,), is_prefill=True)
    extent = replace(prompt, name=f"{prompt.name}, contiguous")  # of which Hopper has no kernel of its own
    rotated = f"rotary + write kv, {batch} tokens"
    yield Builder("host", decode.name, partial(attend, decode))
    yield Builder("host", rotated, partial(rotate, rotated))
    yield Builder("host", prompt.name, partial(attend, prompt))
    yield Builder("host", extent.name, partial(attend, extent, is_contiguous=True))


def random_rotation(head_dim: int, num_tokens: int, buffers: Buffers) -> Rotation:
    """Of tokens at positions one after the other."""
    angles = torch.rand(num_tokens, head_dim // 2, device=buffers.device)
    return Rotation(torch.stack((angles.cos(), angles.sin()), dim=1), torch.arange(num_tokens, device=buffers.device))


def _rotate(rotation: Rotation, *, heads: Heads, block_size: int, buffers: Buffers) -> Callable[[], object]:
    """A call on a packed projection and a pool of its own."""
    num_tokens = len(rotation.positions)
    num_blocks = -(-num_tokens // block_size)
    packed = buffers.random(num_tokens, heads.num_heads + 2 * heads.num_kv_heads, heads.head_dim)
    query, key, value = torch.split(packed, [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads], dim=1)
    kv = buffers.random(num_blocks, 2, heads.num_kv_heads, block_size, heads.head_dim)
    slots = torch.randperm(num_blocks * block_size)[:num_tokens].to(buffers.device)
    return partial(rotary_write_kv, query, key, value, rotation, kv, slots)


CHOICES = {
    "greedy": token_rules(0, NO_OPTIONS),
    "temperature": token_rules(0.8, NO_OPTIONS),
    "top-k 20": token_rules(0.8, SampleOptions(top_k=20)),
    "top-p 0.95": token_rules(0.8, SampleOptions(top_p=0.95)),
    "top-k 20, top-p 0.95": token_rules(0.8, SampleOptions(top_k=20, top_p=0.95)),
}


def choice_cases(vocab_size: int, num_rows: int, buffers: Buffers) -> Iterator[Builder]:
    """The choice of a token for each of ``num_rows``, under different rules.

    Logits are those of a model that is fairly sure, which is what most filters are made for.
    """
    num_bytes, shape = num_rows * vocab_size * buffers.dtype.itemsize, f"{num_rows} of {vocab_size}"
    keys = noise_keys(list(range(num_rows)), [buffers.seed] * num_rows).to(buffers.device)

    def case(kernel: str, rule: tuple[float, ...]) -> Case:
        rules = torch.tensor([rule] * num_rows, dtype=torch.float64).T.contiguous().to(buffers.device)
        num_calls = buffers.num_rotations(num_bytes)
        logits = [3 * buffers.random(num_rows, vocab_size) for _ in range(num_calls)]

        def error() -> float:
            expected = choose_tokens_reference(logits[0].cpu(), keys.cpu(), rules.cpu())
            return float((choose_tokens(logits[0], keys, rules).cpu() != expected).sum())

        calls = tuple(partial(choose_tokens, own, keys, rules) for own in logits)
        return Case(kernel, shape, OURS, calls, num_bytes, 0, error)

    for name, rule in CHOICES.items():
        yield Builder(f"choose, {name}", shape, partial(case, f"choose, {name}", rule))


def shared_runs(inputs: AttentionInputs, members_per_tile: int | None = None) -> SharedRuns | None:
    """As an engine finds them, if its cost model says that they pay; the same for all calls."""
    limits = run_limits(inputs.kv, inputs.queries[0].shape[1], inputs.queries[0].element_size())
    if inputs.is_contiguous or limits is None:
        return None
    if members_per_tile is not None:
        limits = limits._replace(members_per_tile=members_per_tile)
    num_full_blocks = (inputs.context_lens.cpu().numpy() - 1) // inputs.kv.shape[3]
    runs = find_runs(inputs.tables[0].cpu().numpy(), num_full_blocks, inputs.kv.shape[3], limits)
    if runs is None:
        return None
    numbers = np.zeros(num_packed(len(num_full_blocks)), np.int32)
    pack_runs(runs, numbers, len(num_full_blocks))
    return unpack_runs(torch.from_numpy(numbers).to(inputs.kv.device), len(num_full_blocks))


def _decode(inputs: AttentionInputs, index: int, plan: DecodePlan | None) -> Tensor:
    return decode_attention(
        inputs.queries[index],
        inputs.kv,
        inputs.tables[index],
        inputs.context_lens,
        scale=inputs.scale,
        is_contiguous=inputs.is_contiguous,
        plan=plan,
        window=inputs.shape.window,
        soft_cap=inputs.shape.soft_cap,
    )


def decode_plan(inputs: AttentionInputs) -> DecodePlan | None:
    """Of the decodes that come before prompts; for all calls."""
    count = inputs.shape.num_decodes
    return plan_for(inputs.queries[0][:count], inputs.kv, inputs.context_lens[:count])


def attend_apart(
    inputs: AttentionInputs, index: int, plan: DecodePlan | None, beside: torch.cuda.Stream | None = None
) -> Tensor:
    """Decodes, then the prompts behind them, as an engine launches them; or both at once, the decodes on ``beside``."""
    count, query, table = inputs.shape.num_decodes, inputs.queries[index], inputs.tables[index]
    out = torch.empty_like(query)
    if beside:
        beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        decode_attention(
            query[:count],
            inputs.kv,
            table[:count],
            inputs.context_lens[:count],
            scale=inputs.scale,
            out=out[:count],
            plan=plan,
        )
    prefill_attention(
        query,
        inputs.kv,
        table[count:],
        inputs.query_start[count:],
        inputs.context_lens[count:],
        scale=inputs.scale,
        out=out,
    )
    if beside:
        torch.cuda.current_stream().wait_stream(beside)
    return out


def _prefill(inputs: AttentionInputs, index: int, attend: Callable[..., Tensor] = prefill_attention) -> Tensor:
    return attend(
        inputs.queries[index],
        inputs.kv,
        inputs.tables[index],
        inputs.query_start,
        inputs.context_lens,
        scale=inputs.scale,
        is_contiguous=inputs.is_contiguous,
        window=inputs.shape.window,
        soft_cap=inputs.shape.soft_cap,
    )
