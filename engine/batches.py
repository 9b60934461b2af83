"""Batches: a StepPlan becomes the tensors that the model and its attention read.

Everything of a step goes to the device together: wide integers, narrow ones, then new entries of tables, which
stay on the device. Where each part lies there depends on the layout alone: a CUDA graph that was captured for a layout
serves every step that is staged in it.
"""

from dataclasses import dataclass
from itertools import chain, compress
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pbench.engine.attention import Batch
from pbench.engine.config import EngineConfig
from pbench.engine.model_config import DTYPE_BYTES
from pbench.engine.plan import StepPlan
from pbench.engine.shared_runs import RunFinder, RunTiles, num_packed, pack_runs, run_limits, unpack_runs
from pbench.engine.transfers import Readback, ReadbackPlaces, Staging
from pbench.kernels.update_tables import update_tables

Numbers: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


class Layout(NamedTuple):
    """How much of everything a batch has room for; a step may have less."""

    num_tokens: int
    num_decodes: int  # sequences with one token, the first of the batch
    num_prefills: int  # sequences with a ragged run of tokens
    width: int  # of the table
    has_shared: bool  # whether it says which runs of KV are shared
    is_greedy: bool = False  # whether each decode takes its most likely token, and nothing else is asked for

    @property
    def num_sequences(self) -> int:
        """Rows of the table."""
        return self.num_decodes + self.num_prefills

    @property
    def keeps_last_tokens(self) -> bool:
        """Whether a captured step computes the hidden states of each sequence's last token alone: with long prompts."""
        return self.num_tokens > self.num_sequences

    @property
    def num_narrow(self) -> int:
        """Narrow integers: context_lens, rows, change_starts, change_ends, query_start, is_kv_settled, shared runs."""
        num_numbers = 4 * self.num_sequences + self.num_prefills + 2
        return num_numbers + (num_packed(self.num_decodes) if self.has_shared else 0)

    def num_staged(self, num_entries: int) -> int:
        """Wide integers with room for token_ids, positions, slots and sources, the narrow ones, and new entries."""
        return 4 * self.num_tokens + -(-(self.num_narrow + num_entries) // 2)


@dataclass(slots=True)
class StepRows:
    """The sequences of a step, and where they stand."""

    num_decodes: int
    token_ids: Numbers  # int32 (num_tokens,), of all sequences, one after the other
    lengths: Numbers  # int64 (num_sequences,): how many of them each has
    rows: Numbers  # int64 (num_sequences,): of the tables
    starts: Numbers  # int64 (num_sequences,)
    changed: list[int]  # sequences with new entries in their tables ...
    change_starts: list[int]  # ... from these on ...
    entries: list[list[int]]  # ... and which
    runs: RunTiles | None  # that decodes share
    is_kv_settled: bool  # see Batch

    @property
    def num_tokens(self) -> int:
        """Of all sequences."""
        return len(self.token_ids)

    @property
    def num_prefills(self) -> int:
        """Sequences that compute more than a token."""
        return len(self.rows) - self.num_decodes


class Batches:
    """Keeps the tables that plans update, on both sides, and stages one step after the other.

    Contiguous memory is the same pool with one block as large as itself: a table then has one entry, the base slot.
    """

    def __init__(self, config: EngineConfig, pool: Tensor) -> None:
        self._is_contiguous = config.memory != "paged"
        self._block_size = pool.shape[4]
        self.width = 1 if self._is_contiguous else -(-config.max_length // self._block_size)
        self._tables = np.zeros((config.max_running, self.width), dtype=np.int32)
        self._row_by_seq_id: dict[int, int] = {}
        self._free_rows = list(range(config.max_running - 1, -1, -1))
        self._last_seq_ids: tuple[int, ...] = ()
        self._last_rows: Numbers = np.zeros(0, np.int64)  # theirs
        # What the last step chose; then the token ids, positions, slots and sources of this one, and its narrow
        # integers. A source is where among these numbers a token stands: with the token ids, or with what was chosen.
        most = Layout(config.max_batch_tokens, config.max_running, config.max_running, self.width, has_shared=True)
        self._first_staged = config.max_running + config.max_running % 2  # at a multiple of 16 bytes
        num_numbers = self._first_staged + most.num_staged(num_entries=self._tables.size)
        self._numbers = torch.zeros(num_numbers, dtype=torch.int64, device=pool.device)
        self.chosen, self._staged = self._numbers[: config.max_running], self._numbers[self._first_staged :]
        self._staging = Staging(self._staged)
        self._chosen_places = ReadbackPlaces(self.chosen)
        self._in_place = np.arange(config.max_batch_tokens) + self._first_staged
        # The tables of all sequences, and those of the step that runs. No entry of the latter lies outside the pool.
        self._device_tables = torch.zeros(self._tables.shape, dtype=torch.int32, device=pool.device)
        self._step_tables = self._device_tables.new_zeros(most.num_sequences * self.width)
        self._run_finder: RunFinder | None = None
        has_prefixes = not self._is_contiguous and config.is_prefix_cached and None in config.windows
        if pool.is_cuda and has_prefixes and not config.is_batch_invariant:
            limits = run_limits(pool[0], config.model.num_heads, DTYPE_BYTES[config.dtype])
            self._run_finder = RunFinder(self._block_size, limits) if limits is not None else None

    @property
    def can_share(self) -> bool:
        """Whether a step may have shared runs: elsewhere no kernel attends to them together, or nothing is shared."""
        return self._run_finder is not None

    @property
    def num_bytes(self) -> int:
        """Held on the device."""
        return self._numbers.nbytes + self._device_tables.nbytes + self._step_tables.nbytes

    def take(self, plan: StepPlan) -> StepRows:
        """Update the tables by a plan, and look up its sequences in them."""
        row_by_seq_id = self._row_by_seq_id
        seq_ids, start_column, tokens, change_starts, entries, _ = zip(*plan.sequences, strict=True)
        changed = list(compress(range(len(entries)), entries))
        starts, num_decodes = np.fromiter(start_column, np.int64, len(start_column)), plan.num_decodes
        lengths = np.ones(len(starts), np.int64)
        if num_decodes < len(starts):
            lengths[num_decodes:] = list(map(len, tokens[num_decodes:]))
        has_new_prefix, is_kv_settled = bool(plan.released), True
        for seq_id in plan.released:
            row = row_by_seq_id.pop(seq_id, None)
            if row is not None:
                self._free_rows.append(row)
        for i in changed:  # among them every sequence that has no row yet
            seq_id, first, new_entries = seq_ids[i], change_starts[i], entries[i]
            if seq_id not in row_by_seq_id:
                row_by_seq_id[seq_id] = self._free_rows.pop()
            self._tables[row_by_seq_id[seq_id], first : first + len(new_entries)] = new_entries
            has_new_prefix |= first < start_column[i] // self._block_size
            # One that was just taken in may have found in the prefix cache what others compute in this step. What a
            # table says since an earlier step was written by then: whoever writes into a block is alone in it.
            is_kv_settled &= i >= num_decodes or first * self._block_size >= start_column[i]
        if seq_ids != self._last_seq_ids or has_new_prefix:
            self._last_seq_ids = seq_ids
            self._last_rows = np.array([row_by_seq_id[seq_id] for seq_id in seq_ids], np.int64)
        rows = self._last_rows
        runs = None
        if self._run_finder is not None:
            if has_new_prefix:
                self._run_finder.forget()
            if num_decodes > 1:
                runs = self._run_finder.find(self._tables, rows[:num_decodes], starts[:num_decodes])
        return StepRows(
            num_decodes=num_decodes,
            token_ids=np.frombuffer(b"".join(tokens), np.int32),
            lengths=lengths,
            rows=rows,
            starts=starts,
            changed=changed,
            change_starts=[change_starts[i] for i in changed],
            entries=[entries[i] for i in changed],
            runs=runs,
            is_kv_settled=is_kv_settled,
        )

    def layout_of(self, step: StepRows) -> Layout:
        """The smallest layout for a step."""
        num_entries = self._num_entries(int((step.starts + step.lengths).max()))
        return Layout(step.num_tokens, step.num_decodes, step.num_prefills, num_entries, step.runs is not None)

    def layout_of_prompt(self, length: int) -> Layout:
        """That of a step with nothing else in it."""
        return Layout(length, 0, 1, self._num_entries(length), has_shared=False)

    def stage(self, step: StepRows, layout: Layout) -> None:
        """Upload a step, padded to ``layout`` by tokens and sequences that read and write nothing."""
        num_decodes, num_prefills, num_tokens = step.num_decodes, step.num_prefills, step.num_tokens
        rows, starts, lengths = step.rows, step.starts, step.lengths
        new_entries = list(chain.from_iterable(step.entries))
        num_staged = layout.num_staged(len(new_entries))
        host = self._staging.host(num_staged)
        wide = host[: 4 * layout.num_tokens].reshape(4, layout.num_tokens)
        token_ids, positions, slots, sources = wide
        parts = _split(host[wide.size :].view(np.int32), layout)
        wide[:2, num_tokens:] = 0
        slots[num_tokens:] = -1
        token_ids[:num_tokens] = step.token_ids
        parts.per_sequence[:] = 0
        parts.query_start[:] = num_tokens
        parts.is_kv_settled[:] = step.is_kv_settled
        if num_prefills:
            first_tokens = np.cumsum(lengths) - lengths
            positions[:num_tokens] = np.arange(num_tokens) + np.repeat(starts - first_tokens, lengths)
            token_rows = np.repeat(rows, lengths)
            parts.query_start[:num_prefills] = first_tokens[num_decodes:]
        else:
            positions[:num_tokens] = starts
            token_rows = rows
        slots[:num_tokens] = self._slots(token_rows, positions[:num_tokens])
        sources[:] = np.where(token_ids < 0, ~token_ids, self._in_place[: layout.num_tokens])  # see ``placeholder``
        for kind, first in ((slice(num_decodes), 0), (slice(num_decodes, len(rows)), layout.num_decodes)):
            columns = slice(first, first + len(rows[kind]))
            parts.context_lens[columns] = starts[kind] + lengths[kind]
            parts.rows[columns] = rows[kind]
        if new_entries:
            places = [i if i < num_decodes else i - num_decodes + layout.num_decodes for i in step.changed]
            parts.change_starts[places] = step.change_starts
            parts.change_ends[places] = list(map(len, step.entries))
            np.cumsum(parts.change_ends, dtype=np.int32, out=parts.change_ends)
            parts.entries[: len(new_entries)] = new_entries
        if layout.has_shared:
            pack_runs(step.runs, parts.packed_runs, layout.num_decodes)
        self._staging.upload(num_staged)

    def stage_nothing(self, layout: Layout) -> None:
        """Upload padding alone."""
        nobody = np.zeros(0, np.int64)
        self.stage(StepRows(0, nobody, nobody, nobody, nobody, [], [], [], None, is_kv_settled=True), layout)

    def clear(self) -> None:
        """Zero what is on the device: a first token at the first position, wherever a layout finds them."""
        self._numbers.zero_()

    def batch(self, layout: Layout) -> Batch:
        """What was staged, where it lies on the device, once its tables are put together: queue that here."""
        wide = self._staged[: 4 * layout.num_tokens].view(4, layout.num_tokens)
        parts = _split(self._staged[4 * layout.num_tokens :].view(torch.int32), layout)
        table = self._step_tables[: layout.num_sequences * layout.width].view(-1, layout.width)
        changes = parts.change_starts, parts.change_ends, parts.entries
        update_tables(self._device_tables, parts.rows, parts.context_lens, *changes, self._block_size, table)
        return Batch(
            token_ids=self._numbers.index_select(0, wide[3]),
            positions=wide[1],
            slots=wide[2],
            context_lens=parts.context_lens,
            table=table,
            num_decodes=layout.num_decodes,
            query_start=parts.query_start if layout.num_prefills else None,
            is_kv_settled=parts.is_kv_settled,
            shared=unpack_runs(parts.packed_runs, layout.num_decodes) if layout.has_shared else None,
        )

    def read_back(self, num_samples: int) -> Readback:
        """What a step has chosen, on its way to the host: call it once for each step, behind the choice."""
        return self._chosen_places.read(num_samples)

    def _num_entries(self, context_len: int) -> int:
        return 1 if self._is_contiguous else -(-context_len // self._block_size)

    def _slots(self, rows: Numbers, positions: Numbers) -> Numbers:
        if self._is_contiguous:
            slots: Numbers = self._tables[rows, 0] + positions
        else:
            columns = positions // self._block_size
            slots = (self._tables[rows, columns] - columns) * self._block_size + positions
        return slots


class _Narrow(NamedTuple):
    """The parts of the narrow integers, of an array or of a tensor."""

    per_sequence: Any  # (4, num_sequences), which are:
    context_lens: Any
    rows: Any
    change_starts: Any
    change_ends: Any
    query_start: Any  # (num_prefills + 1,)
    is_kv_settled: Any  # (1,)
    packed_runs: Any
    entries: Any  # as many as there is room for


def _split(narrow: Any, layout: Layout) -> _Narrow:
    query_first = 4 * layout.num_sequences
    query_end = query_first + layout.num_prefills + 1
    per_sequence = narrow[:query_first].reshape(4, layout.num_sequences)
    context_lens, rows, change_starts, change_ends = per_sequence
    query_start, is_kv_settled = narrow[query_first:query_end], narrow[query_end : query_end + 1]
    return _Narrow(
        per_sequence,
        context_lens,
        rows,
        change_starts,
        change_ends,
        query_start,
        is_kv_settled,
        packed_runs=narrow[query_end + 1 : layout.num_narrow],
        entries=narrow[layout.num_narrow :],
    )
