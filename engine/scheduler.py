"""Scheduler: which sequences compute how many tokens in the next step. The same code for every memory.

Iteration-level scheduling (Yu et al., "Orca", OSDI 2022), first come, first served, with chunked prefill (Agrawal
et al., "Sarathi", 2023): every step has a budget of tokens; running requests take theirs first, in order of arrival;
waiting ones are admitted while the budget, the number of sequences and the memory allow.

With priorities, all orders are by priority first and by arrival second: who takes of the budget first, who is admitted
first, and, from the other end, who is preempted first. Nobody overtakes the first of the queue, so among equals nobody
starves: who came before one is served before one. More urgent requests that never cease to come do keep others
waiting. A waiting request preempts nobody; it goes first when there is room.

A step may be planned while the one before still runs: a placeholder stands for a token that is not known yet. What is
known of a sequence without its tokens is acted on at once: one that has reached ``max_tokens`` gives its memory back
before the next step is planned. A stop token ends its sequence one step late: the step that was planned meanwhile
computes one token more, and what it samples is dropped.
"""

from bisect import bisect, insort
from collections import deque
from collections.abc import Iterable, Iterator
from operator import attrgetter

from pbench.engine.beam_search import Hypothesis
from pbench.engine.candidate import ScoredToken
from pbench.engine.draft import Expected, StepCounts, StepDraft
from pbench.engine.memory import KVMemory, Swapping
from pbench.engine.plan import Choice, StepPlan, Swaps
from pbench.engine.records import FinishReason, RequestRecord, TokenOutput
from pbench.engine.request import Request
from pbench.engine.sequence import RequestState, Sequence
from pbench.engine.text_stream import Decode, TextStream

_RANK = attrgetter("rank")


