"""StaticMemory: padded batches that are filled once and run until the last of their sequences has ended."""

from collections.abc import Iterable

from pbench.engine.contiguous_memory import ContiguousMemory, Extent
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
        self._batch: dict[int, Extent] = {}  # by seq_id; each has an extent until all have ended

    def foresee(self, waiting: Iterable[list[Sequence]]) -> None:
        """See ``KVMemory.foresee``: forms the next batch when the last one is through."""
        requests = iter(waiting)
        first = next(requests, None)
        if self._extents or first is None or first[0].seq_id in self._batch:
            return
        self._close_batch()
        members = list(first)
        longest_prompt, longest_output = _lengths(first)
        for sequences in requests:
            prompt, output = (max(pair) for pair in zip((longest_prompt, longest_output), _lengths(sequences), strict=True))
            count = len(members) + len(sequences)
            if count > self.max_sequences or count * (prompt + output - 1) > self.num_slots:
                break
            members += sequences
            longest_prompt, longest_output = prompt, output
        length = longest_prompt + longest_output - 1
        for seq in members:
            start = self._allocator.allocate(length)
            assert start is not None, f"a request of {len(first)} x {length} slots does not fit the pool alone"
            self._batch[seq.seq_id] = Extent(seq, start, length)

    def admit(self, seq: Sequence, num_tokens: int, num_running: int) -> int | None:
        """See ``KVMemory.admit``: only what belongs to the batch."""
        del num_tokens, num_running
        assert seq.seq_id not in self._extents, f"sequence {seq.seq_id} is admitted twice"
        extent = self._batch.get(seq.seq_id)
        if extent is None:
            return None
        self._extents[seq.seq_id] = extent
        return 0

    def free(self, seq: Sequence) -> None:
        """See ``KVMemory.free``. The extent is given back with the whole batch."""
        del self._extents[seq.seq_id]
        if not self._extents:
            self._close_batch()

    def usage(self, head: Sequence | None) -> KVUsage:
        """See ``KVMemory.usage``. No free slot is external: it is the batch that keeps others out, not their places."""
        del head
        return super().usage(None)

    def _close_batch(self) -> None:
        for extent in self._batch.values():
            self._allocator.free(extent.start, extent.length)
        self._batch.clear()

    def _held(self) -> list[tuple[int, int]]:
        return [(extent.start, extent.length) for extent in self._batch.values()]


def _lengths(sequences: list[Sequence]) -> tuple[int, int]:
    """Prompt and output tokens of a request's sequences."""
    seq = sequences[0]
    return seq.num_prompt_tokens, seq.request.sampling.max_tokens
