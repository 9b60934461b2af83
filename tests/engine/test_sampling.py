"""Token choice: greedy, the distribution of sampling, and its independence of the batch."""

import torch

from pbench.engine.plan import Sample
from pbench.engine.sampling import choose_tokens


def test_temperature_zero_takes_the_most_likely_token() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    samples = [Sample(row, 0.0, row, row) for row in range(5)]
    assert choose_tokens(logits, samples).tolist() == logits.argmax(dim=-1).tolist()


def test_a_choice_depends_on_its_own_row_alone() -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    samples = [Sample(row, [0.0, 0.7, 1.3][row % 3], row, 11 * row) for row in range(6)]
    together = choose_tokens(logits, samples).tolist()
    apart = [choose_tokens(logits[row : row + 1], [samples[row]]).item() for row in range(6)]
    assert together == apart


def test_samples_follow_the_softmax_of_the_tempered_logits() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, -30.0])
    temperature, num_draws = 1.5, 20_000
    samples = [Sample(0, temperature, seed=draw % 7, position=draw) for draw in range(num_draws)]
    counts = torch.bincount(choose_tokens(logits.expand(num_draws, -1), samples), minlength=5)
    expected = (logits / temperature).softmax(0)
    deviations = (counts / num_draws - expected).abs() / (expected * (1 - expected) / num_draws).sqrt().clamp(min=1e-9)
    assert deviations[:4].max() < 4, "more than four standard errors off"
    assert counts[4] == 0


def test_seeds_and_positions_give_different_choices() -> None:
    logits = torch.zeros(1, 1000)
    choices = {
        choose_tokens(logits, [Sample(0, 1.0, seed, position)]).item() for seed in range(8) for position in range(8)
    }
    assert len(choices) > 55
