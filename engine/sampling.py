"""Choosing from logits: greedily, by temperature with a seed per sequence, or the candidates of beams."""

import torch
from torch import Tensor

from pbench.engine.beam_search import Candidate
from pbench.engine.plan import Choice, Sample
from pbench.engine.transfers import Readback, to_device

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


class Choices:
    """What a step chooses, on its way to the host."""

    def __init__(self, tokens: Tensor, candidates: dict[int, tuple[Tensor, Tensor]]) -> None:
        self._tokens = Readback(tokens)
        self._candidates = candidates  # of beams, by row: log-probabilities and token ids, most likely first

    def tolist(self) -> list[Choice]:
        """Wait for the step; the choice of every row."""
        choices: list[Choice] = self._tokens.tolist()
        for row, (log_probs, token_ids) in self._candidates.items():
            pairs = zip(token_ids.tolist(), log_probs.tolist(), strict=True)
            choices[row] = [Candidate(token_id, log_prob) for token_id, log_prob in pairs]
        return choices


def beam_candidates(logits: Tensor, samples: list[Sample]) -> dict[int, tuple[Tensor, Tensor]]:
    """The candidates of every row that a beam samples: their log-probabilities and token ids, most likely first.

    Args:
        logits: (num_samples, vocab_size), any float dtype.
        samples: one per row.
    """
    rows = [row for row, sample in enumerate(samples) if sample.num_candidates]
    if not rows:
        return {}
    most = min(max(samples[row].num_candidates for row in rows), logits.shape[-1])
    chosen = logits[to_device(rows, torch.int64, logits.device)].float().log_softmax(dim=-1)
    log_probs, token_ids = chosen.topk(most, dim=-1)
    candidates = {}
    for index, row in enumerate(rows):
        count = samples[row].num_candidates
        candidates[row] = (log_probs[index, :count], token_ids[index, :count])
    return candidates


def choose_tokens(logits: Tensor, samples: list[Sample]) -> Tensor:
    """Choose one token per row.

    Temperature t > 0 samples softmax(logits / t) by the Gumbel-max trick (Gumbel 1954; Maddison et al., "A* Sampling",
    NeurIPS 2014): argmax(logits / t + g), where g depends on (seed, position, token) alone, so that what else is in
    the batch changes nothing.

    Args:
        logits: (num_samples, vocab_size), any float dtype.
        samples: one per row.

    Returns:
        int64 (num_samples,).

    """
    tokens = logits.argmax(dim=-1)
    rows = [row for row, sample in enumerate(samples) if sample.temperature > 0]
    if rows:
        chosen = [samples[row] for row in rows]
        device = logits.device
        temperature = to_device([sample.temperature for sample in chosen], torch.float64, device)
        keys = to_device([_mix_int((s.seed << 32) ^ s.position) for s in chosen], torch.int64, device)
        index = torch.arange(logits.shape[-1], device=device)
        bits = _mix(keys[:, None] + index * _signed(_GOLDEN_GAMMA))
        uniform = ((bits >> 11) & ((1 << 53) - 1)).double().add_(0.5).mul_(2.0**-53)
        noise = uniform.log_().neg_().log_().neg_()
        row_ids = to_device(rows, torch.int64, device)
        tokens[row_ids] = (logits[row_ids].double() / temperature[:, None] + noise).argmax(dim=-1)
    return tokens


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014) on int64, wrapping."""
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _mix_int(x: int) -> int:
    x = (x + _GOLDEN_GAMMA) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return _signed(x ^ (x >> 31))


def _shift_right(x: Tensor, num_bits: int) -> Tensor:
    """Logical shift: torch's >> on int64 keeps the sign."""
    return (x >> num_bits) & ((1 << (64 - num_bits)) - 1)


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
