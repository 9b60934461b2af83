"""What attention kernels are timed on: a pool of blocks in random order, and several batches that lie apart in it."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from pbench.kernel_bench.shapes import AttentionShape, Heads

# Rotating batches hold more than this many times the L2 cache, so that none of them is found in it.
L2_MULTIPLE = 4
CPU_L2_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Buffers:
    """Where the numbers of a case lie and of what kind they are."""

    device: torch.device
    dtype: torch.dtype
    rotated_bytes: int  # that calls in rotation must touch together
    seed: int

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype, seed: int) -> "Buffers":
        """Sized by the device's L2 cache."""
        is_cuda = device.type == "cuda"
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if is_cuda else CPU_L2_BYTES
        return cls(device, dtype, L2_MULTIPLE * l2_bytes, seed)

    def num_rotations(self, call_bytes: int) -> int:
        """How many calls on buffers of their own touch enough; two at least."""
        return max(2, -(-self.rotated_bytes // max(call_bytes, 1)))

    def random(self, *shape: int) -> Tensor:
        """Normally distributed numbers: zeros would hide faults and make a GPU run faster than real data do."""
        return torch.randn(*shape, dtype=self.dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """The arguments of the calls on one shape: one pool, and a query and a table for each call."""

    shape: AttentionShape
    kv: Tensor  # (num_blocks, 2, num_kv_heads, block_size, head_dim)
    tables: tuple[Tensor, ...]  # int32 (batch, width) each
    queries: tuple[Tensor, ...]  # (num_queries, num_heads, head_dim) each
    context_lens: Tensor  # int32 (batch,)
    query_start: Tensor  # int32 (batch + 1,)
    scale: float
    is_contiguous: bool

    def sequence_kv(self, call: int, sequence: int) -> tuple[Tensor, Tensor]:
        """One sequence's KV of a call, as float64 ``kv`` of its own and the table that finds it there."""
        length = self.shape.context_lens[sequence]
        table = self.tables[call]
        if self.is_contiguous:
            base = int(table[sequence, 0])
            kv = self.kv[:, :, :, base : base + length]
            return kv.double(), torch.zeros_like(table[:1])
        num_blocks = -(-length // self.kv.shape[3])
        kv = self.kv[table[sequence, :num_blocks].long()]
        order = torch.arange(num_blocks, dtype=torch.int32, device=kv.device)
        return kv.double(), order[None]


def attention_inputs(
    shape: AttentionShape, heads: Heads, block_size: int, buffers: Buffers, *, is_contiguous: bool = False
) -> AttentionInputs:
    """Allocate and fill everything that the calls on ``shape`` read.

    A shared prefix lies in the same whole blocks for all sequences of a call; contiguous addressing cannot share.
    """
    element_bytes = buffers.dtype.itemsize
    num_calls = buffers.num_rotations(shape.num_bytes(heads, element_bytes, element_bytes))
    if is_contiguous:
        kv, tables = _extents(shape, heads, num_calls, buffers)
    else:
        kv, tables = _blocks(shape, heads, block_size, num_calls, buffers)
    lens = torch.tensor(shape.context_lens, dtype=torch.int32)
    query_start = torch.tensor((0, *shape.query_lens)).cumsum(0).to(torch.int32)
    return AttentionInputs(
        shape,
        kv,
        tables,
        tuple(buffers.random(shape.num_queries, heads.num_heads, heads.head_dim) for _ in range(num_calls)),
        lens.to(buffers.device),
        query_start.to(buffers.device),
        heads.head_dim**-0.5,
        is_contiguous,
    )


def _blocks(
    shape: AttentionShape, heads: Heads, block_size: int, num_calls: int, buffers: Buffers
) -> tuple[Tensor, tuple[Tensor, ...]]:
    num_shared = shape.num_shared_tokens // block_size
    num_own = [-(-length // block_size) - num_shared for length in shape.context_lens]
    num_blocks = num_calls * (num_shared + sum(num_own))
    order = list(range(num_blocks))
    random.Random(buffers.seed).shuffle(order)
    tables = []
    for _ in range(num_calls):
        table = torch.zeros(len(num_own), num_shared + max(num_own), dtype=torch.int32)
        table[:, :num_shared] = torch.tensor(order[:num_shared], dtype=torch.int32)
        del order[:num_shared]
        for row, count in enumerate(num_own):
            table[row, num_shared : num_shared + count] = torch.tensor(order[-count:], dtype=torch.int32)
            del order[-count:]
        tables.append(table.to(buffers.device))
    kv = buffers.random(num_blocks, 2, heads.num_kv_heads, block_size, heads.head_dim)
    return kv, tuple(tables)


def _extents(
    shape: AttentionShape, heads: Heads, num_calls: int, buffers: Buffers
) -> tuple[Tensor, tuple[Tensor, ...]]:
    total = sum(shape.context_lens)
    starts = torch.tensor(shape.context_lens).cumsum(0) - torch.tensor(shape.context_lens)
    tables = tuple(
        (starts + call * total).to(torch.int32)[:, None].contiguous().to(buffers.device) for call in range(num_calls)
    )
    return buffers.random(1, 2, heads.num_kv_heads, num_calls * total, heads.head_dim), tables
