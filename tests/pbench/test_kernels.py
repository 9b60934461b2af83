"""``pbench kernels``: it measures what it says, keeps what it measured, and the simulator can use it."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pbench.__main__ import main
from pbench.engine import products as engine_products
from pbench.engine.model_config import PRESETS
from pbench.kernel_bench import bench as kernel_bench
from pbench.kernel_bench import pairs
from pbench.kernel_bench import record as record_module
from pbench.kernel_bench import timing as kernel_timing
from pbench.kernel_bench.bench import (
    ATTENTION_KERNELS,
    KernelPlan,
    measure_kernels,
    measure_paging_tax,
    measure_pair,
)
from pbench.kernel_bench.cases import CHOICES, attend_apart, attention_case, attention_error
from pbench.kernel_bench.ceilings import Ceilings
from pbench.kernel_bench.comparison import AGAIN, comparisons
from pbench.kernel_bench.inputs import Buffers, attention_inputs
from pbench.kernel_bench.measurement import Measurement
from pbench.kernel_bench.mixed import ONE_LAUNCH, TWO_STREAMS, mixed_ways
from pbench.kernel_bench.pairs import ARGMAX, LINEAR, NOT_HOPPER, most_likely_pair, product_pair, projection_pair
from pbench.kernel_bench.peer import MAX_ERROR_RATIO, Peer
from pbench.kernel_bench.record import KernelRecord
from pbench.kernel_bench.shapes import (
    ADDED,
    CPU_SIZE,
    GATED,
    GPU_SIZE,
    INVARIANT,
    INVARIANT_ATTENTION,
    PRODUCT,
    PROJECTED,
    RAGGED_LONGEST,
    AttentionShape,
    Heads,
    ProductShape,
    attention_shapes,
    invariant_product_shapes,
    product_shapes,
    ragged_lens,
)
from pbench.kernel_bench.timing import HOST_CALLS, Timing, time_host
from pbench.kernels.decode_attention import decode_attention_reference

CPU = torch.device("cpu")
BUFFERS = Buffers(CPU, torch.float32, rotated_bytes=1 << 16, seed=0)
HEADS = Heads(4, 2, 16)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run of everything, scaled down."""
    out = tmp_path_factory.mktemp("kernels") / "kernels.json"
    assert main(["kernels", "--device", "cpu", "--samples", "3", "--json", str(out)]) == 0
    return out


def test_every_kernel_is_timed_and_right(written: Path) -> None:
    document = json.loads(written.read_text())
    assert document["status"] == "complete"
    measurements = document["measurements"]
    kernels = {one["kernel"] for one in measurements}
    assert kernels == {
        *ATTENTION_KERNELS, "copy blocks", "rms norm", "add + rms norm", "silu and mul",
        "rotary + write kv", "norms + rotary + write kv", PRODUCT, GATED, ADDED, PROJECTED, INVARIANT,
        INVARIANT_ATTENTION, "copy numbers", "update tables", "most likely",
        "most likely next", "host",
        *(f"choose, {name}" for name in CHOICES),
    }  # fmt: skip
    for one in measurements:
        assert one["failure"] is None
        assert min(one["samples_us"]) <= one["median_us"] <= max(one["samples_us"])
        if one["kernel"] == "host":
            assert one["share_of_ceiling"] is None
        else:
            assert one["share_of_ceiling"] > 0
        if one["kernel"] in (*ATTENTION_KERNELS, INVARIANT_ATTENTION, PRODUCT, GATED, ADDED, PROJECTED, INVARIANT):
            assert 0 < one["error"] < 1e-5
        if one["kernel"] in ("copy blocks", "most likely", "most likely next") or one["kernel"].startswith("choose, "):
            assert one["error"] == 0


