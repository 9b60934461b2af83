"""Other people's kernels in the bench: right ones are timed and compared, wrong ones are shown as wrong."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from pbench.__main__ import main
from pbench.kernel_bench import bench as kernel_bench
from pbench.kernel_bench.bench import KernelPlan, document, measure_kernels
from pbench.kernel_bench.cases import OURS, OURS_FLAT, attention_case
from pbench.kernel_bench.ceilings import Ceilings
from pbench.kernel_bench.comparison import AGAIN, FASTEST, Ratio, comparisons, peer_ratios
from pbench.kernel_bench.flashinfer_peers import flashinfer_peers
from pbench.kernel_bench.inputs import AttentionInputs, Buffers, attention_inputs
from pbench.kernel_bench.measurement import Measurement
from pbench.kernel_bench.peer import Call, Peer, result_error
from pbench.kernel_bench.shapes import GPU_SIZE, AttentionShape, Heads, attention_shapes
from pbench.kernel_bench.timing import Timing
from pbench.kernel_bench.view import print_measurements

CPU = torch.device("cpu")
BUFFERS = Buffers(CPU, torch.float32, rotated_bytes=1 << 16, seed=0)
HEADS = Heads(4, 2, 16)
CEILINGS = Ceilings("a machine", 1e12, 1e14)


def right(inputs: AttentionInputs) -> tuple[Call, ...]:
    """What our own calls give."""
    return attention_case(inputs, 0, 0).calls  # type: ignore[return-value]


def spoilt(spoil: Callable[[Tensor], Tensor], places: tuple[int, ...] = (0, -1)) -> Peer:
    """A peer whose calls at these places make something else of the right result."""

    def prepare(inputs: AttentionInputs) -> tuple[Call, ...]:
        calls = list(right(inputs))
        for place in places:
            calls[place] = partial(lambda call: spoil(call()), calls[place])
        return tuple(calls)

    return Peer("theirs", prepare)


def measure(monkeypatch: pytest.MonkeyPatch, *some: Peer, kernel: str = "ragged") -> list[Measurement]:
    monkeypatch.setattr(kernel_bench, "peers", lambda inputs: some)
    return list(measure_kernels(KernelPlan(CPU, kernels=(kernel,), num_samples=3)))


def measured(
    shape: str, implementation: str, us: float | None, *, kernel: str = "decode", is_paged: bool = True
) -> Measurement:
    timing = Timing((us,), 1) if us else None
    return Measurement(kernel, shape, implementation, 1000, 0, timing, failure=None if us else "no", is_paged=is_paged)


def test_a_peer_with_our_result_is_timed_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    measurements = measure(monkeypatch, Peer("theirs", right, is_paged=False))
    ours, theirs, again = (measurements[place::3] for place in range(3))
    assert {one.implementation for one in ours} == {OURS}
    assert {one.implementation for one in again} == {AGAIN}
    assert [one.shape for one in again] == [one.shape for one in ours]
    for own, other in zip(ours, theirs, strict=True):
        assert (other.shape, other.implementation, other.failure) == (own.shape, "theirs", None)
        assert other.timing is not None
        assert other.error is not None
        assert other.error < 1e-5
        assert own.is_paged
        assert not other.is_paged


@pytest.mark.parametrize(
    ("spoil", "places"),
    [
        (lambda out: out * 1.01, (0, -1)),
        (lambda out: out.index_fill(0, torch.tensor(1), 0), (0, -1)),  # neither the first sequence nor the last
        (lambda out: out.masked_fill(out == out.max(), math.nan), (0, -1)),
        (lambda out: out * 1.01, (-1,)),  # the plan of the last call only
        (lambda out: out.roll(1, 1), (0,)),  # the heads in another order
    ],
    ids=["all", "middle", "nan", "last call", "heads"],
)
def test_a_peer_with_another_result_has_no_time(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor], Tensor], places: tuple[int, ...]
) -> None:
    for other in measure(monkeypatch, spoilt(spoil, places))[1::3]:
        assert other.timing is None
        assert other.failure is not None
        assert other.failure.startswith("wrong: ")


def test_one_token_left_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The likeliest fault of an adapter: it counts lengths otherwise than the package does."""

    def prepare(inputs: AttentionInputs) -> tuple[Call, ...]:
        return right(replace(inputs, context_lens=inputs.context_lens - 1))

    for other in measure(monkeypatch, Peer("theirs", prepare), kernel="decode")[1::3]:
        assert other.timing is None
        assert other.error is not None
        assert other.error > 1e-3


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda out: out[:1], "ValueError: its result has shape (1, 4, 32); expected"),
        (lambda _out: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_peer_that_cannot_be_judged_is_kept_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor], Any], reason: str
) -> None:
    other = measure(monkeypatch, spoilt(spoil))[1]
    assert other.timing is None
    assert other.failure is not None
    assert other.failure.startswith(reason)


