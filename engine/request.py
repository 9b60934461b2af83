"""What a user sends to the engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pbench.engine.beam_search import EarlyStopping


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when a sequence ends.

    ``temperature`` 0 is greedy. ``seed`` makes the choice of a sequence a function of (seed, position, logits)
    alone, whatever else runs with it.
    """

    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    n: int = 1  # samples, each a sequence of its own; sample i uses seed + i
    stop_token_ids: tuple[int, ...] = ()  # ends the sequence, and is given out
    beam_width: int = 1  # more than 1: beam search; its best n hypotheses are given out when it ends
    length_penalty: float = 1.0  # of beam search, see BeamSearch
    early_stopping: EarlyStopping = "heuristic"  # of beam search, see BeamSearch

    @property
    def num_sequences(self) -> int:
        """Sequences that the request has at once, at most."""
        return self.beam_width if self.beam_width > 1 else self.n


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and what is wanted of it."""

    request_id: int
    prompt_token_ids: Sequence[int]
    sampling: SamplingParams
    arrival_ns: int = field(default=0)  # when it was meant to arrive, on the clock of time.monotonic_ns()
    cache_salt: str = ""  # prefixes are shared between requests of one salt only, so that no tenant can probe another
