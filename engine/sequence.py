"""A request while it lives in the engine, and its sequences."""

from array import array

from pbench.engine.beam_search import BeamSearch
from pbench.engine.candidate import Candidate
from pbench.engine.plan import Sample
from pbench.engine.request import Request
from pbench.engine.text_stream import TextStream


class Sequence:
    """One line of tokens: the prompt and what has been sampled after it.

    Who may change what: the scheduler advances ``num_computed_tokens`` when it plans a step, appends a placeholder for
    the token that the step is to sample, and puts the token in its place when the step has run; a memory only reads.

        token_ids[0 : num_computed_tokens]   their KV is in the pool, or will be when the planned step has run
        token_ids[num_computed_tokens : ]    still to compute
        token_ids[num_known_tokens : ]       placeholders: steps are planned before the tokens of the last are known

    ``token_ids`` is packed, four bytes a token: a long queue of long prompts takes a tenth of a list's memory, and a
    block's tokens are hashed without being converted.
    """

    __slots__ = (
        "final_kv_tokens",
        "has_new_entries",
        "is_greedy",
        "is_history_sent",
        "is_open",
        "max_computed_tokens",
        "num_computed_tokens",
        "num_pending_tokens",
        "num_prompt_tokens",
        "num_table_entries_sent",
        "num_writable_tokens",
        "request",
        "sample",
        "sample_index",
        "samples",
        "seq_id",
        "stop_token_ids",
        "text",
        "token_ids",
    )

    def __init__(self, seq_id: int, request: Request, sample_index: int = 0, text: TextStream | None = None) -> None:
        sampling = request.sampling
        self.seq_id = seq_id
        self.request = request
        self.sample_index = sample_index
        self.text = text  # None: nobody wants any
        self.sample = Sample(seq_id, sampling.temperature, sampling.seed + sample_index, 0, sampling.options())
        self.samples = (self.sample,)  # of a plan where nothing but its next token is wanted of it
        # Wants its most likely token and nothing else.
        self.is_greedy = sampling.temperature == 0 and self.sample.options is None and sampling.beam_width == 1
        self.stop_token_ids = sampling.stop_token_ids
        self.token_ids = array("i", request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        # Tokens whose KV it will hold at its end; the last sampled token's KV is never computed.
        self.final_kv_tokens = self.num_prompt_tokens + sampling.max_tokens - 1
        self.is_open = True  # until it has given out its last token, or was dropped
        self.num_computed_tokens = 0
        self.num_pending_tokens = 0  # at its end: sampled by steps that still run
        self.max_computed_tokens = 0  # before any preemption: what is below it and computed again is recomputation
        self.num_writable_tokens = 0  # up to here its slots are its own: no growth is needed for them
        self.num_table_entries_sent = 0  # of its table, the runner knows these leading entries
        self.has_new_entries = False  # its table may have others behind them
        self.is_history_sent = False  # the runner knows its tokens, if a penalty needs them

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and those sampled so far, placeholders included."""
        return len(self.token_ids)

    @property
    def num_known_tokens(self) -> int:
        """Tokens of the prompt and those sampled by steps that have run."""
        return len(self.token_ids) - self.num_pending_tokens


class RequestState:
    """A request's sequences, times and counters, from its arrival to its record.

    While ``is_forked`` is false the leader (the first unfinished sequence) alone computes the prompt; then the
    others fork from it. A preempted request starts again unforked, so that the prompt is shared again.
    """

    __slots__ = (
        "active",
        "added_ns",
        "beam_rows",
        "beam_search",
        "first_scheduled_ns",
        "first_token_ns",
        "is_forked",
        "is_swapped",
        "kv_slot_ns",
        "num_open_sequences",
        "num_output_tokens",
        "num_preemptions",
        "num_prefix_hit_tokens",
        "num_recomputed_tokens",
        "rank",
        "request",
        "request_id",
        "sequences",
        "steady",
        "unfinished",
    )

    def __init__(self, request: Request, sequences: list[Sequence], added_ns: int, order: int = 0) -> None:
        self.request = request
        self.request_id = request.request_id
        self.rank = (request.priority, order)  # the lowest goes first; ``order`` is that of arrival
        self.sequences = sequences
        self.unfinished = list(sequences)  # those that a step may still plan, the leader first
        self.num_open_sequences = len(sequences)  # those that will give out further tokens
        self.added_ns = added_ns
        sampling = request.sampling
        self.beam_search: BeamSearch | None = None
        if sampling.beam_width > 1:
            self.beam_search = BeamSearch(
                sampling.beam_width,
                max_tokens=sampling.max_tokens,
                stop_token_ids=sampling.stop_token_ids,
                length_penalty=sampling.length_penalty,
                early_stopping=sampling.early_stopping,
            )
        self.beam_rows: dict[int, list[Candidate]] = {}  # by seq_id: beams wait until every one has its candidates
        # Its one sequence, where that has computed all that it ever had, so that each step takes its next token and
        # no more than that; None as soon as it gives back what it holds.
        self.steady: Sequence | None = None
        self.first_scheduled_ns: int | None = None
        self.first_token_ns: int | None = None
        self.is_swapped = False  # what its sequences hold is in host memory
        self.kv_slot_ns = 0.0  # what its sequences have paid for the slots that they gave back
        self.num_output_tokens = 0
        self.num_prefix_hit_tokens = 0
        self.num_recomputed_tokens = 0
        self.num_preemptions = 0
        self.start_again(can_fork=True)

    def start_again(self, *, can_fork: bool) -> None:
        """Begin with the prompt: with the leader alone, or with every sequence where none can fork from it."""
        self.is_forked = len(self.unfinished) == 1 or not can_fork
        self.active = self.unfinished if self.is_forked else self.unfinished[:1]  # those that may compute

    def fork(self) -> list[Sequence]:
        """Let every sequence compute from now on; returns those that fork from the leader."""
        self.is_forked = True
        self.active = self.unfinished
        return self.unfinished[1:]
