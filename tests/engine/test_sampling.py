"""Token choice by samples: greedy, the distribution of sampling, its independence of the batch, penalties, scores."""

from array import array

import pytest
import torch

from pbench.engine.plan import PlannedSequence, Sample, SampleOptions
from pbench.engine.sampling import TokenChooser, token_scores

CPU = torch.device("cpu")


def planned(samples: list[Sample], positions: list[int]) -> list[PlannedSequence]:
    return [
        PlannedSequence(sample.seq_id, position - 1, array("i", [0]), 0, [], (sample,))
        for sample, position in zip(samples, positions, strict=True)
    ]


def choose(logits: torch.Tensor, samples: list[Sample], positions: list[int]) -> list[int]:
    chosen: list[int] = TokenChooser(64, logits.shape[1], CPU).choose(logits, planned(samples, positions)).tolist()
    return chosen


def test_temperature_zero_takes_the_most_likely_token() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    samples = [Sample(row, 0.0, row) for row in range(5)]
    assert choose(logits, samples, [1, 2, 3, 4, 5]) == logits.argmax(dim=-1).tolist()


def test_a_choice_depends_on_its_own_row_alone() -> None:
    logits = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    history = array("i", range(0, 40, 3))
    options = [None, SampleOptions(top_k=5), SampleOptions(top_p=0.7), SampleOptions(repetition_penalty=1.5)]
    samples = [
        Sample(row, [0.0, 0.7, 1.3][row % 3], row, 0, options[row % 4], history if row % 4 == 3 else None)
        for row in range(8)
    ]
    positions = [11 * (row + 1) for row in range(8)]
    together = choose(logits, samples, positions)
    apart = [choose(logits[row : row + 1], [samples[row]], [positions[row]])[0] for row in range(8)]
    assert together == apart


def test_samples_follow_the_softmax_of_the_tempered_logits() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, -30.0])
    temperature, num_draws = 1.5, 20_000
    samples = [Sample(0, temperature, seed=draw % 7) for draw in range(num_draws)]
    counts = torch.bincount(
        torch.tensor(choose(logits.expand(num_draws, -1), samples, list(range(num_draws)))), minlength=5
    )
    expected = (logits / temperature).softmax(0)
    deviations = (counts / num_draws - expected).abs() / (expected * (1 - expected) / num_draws).sqrt().clamp(min=1e-9)
    assert deviations[:4].max() < 4, "more than four standard errors off"
    assert counts[4] == 0


def test_seeds_and_positions_give_different_choices() -> None:
    pairs = [(seed, position) for seed in range(8) for position in range(8)]
    samples = [Sample(0, 1.0, seed) for seed, _ in pairs]
    assert len(set(choose(torch.zeros(64, 1000), samples, [position for _, position in pairs]))) > 55


def test_the_smallest_temperature_is_greedy_and_finite() -> None:
    logits = 100 * torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    samples = [Sample(row, 1e-320, row) for row in range(4)]
    assert choose(logits, samples, [1, 2, 3, 4]) == logits.argmax(dim=-1).tolist()


def test_a_penalty_meets_the_tokens_of_the_history_and_those_chosen_since() -> None:
    """The history comes once; a released sequence is forgotten."""
    chooser = TokenChooser(2, 5, CPU)
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.9, 2.8]])
    options = SampleOptions(repetition_penalty=2.0)

    def next_token(seq_id: int, history: list[int] | None) -> int:
        sample = Sample(seq_id, 0.0, 0, 0, options, None if history is None else array("i", history))
        return int(chooser.choose(logits, planned([sample], [9])))

    assert [next_token(7, [0]), next_token(7, None), next_token(7, None)] == [1, 2, 3]
    assert next_token(8, []) == 0, "another sequence has a history of its own"
    chooser.seen.release([7, 99])
    assert next_token(9, [4]) == 0, "and nothing is left of one that was released"
    chooser.seen.release([8])
    assert next_token(7, [0, 1, 2, 3]) == 4, "it comes again with all its tokens"


@pytest.mark.parametrize("num_logprobs", [0, 3])
def test_scores_are_the_log_softmax_of_the_model_s_own_logits(num_logprobs: int) -> None:
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([3, 1, 4, 1])
    options = SampleOptions(top_k=2, num_logprobs=num_logprobs)
    samples = [Sample(row, 0.5, row, 0, options if row % 2 else None) for row in range(4)]
    scores = token_scores(logits, tokens, samples)
    assert scores is not None
    expected = logits.log_softmax(-1)
    rows = scores.by_row()
    assert [row for row, _, _ in rows] == [1, 3]
    for row, log_prob, top in rows:
        assert log_prob == pytest.approx(expected[row, tokens[row]].item())
        assert [c.token_id for c in top] == expected[row].argsort(descending=True)[:num_logprobs].tolist()
        assert [c.log_prob for c in top] == pytest.approx(expected[row].sort(descending=True).values[:num_logprobs])


def test_nothing_is_scored_where_nobody_asks() -> None:
    assert token_scores(torch.zeros(1, 4), torch.tensor([0]), [Sample(0, 1.0, 0, 0, SampleOptions(top_k=2))]) is None