def test_geometric_means_are_of_our_time_over_that_of_the_fastest_on_blocks() -> None:
    measurements = [
        measured("a", OURS, 10.0),
        measured("a", OURS_FLAT, 1.0),  # ours too, so no peer
        measured("a", "x", 20.0),
        measured("a", "y", 40.0),
        measured("a", "z", 5.0, is_paged=False),
        measured("a", AGAIN, 8.0),
        measured("b", OURS, 10.0),
        measured("b", "x", None),
        measured("b", "y", 5.0),
        measured("a", "x", 1.0, kernel="alone"),
    ]
    assert list(peer_ratios(measurements).values()) == [0.5, 0.25, 2.0, 1.25, 2.0]
    by_peer = {one.peer: one for one in comparisons(measurements)}
    assert list(by_peer) == [FASTEST, "x", "y", "z", AGAIN]
    assert by_peer[FASTEST].ratios == (Ratio("a", "x", 0.5), Ratio("b", "y", 2.0))
    assert by_peer[FASTEST].geometric_mean == pytest.approx(1.0)
    assert by_peer[FASTEST].worst == Ratio("b", "y", 2.0)
    assert by_peer["y"].geometric_mean == pytest.approx(0.5**0.5)
    assert by_peer["x"].ratios == (Ratio("a", "x", 0.5),)
    assert not list(comparisons([measured("a", OURS, 1.0), measured("a", "x", None)]))


def test_tables_and_documents_say_how_ours_stands_beside_peers() -> None:
    measurements = [
        measured("a", OURS, 10.0),
        measured("a", "x", 40.0),
        measured("b", OURS, 10.0),
        measured("b", "x", None),
        measured("c", "x", None),
    ]
    stream = StringIO()
    print_measurements(measurements, CEILINGS, Console(file=stream, width=200))
    lines = stream.getvalue().splitlines()
    assert any("pbench / it" in line and "slowdown" not in line for line in lines)
    assert any("x" in line and "40.0" in line and "0.250" in line for line in lines)
    assert "x failed on b, c: no" in lines
    assert any(FASTEST in line and "0.250" in line and "a: x" in line for line in lines)
    fields = json.loads(json.dumps(document(CEILINGS, measurements, KernelPlan(CPU))))
    assert [one["pbench_over_it"] for one in fields["measurements"]] == [None, 0.25, None, None, None]
    assert fields["comparisons"][0] == {
        "kernel": "decode", "peer": FASTEST, "num_shapes": 1, "geometric_mean": pytest.approx(0.25),
        "worst": {"shape": "a", "peer": "x", "ratio": 0.25},
    }  # fmt: skip


