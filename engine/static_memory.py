"""StaticMemory: padded batches that are filled once and run until the last of their sequences has ended."""

from collections.abc import Iterable
from dataclasses import replace

from pbench.engine.contiguous_memory import ContiguousMemory, Extent
from pbench.engine.pool_map import HeldExtent
from pbench.engine.records import KVUsage
from pbench.engine.reservation import ReserveFinal
from pbench.engine.sequence import Sequence


class StaticMemory(ContiguousMemory):
    """A ``KVMemory`` that takes sequences in by whole batches, as a loop around a plain ``generate`` does.

    When the pool is empty, as many waiting requests as fit make a batch, first come, first served. All its sequences
    get an extent of the same length: the longest prompt and the longest output among them. Nothing else is admitted
    until all of them have ended, and what has ended keeps its extent until then: padding and ended sequences are
    internal waste.

    Not modelled: padding takes slots but is neither computed nor read, and a sequence that has ended takes no further
    part in the steps, where ``generate`` goes on computing both. Prompts are computed in chunks within the budget of
    a step. So the speed of this baseline is an upper bound of what static batches reach; its memory is theirs.
    """

    def __init__(self, num_slots: int, max_sequences: int) -> None:
        super().__init__(num_slots, ReserveFinal())
        self.max_sequences = max_sequences

    def reset(self) -> None:
        """See ``KVMemory.reset``."""
        super().reset()
        self._batch: dict[int, Extent] = {}  # by seq_id; all have their extents until the last has ended
        self._pending: dict[int, Sequence] = {}  # those of the batch that were not admitted yet

    def foresee(self, waiting: Iterable[list[Sequence]]) -> None:
        """See ``KVMemory.foresee``: forms the next batch when the last one is through."""
        requests = iter(waiting)
        first = next(requests, None)
        if self._extents or first is None:
            return
        self._close_batch()
        members = list(first)
        length, longest_prompt, longest_output = _padded(0, 0, first[0])
        for sequences in requests:
            count = len(members) + len(sequences)
            longer, prompt, output = _padded(longest_prompt, longest_output, sequences[0])
            if count > self.max_sequences or count * longer > self.num_slots:
                break
            members += sequences
            length, longest_prompt, longest_output = longer, prompt, output
        for seq in members:
            start = self._allocator.allocate(length)
            assert start is not None, f"a request of {len(first)} x {length} slots does not fit the pool alone"
            self._batch[seq.seq_id] = Extent(seq, start, length, self._now_ns)
            self._pending[seq.seq_id] = seq

    def admit(self, seq: Sequence, num_tokens: int, num_running: int) -> int | None:
        """See ``KVMemory.admit``: only what belongs to the batch."""
        del num_tokens, num_running
        assert seq.seq_id not in self._extents, f"sequence {seq.seq_id} is admitted twice"
        if self._pending.pop(seq.seq_id, None) is None:
            return None
        self._extents[seq.seq_id] = self._batch[seq.seq_id]
        return 0

    def free(self, seq: Sequence) -> None:
        """See ``KVMemory.free``. The extent is given back with the whole batch; the sequence pays up to its own end."""
        self._pay(self._extents.pop(seq.seq_id))
        if seq.num_computed_tokens == 0:  # there was no room for it in the step: it comes again
            self._pending[seq.seq_id] = seq
        if not self._extents:
            self._close_batch()

    def usage(self, head: Sequence | None) -> KVUsage:
        """See ``KVMemory.usage``. No free slot is external: it is the batch that keeps others out, not their places."""
        del head
        usage = super().usage(None)
        num_pending = sum(seq.final_kv_tokens for seq in self._pending.values())
        return replace(usage, reserved=usage.reserved + num_pending, internal=usage.internal - num_pending)

    def check_integrity(self) -> None:
        """See ``KVMemory.check_integrity``."""
        super().check_integrity()
        assert self._pending.keys() <= self._batch.keys(), "a sequence is to be admitted and has no extent"
        for seq_id, extent in self._extents.items():
            assert self._batch.get(seq_id) is extent, f"sequence {seq_id} runs outside the batch"

    def _close_batch(self) -> None:
        for extent in self._batch.values():
            self._allocator.free(extent.start, extent.length)
        self._batch.clear()
        self._pending.clear()

    def _mapped(self) -> list[HeldExtent]:
        others = (seq_id for seq_id in self._batch if seq_id not in self._extents)
        return [*super()._mapped(), *map(self._map_idle, others)]

    def _map_idle(self, seq_id: int) -> HeldExtent:
        """An extent whose sequence has ended, or was not admitted yet and will fill it."""
        extent = self._batch[seq_id]
        num_reserved = extent.seq.final_kv_tokens if seq_id in self._pending else 0
        return HeldExtent(extent.start, extent.length, extent.seq.request.request_id, 0, 0, num_reserved)

    def _held(self) -> list[tuple[int, int]]:
        return [(extent.start, extent.length) for extent in self._batch.values()]


def _padded(longest_prompt: int, longest_output: int, seq: Sequence) -> tuple[int, int, int]:
    """Slots of every sequence of a batch that ``seq`` joins, its longest prompt, and its longest output."""
    prompt = max(longest_prompt, seq.num_prompt_tokens)
    output = max(longest_output, seq.request.sampling.max_tokens)
    return prompt + output - 1, prompt, output
