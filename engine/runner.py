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
from pbench.engine.sampling import BeamChoices, choose
from pbench.engine.swapper import Swapper
from pbench.kernels.copy_blocks import copy_blocks

Indices: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int64]]"


class Runner:
    """Runs one step at a time: copies, then the whole batch through the model, then a token for every sample.

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
        self._wide = _Staging(3 * config.max_batch_tokens, torch.int64, self.device)
        self._narrow = _Staging((config.max_running + 1) * (self._width + 3), torch.int32, self.device)
        self._graphs: DecodeGraphs | None = None
        self._graphs_bytes = 0
        self.weights_bytes = sum(parameter.nbytes for parameter in model.parameters())

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Tensor | BeamChoices:
        """See ``pbench.engine.engine.StepRunner``. Tokens stay on the device until they are asked for."""
        self._update_tables(plan)
        if self._swapper is not None:
            self._swapper.run(plan.swaps)
        for source, destination, num_slots in plan.moves:  # every layer at once; the ranges never overlap
            self.pool[..., destination : destination + num_slots, :] = self.pool[..., source : source + num_slots, :]
        if plan.copies:
            copy_blocks(self.pool, torch.tensor(plan.copies, dtype=torch.int64).to(self.device))
        samples = [sample for seq in plan.sequences for sample in seq.samples]
        num_decodes = len(plan.sequences) if plan.num_decodes == len(plan.sequences) else 0
        if self._graphs is not None and 0 < num_decodes <= self._graphs.largest:
            size = self._graphs.size_for(num_decodes)
            self._decode_batch(plan.sequences, size, self._width)
            logits, greedy = self._graphs.replay(size)
            if len(samples) == num_decodes and all(s.temperature == 0 and not s.num_candidates for s in samples):
                return greedy[:num_decodes]
        else:
            batch = self._decode_batch(plan.sequences, num_decodes) if num_decodes else self._mixed_batch(plan)
            hidden = self._forward(batch)
            rows = torch.from_numpy(_last_rows(plan.sequences)).to(self.device, non_blocking=True)
            logits = self.model.logits(hidden.index_select(0, rows))
            return choose(logits, samples)
        rows = torch.tensor([row for row, seq in enumerate(plan.sequences) for _ in seq.samples], device=self.device)
        return choose(logits.index_select(0, rows), samples)

    def memory_bytes(self) -> dict[str, int]:
        """See ``pbench.engine.engine.StepRunner``."""
        buffers = sum(buffer.nbytes for buffer in self.model.buffers())
        buffers += self._wide.num_bytes + self._narrow.num_bytes
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
        if self.config.has_cuda_graphs:
            torch.cuda.synchronize()
            num_reserved = torch.cuda.memory_reserved(self.device)
            self._graphs = DecodeGraphs(self.config.max_running, self._decode_padding)
            self._graphs_bytes = torch.cuda.memory_reserved(self.device) - num_reserved
        torch.cuda.synchronize()

    def _decode_padding(self, size: int) -> tuple[Tensor, Tensor]:
        """A decode step of ``size`` rows that read and write nothing: (logits, most likely tokens)."""
        logits = self.model.logits(self._forward(self._decode_batch([], size, self._width)))
        return logits, logits.argmax(dim=-1)

    def _forward(self, batch: Batch) -> Tensor:
        attention = BatchAttention(batch, self.pool, is_contiguous=self.is_contiguous)
        hidden: Tensor = self.model(batch.token_ids, batch.positions, attention)
        return hidden

    # Tables

    def _update_tables(self, plan: StepPlan) -> None:
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

    def _decode_batch(self, sequences: list[PlannedSequence], size: int, width: int | None = None) -> Batch:
        """A batch of one token per sequence, padded to ``size`` rows that read and write nothing.

        Its tensors lie where every batch of this ``size`` and ``width`` lies, as a CUDA graph needs it.
        """
        count = len(sequences)
        rows = self._rows(sequences)
        wide = self._wide.host[: 3 * size].reshape(3, size)  # token_ids, positions, slots
        wide[:2, count:] = 0
        wide[2, count:] = -1
        wide[0, :count] = [seq.token_ids[0] for seq in sequences]
        wide[1, :count] = [seq.start for seq in sequences]
        wide[2, :count] = self._slots(rows, wide[1, :count])
        max_context = int(wide[1, :count].max()) + 1 if count else 0
        if width is None:
            width = self._num_entries(max_context)
        narrow = self._narrow.host[: size * (width + 1)]
        narrow[:count] = wide[1, :count] + 1
        narrow[count:size] = 0
        table = narrow[size:].reshape(size, width)
        table[:count] = self._tables[rows, :width]
        table[count:] = 0
        wide_device = self._wide.upload(3 * size).view(3, size)
        narrow_device = self._narrow.upload(size * (width + 1))
        return Batch(
            token_ids=wide_device[0],
            positions=wide_device[1],
            slots=wide_device[2],
            context_lens=narrow_device[:size],
            table=narrow_device[size:].view(size, width),
            num_decodes=size,
            query_start=None,
            max_query_len=0,
            max_context=self.config.max_length if width == self._width else max_context,
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
        wide = self._wide.host[: 3 * num_tokens].reshape(3, num_tokens)
        wide[0] = np.fromiter(chain.from_iterable(seq.token_ids for seq in sequences), np.int64, num_tokens)
        wide[1] = np.arange(num_tokens) + np.repeat(starts - offsets[:-1], lengths)
        wide[2] = self._slots(np.repeat(rows, lengths), wide[1])
        contexts = starts + lengths
        max_context = int(contexts.max())
        width = self._num_entries(max_context)
        narrow = self._narrow.host[: count + num_prefills + 1 + count * width]
        narrow[:count] = contexts
        narrow[count : count + num_prefills + 1] = offsets[plan.num_decodes :] - plan.num_decodes
        narrow[count + num_prefills + 1 :].reshape(count, width)[:] = self._tables[rows, :width]
        wide_device = self._wide.upload(wide.size).view(3, num_tokens)
        narrow_device = self._narrow.upload(narrow.size)
        return Batch(
            token_ids=wide_device[0],
            positions=wide_device[1],
            slots=wide_device[2],
            context_lens=narrow_device[:count],
            table=narrow_device[count + num_prefills + 1 :].view(count, width),
            num_decodes=plan.num_decodes,
            query_start=narrow_device[count : count + num_prefills + 1],
            max_query_len=int(lengths.max()),
            max_context=max_context,
        )

    def _num_entries(self, num_tokens: int) -> int:
        return 1 if self.is_contiguous else -(-num_tokens // self.block_size)


class _Staging:
    """Numbers on their way to the device: written on the host, uploaded in one transfer.

    On the CPU host and device are the same memory. A caller must not write again before the step that reads the
    upload has ended.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._host = torch.zeros(size, dtype=dtype, pin_memory=device.type == "cuda")
        self._device = self._host if device.type == "cpu" else torch.zeros(size, dtype=dtype, device=device)
        self.host = self._host.numpy()
        self.num_bytes = self._device.nbytes

    def upload(self, size: int) -> Tensor:
        """The first ``size`` numbers, on the device."""
        if self._device is not self._host:
            self._device[:size].copy_(self._host[:size], non_blocking=True)
        return self._device[:size]


def _last_rows(sequences: list[PlannedSequence]) -> Indices:
    """The row of each sample's logits: the last token of its sequence."""
    rows: list[int] = []
    end = 0
    for seq in sequences:
        end += len(seq.token_ids)
        rows.extend([end - 1] * len(seq.samples))
    return np.array(rows, dtype=np.int64)
