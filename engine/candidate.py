"""Tokens with their log-probabilities."""

from typing import NamedTuple


class Candidate(NamedTuple):
    """One of the most likely next tokens."""

    token_id: int
    log_prob: float  # of the token given those before it


class ScoredToken(NamedTuple):
    """A chosen token whose log-probability was asked for: of the model's own distribution, before any option."""

    token_id: int
    log_prob: float
    top: list[Candidate]  # the most likely tokens, most likely first
