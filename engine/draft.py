"""StepDraft: a plan in the making, and whose the samples of a plan are."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from pbench.engine.memory import KVMemory
from pbench.engine.plan import PlannedSequence, Sample, placeholder
from pbench.engine.sequence import RequestState, Sequence

# A sample of a plan: whose it is, and the position of its token in the sequence.
Expected: TypeAlias = tuple[RequestState, Sequence, int]

_NO_ENTRIES: list[int] = []


@dataclass(slots=True)
class StepCounts:
    """What planning a step came to; the engine puts it into the StepRecord."""

    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_recomputed_tokens: int = 0
    num_preempted: int = 0
    num_running: int = 0
    num_waiting: int = 0
    is_memory_blocked: bool = False


class StepDraft:
    """Takes in sequences that have room for what they compute, in order of arrival.

    Those that compute one token come first in the plan, and so do their samples: placeholders can stand for what they
    will choose as soon as they are taken in. ``close`` numbers the samples of the others.
    """

    def __init__(self, memory: KVMemory, counts: StepCounts) -> None:
        self.counts = counts
        self.decodes: list[PlannedSequence] = []
        self.expected: list[Expected] = []  # of the samples, in the order of the plan
        self.final: list[Expected] = []  # those behind which their sequences want nothing more
        self.has_beams = False
        self.is_greedy = True
        self.has_one_each = True  # whether every sequence has one sample
        self._memory = memory
        self._prefills: list[PlannedSequence] = []
        self._prefill_samples: list[Expected] = []

    @property
    def is_empty(self) -> bool:
        """Whether nothing is planned yet."""
        return not (self.decodes or self._prefills)

    def make_room(self, seq: Sequence, num_tokens: int) -> bool:
        """Let a sequence have slots of its own for its next tokens; False when the memory has no room."""
        if seq.num_computed_tokens + num_tokens > seq.num_writable_tokens:
            changed_from = self._memory.grow(seq, num_tokens)
            if changed_from is None:
                return False
            seq.num_writable_tokens = self._memory.num_slots_held(seq)
            if changed_from < seq.num_table_entries_sent:
                seq.num_table_entries_sent = changed_from
            seq.has_new_entries = True
        return True

    def _new_entries(self, seq: Sequence) -> tuple[int, list[int]]:
        """What the runner does not know of a sequence's table, and from which entry on."""
        changed_from, new_entries = seq.num_table_entries_sent, _NO_ENTRIES
        if seq.has_new_entries:
            new_entries = self._memory.table(seq)[changed_from:]
            seq.num_table_entries_sent += len(new_entries)
            seq.has_new_entries = False
        return changed_from, new_entries

    def take_steady(self, states: list[RequestState], first: int, most: int) -> int:
        """Take in requests whose one sequence takes its next token, and nothing else.

        What most of a decode step is made of: with few calls, for this runs for every request in every step. It ends
        before the first of ``states[first : first + most]`` that is not steady, or for which the memory has no room.
        Returns how many were taken.
        """
        decodes, expected, final = self.decodes, self.expected, self.final
        num_before = num_expected = len(expected)
        new = tuple.__new__  # what making a named tuple ends in
        for state in islice(states, first, first + most):
            seq = state.steady
            if seq is None:
                break
            start, token_ids = seq.num_computed_tokens, seq.token_ids
            end, sent, entries = start + 1, seq.num_table_entries_sent, _NO_ENTRIES
            if end != len(token_ids):
                break
            if end > seq.num_writable_tokens:
                if not self.make_room(seq, 1):
                    break
                sent, entries = self._new_entries(seq)
            seq.num_computed_tokens = seq.max_computed_tokens = end
            if end == seq.num_writable_tokens and not seq.num_pending_tokens:  # it fills a block with known tokens
                self._memory.commit(seq)
            decodes.append(new(PlannedSequence, (seq.seq_id, start, token_ids[start:], sent, entries, seq.samples)))
            token_ids.append(~num_expected)  # placeholder(), without the call
            seq.num_pending_tokens += 1
            expected.append((state, seq, end))
            num_expected += 1
            if end == seq.final_kv_tokens:
                final.append(expected[-1])
            if not seq.is_greedy:
                self.is_greedy = False
        self.counts.num_decode_tokens += num_expected - num_before
        return num_expected - num_before

    def take(self, state: RequestState, seq: Sequence, num_tokens: int) -> None:
        """Take in the next tokens of a sequence; where they complete a prompt, fork the others of its request."""
        memory, counts = self._memory, self.counts
        start, max_computed_tokens = seq.num_computed_tokens, seq.max_computed_tokens
        seq.num_computed_tokens = end = start + num_tokens
        if num_tokens > 1 or end == seq.num_writable_tokens:  # otherwise no block has become full
            memory.commit(seq)
        changed_from, new_entries = self._new_entries(seq)
        sampled: list[Sequence] = []
        if not state.is_forked and end == seq.num_prompt_tokens:
            sampled = [other for other in [seq, *self._fork(state, seq)] if other.num_tokens == end]
        elif end == len(seq.token_ids):
            sampled = [seq]
        samples = tuple(_sample(state, other, end) for other in sampled)
        self.has_one_each &= len(samples) == 1
        planned = PlannedSequence(seq.seq_id, start, seq.token_ids[start:end], changed_from, new_entries, samples)
        if num_tokens == 1:
            self.decodes.append(planned)
            self._expect((state, other, end) for other in sampled)
        else:
            self._prefills.append(planned)
            self._prefill_samples.extend((state, other, end) for other in sampled)
        if num_tokens == 1 and start >= seq.num_prompt_tokens and end > max_computed_tokens:
            counts.num_decode_tokens += 1
        else:
            counts.num_prefill_tokens += num_tokens
        if start < max_computed_tokens:
            num_recomputed = min(end, max_computed_tokens) - start
            state.num_recomputed_tokens += num_recomputed
            counts.num_recomputed_tokens += num_recomputed
        if end > max_computed_tokens:
            seq.max_computed_tokens = end
        is_alone = state.is_forked and len(state.active) == 1 and state.beam_search is None
        state.steady = seq if is_alone and seq.num_prompt_tokens <= end == seq.max_computed_tokens else None

    def close(self) -> list[PlannedSequence]:
        """The sequences of the plan, those with one token first."""
        self._expect(self._prefill_samples)
        return self.decodes + self._prefills

    def _expect(self, samples: Iterable[Expected]) -> None:
        """Let placeholders stand for what the samples will choose."""
        for sample in samples:
            state, seq, position = sample
            self.is_greedy &= seq.is_greedy
            if state.beam_search is None:
                seq.token_ids.append(placeholder(len(self.expected)))
                seq.num_pending_tokens += 1
                if position == seq.final_kv_tokens:
                    self.final.append(sample)
            else:
                self.has_beams = True
            self.expected.append(sample)

    def _fork(self, state: RequestState, leader: Sequence) -> list[Sequence]:
        children = state.fork()
        leader.num_writable_tokens = 0
        for child in children:
            self._memory.fork(leader, child)
            child.num_computed_tokens = leader.num_computed_tokens
            child.max_computed_tokens = max(child.max_computed_tokens, child.num_computed_tokens)
        return children


def _sample(state: RequestState, seq: Sequence, position: int) -> Sample:
    """The sequence's next token, or candidates for it.

    Where a penalty depends on its tokens, the runner learns all of them with the first sample since it was taken in,
    none of which is a placeholder then, and adds what it chooses by itself.
    """
    sample = seq.sample
    if state.beam_search is not None:
        return sample._replace(num_candidates=state.beam_search.num_candidates())
    if sample.options is not None and sample.options.repetition_penalty != 1 and not seq.is_history_sent:
        seq.is_history_sent = True
        return sample._replace(history=seq.token_ids[:position])
    return sample