class Scheduler:
    """Owns the waiting and the running requests; the memory owns what they hold."""

    def __init__(
        self,
        memory: KVMemory,
        *,
        max_batch_tokens: int,
        max_running: int,
        is_prefill_chunked: bool = True,
        swapping: Swapping | None = None,
        slot_bytes: int = 1,
        decode: Decode | None = None,
    ) -> None:
        self.memory = memory
        self.swapping = swapping  # the memory, if preempted requests may be swapped out
        self.is_swapping = swapping is not None  # and whether they are
        self.slot_bytes = slot_bytes
        self.decode = decode  # token ids to text, where text is wanted at all
        self.max_batch_tokens = max_batch_tokens
        self.max_running = max_running
        self.is_prefill_chunked = is_prefill_chunked
        self.waiting: deque[RequestState] = deque()
        self.running: list[RequestState] = []  # by rank, as those that wait
        self.ending: list[RequestState] = []  # all that they want is planned; their last tokens are not known yet
        self._in_flight: deque[StepDraft] = deque()  # of steps that are planned and not completed
        self._counts = StepCounts()  # of the step being planned
        self._next_seq_id = 0
        self._num_added = 0
        self._num_steps = 0
        self._released: list[int] = []
        self.can_plan_ahead = True  # whether the next step may be planned before the newest has run

    @property
    def head(self) -> Sequence | None:
        """The sequence that waits first."""
        return self.waiting[0].unfinished[0] if self.waiting else None

    @property
    def has_requests(self) -> bool:
        """Whether a request waits or runs: something may be left to plan."""
        return bool(self.waiting or self.running)

    def states(self) -> list[RequestState]:
        """All requests that are here."""
        return [*self.ending, *self.running, *self.waiting]

    def add(self, request: Request, added_ns: int) -> None:
        """Put a request into the queue, behind those of its priority."""
        sequences = []
        for sample_index in range(1 if request.sampling.beam_width > 1 else request.sampling.n):
            text = None if request.sampling.beam_width > 1 else self._text_stream(request)
            sequences.append(Sequence(self._next_seq_id, request, sample_index, text))
            self._next_seq_id += 1
        state = RequestState(request, sequences, added_ns, self._num_added)
        self._num_added += 1
        state.start_again(can_fork=self.memory.can_fork)
        self._enqueue(state)

    def _enqueue(self, state: RequestState) -> None:
        waiting = self.waiting
        if not waiting or waiting[-1].rank < state.rank:  # always, without priorities, but for preempted ones
            waiting.append(state)
        else:
            waiting.insert(bisect(waiting, state.rank, key=_RANK), state)

    def _text_stream(self, request: Request) -> TextStream | None:
        if self.decode is None or not request.sampling.detokenize:
            return None
        return TextStream(self.decode, request.sampling.stop)

    def reset(self) -> int:
        """Start counting steps anew, and return how many there were. Nothing may wait or run."""
        assert not self.states(), "reset with unfinished requests"
        assert not self._in_flight, "reset while a step runs"
        num_steps, self._num_steps = self._num_steps, 0
        return num_steps

    def abort(self, request_id: int) -> RequestState | None:
        """Drop a request wherever it stands, and free what it holds; None when it is not here."""
        for state in self.states():
            if state.request_id == request_id:
                for seq in list(state.unfinished):
                    self._end(state, seq)
                for seq in state.sequences:  # those that ended but for their last tokens
                    seq.is_open = False
                self.ending.remove(state)
                return state
        return None

    def schedule(self, start_ns: int) -> tuple[StepPlan, StepCounts] | None:
        """Plan the next step, also while the one before runs. There must be a request; each alone fits the memory.

        None: nothing can be planned before the step that runs is complete. Without one there is always a plan.
        """
        self.memory.tick(start_ns)
        if self._in_flight:
            self._retire_final(self._in_flight[-1].final)
        counts = self._counts
        draft = StepDraft(self.memory, counts)
        budget = self._schedule_running(draft)
        if counts.num_preempted == 0 or draft.is_empty:  # alone and preempted: it starts again in the empty pool
            self._admit_waiting(draft, budget, start_ns)
        if draft.is_empty:
            assert self._in_flight, "a step without work: the first request does not fit the memory alone"
            return None
        moves, copies = self.memory.take_moves(), self.memory.take_copies()
        swaps = self.swapping.take_swaps() if self.swapping is not None else Swaps([], [])
        plan = StepPlan(
            step=self._num_steps,
            sequences=draft.close(),
            num_decodes=len(draft.decodes),
            num_samples=len(draft.expected),
            is_greedy=draft.is_greedy,
            has_one_each=draft.has_one_each,
            moves=moves,
            copies=copies,
            swaps=swaps,
            released=self._released,
        )
        self._num_steps += 1
        self._released = []
        self._in_flight.append(draft)
        self.can_plan_ahead = not draft.has_beams  # which beams live on is not known before
        counts.num_running, counts.num_waiting = len(self.running), len(self.waiting)
        self._counts = StepCounts()
        return plan, counts

    def complete(self, choices: Iterable[Choice], now_ns: int) -> tuple[list[TokenOutput], list[RequestRecord]]:
        """Take what the oldest step that runs has chosen, in the order of its samples.

        What was chosen for sequences that are gone is dropped. Returns the tokens given out, and who has ended.
        """
        self.memory.tick(now_ns)
        tokens: list[TokenOutput] = []
        touched: dict[int, RequestState] = {}  # requests that may end now
        give_out, new = tokens.append, tuple.__new__  # what making a named tuple ends in
        for (state, seq, position), choice in zip(self._in_flight.popleft().expected, choices, strict=True):
            if not seq.is_open:
                continue
            if state.first_token_ns is None:
                state.first_token_ns = now_ns
            score: ScoredToken | None = None
            if choice.__class__ is not int:
                if isinstance(choice, list):
                    state.beam_rows[seq.seq_id] = choice
                    touched[state.request_id] = state
                    continue
                assert isinstance(choice, ScoredToken)
                score = choice
                choice = score.token_id
            seq.token_ids[position] = choice
            seq.num_pending_tokens -= 1
            state.num_output_tokens += 1
            reason: FinishReason | None = None
            if position == seq.final_kv_tokens or choice in seq.stop_token_ids:
                reason = "stop" if choice in seq.stop_token_ids else "length"
            text = ""
            if seq.text is not None:
                text, reason = seq.text.advance(choice, reason)
            give_out(new(TokenOutput, (state.request_id, seq.sample_index, choice, text, score, reason)))
            if reason is not None:
                self._end(state, seq)
                touched[state.request_id] = state
            elif position + 1 == seq.num_computed_tokens == seq.num_writable_tokens:
                self.memory.commit(seq)  # it fills a block, as was planned when it was not known
        finished: list[RequestState] = []
        for state in touched.values():
            if len(state.beam_rows) == len(state.unfinished) > 0:
                tokens += self._advance_beams(state)
            if not state.num_open_sequences:
                finished.append(state)
                self.ending.remove(state)
        return tokens, [self.record(state, "finished", now_ns) for state in finished]

    def record(self, state: RequestState, status: str, now_ns: int) -> RequestRecord:
        """The record of a request that leaves, or of one that is still here."""
        return RequestRecord(
            request_id=state.request_id,
            status=status,
            arrival_ns=state.request.arrival_ns,
            added_ns=state.added_ns,
            first_scheduled_ns=state.first_scheduled_ns,
            first_token_ns=state.first_token_ns,
            finished_ns=now_ns,
            num_prompt_tokens=len(state.request.prompt_token_ids),
            num_output_tokens=state.num_output_tokens,
            num_sequences=state.request.sampling.num_sequences,
            num_prefix_hit_tokens=state.num_prefix_hit_tokens,
            num_recomputed_tokens=state.num_recomputed_tokens,
            num_preemptions=state.num_preemptions,
            kv_byte_seconds=state.kv_slot_ns * self.slot_bytes / 1e9,
        )

    # Planning

    def _schedule_running(self, draft: StepDraft) -> int:
        """Plan the running requests, preempting the last in rank while there is no room. Returns the budget left."""
        budget, counts = self.max_batch_tokens, draft.counts
        index = 0
        while index < len(self.running) and budget > 0:
            num_taken = draft.take_steady(self.running, index, budget)
            index, budget = index + num_taken, budget - num_taken
            if index == len(self.running) or budget == 0:
                break
            state = self.running[index]
            index += 1
            while (work := self._grow(draft, state, budget)) is None:
                counts.is_memory_blocked = True
                counts.num_preempted += 1
                if self._preempt_last() is state:
                    return budget
            for seq, num_tokens in work:
                draft.take(state, seq, num_tokens)
                budget -= num_tokens
        return budget

    def _admit_waiting(self, draft: StepDraft, budget: int, start_ns: int) -> None:
        if not self.waiting:
            return
        counts = draft.counts
        num_sequences = sum(map(_num_sequences, self.running))
        self.memory.foresee(state.active for state in self.waiting)
        while self.waiting and budget > 0:
            state = self.waiting[0]
            if any(seq.num_pending_tokens for seq in state.unfinished):
                return  # preempted in this very step; it cannot start again before its tokens are known
            num_new = _num_sequences(state)
            if num_sequences + num_new > self.max_running:
                return
            num_hits = self._admit(state, num_sequences)
            if num_hits is None:
                counts.is_memory_blocked = True
                return
            work = self._grow(draft, state, budget)
            if not work:  # the prompt is not to be split and the budget of this step is too small, or no room after all
                counts.is_memory_blocked |= work is None
                self._free(state)
                return
            if state.num_preemptions == 0:
                state.num_prefix_hit_tokens = num_hits
                counts.num_prefix_hit_tokens += num_hits
                state.first_scheduled_ns = start_ns
            self.waiting.popleft()
            insort(self.running, state, key=_RANK)
            for seq, num_tokens in work:
                draft.take(state, seq, num_tokens)
                budget -= num_tokens
            num_sequences += num_new

    def _admit(self, state: RequestState, num_running: int) -> int | None:
        """Admit the leader, or every sequence where the memory cannot fork. Returns the tokens hit, or None."""
        if state.is_swapped:
            assert self.swapping is not None
            if not self.swapping.swap_in(state.active, num_running):
                return None
            state.is_swapped = False
            return 0
        num_hits = 0
        for seq in state.active:
            num_tokens = seq.num_tokens if state.is_forked else seq.num_prompt_tokens
            hits = self.memory.admit(seq, num_tokens, num_running)
            if hits is None:
                self._free(state)
                return None
            seq.num_computed_tokens = hits
            num_hits += hits
        return num_hits

    def _grow(self, draft: StepDraft, state: RequestState, budget: int) -> list[tuple[Sequence, int]] | None:
        """Make room for what the request computes in this step: its sequences, and how many tokens each.

        None when the memory has no room; some of its sequences may have grown then, so it must be grown again or
        freed before the step is planned.
        """
        work: list[tuple[Sequence, int]] = []
        for seq in state.active:
            # Before the fork only the prompt, which all share.
            end = len(seq.token_ids) if state.is_forked else seq.num_prompt_tokens
            num_tokens = end - seq.num_computed_tokens
            if num_tokens == 0:
                continue  # a beam that waits for the others
            if num_tokens > budget:
                if budget == 0 or not self.is_prefill_chunked:
                    break
                num_tokens = budget
            if not draft.make_room(seq, num_tokens):
                return None
            work.append((seq, num_tokens))
            budget -= num_tokens
        return work

    def _advance_beams(self, state: RequestState) -> list[TokenOutput]:
        """Let every beam of a request take its next token; returns the tokens of the best hypotheses at its end.

        The first continuation of a beam goes on as its sequence, further ones fork from it, and beams without any
        are freed.
        """
        assert state.beam_search is not None
        parents = list(state.unfinished)
        rows = [state.beam_rows[seq.seq_id] for seq in parents]
        state.beam_rows.clear()
        extensions = state.beam_search.advance(rows, [seq.token_ids[seq.num_prompt_tokens :] for seq in parents])
        beams: list[Sequence] = []
        for extension in extensions:
            beam = parents[extension.beam]
            beams.append(self._fork_beam(state, beam) if beam in beams else beam)
        for seq in parents:
            if seq not in beams:
                self._end(state, seq)
        for seq, extension in zip(beams, extensions, strict=True):
            seq.token_ids.append(extension.token_id)
        state.unfinished[:] = beams
        if beams:
            return []
        best = state.beam_search.hypotheses[: state.request.sampling.n]
        state.num_output_tokens = sum(len(hypothesis.token_ids) for hypothesis in best)
        return [token for rank, hypothesis in enumerate(best) for token in self._tell(state, rank, hypothesis)]

    def _tell(self, state: RequestState, rank: int, hypothesis: Hypothesis) -> Iterator[TokenOutput]:
        request_id, stream = state.request_id, self._text_stream(state.request)
        *others, last = hypothesis.token_ids
        for token_id in others:
            yield TokenOutput(request_id, rank, token_id, "" if stream is None else stream.feed(token_id))
        text = ""
        reason: FinishReason = "stop" if last in state.request.sampling.stop_token_ids else "length"
        if stream is not None:
            text, _ = stream.advance(last, reason)
        yield TokenOutput(request_id, rank, last, text, None, reason)

    def _fork_beam(self, state: RequestState, parent: Sequence) -> Sequence:
        child = Sequence(self._next_seq_id, state.request)
        self._next_seq_id += 1
        state.num_open_sequences += 1
        self.memory.fork(parent, child)
        parent.num_writable_tokens = 0
        child.token_ids = parent.token_ids[:]
        child.num_computed_tokens = parent.num_computed_tokens
        child.max_computed_tokens = parent.max_computed_tokens
        return child

    # Giving back

    def _retire_final(self, final: list[Expected]) -> None:
        """Retire the sequences whose last token the newest plan samples."""
        for state, seq, _ in final:
            if seq.is_open:
                self._retire(state, seq)

    def _preempt_last(self) -> RequestState:
        """Take everything from the last running request in rank and put it back into the queue."""
        state = self.running.pop()
        if not self._swap_out(state):
            self._free(state)
        state.num_preemptions += 1
        self._enqueue(state)
        return state

    def _swap_out(self, state: RequestState) -> bool:
        """Swap a request out, if that is wanted and host memory has room for it."""
        if self.swapping is None or not self.is_swapping or not self.swapping.swap_out(state.active):
            return False
        state.is_swapped = True
        for seq in state.active:
            state.kv_slot_ns += self.memory.take_cost(seq)
            self._forget(state, seq)
        return True

    def _free(self, state: RequestState) -> None:
        """Free whatever the sequences of a request hold, and let it start again."""
        for seq in state.unfinished:
            self._release(state, seq)
        state.is_swapped = False
        state.beam_rows.clear()
        state.start_again(can_fork=self.memory.can_fork)

    def _end(self, state: RequestState, seq: Sequence) -> None:
        """Let a sequence leave for good: it gives out no further token."""
        if seq in state.unfinished:
            self._retire(state, seq)
        seq.is_open = False
        state.num_open_sequences -= 1

    def _retire(self, state: RequestState, seq: Sequence) -> None:
        """Plan a sequence no more, and free what it holds; with the last sequence the request stops running."""
        state.unfinished.remove(seq)
        self._release(state, seq)
        is_running = state in self.running
        if not state.unfinished:
            (self.running if is_running else self.waiting).remove(state)
            self.ending.append(state)
        elif not is_running and not state.is_swapped:
            state.start_again(can_fork=self.memory.can_fork)  # without it, perhaps with another leader

    def _release(self, state: RequestState, seq: Sequence) -> None:
        if self.memory.holds(seq):
            self.memory.free(seq)
            state.kv_slot_ns += self.memory.take_cost(seq)
        self._forget(state, seq)
        seq.num_computed_tokens = 0

    def _forget(self, state: RequestState, seq: Sequence) -> None:
        """Let the runner forget the sequence: if it comes again, then with all that the runner must know of it."""
        state.steady = None
        self._released.append(seq.seq_id)
        seq.num_writable_tokens = seq.num_table_entries_sent = 0
        seq.is_history_sent = False


def _num_sequences(state: RequestState) -> int:
    """Sequences that the request may have at once, from now on."""
    return len(state.unfinished) if state.beam_search is None else state.beam_search.width