def test_the_simulator_takes_the_ceilings(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["simulate", "--workload", "chat-shared-prompt", "--limit", "2", "--engine", "paged"]
    assert main([*command, "--ceilings", str(written), "--out", str(out)]) == 0
    ceilings = json.loads(written.read_text())["ceilings"]
    hardware = json.loads((out / "run.json").read_text())["config"]["hardware"]
    assert hardware["bandwidth_bytes_per_s"] == ceilings["copy_bytes_per_s"]
    assert hardware["flops_per_s"] == ceilings["matrix_flops_per_s"]
    assert hardware["ceilings_of"] == ceilings["device"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("}", "is not JSON"),
        ("[1]", "has no ceilings"),
        ('{"ceilings": {"copy_bytes_per_s": 0, "matrix_flops_per_s": 1}}', "copy_bytes_per_s is 0; it must be"),
        ('{"ceilings": {"copy_bytes_per_s": 1, "matrix_flops_per_s": "1"}}', "matrix_flops_per_s is '1'"),
        ('{"ceilings": {"copy_bytes_per_s": NaN, "matrix_flops_per_s": 1}}', "copy_bytes_per_s is nan"),
    ],
)
def test_a_file_without_ceilings_is_refused(
    text: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ceilings.json"
    if text is not None:
        path.write_text(text)
    assert main(["simulate", "--workload", "chat-shared-prompt", "--ceilings", str(path)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--block-size", "12"], "power of two"),
        (["--paging-tax", "--kernel", "decode"], "leave out --kernel"),
        (["--json", "/nowhere/at/all.json"], "there is no folder"),
        pytest.param(["--device", "cuda"], "no NVIDIA GPU", marks=pytest.mark.skipif("torch.cuda.is_available()")),
    ],
)
def test_options_that_cannot_work_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_paging_tax_is_the_time_over_that_of_contiguous_extents() -> None:
    measurements = list(measure_paging_tax(KernelPlan(CPU, num_samples=3)))
    base: Measurement | None = None
    for one in measurements:
        assert one.timing is not None
        assert one.error is not None
        assert one.error < 1e-5
        if one.implementation == kernel_bench.CONTIGUOUS:
            base = one
        else:
            assert base is not None
            assert base.timing is not None
            assert one.shape == base.shape
            assert one.slowdown == one.timing.median_us / base.timing.median_us


def test_a_peer_that_fails_is_kept_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_inputs: Any) -> Any:
        raise RuntimeError("no kernel image\nmore")

    monkeypatch.setattr(kernel_bench, "peers", lambda inputs: [Peer("theirs", broken)])
    measurements = list(measure_kernels(KernelPlan(CPU, kernels=("shared",), num_samples=3)))
    assert [one.implementation for one in measurements[:2]] == ["pbench", "theirs"]
    assert measurements[1].timing is None
    assert measurements[1].failure == "RuntimeError: no kernel image"
    assert not measurements[1].is_fault


