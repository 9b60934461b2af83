"""``pbench kernels tune``: the search finds what is faster and believes no noise; the table is kept."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pbench.__main__ import main
from pbench.commands import kernels_tune
from pbench.kernel_bench import trials as trials_module
from pbench.kernel_bench.cases import attention_error
from pbench.kernel_bench.neighbours import MIN_REGISTERS, neighbours
from pbench.kernel_bench.search import HOPELESS, Outcome, search
from pbench.kernel_bench.shapes import GPU_SIZE, AttentionShape, Heads, tuning_shapes
from pbench.kernel_bench.timing import Timing
from pbench.kernel_bench.trials import Trials, TuningPlan
from pbench.kernel_bench.view import print_outcome
from pbench.kernels.compiler import is_interpreted
from pbench.kernels.launch import DeviceLimits
from pbench.kernels.tiling import DecodeTiling, Operands, SharedTiling, Tiling, decode_rule, prefill_rule, shared_rule
from pbench.kernels.tuning_table import Entry, Tuned, read_table, table_text

LIMITS = DeviceLimits(132, 232448, (9, 0))
OPERANDS = Operands(128, 4, 2, 2)
DEFAULT = DecodeTiling(64, 2, 4, 2, 4)
SHAPES = ("short", "long")


class FakeGpu:
    """Takes as long as ``us`` says, times noise, and counts what it is asked."""

    def __init__(self, us: Callable[[Tiling, str], float | None], noise: float = 0.0) -> None:
        self.us, self.noise = us, noise
        self.calls: list[tuple[Tiling, str]] = []
        self._random = random.Random(1)

    def measure(self, tiling: Tiling, shape: str) -> Timing | None:
        self.calls.append((tiling, shape))
        us = self.us(tiling, shape)
        if us is None:
            return None
        return Timing(tuple(us * (1 + self._random.gauss(0, self.noise)) for _ in range(9)), 1)

    def search(self, has_time: Callable[[], bool] = lambda: True) -> Outcome:
        return search(DEFAULT, SHAPES, lambda tiling: neighbours(tiling, LIMITS, OPERANDS), self.measure, has_time)


def bowl(tiling: Tiling, shape: str) -> float:
    """Fastest at 3 programs of 32 tokens with 3 in flight, by 20 %."""
    assert isinstance(tiling, DecodeTiling)
    distance = (
        abs(math.log2(tiling.tile_tokens / 32))
        + abs(tiling.tiles_in_flight - 3)
        + abs(tiling.programs_per_sm - 3)
        + abs(math.log2(tiling.num_warps / 4))
    )
    return (100 if shape == "short" else 3000) * (0.8 + distance / 15)


def test_the_search_walks_to_what_is_fastest_and_measures_it_again_beside_the_default() -> None:
    gpu = FakeGpu(bowl, noise=0.002)
    outcome = gpu.search()
    assert outcome.has_won
    assert outcome.is_complete
    assert outcome.best[:4] == (32, 3, 4, 3)
    assert outcome.gain == pytest.approx(0.2, abs=0.01)
    assert gpu.calls[-4:] == [(tiling, shape) for shape in SHAPES for tiling in (DEFAULT, outcome.best)]
    searched = gpu.calls[:-4]
    assert len(searched) == len(set(searched)), "nothing is measured twice while searching"


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_not_taken_for_a_gain(seed: int) -> None:
    gpu = FakeGpu(lambda *_: 100.0, noise=0.02)
    gpu._random.seed(seed)
    outcome = gpu.search()
    assert outcome.num_candidates > 5
    assert not outcome.has_won


def test_what_loses_on_one_shape_does_not_win_on_the_whole() -> None:
    def us(tiling: Tiling, shape: str) -> float:
        is_other = tiling == DEFAULT._replace(num_warps=8)
        return {"short": 100 * (1.02 if is_other else 1), "long": 100 * (0.8 if is_other else 1)}[shape]

    outcome = FakeGpu(us).search()
    assert outcome.best == DEFAULT._replace(num_warps=8)
    assert outcome.gain > 0.09
    assert not outcome.has_won


def test_what_does_not_run_or_is_wrong_is_counted_and_left() -> None:
    fastest = DEFAULT._replace(num_warps=8)
    outcome = FakeGpu(lambda tiling, shape: None if tiling == fastest else bowl(tiling, shape)).search()
    assert outcome.num_failed == 1
    assert outcome.best != fastest
    with pytest.raises(ValueError, match="does not run on short"):
        FakeGpu(lambda *_: None).search()


def test_the_hopeless_are_not_measured_on_every_shape() -> None:
    gpu = FakeGpu(lambda tiling, _shape: 100.0 if tiling == DEFAULT else 100 * HOPELESS + 1)
    outcome = gpu.search()
    assert [shape for tiling, shape in gpu.calls if tiling != DEFAULT] == ["short"] * outcome.num_candidates
    assert outcome.best == DEFAULT


def test_the_search_stops_when_the_time_is_up_and_keeps_what_it_has() -> None:
    gpu = FakeGpu(bowl)
    outcome = gpu.search(lambda: len(gpu.calls) < 6)
    assert not outcome.is_complete
    assert len(gpu.calls) <= 6 + 1 + 2 * len(SHAPES)
    assert outcome.has_won, "the first neighbour is faster already"
    nothing = FakeGpu(bowl).search(lambda: False)
    assert (nothing.best, nothing.num_candidates, nothing.has_won) == (DEFAULT, 0, False)


@pytest.mark.parametrize("shared_memory_bytes", [101376, 166912, 232448])
def test_neighbours_are_few_differ_and_have_room(shared_memory_bytes: int) -> None:
    limits = LIMITS._replace(shared_memory_bytes=shared_memory_bytes)
    starts = (decode_rule(limits, OPERANDS), prefill_rule(limits, OPERANDS, 8192), shared_rule(limits, OPERANDS))
    for start in starts:
        found = list(neighbours(start, limits, OPERANDS))
        assert 3 <= len(found) <= 12
        assert len({start, *found}) == len(found) + 1
        for tiling in found:
            assert type(tiling) is type(start)
            entry = Entry(tiling, "gpu", 0.1, 0.1)
            assert entry.tiling.tile_tokens >= 16
            if isinstance(tiling, DecodeTiling):
                num_bytes = tiling.programs_per_sm * tiling.tiles_in_flight * tiling.tile_tokens * 512
                assert num_bytes <= shared_memory_bytes
                assert tiling.max_registers >= MIN_REGISTERS


def test_every_neighbour_can_stand_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    for kernel, start in (
        ("decode", DEFAULT),
        ("prefill", prefill_rule(LIMITS, OPERANDS, 8192)),
        ("shared", shared_rule(LIMITS, OPERANDS)),
    ):
        for tiling in neighbours(start, LIMITS, OPERANDS):
            table = {Tuned(kernel, (9, 0), OPERANDS): Entry(tiling, "gpu", 0.1, 0.01)}
            path.write_text(table_text(table))
            assert read_table(path) == table


def test_tuning_shapes_are_those_of_the_bench() -> None:
    names = {kernel: [shape.name for shape in tuning_shapes(kernel, GPU_SIZE, 0)] for kernel in ("decode", "prefill")}
    assert len(names["decode"]) == 7
    assert "32 of mean 4096" in names["decode"]
    assert names["prefill"] == ["1 x 2048", "4 x 2048", "1 x 8192"]
    assert len(list(tuning_shapes("shared", GPU_SIZE, 0))) == 3


def test_the_table_shows_default_best_gain_and_spread() -> None:
    from io import StringIO

    from rich.console import Console

    stream = StringIO()
    print_outcome("decode", FakeGpu(bowl).search(), Console(file=stream, width=120))
    text = stream.getvalue()
    for words in ("short", "default us", "20.0%", "tile_tokens 64", "-> tile_tokens 32", "candidates"):
        assert words in text
    stream = StringIO()
    print_outcome("decode", FakeGpu(lambda *_: 1.0).search(lambda: False), Console(file=stream, width=120))
    assert "stays" in stream.getvalue()
    assert "the time was up" in stream.getvalue()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--heads", "30"], "--heads 30 is no multiple of --kv-heads 8"),
        (["--head-dim", "40"], "--head-dim 40"),
        (["--out", "/nowhere/at/all.json"], "there is no folder"),
        pytest.param([], "finds no NVIDIA GPU", marks=pytest.mark.skipif("torch.cuda.is_available()")),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels", "tune", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_broken_table_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.json"
    path.write_text('{"version": 7}')
    assert main(["kernels", "tune", "--out", str(path)]) == 2
    assert "remove the file or name another" in capsys.readouterr().err
    assert path.read_text() == '{"version": 7}'


def test_what_won_is_entered_what_did_not_goes_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = {
        "decode": FakeGpu(bowl).search(),
        "prefill": FakeGpu(lambda *_: 100.0).search(),
        "shared": FakeGpu(lambda *_: 100.0).search(),
    }
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA H200")
    monkeypatch.setattr(kernels_tune, "_tune", lambda kernel, *_: (Tuned(kernel, (9, 0), OPERANDS), outcomes[kernel]))
    path = tmp_path / "table.json"
    old = Entry(SharedTiling(64, 64, 4, 2), "NVIDIA H200", 0.1, 0.01)
    other = Tuned("shared", (8, 0), OPERANDS)
    path.write_text(table_text({other: old, Tuned("shared", (9, 0), OPERANDS): old}))
    assert main(["kernels", "tune", "--out", str(path)]) == 0
    won = outcomes["decode"]
    entry = Entry(won.best, "NVIDIA H200", round(won.gain, 4), round(won.spread, 4))
    assert read_table(path) == {other: old, Tuned("decode", (9, 0), OPERANDS): entry}
    assert "table.json: 2 tilings" in capsys.readouterr().out


def test_options_before_the_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "--samples", "4", "tune"]) == 2
    assert "stand behind its name" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["decode", "prefill", "shared"])
def test_a_gpu_is_tuned_within_the_limit_and_other_gpus_stay_in_the_table(kernel: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    other = {Tuned("shared", (1, 0), OPERANDS): Entry(SharedTiling(64, 64, 4, 2), "another", 0.1, 0.01)}
    path.write_text(table_text(other))
    command = ["kernels", "tune", "--kernel", kernel, "--samples", "3", "--limit-s", "10", "--out", str(path)]
    assert main(command) == 0
    table = read_table(path)
    assert other.items() <= table.items()
    capability = torch.cuda.get_device_capability()
    assert all(tuned.capability == capability for tuned in table.keys() - other.keys())


SMALL = {
    "decode": (AttentionShape("decode", "2 x 40", (40, 33)),),
    "prefill": (AttentionShape("prefill", "1 x 40", (40,), is_prefill=True),),
    "shared": (AttentionShape("shared", "4 x (32 + 8)", (40,) * 4, num_shared_tokens=32),),
}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("kernel", SMALL)
def test_trials_run_the_kernel_and_a_wrong_result_does_not_count(
    kernel: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cpu" and not is_interpreted():
        pytest.skip("Triton's interpreter is off")
    heads = Heads(4, 2, 32)
    trials = Trials(kernel, SMALL[kernel], TuningPlan(torch.device(device), heads, torch.float32, num_samples=3))
    (shape,) = trials.shapes
    timing = trials.measure(trials.default, shape)
    assert timing is not None
    assert len(timing.samples_us) == 3
    assert trials._default_errors[shape] < 1e-5
    other = next(iter(neighbours(trials.default, trials.limits, trials.operands)))
    monkeypatch.setattr(trials_module, "MAX_ERROR_RATIO", 1e3)  # of errors in the last bit one may be twice another
    assert trials.measure(other, shape) is not None
    monkeypatch.setattr(trials_module, "attention_error", lambda inputs, out: attention_error(inputs, 1.1 * out))
    assert trials.measure(other, shape) is None


def test_the_file_says_on_which_gpu_it_was_measured() -> None:
    table = {Tuned("decode", (9, 0), OPERANDS): Entry(DEFAULT, "NVIDIA H200", 0.031, 0.004)}
    (fields,) = json.loads(table_text(table))["tilings"]
    assert (fields["gpu"], fields["gain"], fields["spread"]) == ("NVIDIA H200", 0.031, 0.004)
