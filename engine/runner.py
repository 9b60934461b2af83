"""Runner: carries a StepPlan out on the device. It holds the model, the pool, and the tables that plans update."""

import time
from itertools import chain
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from pbench.engine.attention import Batch, BatchAttention
from pbench.engine.config import EngineConfig
from pbench.engine.decode_graphs import DecodeGraphs
from pbench.engine.model import Model
from pbench.engine.plan import PlannedSequence, StepPlan, Swaps
from pbench.engine.sampling import Choices, beam_candidates, choose_tokens
from pbench.engine.shared_runs import RunFinder, RunTiles, num_packed, pack_runs, run_limits, unpack_runs
from pbench.engine.swapper import Swapper
from pbench.engine.transfers import Staging, to_device
from pbench.kernels.copy_blocks import copy_blocks

Indices: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int64]]"


class Runner:
    """Runs one step after the other: copies, then the whole batch through the model, then a token for every sample.

    On a GPU nothing here waits for the device: everything runs in one stream, in the order of the steps. What a step
    chooses stays on the device, where the next step finds the tokens that its plan has placeholders for.

    Contiguous memory is the same pool with one block as large as itself: a table then has one entry, the base slot.
    """

    def __init__(self, config: EngineConfig, model: Model) -> None:
        self.config = config
        self.model = model
        self.device = torch.device(config.device)
        self.is_contiguous = config.memory != "paged"
        self.block_size = config.num_slots if self.is_contiguous else config.block_size
        shape = config.model
        self.pool = torch.zeros(
            (
                shape.num_layers,
                config.num_slots // self.block_size,
                2,
                shape.num_kv_heads,
                self.block_size,
                shape.head_dim,
            ),
            dtype=getattr(torch, config.dtype),
            device=self.device,
        )
        self._swapper = Swapper(self.pool, config.num_host_blocks) if config.num_host_blocks else None
        self._width = 1 if self.is_contiguous else -(-config.max_length // self.block_size)
        self._tables = np.zeros((config.max_running, self._width), dtype=np.int32)
        self._row_by_seq_id: dict[int, int] = {}
        self._free_rows = list(range(config.max_running - 1, -1, -1))
        # What the last step chose; then the token ids, positions, slots and sources of this one. A source is where
        # among these numbers a token stands: with the token ids, or with what was chosen.
        num_chosen = config.max_running
        self._numbers = torch.zeros(num_chosen + 4 * config.max_batch_tokens, dtype=torch.int64, device=self.device)
        self._chosen, self._wide = self._numbers[:num_chosen], self._numbers[num_chosen:]
        num_narrow = (config.max_running + 1) * (self._width + 3) + num_packed(config.max_running)
        self._narrow = torch.zeros(num_narrow, dtype=torch.int32, device=self.device)
        self._wide_staging, self._narrow_staging = Staging(self._wide), Staging(self._narrow)
        self._run_finder = self._make_run_finder()
        self._graphs: DecodeGraphs | None = None
        self._graphs_bytes = 0
        self.weights_bytes = sum(parameter.nbytes for parameter in model.parameters())

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Choices:
        """See ``pbench.engine.engine.StepRunner``."""
        self._update_tables(plan)
        if self._swapper is not None:
            self._swapper.run(plan.swaps)
        for source, destination, num_slots in plan.moves:  # every layer at once; the ranges never overlap
            self.pool[..., destination : destination + num_slots, :] = self.pool[..., source : source + num_slots, :]
        if plan.copies:
            copy_blocks(self.pool, to_device(plan.copies, torch.int64, self.device))
        samples = [sample for seq in plan.sequences for sample in seq.samples]
        num_decodes = len(plan.sequences) if plan.num_decodes == len(plan.sequences) else 0
        if self._graphs is not None and 0 < num_decodes <= self._graphs.largest:
            size = self._graphs.size_for(num_decodes)
            is_shared = self._stage_decodes(plan.sequences, size, self._width)
            logits = self._of_samples(self._graphs.replay(size, is_shared)[:num_decodes], plan)
            if len(samples) == num_decodes and all(s.temperature == 0 and not s.num_candidates for s in samples):
                return Choices(self._chosen[:num_decodes], {})
        else:
            batch = self._decode_batch(plan.sequences) if num_decodes else self._mixed_batch(plan)
            logits = self.model.logits(self._of_samples(self._forward(batch), plan))
        chosen = self._chosen[: len(samples)]
        chosen.copy_(choose_tokens(logits, samples))
        return Choices(chosen, beam_candidates(logits, samples))

    def memory_bytes(self) -> dict[str, int]:
        """See ``pbench.engine.engine.StepRunner``."""
        buffers = sum(buffer.nbytes for buffer in self.model.buffers())
        buffers += self._numbers.nbytes + self._narrow.nbytes
        return {
            "weights": self.weights_bytes,
            "pool": self.pool.nbytes,
            "buffers": buffers,
            "graphs": self._graphs_bytes,
        }

    @torch.inference_mode()
    def time_swap(self, num_blocks: int) -> int:
        """See ``pbench.engine.engine.StepRunner``. The pool's contents stay as they are."""
        assert self._swapper is not None, "nothing is swapped here"
        pairs = [(block_id, block_id) for block_id in range(min(num_blocks, self.pool.shape[1]))]
        durations = []
        for _ in range(3):
            start_ns = time.monotonic_ns()
            self._swapper.run(Swaps(pairs, pairs))
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            durations.append(time.monotonic_ns() - start_ns)
        return min(durations)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Capture a CUDA graph of a decode step for each of a small set of batch sizes."""
        if self.device.type != "cuda":
            return
        if not self.config.has_cuda_graphs and self._run_finder is not None:
            self._stage_nothing(1, self._width, True)
            self._run_staged_decodes(1, True)  # compiles what requests that share nothing do not use
        if self.config.has_cuda_graphs:
            torch.cuda.synchronize()
            num_reserved = torch.cuda.memory_reserved(self.device)
            self._graphs = DecodeGraphs(
                self.config.max_running,
                has_shared=self._run_finder is not None,
                stage=lambda size, is_shared: self._stage_nothing(size, self._width, is_shared),
                run=self._run_staged_decodes,
            )
            self._graphs_bytes = torch.cuda.memory_reserved(self.device) - num_reserved
        torch.cuda.synchronize()

    def _run_staged_decodes(self, size: int, is_shared: bool) -> Tensor:
        """Run the decode step of ``size`` rows that is staged, and choose greedily; returns the logits."""
        batch = self._staged_decodes(size, self._width, self.config.max_length, is_shared)
        logits = self.model.logits(self._forward(batch))
        torch.argmax(logits, dim=-1, out=self._chosen[:size])
        return logits

    def _of_samples(self, rows: Tensor, plan: StepPlan) -> Tensor:
        """Of a row for each token of the step, the row of each sample."""
        indices = _last_rows(plan.sequences)
        if indices == list(range(len(rows))):
            return rows
        return rows.index_select(0, to_device(indices, torch.int64, self.device))

    def _forward(self, batch: Batch) -> Tensor:
        attention = BatchAttention(batch, self.pool, is_contiguous=self.is_contiguous)
        hidden: Tensor = self.model(batch.token_ids, batch.positions, attention)
        return hidden

    # Tables

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
                has_new_prefix |= seq.table_start < seq.start // self.block_size
        if has_new_prefix and self._run_finder is not None:
            self._run_finder.forget()

    def _rows(self, sequences: list[PlannedSequence]) -> Indices:
        row_by_seq_id = self._row_by_seq_id
        return np.fromiter((row_by_seq_id[seq.seq_id] for seq in sequences), np.int64, len(sequences))

    def _slots(
        self,
        rows: Indices,
        positions: Indices,
    ) -> Indices:
        if self.is_contiguous:
            slots: Indices = self._tables[rows, 0] + positions
        else:
            blocks = self._tables[rows, positions // self.block_size].astype(np.int64)
            slots = blocks * self.block_size + positions % self.block_size
        return slots

    # Batches

    def _decode_batch(self, sequences: list[PlannedSequence]) -> Batch:
        """A batch of one token per sequence."""
        max_context = max(seq.start for seq in sequences) + 1
        width = self._num_entries(max_context)
        is_shared = self._stage_decodes(sequences, len(sequences), width)
        return self._staged_decodes(len(sequences), width, max_context, is_shared)

    def _stage_nothing(self, size: int, width: int, is_shared: bool) -> None:
        """Upload a decode step of ``size`` rows that read and write nothing, as one that a graph is captured with."""
        self._stage_decodes([], size, width)
        if is_shared:
            self._narrow[size * (width + 1) :].zero_()

    def _stage_decodes(self, sequences: list[PlannedSequence], size: int, width: int) -> bool:
        """Upload a decode step, padded to ``size`` rows that read and write nothing; whether it has shared runs."""
        count = len(sequences)
        rows = self._rows(sequences)
        wide = self._wide_staging.host(4 * size).reshape(4, size)  # token_ids, positions, slots, sources
        wide[:2, count:] = 0
        wide[2, count:] = -1
        wide[0, :count] = [seq.token_ids[0] for seq in sequences]
        wide[1, :count] = [seq.start for seq in sequences]
        wide[2, :count] = self._slots(rows, wide[1, :count])
        wide[3] = self._sources(wide[0])
        runs = self._find_runs(rows, wide[1, :count])
        table_end = size * (width + 1)
        num_narrow = table_end + (num_packed(size) if runs is not None else 0)
        narrow = self._narrow_staging.host(num_narrow)  # context_lens, table, shared runs
        narrow[:count] = wide[1, :count] + 1
        narrow[count:size] = 0
        table = narrow[size:table_end].reshape(size, width)
        table[:count] = self._tables[rows, :width]
        table[count:] = 0
        if runs is not None:
            pack_runs(runs, narrow[table_end:], size)
        self._wide_staging.upload()
        self._narrow_staging.upload()
        return runs is not None

    def _staged_decodes(self, size: int, width: int, max_context: int, is_shared: bool) -> Batch:
        """What ``_stage_decodes`` uploads: for a ``size`` and ``width`` it always lies in the same places."""
        wide = self._wide[: 4 * size].view(4, size)
        return Batch(
            token_ids=self._numbers.index_select(0, wide[3]),
            positions=wide[1],
            slots=wide[2],
            context_lens=self._narrow[:size],
            table=self._narrow[size : size * (width + 1)].view(size, width),
            num_decodes=size,
            query_start=None,
            max_query_len=0,
            max_context=max_context,
            shared=unpack_runs(self._narrow[size * (width + 1) :], size) if is_shared else None,
        )

    def _mixed_batch(self, plan: StepPlan) -> Batch:
        """A batch of decodes followed by ragged runs of prompt tokens."""
        sequences, count = plan.sequences, len(plan.sequences)
        num_prefills = count - plan.num_decodes
        rows = self._rows(sequences)
        lengths = np.fromiter((len(seq.token_ids) for seq in sequences), np.int64, count)
        starts = np.fromiter((seq.start for seq in sequences), np.int64, count)
        offsets = np.zeros(count + 1, np.int64)  # of each sequence's first token in the batch
        np.cumsum(lengths, out=offsets[1:])
        num_tokens = int(offsets[-1])
        wide = self._wide_staging.host(4 * num_tokens).reshape(4, num_tokens)
        wide[0] = np.fromiter(chain.from_iterable(seq.token_ids for seq in sequences), np.int64, num_tokens)
        wide[1] = np.arange(num_tokens) + np.repeat(starts - offsets[:-1], lengths)
        wide[2] = self._slots(np.repeat(rows, lengths), wide[1])
        wide[3] = self._sources(wide[0])
        contexts = starts + lengths
        max_context = int(contexts.max())
        width = self._num_entries(max_context)
        table_start = count + num_prefills + 1
        table_end = table_start + count * width
        num_decodes = plan.num_decodes
        runs = self._find_runs(rows[:num_decodes], starts[:num_decodes])
        narrow = self._narrow_staging.host(table_end + (num_packed(num_decodes) if runs is not None else 0))
        narrow[:count] = contexts
        narrow[count:table_start] = offsets[num_decodes:] - num_decodes
        narrow[table_start:table_end].reshape(count, width)[:] = self._tables[rows, :width]
        if runs is not None:
            pack_runs(runs, narrow[table_end:], num_decodes)
        self._wide_staging.upload()
        self._narrow_staging.upload()
        on_device = self._wide[: 4 * num_tokens].view(4, num_tokens)
        return Batch(
            token_ids=self._numbers.index_select(0, on_device[3]),
            positions=on_device[1],
            slots=on_device[2],
            context_lens=self._narrow[:count],
            table=self._narrow[table_start:table_end].view(count, width),
            num_decodes=num_decodes,
            query_start=self._narrow[count:table_start],
            max_query_len=int(lengths.max()),
            max_context=max_context,
            shared=unpack_runs(self._narrow[table_end:], num_decodes) if runs is not None else None,
        )

    # Shared runs

    def _make_run_finder(self) -> RunFinder | None:
        """Looks for shared runs; None where no kernel attends to them together, or nothing is ever shared."""
        if self.device.type != "cuda" or self.is_contiguous or not self.config.is_prefix_cached:
            return None
        limits = run_limits(self.pool[0], self.config.model.num_heads)
        return RunFinder(self.block_size, limits) if limits is not None else None

    def _find_runs(self, rows: Indices, starts: Indices) -> RunTiles | None:
        if self._run_finder is None or len(rows) < 2:
            return None
        return self._run_finder.find(self._tables, rows, starts)

    def _sources(self, token_ids: Indices) -> Indices:
        """Where among ``_numbers`` the tokens stand; see ``placeholder``."""
        in_place = np.arange(len(token_ids)) + len(self._chosen)
        sources: Indices = np.where(token_ids < 0, ~token_ids, in_place)
        return sources

    def _num_entries(self, num_tokens: int) -> int:
        return 1 if self.is_contiguous else -(-num_tokens // self.block_size)


def _last_rows(sequences: list[PlannedSequence]) -> list[int]:
    """The row of each sample's logits: the last token of its sequence."""
    rows: list[int] = []
    end = 0
    for seq in sequences:
        end += len(seq.token_ids)
        rows.extend([end - 1] * len(seq.samples))
    return rows
