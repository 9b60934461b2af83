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

    Two places on the host take turns: when one is written again, the step that it was written for last has run, since
    at most one step runs while another is staged. On the CPU host and device are the same memory.
    """

    def __init__(self, device_numbers: Tensor) -> None:
        self._device = device_numbers  # (size,)
        self._places = host_places(device_numbers)
        self._views: list[Numbers] = [place.numpy() for place in self._places]  # made once: a view costs microseconds
        self.turn = 0

    def host(self, size: int) -> Numbers:
        """Room for ``size`` numbers to write; what it holds is arbitrary."""
        self.turn = (self.turn + 1) % len(self._places)
        return self._views[self.turn][:size]

    def upload(self, size: int) -> None:
        """Copy the first ``size`` numbers that were written to the device, after what runs there now."""
        if self._device.is_cuda:
            self._device[:size].copy_(self._places[self.turn][:size], non_blocking=True)


class Readback:
    """Numbers on their way from the device. They may be overwritten there as soon as this is made.

    Args:
        numbers: any shape.
        place: of the same shape, on the host and pinned, to read them into; made where there is none.
    """

    def __init__(self, numbers: Tensor, place: Tensor | None = None) -> None:
        self._event: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._host = torch.empty_like(numbers, device="cpu", pin_memory=True) if place is None else place
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


def host_places(device_numbers: Tensor) -> list[Tensor]:
    """Two pinned places for them on the host; on the CPU themselves."""
    if not device_numbers.is_cuda:
        return [device_numbers]
    size, dtype = device_numbers.shape, device_numbers.dtype
    return [torch.zeros(size, dtype=dtype, pin_memory=True) for _ in range(2)]