def bench_that_meets(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
    """The exit code and the file of a run in which a case in the middle raises."""

    def attend(inputs: Any, *rest: Any) -> Any:
        if inputs.shape.context_lens == (64,) * 4:
            raise error
        return attention_case(inputs, *rest)

    monkeypatch.setattr(kernel_bench, "attention_case", attend)
    out = tmp_path / "kernels.json"
    arguments = ["--device", "cpu", "--samples", "3", "--kernel", "decode", "--kernel", "copy blocks"]
    code = main(["kernels", *arguments, "--json", str(out)])
    written = json.loads(out.read_text())
    return code, written, written["measurements"]


def test_a_case_that_fails_is_named_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, written, measurements = bench_that_meets(RuntimeError("no kernel image\nmore"), monkeypatch, tmp_path)
    printed = capsys.readouterr()
    assert (code, written["status"]) == (1, "failed")
    assert "error: decode, 4 x 64: RuntimeError: no kernel image\n" in printed.err
    assert "copy blocks" in printed.out
    faults = [one for one in measurements if one["is_fault"]]
    assert {(one["kernel"], one["shape"]) for one in faults} == {("decode", "4 x 64")}
    assert {one["kernel"] for one in measurements if one["median_us"]} == {"decode", "copy blocks"}


def test_what_was_measured_before_an_interruption_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, written, measurements = bench_that_meets(KeyboardInterrupt(), monkeypatch, tmp_path)
    assert (code, written["status"]) == (130, "interrupted")
    assert written["ceilings"]["copy_bytes_per_s"] > 0
    assert measurements[0]["median_us"] > 0
    assert "4 x 64" not in {one["shape"] for one in measurements}
    assert measurements[0]["shape"] in capsys.readouterr().out


def test_the_file_is_written_while_cases_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now_s = 100.0
    monkeypatch.setattr(record_module.time, "monotonic", lambda: now_s)
    out = tmp_path / "kernels.json"
    one = Measurement("", "", "", 1, 0, Timing((1.0,), 1))

    def written() -> tuple[str, int]:
        fields = json.loads(out.read_text())
        return fields["status"], len(fields["measurements"])

    with KernelRecord(out, Ceilings("", 1e12, 1e14), KernelPlan(CPU)) as record:
        assert written() == ("running", 0)
        record.add(one)
        now_s += record_module.WRITE_INTERVAL_S
        record.add(one)
        assert written() == ("running", 2)
        record.add(one)
        assert written() == ("running", 2)
    assert written() == ("complete", 3)
    assert list(tmp_path.iterdir()) == [out]


def test_a_wrong_result_is_seen() -> None:
    shape = AttentionShape("decode", "3 x 40", (40, 33, 20))
    inputs = attention_inputs(shape, HEADS, 16, BUFFERS)
    out = decode_attention_reference(inputs.queries[0], inputs.kv, inputs.tables[0], inputs.context_lens, scale=0.25)
    assert attention_error(inputs, out) < 1e-6
    out[2, 1] *= 1.01
    assert attention_error(inputs, out) > 1e-3
    assert math.isnan(attention_error(inputs, torch.full_like(out, math.nan)))


def test_decodes_among_prompts_attend_as_apart() -> None:
    shape = AttentionShape("mixed", "", (40, 33, 20, 70), num_decodes=2, prompt_lens=(20, 16))
    inputs = attention_inputs(shape, HEADS, 16, BUFFERS)
    assert inputs.query_start.tolist() == [0, 1, 2, 22, 38]
    apart = attend_apart(inputs, 0, None)
    assert attention_error(inputs, apart) < 1e-6
    [together] = [way.prepare(inputs) for way in mixed_ways(inputs)]
    torch.testing.assert_close(together[0](), apart)


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_all_ways_to_mix_agree() -> None:
    measurements = list(measure_kernels(KernelPlan(torch.device("cuda"), kernels=("mixed",), num_samples=3)))
    assert [one.failure for one in measurements if one.failure] == []
    assert {"pbench", ONE_LAUNCH, TWO_STREAMS, AGAIN} <= {one.implementation for one in measurements}


def test_a_window_bounds_what_counts_as_moved_and_computed() -> None:
    full = AttentionShape("window", "2", (40, 9))
    assert replace(full, window=40).flops(HEADS) == full.flops(HEADS)
    assert replace(full, window=16).flops(HEADS) == full.flops(HEADS) * (16 + 9) // (40 + 9)
    rows = full.num_bytes(HEADS, 4, 0)
    assert replace(full, window=16).num_bytes(HEADS, 4, 1) - rows == (16 + 9) * HEADS.kv_numel
    prefill = replace(full, is_prefill=True, window=16)
    pairs = sum(min(place, 16) for length in full.context_lens for place in range(length))
    assert prefill.flops(HEADS) == pytest.approx(4 * HEADS.num_heads * HEADS.head_dim * pairs, rel=0.03)
    assert prefill.num_bytes(HEADS, 4, 4) == replace(prefill, window=None).num_bytes(HEADS, 4, 4)


def test_calls_in_rotation_share_no_block_and_touch_enough() -> None:
    shape = AttentionShape("shared", "3 x (32 + 9)", (41, 41, 41), num_shared_tokens=32)
    inputs = attention_inputs(shape, HEADS, 16, BUFFERS)
    assert len(inputs.tables) * shape.num_bytes(HEADS, 4, 4) >= BUFFERS.rotated_bytes
    used = [set(table.flatten().tolist()) for table in inputs.tables]
    assert sum(map(len, used)) == len(set().union(*used)) == inputs.kv.shape[0]
    for table in inputs.tables:
        assert (table[:, :2] == table[0, :2]).all()
        assert len(set(table[:, 2].tolist())) == 3


def test_ragged_lengths_have_their_mean_and_their_spread() -> None:
    lens = [length for seed in range(40) for length in ragged_lens(64, 2048, seed)]
    assert 0.9 < sum(lens) / len(lens) / 2048 < 1.1
    assert min(lens) >= 1
    assert max(lens) <= RAGGED_LONGEST
    assert max(lens) > 8 * 2048
    assert ragged_lens(64, 2048, 1) == ragged_lens(64, 2048, 1) != ragged_lens(64, 2048, 2)


def test_bytes_and_flops_are_those_of_the_arithmetic() -> None:
    decode, prefill, shared, mixed = (
        next(shape for shape in attention_shapes(GPU_SIZE, 0) if shape.name == name)
        for name in ("64 x 4096", "1 x 32768", "256 x (8192 + 256)", "8 x 256 over 1024 + 64 x 4096")
    )
    heads = GPU_SIZE.heads
    rows_bytes = 2 * 2 * 32 * 128
    assert decode.num_bytes(heads, 2, 2) == 64 * (4096 * 4096 + rows_bytes)  # 4 KiB of KV a token
    assert decode.flops(heads) == 64 * 4 * 32 * 128 * 4096
    assert prefill.flops(heads) == 2 * 32 * 128 * 32768**2
    assert shared.num_bytes(heads, 2, 2) == (8192 + 256 * 256) * 4096 + 256 * rows_bytes
    assert mixed.num_bytes(heads, 2, 2) == decode.num_bytes(heads, 2, 2) + 8 * (1280 * 4096 + 256 * rows_bytes)
    assert mixed.flops(heads) == decode.flops(heads) + 8 * 4 * 32 * 128 * 256 * (1024 + 256 // 2)


def test_products_are_those_of_a_layer_and_count_what_they_move() -> None:
    shapes = {shape.name: shape for shape in product_shapes(GPU_SIZE)}
    assert len(shapes) == 2 * 4 * len(GPU_SIZE.num_product_rows)
    assert GPU_SIZE.models[0].vocab_size == 151936
    qkv, out = shapes["qwen3-0.6b qkv, 8 rows"], shapes["qwen3-0.6b o, 64 rows"]
    gate_up, down = shapes["llama-8b gate_up, 176 rows"], shapes["llama-8b down, 8 rows"]
    assert (qkv.kernel, qkv.num_columns, qkv.depth) == (PRODUCT, 4096, 1024)
    assert (out.kernel, out.num_columns, out.depth) == (ADDED, 1024, 2048)
    assert (gate_up.kernel, gate_up.num_columns, gate_up.depth) == (GATED, 28672, 4096)
    assert (down.kernel, down.num_columns, down.depth) == (ADDED, 4096, 14336)
    assert qkv.num_bytes(2) == 2 * (4096 * 1024 + 8 * (1024 + 4096))
    assert out.num_bytes(2) == 2 * (1024 * 2048 + 64 * (2048 + 3 * 1024))
    assert gate_up.num_bytes(2) == 2 * (28672 * 4096 + 176 * (4096 + 14336))
    assert gate_up.flops == 2 * 176 * 28672 * 4096


@pytest.mark.parametrize("shape", list(product_shapes(CPU_SIZE)), ids=lambda shape: shape.name)
def test_both_ways_to_a_product_are_right_in_16_bits_and_their_calls_share_nothing(shape: ProductShape) -> None:
    pair = product_pair(shape, replace(BUFFERS, dtype=torch.bfloat16))
    ours, theirs = (case.error() for case in pair if case.error)
    assert 1e-4 < ours < 5e-3
    assert theirs <= MAX_ERROR_RATIO * ours
    for case in pair:
        assert len(case.calls) * case.num_bytes >= BUFFERS.rotated_bytes
        starts = [tensor.data_ptr() for call in case.calls for tensor in call.args[1:]]  # type: ignore[attr-defined]
        assert len(set(starts)) == len(starts)


def test_a_wrong_product_and_a_wrong_token_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = engine_products.few_rows_matmul
    monkeypatch.setattr(engine_products, "few_rows_matmul", lambda x, *rest: right(x * (x != x.max()), *rest))
    error = product_pair(next(product_shapes(CPU_SIZE)), BUFFERS).ours.error
    assert error
    assert error() > 1e-3
    project = pairs.project_write_kv

    def blur_a_head(*arguments: Any) -> torch.Tensor:
        query = project(*arguments)
        arguments[4][:, 1, 0] *= 1.01
        return query

    error = projection_pair(PRESETS["tiny"], 3, 16, BUFFERS).ours.error
    assert error
    assert error() < 1e-6
    monkeypatch.setattr(pairs, "project_write_kv", blur_a_head)
    error = projection_pair(PRESETS["tiny"], 3, 16, BUFFERS).ours.error
    assert error
    assert error() > 1e-3
    monkeypatch.setattr(
        pairs, "most_likely", lambda logits, out: out.copy_(logits.argmax(-1)).add_(torch.arange(4) == 2)
    )
    error = most_likely_pair(64, 4, BUFFERS).ours.error
    assert error
    assert error() == 1


def test_torch_stands_beside_ours_unless_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_bench, "time_calls", lambda calls, *_rest: Timing((2.0, 3.0, 4.0), len(calls)))
    plan = KernelPlan(torch.device("cuda"))
    shape = next(product_shapes(CPU_SIZE))
    for pair, name in ((product_pair(shape, BUFFERS), LINEAR), (most_likely_pair(64, 4, BUFFERS), ARGMAX)):
        measurements = list(measure_pair(pair, plan))
        assert [one.implementation for one in measurements] == ["pbench", name, AGAIN]
        assert [one.failure for one in measurements] == [None] * 3
        assert [(one.peer, one.geometric_mean) for one in comparisons(measurements)] == [(name, 1), (AGAIN, 1)]
        assert list(measure_pair(pair, replace(plan, has_peers=False))) == measurements[:1]

        wrong = list(measure_pair(pair._replace(theirs=replace(pair.theirs, error=lambda: math.nan)), plan))
        assert wrong[1].timing is None
        assert wrong[1].failure is not None
        assert wrong[1].failure.startswith("wrong: nan")


def test_products_on_another_gpu_than_hopper_are_said_not_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "runs_on_triton", lambda _tensor: True)
    monkeypatch.setattr(pairs, "can_launch_early", lambda _tensor: False)
    pair = product_pair(next(product_shapes(CPU_SIZE)), BUFFERS)
    [unfit] = measure_pair(pair, KernelPlan(torch.device("cuda")))
    assert unfit.timing is None
    assert unfit.failure == NOT_HOPPER
    monkeypatch.setattr(pairs, "can_launch_early", lambda _tensor: True)
    [fit] = measure_pair(product_pair(next(product_shapes(CPU_SIZE)), BUFFERS), KernelPlan(CPU, num_samples=3))
    assert fit.failure is None
    assert fit.timing is not None


