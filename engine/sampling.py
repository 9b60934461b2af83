"""Choosing from logits: a token for every sample, its log-probabilities where they are wanted, or beams' candidates."""

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pbench.engine.candidate import Candidate, ScoredToken
from pbench.engine.plan import Choice, PlannedSequence, Sample, SampleOptions
from pbench.engine.transfers import Readback, read_back, to_device
from pbench.kernels.choose_tokens import NUM_RULES, choose_tokens, noise_keys

NO_OPTIONS = SampleOptions()
_LOWEST_TEMPERATURE = 1e-6  # as good as none, and no logit over it is infinite


class Choices:
    """What a step chooses, on its way to the host."""

    def __init__(
        self,
        tokens: Readback,
        candidates: dict[int, tuple[Tensor, Tensor]] | None = None,
        scores: "TokenScores | None" = None,
    ) -> None:
        self._tokens = tokens
        self._candidates = candidates or {}  # of beams, by row: log-probabilities and token ids, most likely first
        self._scores = scores

    def tolist(self) -> list[Choice]:
        """Wait for the step; the choice of every row."""
        choices: list[Choice] = self._tokens.tolist()
        for row, (log_probs, token_ids) in self._candidates.items():
            choices[row] = _candidates(token_ids.tolist(), log_probs.tolist())
        if self._scores is not None:
            for row, log_prob, top in self._scores.by_row():
                token_id = choices[row]
                assert isinstance(token_id, int), "a beam has no score"
                choices[row] = ScoredToken(token_id, log_prob, top)
        return choices


class TokenScores:
    """Log-probabilities on their way to the host: of the tokens that some rows chose, and of their most likely ones."""

    def __init__(self, logits: Tensor, tokens: Tensor, num_top_by_row: dict[int, int]) -> None:
        """Enqueue them.

        Args:
            logits: (num_rows, vocab_size), any float dtype.
            tokens: (num_rows,), what each row chose.
            num_top_by_row: the rows that want log-probabilities, and of how many of the most likely tokens.
        """
        self._num_top_by_row = num_top_by_row
        rows = to_device(list(num_top_by_row), torch.int64, logits.device)
        log_probs = _log_probs(logits[rows])
        top = log_probs.topk(max(num_top_by_row.values()), dim=-1)
        self._log_probs = read_back(log_probs.gather(1, tokens[rows, None]).squeeze(1))
        self._top_log_probs, self._top_token_ids = read_back(top.values), read_back(top.indices)

    def by_row(self) -> list[tuple[int, float, list[Candidate]]]:
        """Wait for them: each row, the log-probability of its token, and its most likely tokens."""
        tops = zip(self._top_token_ids.tolist(), self._top_log_probs.tolist(), strict=True)
        return [
            (row, log_prob, _candidates(token_ids[:num_top], log_probs[:num_top]))
            for (row, num_top), log_prob, (token_ids, log_probs) in zip(
                self._num_top_by_row.items(), self._log_probs.tolist(), tops, strict=True
            )
        ]


class SeenTokens:
    """Which tokens the prompt and the output of penalised sequences hold, on the device.

    A sequence's tokens are uploaded once, with its first sample; what it chooses afterwards is marked on the device
    by the choice itself. The marks of a sequence take a byte for each token of the vocabulary, from the first
    penalised sequence on.
    """

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self.marks: Tensor | None = None  # (num_rows, vocab_size) uint8
        self._shape = (num_rows, vocab_size)
        self._device = device
        self._row_by_seq_id: dict[int, int] = {}
        self._free_rows = list(range(num_rows - 1, -1, -1))

    @property
    def nbytes(self) -> int:
        """Of device memory."""
        return 0 if self.marks is None else self.marks.nbytes

    def release(self, seq_ids: Sequence[int]) -> None:
        """Forget sequences, known or not."""
        if self._row_by_seq_id:
            for seq_id in seq_ids:
                row = self._row_by_seq_id.pop(seq_id, None)
                if row is not None:
                    self._free_rows.append(row)

    def row(self, sample: Sample) -> int:
        """The row of a penalised sequence; uploads its tokens where the sample has them."""
        if sample.history is not None:
            if self.marks is None:
                self.marks = torch.zeros(self._shape, dtype=torch.uint8, device=self._device)
            if sample.seq_id not in self._row_by_seq_id:
                self._row_by_seq_id[sample.seq_id] = self._free_rows.pop()
            marks = self.marks[self._row_by_seq_id[sample.seq_id]]
            marks.zero_()
            token_ids = torch.from_numpy(np.asarray(sample.history).astype(np.int64))
            if self._device.type == "cuda":
                token_ids = token_ids.pin_memory()
            marks.index_fill_(0, token_ids.to(self._device, non_blocking=True), 1)
        return self._row_by_seq_id[sample.seq_id]


