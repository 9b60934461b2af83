"""Transfers between host and device that nobody waits for.

A copy to the device waits for the device unless its source is pinned. torch's caching allocator hands pinned memory out
again only when the copies that use it have run.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Numbers: TypeAlias = "np.ndarray[tuple[int], np.dtype[Any]]"


def to_device(values: Sequence[float] | Sequence[Sequence[float]], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of ``values`` on the device, without waiting for what runs there."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


class Staging:
    """Numbers on their way to one place on the device: written on the host, uploaded in one transfer.

    Two places on the host take turns, so that one can be written while the other is still being read. On the CPU host
    and device are the same memory.
    """

    def __init__(self, device_numbers: Tensor) -> None:
        self._device = device_numbers  # (size,)
        self._places = [device_numbers]
        self._reads: list[torch.cuda.Event] = []  # of each place: the last upload
        if device_numbers.is_cuda:
            size, dtype = device_numbers.shape, device_numbers.dtype
            self._places = [torch.zeros(size, dtype=dtype, pin_memory=True) for _ in range(2)]
            self._reads = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._views: list[Numbers] = [place.numpy() for place in self._places]  # made once: a view costs microseconds
        self._turn = 0

    def host(self, size: int) -> Numbers:
        """Room for ``size`` numbers to write; what it holds is arbitrary. Waits while it is still being read."""
        if self._reads:
            self._turn = 1 - self._turn
            self._reads[self._turn].synchronize()
        return self._views[self._turn][:size]

    def upload(self, size: int) -> None:
        """Copy the first ``size`` numbers that were written to the device, after what runs there now."""
        if self._reads:
            self._device[:size].copy_(self._places[self._turn][:size], non_blocking=True)
            self._reads[self._turn].record()


class Readback:
    """Numbers on their way from the device. They may be overwritten there as soon as this is made."""

    def __init__(self, numbers: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._host.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._host = numbers.clone()

    def tolist(self) -> list[Any]:
        """Wait for the numbers."""
        if self._event is not None:
            self._event.synchronize()
        values: list[Any] = self._host.tolist()
        return values
