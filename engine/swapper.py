"""Swapper: copies blocks between the pool and host memory."""

import torch
from torch import Tensor

from pbench.engine.plan import Swaps
from pbench.engine.transfers import to_device


class Swapper:
    """Host memory for ``num_host_blocks`` blocks, and the copies to and from it.

    A block lies in one piece there, ``(num_layers, 2, num_kv_heads, block_size, head_dim)``, pinned where the pool is
    on a GPU, so that each block is one asynchronous transfer. On the device the blocks of a step are gathered from, or
    scattered to, all layers at once.
    """

    def __init__(self, pool: Tensor, num_host_blocks: int) -> None:
        # Bytes: (num_layers, num_blocks, 2, num_kv_heads, block_size, head_dim * element size). torch does not index
        # 8-bit floats.
        self._pool = pool.view(torch.uint8)
        num_layers, _, *slab = self._pool.shape
        self._host = torch.empty((num_host_blocks, num_layers, *slab), dtype=torch.uint8, pin_memory=pool.is_cuda)

    def run(self, swaps: Swaps) -> None:
        """Enqueue the copies of a step: those to the host first."""
        if swaps.out:
            staged = self._pool.index_select(1, self._ids([block_id for block_id, _ in swaps.out])).transpose(0, 1)
            staged = staged.contiguous()  # (count, num_layers, ...)
            for source, (_, host_id) in zip(staged, swaps.out, strict=True):
                self._host[host_id].copy_(source, non_blocking=True)
        if swaps.back:
            staged = torch.empty((len(swaps.back), *self._host.shape[1:]), dtype=torch.uint8, device=self._pool.device)
            for destination, (host_id, _) in zip(staged, swaps.back, strict=True):
                destination.copy_(self._host[host_id], non_blocking=True)
            block_ids = self._ids([block_id for _, block_id in swaps.back])
            self._pool.index_copy_(1, block_ids, staged.transpose(0, 1))

    def _ids(self, block_ids: list[int]) -> Tensor:
        return to_device(block_ids, torch.int64, self._pool.device)