def test_without_peers_nothing_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kernels.json"
    assert main(["kernels", "--device", "cpu", "--kernel", "decode", "--samples", "3", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["comparisons"] == []
    assert "pbench / it" not in capsys.readouterr().out


def test_ragged_lengths_are_those_of_every_run_before() -> None:
    shapes = [shape for shape in attention_shapes(GPU_SIZE, 0) if shape.kernel == "ragged"]
    assert [sum(shape.context_lens) for shape in shapes] == [133433, 140192, 123112, 110202, 134630]


class FakeWrapper:
    """FlashInfer's wrappers: attention of every sequence over the blocks that its plan names, and nothing else."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        assert "HND" in arguments

    def run(self, query: Tensor, kv: Tensor, return_lse: bool = False) -> Any:
        out, log_sums = torch.zeros_like(query), torch.zeros(query.shape[:2])
        group = query.shape[1] // kv.shape[2]
        for i, last_len in enumerate(self.last_lens.tolist()):
            ids = self.ids[self.starts[i] : self.starts[i + 1]].long()
            length = (len(ids) - 1) * kv.shape[3] + last_len
            key, value = kv[ids].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length].repeat_interleave(group, 1)
            first, end = self.query_start[i : i + 2].tolist()
            scores = torch.einsum("qhd,htd->hqt", query[first:end], key) * self.scale
            if self.is_causal:
                scores += torch.full((end - first, length), -math.inf).triu(length - (end - first) + 1)
            out[first:end] = torch.einsum("hqt,htd->qhd", scores.softmax(-1), value)
            log_sums[first:end] = scores.logsumexp(-1).T
        return (out, log_sums) if return_lse else out

    def keep(
        self, query_start: Tensor, starts: Tensor, ids: Tensor, last_lens: Tensor, options: dict[str, Any]
    ) -> None:
        assert all(part.dtype is torch.int32 for part in (query_start, starts, ids, last_lens))
        assert starts[-1] == len(ids)
        self.query_start, self.starts, self.ids, self.last_lens = query_start, starts, ids, last_lens
        self.scale, self.is_causal = options["sm_scale"], options.get("causal", False)


class FakePrefill(FakeWrapper):
    def plan(
        self, query_start: Tensor, starts: Tensor, ids: Tensor, last_lens: Tensor, *sizes: int, **options: Any
    ) -> None:
        assert sizes == (4, 2, 16, 16)
        self.keep(query_start, starts, ids, last_lens, options)


class FakeDecode(FakeWrapper):
    def plan(self, starts: Tensor, ids: Tensor, last_lens: Tensor, *sizes: int, **options: Any) -> None:
        assert sizes == (4, 2, 16, 16)
        self.keep(torch.arange(len(starts), dtype=torch.int32), starts, ids, last_lens, options)


class FakePersistent(FakeWrapper):
    float_workspace_buffer = torch.zeros(1)

    def plan(self, query_start: Tensor, starts: Tensor, ids: Tensor, lens: Tensor, *sizes: int, **options: Any) -> None:
        assert sizes == (4, 2, 16, 16, 16)
        self.keep(query_start, starts, ids, (lens - 1) % 16 + 1, options)

    def run(self, query: Tensor, kv: Tensor, return_lse: bool = True) -> Any:
        return super().run(query, kv, return_lse=True)


class FakeCascade(FakeWrapper):
    def plan(self, *arguments: Any, **options: Any) -> None:
        self.levels = [FakePrefill("HND") for _ in arguments[0]]
        for level, *parts in zip(self.levels, *arguments[:4], strict=True):
            level.plan(*parts, *arguments[4:], **options)

    def run(self, query: Tensor, kv: Tensor, return_lse: bool = False) -> Tensor:
        out, log_sums = self.levels[-1].run(query, kv, return_lse=True)
        for level in self.levels[:-1]:
            fake_merge(out, log_sums, *level.run(query, kv, return_lse=True))
        assert isinstance(out, Tensor)
        return out


def fake_merge(out: Tensor, log_sums: Tensor, other: Tensor, other_sums: Tensor) -> None:
    total = torch.logaddexp(log_sums, other_sums)
    out.mul_((log_sums - total).exp()[..., None]).add_(other * (other_sums - total).exp()[..., None])


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        (
            AttentionShape("ragged", "", (1, 16, 17, 50)),
            ["flashinfer", "flashinfer, fa3", "flashinfer, persistent"],
        ),
        (AttentionShape("prefill", "", (33, 33), is_prefill=True), ["flashinfer", "flashinfer, fa2"]),
        (
            AttentionShape("shared", "", (41, 41, 41), num_shared_tokens=32),
            [
                "flashinfer",
                "flashinfer, fa3",
                "flashinfer, persistent",
                "flashinfer, cascade",
                "flashinfer, cascade fa2",
            ],
        ),
    ],
    ids=["ragged", "prefill", "shared"],
)
def test_flashinfer_is_told_of_the_blocks_that_ours_reads(
    monkeypatch: pytest.MonkeyPatch, shape: AttentionShape, names: list[str]
) -> None:
    fake = SimpleNamespace(
        BatchDecodeWithPagedKVCacheWrapper=FakeDecode,
        BatchPrefillWithPagedKVCacheWrapper=FakePrefill,
        BatchAttention=FakePersistent,
        MultiLevelCascadeAttentionWrapper=FakeCascade,
        merge_state_in_place=fake_merge,
    )
    monkeypatch.setitem(sys.modules, "flashinfer", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    inputs = attention_inputs(shape, HEADS, 16, BUFFERS)
    expected = [call() for call in right(inputs)]
    found = list(flashinfer_peers(inputs))
    assert [peer.name for peer in found] == names
    for peer in found:
        results = [call() for call in peer.prepare(inputs)]
        assert len(results) == len(expected) > 1
        assert result_error(inputs, results, expected) < 1e-5, peer.name
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert not any(" fa" in peer.name for peer in flashinfer_peers(inputs))


@pytest.mark.gpu
@pytest.mark.timeout(900)  # FlashInfer compiles its kernels when they are first used
@pytest.mark.filterwarnings("default::DeprecationWarning")  # of torch, while it compiles flex_attention
@pytest.mark.parametrize("name", ["8 x 2048", "64 of mean 2048", "64 x (1024 + 256)", "1 x 2048"])
def test_peers_that_are_installed_compute_what_ours_does(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    [shape] = [one for one in attention_shapes(GPU_SIZE, 0) if one.name == name]
    monkeypatch.setattr(kernel_bench, "attention_shapes", lambda *_size_and_seed: [shape])
    measurements = list(measure_kernels(KernelPlan(torch.device("cuda"), kernels=(shape.kernel,), num_samples=3)))
    assert [one for one in measurements if one.failure] == []
    is_uniform = shape.kernel in ("decode", "prefill")
    assert ("torch sdpa" in {one.implementation for one in measurements}) == is_uniform
