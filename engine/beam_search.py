"""BeamSearch: which continuations of a request's beams live on, and which hypotheses are kept."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from pbench.engine.candidate import Candidate

EarlyStopping: TypeAlias = Literal["first", "heuristic", "never"]


class Extension(NamedTuple):
    """A beam of the next step: which beam it continues, and with which token."""

    beam: int
    token_id: int


class Hypothesis(NamedTuple):
    """A finished continuation of the prompt."""

    score: float  # sum of log-probabilities / length ** length_penalty
    token_ids: list[int]


class BeamSearch:
    """Beam search over one prompt (Graves 2012; Sutskever et al. 2014), with the choices that transformers makes.

    In every step the beams' candidates are ranked by their accumulated log-probability. The best ``width`` that do not
    end live on. Those that end (a stop token, or the last token allowed) become hypotheses if they stand among the
    first ``width``; their score is the sum of log-probabilities over ``length ** length_penalty``, and the best
    ``width`` are kept. The search ends when every candidate ends, or, once ``width`` hypotheses are kept:

        "first"      at once
        "heuristic"  when the best beam, scored at its present length, cannot beat the worst of them
        "never"      when the best beam, scored at the length that favours it most, cannot beat the worst of them

    Sums are kept in float32, as transformers keeps them, so that near ties fall the same way.
    """

    def __init__(
        self,
        width: int,
        *,
        max_tokens: int,
        stop_token_ids: Sequence[int] = (),
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = "heuristic",
    ) -> None:
        self.width = width
        self.max_tokens = max_tokens
        self.stop_token_ids = frozenset(stop_token_ids)
        self.length_penalty = length_penalty
        self.early_stopping = early_stopping
        self.hypotheses: list[Hypothesis] = []  # best first
        self._sums = [np.float32(0)]  # of log-probabilities, for each beam that runs

    def num_candidates(self) -> int:
        """Candidates wanted of each beam: enough that ``width`` remain if the best of all end."""
        return max(2, 1 + len(self.stop_token_ids)) * self.width

    def advance(self, rows: Sequence[Sequence[Candidate]], beams: Sequence[Sequence[int]]) -> list[Extension]:
        """Take one step.

        Args:
            rows: for each running beam its candidates, most likely first.
            beams: for each running beam the tokens generated so far; all of one length.

        Returns:
            The beams of the next step, best first; none when the search has ended.
        """
        ranked = sorted(
            (
                (self._sums[beam] + np.float32(candidate.log_prob), beam, candidate.token_id)
                for beam, row in enumerate(rows)
                for candidate in row
            ),
            key=lambda entry: (-entry[0], entry[1], entry[2]),
        )[: self.num_candidates()]
        length = len(beams[0]) + 1
        is_last = length == self.max_tokens
        ending = [is_last or token_id in self.stop_token_ids for _, _, token_id in ranked]
        is_full = len(self.hypotheses) == self.width
        for (total, beam, token_id), ends in list(zip(ranked, ending, strict=True))[: self.width]:
            if ends and not (is_full and self.early_stopping == "first"):
                score = float(total / np.float32(length**self.length_penalty))
                self.hypotheses.append(Hypothesis(score, [*beams[beam], token_id]))
        self.hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
        del self.hypotheses[self.width :]
        going_on = [entry for entry, ends in zip(ranked, ending, strict=True) if not ends][: self.width]
        if not going_on or not self._can_improve(going_on[0][0], length):
            return []
        self._sums = [total for total, _, _ in going_on]
        return [Extension(beam, token_id) for _, beam, token_id in going_on]

    def _can_improve(self, best_sum: np.float32, length: int) -> bool:
        if len(self.hypotheses) < self.width:
            return True
        if self.early_stopping == "first":
            return False
        if self.early_stopping == "never" and self.length_penalty > 0:
            length = self.max_tokens
        return float(best_sum / np.float32(length**self.length_penalty)) > self.hypotheses[-1].score
