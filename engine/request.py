"""What a user sends to the engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pbench.engine.beam_search import EarlyStopping
from pbench.engine.plan import SampleOptions


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when a sequence ends.

    ``temperature`` 0 is greedy. ``seed`` makes the choice of a sequence a function of (seed, position, logits)
    alone, whatever else runs with it; with a repetition penalty, of the sequence's own tokens too.

    What transformers' processors of the same names do, in its order: ``repetition_penalty``, ``temperature``,
    ``top_k``, ``top_p``, ``min_p``. Tokens of equal logits are kept or dropped together.
    """

    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    n: int = 1  # samples, each a sequence of its own; sample i uses seed + i
    stop_token_ids: tuple[int, ...] = ()  # ends the sequence, and is given out
    beam_width: int = 1  # more than 1: beam search; its best n hypotheses are given out when it ends
    length_penalty: float = 1.0  # of beam search, see BeamSearch
    early_stopping: EarlyStopping = "heuristic"  # of beam search, see BeamSearch
    top_k: int = 0  # choose among the most likely k tokens; 0: among all
    top_p: float = 1.0  # choose among the most likely tokens that together have this probability
    min_p: float = 0.0  # choose among tokens with at least this share of the most likely one's probability
    repetition_penalty: float = 1.0  # above 1: tokens of the prompt and the output so far become less likely
    logprobs: int | None = None  # tell each token's log-probability, and those of so many most likely ones
    stop: tuple[str, ...] = ()  # a text that ends the sequence; neither it nor what follows is given out as text
    ignore_eos: bool = False  # go on where the model says that it has ended
    detokenize: bool = True  # give out text beside the tokens, where the engine can decode

    @property
    def num_sequences(self) -> int:
        """Sequences that the request has at once, at most."""
        return self.beam_width if self.beam_width > 1 else self.n

    def options(self) -> SampleOptions | None:
        """What choosing a token takes beyond a temperature; None where that is nothing, as for most requests."""
        filters = (self.top_k, self.top_p, self.min_p) if self.temperature > 0 else (0, 1.0, 0.0)
        options = SampleOptions(*filters, self.repetition_penalty, self.logprobs)
        return None if options == SampleOptions() else options


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and what is wanted of it."""

    request_id: int
    prompt_token_ids: Sequence[int]
    sampling: SamplingParams
    arrival_ns: int = field(default=0)  # when it was meant to arrive, on the clock of time.monotonic_ns()
    priority: int = 0  # the lowest is served first, and preempted last; equal ones first come, first served
    cache_salt: str = ""  # prefixes are shared between requests of one salt only, so that no tenant can probe another