class TokenChooser:
    """Chooses a token for every sample of a step, one step after the other."""

    def __init__(self, max_sequences: int, vocab_size: int, device: torch.device) -> None:
        self.seen = SeenTokens(max_sequences, vocab_size, device)
        self._vocab_size = vocab_size
        self._device = device

    def choose(self, logits: Tensor, sequences: Sequence[PlannedSequence]) -> Tensor:
        """Choose, without waiting for the device.

        Args:
            logits: (num_samples, vocab_size), any float dtype.
            sequences: of the plan, with a sample for each row in all; a beam's is chosen greedily, and of no use.

        Returns:
            int64 (num_samples,).
        """
        samples = [sample for seq in sequences for sample in seq.samples]
        if is_greedy(samples):
            return logits.argmax(dim=-1)
        positions = [seq.end for seq in sequences for _ in seq.samples]
        # One upload: the keys, then the rules as float64.
        host = torch.empty((1 + NUM_RULES, len(samples)), dtype=torch.int64, pin_memory=logits.is_cuda)
        host[0] = noise_keys([sample.seed for sample in samples], positions)
        rules = np.fromiter(chain.from_iterable(map(self._rules, samples)), np.float64, NUM_RULES * len(samples))
        host[1:].view(torch.float64)[:] = torch.from_numpy(rules).view(-1, NUM_RULES).T
        packed = host.to(logits.device, non_blocking=True)
        return choose_tokens(logits, packed[0], packed[1:].view(torch.float64), self.seen.marks)

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compile what chooses from logits of ``dtype``, with and without penalties."""
        logits = torch.zeros((1, self._vocab_size), dtype=dtype, device=self._device)
        keys = torch.zeros(1, dtype=torch.int64, device=self._device)
        rules = to_device([[value] for value in (1, 1, 0.5, -math.inf, 2, 0)], torch.float64, self._device)
        for marks in (None, torch.zeros((1, self._vocab_size), dtype=torch.uint8, device=self._device)):
            choose_tokens(logits, keys, rules, marks)

    def _rules(self, sample: Sample) -> tuple[float, ...]:
        options = sample.options or NO_OPTIONS
        seen_row = self.seen.row(sample) if options.repetition_penalty != 1 else -1
        return token_rules(sample.temperature, options, seen_row)


def token_rules(temperature: float, options: SampleOptions, seen_row: int = -1) -> tuple[float, ...]:
    """A column of the rules of ``pbench.kernels.choose_tokens``, in the order of its constants."""
    return (
        1 / max(temperature, _LOWEST_TEMPERATURE) if temperature else 0,
        options.top_k,
        options.top_p,
        math.log(options.min_p) if options.min_p else -math.inf,
        options.repetition_penalty,
        seen_row,
    )


def is_greedy(samples: Sequence[Sample]) -> bool:
    """Whether every sample takes the most likely token, or is a beam."""
    return all(
        sample.temperature == 0 and (sample.options is None or sample.options.repetition_penalty == 1)
        for sample in samples
    )


def token_scores(logits: Tensor, tokens: Tensor, samples: Sequence[Sample]) -> TokenScores | None:
    """The log-probabilities that some samples want, of the ``tokens`` chosen from ``logits``; None if none does."""
    wanted = {
        row: sample.options.num_logprobs
        for row, sample in enumerate(samples)
        if sample.options is not None and sample.options.num_logprobs is not None
    }
    return TokenScores(logits, tokens, wanted) if wanted else None


def beam_candidates(logits: Tensor, samples: Sequence[Sample]) -> dict[int, tuple[Tensor, Tensor]]:
    """The candidates of every row that a beam samples: their log-probabilities and token ids, most likely first.

    Args:
        logits: (num_samples, vocab_size), any float dtype.
        samples: one per row.
    """
    rows = [row for row, sample in enumerate(samples) if sample.num_candidates]
    if not rows:
        return {}
    most = min(max(samples[row].num_candidates for row in rows), logits.shape[-1])
    chosen = _log_probs(logits[to_device(rows, torch.int64, logits.device)])
    log_probs, token_ids = chosen.topk(most, dim=-1)
    candidates = {}
    for index, row in enumerate(rows):
        count = samples[row].num_candidates
        candidates[row] = (log_probs[index, :count], token_ids[index, :count])
    return candidates


def _log_probs(logits: Tensor) -> Tensor:
    """float32 (num_rows, at least vocab_size); those of no token, at the end, are -inf.

    So rows begin at multiples of 16 bytes: a GPU sums a row in another order where it begins elsewhere.
    """
    padded = functional.pad(logits.float(), (0, -logits.shape[1] % 4), value=-math.inf)
    return padded.log_softmax(dim=-1)


def _candidates(token_ids: list[int], log_probs: list[float]) -> list[Candidate]:
    return [Candidate(token_id, log_prob) for token_id, log_prob in zip(token_ids, log_probs, strict=True)]
