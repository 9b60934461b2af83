"""The paper's experiments: the accounting adds up, and what the paper found is found again."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbench.__main__ import main
from pbench.engine.buddy import next_power_of_two
from pbench.engine.engine import make_memory
from pbench.engine.hardware import find_hardware
from pbench.engine.request import Request, SamplingParams
from pbench.engine.roofline import Speed
from pbench.errors import UsageError
from pbench.paper.experiments import (
    BAR_NOTES,
    MAX_LENGTH,
    MEAN_LENGTHS,
    NUM_SLOTS,
    Bar,
    Decoding,
    engine_config,
    figure_2,
    lengths,
    sharing_savings,
)
from pbench.paper.orca import ReserveOutputPowerOfTwo, RoundingBuddyAllocator, orca_memory
from pbench.paper.saturation import saturate


@pytest.fixture(scope="module")
def bars() -> dict[str, Bar]:
    return {bar.label: bar for bar in figure_2(num_requests=120, seed=0)}


def test_every_bar_is_the_whole_pool(bars: dict[str, Bar]) -> None:
    assert list(bars) == list(BAR_NOTES)
    for bar in bars.values():
        measured = bar.measured
        parts = measured.token_state_pct + measured.reserved_pct + measured.internal_pct + measured.unusable_pct
        assert parts == pytest.approx(100)


def test_max_runs_seven_requests_and_leaves_what_is_too_little_for_an_eighth(bars: dict[str, Bar]) -> None:
    measured = bars["contiguous:max"].measured
    assert measured.mean_running == pytest.approx(7)
    assert measured.unusable_pct == pytest.approx(100 * (NUM_SLOTS - 7 * MAX_LENGTH) / NUM_SLOTS)


def test_memories_come_in_the_papers_order(bars: dict[str, Bar]) -> None:
    order = ["contiguous:max", "Orca (Pow2)", "Orca (Oracle)", "contiguous:oracle", "paged"]
    shares = [bars[label].measured.token_state_pct for label in order]
    assert shares == sorted(shares)
    running = [bars[label].measured.mean_running for label in order]
    assert running == sorted(running)


def test_the_papers_rules_in_the_papers_layout_give_the_papers_bars(bars: dict[str, Bar]) -> None:
    """A short run of drawn lengths: within a few points of the whole pool."""
    for label in ("contiguous:max", "Orca (Oracle)"):
        measured, published = bars[label].measured, bars[label].published
        assert measured.token_state_pct == pytest.approx(published["token_state"], abs=5)
        assert measured.reserved_pct == pytest.approx(published["reserved"], abs=5)
        assert measured.unusable_pct == pytest.approx(published["external"], abs=7)


def test_paged_wastes_less_than_four_percent(bars: dict[str, Bar]) -> None:
    measured = bars["paged"].measured
    assert measured.reserved_pct + measured.internal_pct < 4


def test_only_what_grows_is_preempted_and_only_buddies_move(bars: dict[str, Bar]) -> None:
    assert {label for label, bar in bars.items() if bar.measured.num_moved_slots} == {"contiguous:pow2"}
    assert {label for label, bar in bars.items() if bar.measured.num_preemptions} <= {"contiguous:pow2", "paged"}


@given(num_prompt=st.integers(1, 2000), num_output=st.integers(1, 2000))
def test_the_papers_pow2_reserves_at_most_twice_the_output(num_prompt: int, num_output: int) -> None:
    final = num_prompt + num_output - 1
    slots = ReserveOutputPowerOfTwo(max_length=4096).first_slots(num_prompt, final)
    assert final < slots <= num_prompt + 2 * num_output
    assert ReserveOutputPowerOfTwo(max_length=final).first_slots(num_prompt, final) == final


@given(st.lists(st.integers(1, 40), max_size=20))
def test_rounded_extents_are_accounted_for(lengths_: list[int]) -> None:
    buddies = RoundingBuddyAllocator(300)
    held = [(start, length) for length in lengths_ if (start := buddies.allocate(length)) is not None]
    buddies.check_integrity(held)
    assert buddies.num_rounded == sum(next_power_of_two(length) - length for _, length in held)
    for start, length in held:
        buddies.free(start, length)
    buddies.check_integrity([])
    assert (buddies.num_rounded, buddies.num_free) == (0, 300)


@pytest.mark.parametrize("rule", ["max", "pow2", "oracle"])
def test_orca_runs_every_request_to_its_end(rule: str) -> None:
    memory = orca_memory(rule, 300, 64)
    config = engine_config("contiguous:oracle")
    requests = [Request(i, [1] * (i % 30 + 1), SamplingParams(max_tokens=i % 33 + 1)) for i in range(60)]
    measured = saturate(memory, config, requests, Speed.of(find_hardware("h200"), 0))
    memory.check_integrity()
    assert measured.num_preemptions == 0
    assert 0 < measured.token_state_pct < 100


@pytest.mark.parametrize(("decoding", "tolerance_pct"), [("sampling", 4), ("beams", 12)])
def test_what_sharing_saves_grows_with_the_sequences_and_comes_near_the_papers_range(
    decoding: Decoding, tolerance_pct: float
) -> None:
    """Which beams live on is up to a simulated model, so beams may come less near."""
    savings = list(sharing_savings(decoding, num_requests=120, seed=0, datasets=("sharegpt",)))
    shares = [saving.measured.saved_pct for saving in savings]
    assert [saving.num_sequences for saving in savings] == [2, 4, 6]
    assert shares == sorted(shares)
    assert all(saving.measured.saved_pct < 100 * (1 - 1 / saving.num_sequences) for saving in savings)
    low, high = savings[0].published_range_pct
    assert shares[0] == pytest.approx(low, abs=tolerance_pct)
    assert shares[-1] == pytest.approx(high, abs=tolerance_pct)


def test_requests_too_few_to_fill_the_pool_are_refused() -> None:
    config = engine_config("paged")
    with pytest.raises(UsageError, match="2 requests are too few"):
        saturate(
            make_memory(config),
            config,
            [Request(i, [1, 2], SamplingParams(max_tokens=3)) for i in range(2)],
            Speed.of(find_hardware("h200"), 0),
        )


def test_lengths_have_the_datasets_means() -> None:
    for dataset, (prompt, output) in MEAN_LENGTHS.items():
        requests = lengths(dataset, 20_000, seed=1).requests
        assert requests.input_length.mean() == pytest.approx(prompt, rel=0.03)
        assert requests.output_length.mean() == pytest.approx(output, rel=0.03)


def test_the_command_prints_both_and_writes_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figure2.json"
    assert main(["paper", "figure2", "--requests", "100", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "contiguous:pow2" in printed
    assert "38.2" in printed  # the paper's oracle
    document = json.loads(out.read_text())
    assert document["num_slots"] == NUM_SLOTS
    assert [bar["label"] for bar in document["bars"]] == list(BAR_NOTES)
    assert document["workloads"]["sharegpt"]["parameters"]["num_requests"] == 100


def test_too_few_requests_end_the_command_with_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "figure2", "--requests", "5"]) == 2
    assert "use more --requests" in capsys.readouterr().err
