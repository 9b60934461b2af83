"""What the throughput gate promises on a machine that drifts, and why it is built as it is."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from pbench.__main__ import main
from pbench.gate.paired_statistics import Design
from pbench.gate.power import Machine, Outcomes, abba_ratios, mann_whitney_p_values, naive_outcomes, paired_outcomes

DRIFTING = Machine(drift=0.03, autocorrelation=0.9, noise=0.01)
NUM_EXPERIMENTS = 3000


def paired(*losses: float, machine: Machine = DRIFTING) -> list[Outcomes]:
    return list(paired_outcomes(losses, machine, Design(delta=0.05), NUM_EXPERIMENTS, seed=0))


def test_the_gate_is_quiet_without_a_loss_and_finds_six_and_ten_percent() -> None:
    none, six, ten = paired(0.0, 0.06, 0.1)
    assert none.failed <= 0.02
    assert none.passed >= 0.98
    assert six.failed >= 0.9
    assert ten.failed >= 0.99
    assert none.refused == six.refused == ten.refused == 0


def test_the_naive_design_sounds_the_alarm_without_a_loss() -> None:
    for num_runs in (6, 10, 16):
        (none,) = naive_outcomes((0.0,), DRIFTING, num_runs, 0.05, NUM_EXPERIMENTS, seed=0)
        assert 0.2 <= none.failed <= 0.33


def test_the_naive_design_keeps_its_word_where_runs_are_independent() -> None:
    (none,) = naive_outcomes((0.0,), Machine(drift=0.0), 10, 0.05, NUM_EXPERIMENTS, seed=0)
    assert none.failed == pytest.approx(0.05, abs=0.015)


def test_outcomes_are_shares_and_the_same_seed_gives_the_same() -> None:
    (one,) = paired(0.04)
    assert one.failed + one.passed + one.inconclusive + one.refused == pytest.approx(1)
    assert 6 < one.mean_pairs < 16
    assert paired(0.04) == [one]


def test_a_machine_too_noisy_for_delta_is_refused_by_its_a_a_check() -> None:
    (one,) = paired(0.1, machine=Machine(noise=0.2))
    assert one.refused >= 0.95


def test_the_machine_drifts_and_jitters_as_it_was_told() -> None:
    speeds = DRIFTING.log_speeds(20_000, 8, np.random.default_rng(0))
    assert speeds.std(axis=0) == pytest.approx(np.hypot(0.03, 0.01), rel=0.03)
    drift = Machine(0.03, 0.9, 0.0).log_speeds(20_000, 8, np.random.default_rng(0))
    for lag in (1, 3):
        assert np.corrcoef(drift[:, 0], drift[:, lag])[0, 1] == pytest.approx(0.9**lag, abs=0.02)


def test_pairs_are_head_over_base_in_abba_order_and_a_steady_drift_cancels() -> None:
    assert abba_ratios(np.array([[1.0, 5.0, 7.0, 2.0]])).tolist() == [[4.0, 5.0]]  # B H H B
    assert abba_ratios(np.arange(8.0)[None]).mean() == 0


@pytest.mark.parametrize("num_runs", [1, 2, 4])
def test_mann_whitney_is_exact(num_runs: int) -> None:
    ranks = range(2 * num_runs)
    counts = [
        sum(h > b for h in head for b in ranks if b not in head) for head in itertools.combinations(ranks, num_runs)
    ]
    expected = [np.mean([count <= u for count in counts]) for u in range(num_runs**2 + 1)]
    assert mann_whitney_p_values(num_runs) == pytest.approx(expected)


def test_the_command_shows_both_tables_and_writes_what_it_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "power.json"
    assert main(["gate", "power", "--experiments", "200", "--json", str(path)]) == 0
    output = capsys.readouterr().out
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["machine"] == {"drift": 0.03, "autocorrelation": 0.9, "noise": 0.01}
    for one in (*document["paired"], *document["naive"]["10"]):
        assert f"{one['failed']:.2%}" in output
    assert "ABBA" in output
    assert "Mann-Whitney" in output
