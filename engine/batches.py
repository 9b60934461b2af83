"""Batches: a StepPlan becomes the tensors that the model and its attention read.

Everything of a step goes to the device in one transfer, wide integers, then narrow ones. Where each part lies there
depends on the layout alone: a CUDA graph that was captured for a layout serves every step that is staged in it.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pbench.engine.attention import Batch
from pbench.engine.config import EngineConfig
from pbench.engine.model_config import DTYPE_BYTES
from pbench.engine.plan import PlannedSequence, StepPlan
from pbench.engine.shared_runs import RunFinder, RunTiles, num_packed, pack_runs, run_limits, unpack_runs
from pbench.engine.transfers import Staging

Numbers: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


class Layout(NamedTuple):
    """How much of everything a batch has room for; a step may have less."""

    num_tokens: int
    num_decodes: int  # sequences with one token, the first of the batch
    num_prefills: int  # sequences with a ragged run of tokens
    width: int  # of the table
    has_shared: bool  # whether it says which runs of KV are shared

    @property
    def num_sequences(self) -> int:
        """Rows of the table."""
        return self.num_decodes + self.num_prefills

    @property
    def num_narrow(self) -> int:
        """Narrow integers: context_lens, query_start, table, shared runs."""
        num_numbers = self.num_sequences * (1 + self.width) + self.num_prefills + 1
        return num_numbers + (num_packed(self.num_decodes) if self.has_shared else 0)

    @property
    def num_staged(self) -> int:
        """Wide integers with room for all: token_ids, positions, slots and sources, then the narrow ones."""
        return 4 * self.num_tokens + -(-self.num_narrow // 2)


@dataclass(frozen=True, slots=True)
class StepRows:
    """The sequences of a step, and where they stand."""

    sequences: list[PlannedSequence]
    num_decodes: int
    num_tokens: int
    rows: Numbers  # int64 (num_sequences,): of the tables
    starts: Numbers  # int64 (num_sequences,)
    runs: RunTiles | None  # that decodes share

    @property
    def num_prefills(self) -> int:
        """Sequences that compute more than a token."""
        return len(self.sequences) - self.num_decodes


class Batches:
    """Keeps the tables that plans update, and stages one step after the other.

    Contiguous memory is the same pool with one block as large as itself: a table then has one entry, the base slot.
    """

    def __init__(self, config: EngineConfig, pool: Tensor) -> None:
        self._is_contiguous = config.memory != "paged"
        self._block_size = pool.shape[4]
        self.width = 1 if self._is_contiguous else -(-config.max_length // self._block_size)
        self._tables = np.zeros((config.max_running, self.width), dtype=np.int32)
        self._row_by_seq_id: dict[int, int] = {}
        self._free_rows = list(range(config.max_running - 1, -1, -1))
        # What the last step chose; then the token ids, positions, slots and sources of this one, and its narrow
        # integers. A source is where among these numbers a token stands: with the token ids, or with what was chosen.
        most = Layout(config.max_batch_tokens, config.max_running, config.max_running, self.width, has_shared=True)
        self._first_staged = config.max_running + config.max_running % 2  # at a multiple of 16 bytes
        num_numbers = self._first_staged + most.num_staged
        self._numbers = torch.zeros(num_numbers, dtype=torch.int64, device=pool.device)
        self.chosen, self._staged = self._numbers[: config.max_running], self._numbers[self._first_staged :]
        self._staging = Staging(self._staged)
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
        return self._numbers.nbytes

    def take(self, plan: StepPlan) -> StepRows:
        """Update the tables by a plan, and look up its sequences in them."""
        self._update_tables(plan)
        sequences, count, num_decodes = plan.sequences, len(plan.sequences), plan.num_decodes
        row_by_seq_id = self._row_by_seq_id
        rows = np.fromiter((row_by_seq_id[seq.seq_id] for seq in sequences), np.int64, count)
        starts = np.fromiter((seq.start for seq in sequences), np.int64, count)
        num_tokens = num_decodes + sum(len(seq.token_ids) for seq in sequences[num_decodes:])
        runs = None
        if self._run_finder is not None and num_decodes > 1:
            runs = self._run_finder.find(self._tables, rows[:num_decodes], starts[:num_decodes])
        return StepRows(sequences, num_decodes, num_tokens, rows, starts, runs)

    def _update_tables(self, plan: StepPlan) -> None:
        has_new_prefix = bool(plan.released)
        for seq_id in plan.released:
            row = self._row_by_seq_id.pop(seq_id, None)
            if row is not None:
                self._free_rows.append(row)
        for seq in plan.sequences:
            if seq.seq_id not in self._row_by_seq_id:
                self._row_by_seq_id[seq.seq_id] = self._free_rows.pop()
            if seq.table_entries:
                row = self._row_by_seq_id[seq.seq_id]
                self._tables[row, seq.table_start : seq.table_start + len(seq.table_entries)] = seq.table_entries
                has_new_prefix |= seq.table_start < seq.start // self._block_size
        if has_new_prefix and self._run_finder is not None:
            self._run_finder.forget()

    def layout_of(self, step: StepRows) -> Layout:
        """The smallest layout for a step."""
        num_entries = 1
        if not self._is_contiguous:
            lengths = (start + len(seq.token_ids) for start, seq in zip(step.starts, step.sequences, strict=True))
            num_entries = -(-int(max(lengths)) // self._block_size)
        return Layout(step.num_tokens, step.num_decodes, step.num_prefills, num_entries, step.runs is not None)

    def stage(self, step: StepRows, layout: Layout) -> None:
        """Upload a step, padded to ``layout`` by tokens and sequences that read and write nothing."""
        num_decodes, num_prefills, num_tokens = step.num_decodes, step.num_prefills, step.num_tokens
        rows, starts = step.rows, step.starts
        host = self._staging.host(layout.num_staged)
        wide = host[: 4 * layout.num_tokens].reshape(4, layout.num_tokens)
        token_ids, positions, slots, sources = wide
        context_lens, query_start, table, packed = _split(host[wide.size :].view(np.int32), layout)
        wide[:2, num_tokens:] = 0
        slots[num_tokens:] = -1
        context_lens[:] = 0
        context_lens[:num_decodes] = starts[:num_decodes] + 1
        query_start[:] = num_tokens
        if num_prefills:
            lengths = np.fromiter((len(seq.token_ids) for seq in step.sequences), np.int64, len(rows))
            first_tokens = np.cumsum(lengths) - lengths
            token_ids[:num_tokens] = np.fromiter(
                chain.from_iterable(seq.token_ids for seq in step.sequences), np.int64, num_tokens
            )
            positions[:num_tokens] = np.arange(num_tokens) + np.repeat(starts - first_tokens, lengths)
            token_rows = np.repeat(rows, lengths)
            prefills = slice(layout.num_decodes, layout.num_decodes + num_prefills)
            context_lens[prefills] = (starts + lengths)[num_decodes:]
            query_start[:num_prefills] = first_tokens[num_decodes:]
        else:
            token_ids[:num_tokens] = [seq.token_ids[0] for seq in step.sequences]
            positions[:num_tokens] = starts
            token_rows = rows
        slots[:num_tokens] = self._slots(token_rows, positions[:num_tokens])
        in_place = np.arange(layout.num_tokens) + self._first_staged
        sources[:] = np.where(token_ids < 0, ~token_ids, in_place)  # see ``placeholder``
        table[:num_decodes] = self._tables[rows[:num_decodes], : layout.width]
        table[num_decodes : layout.num_decodes] = 0
        end = layout.num_decodes + num_prefills
        table[layout.num_decodes : end] = self._tables[rows[num_decodes:], : layout.width]
        table[end:] = 0
        if layout.has_shared:
            pack_runs(step.runs, packed, layout.num_decodes)
        self._staging.upload()

    def stage_nothing(self, layout: Layout) -> None:
        """Upload padding alone."""
        nobody = np.zeros(0, np.int64)
        self.stage(StepRows([], 0, 0, nobody, nobody, None), layout)

    def batch(self, layout: Layout) -> Batch:
        """What ``stage`` uploads, where it lies on the device."""
        wide = self._staged[: 4 * layout.num_tokens].view(4, layout.num_tokens)
        narrow = self._staged[4 * layout.num_tokens :].view(torch.int32)
        context_lens, query_start, table, packed = _split(narrow, layout)
        return Batch(
            token_ids=self._numbers.index_select(0, wide[3]),
            positions=wide[1],
            slots=wide[2],
            context_lens=context_lens,
            table=table,
            num_decodes=layout.num_decodes,
            query_start=query_start if layout.num_prefills else None,
            shared=unpack_runs(packed, layout.num_decodes) if layout.has_shared else None,
        )

    def _slots(self, rows: Numbers, positions: Numbers) -> Numbers:
        if self._is_contiguous:
            slots: Numbers = self._tables[rows, 0] + positions
        else:
            blocks = self._tables[rows, positions // self._block_size].astype(np.int64)
            slots = blocks * self._block_size + positions % self._block_size
        return slots


def _split(narrow: Any, layout: Layout) -> tuple[Any, Any, Any, Any]:
    """The parts of the narrow integers, of an array or of a tensor: context_lens, query_start, table, shared runs."""
    query_end = layout.num_sequences + layout.num_prefills + 1
    table_end = query_end + layout.num_sequences * layout.width
    table = narrow[query_end:table_end].reshape(layout.num_sequences, layout.width)
    return narrow[: layout.num_sequences], narrow[layout.num_sequences : query_end], table, narrow[table_end:]