@pytest.mark.gpu
@pytest.mark.timeout(300)  # every shape is compiled
def test_products_and_choices_are_right_beside_torchs() -> None:
    plan = KernelPlan(torch.device("cuda"), kernels=("products", "invariant", "step", "most likely"), num_samples=3)
    measurements = list(measure_kernels(plan))
    assert {one.failure for one in measurements} <= {None, NOT_HOPPER}
    assert {ARGMAX, AGAIN} <= {one.implementation for one in measurements}
    if torch.cuda.get_device_capability() >= (9, 0):
        num_projections = len(GPU_SIZE.projected_models) * len(GPU_SIZE.num_product_rows)
        num_products = len([*product_shapes(GPU_SIZE), *invariant_product_shapes(GPU_SIZE)])
        num_pairs = num_products + num_projections + 2 * len(GPU_SIZE.num_most_likely)
        assert len(measurements) == 3 * num_pairs + 5  # of a step three, of invariant attention two


def test_a_share_is_of_the_longer_bound() -> None:
    timing = Timing((30.0, 10.0, 20.0), 1)
    ceilings = Ceilings("", 1e12, 1e14)
    assert Measurement("", "", "", 10_000_000, 0, timing).share(ceilings) == pytest.approx(0.5)
    assert Measurement("", "", "", 10, 10**9, timing).share(ceilings) == pytest.approx(0.5)
    assert Measurement("", "", "", 10, 0, None).share(ceilings) is None
    assert timing.spread == pytest.approx((28 - 12) / 20)


def test_the_time_of_the_host_does_not_contain_the_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 0
    queued = 0

    def call() -> None:
        nonlocal now_ns, queued
        now_ns += 7000
        queued += 1

    def synchronize(_device: torch.device) -> None:
        nonlocal now_ns, queued
        now_ns += 1000_000 * queued
        queued = 0

    monkeypatch.setattr(kernel_timing.time, "perf_counter_ns", lambda: now_ns)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    timing = time_host(call, torch.device("cuda"), 4)
    assert timing.samples_us == (7.0,) * 4
    assert timing.num_calls == HOST_CALLS
