"""Transfers between host and device that nobody waits for.

A copy to the device waits for the device unless its source is pinned. Pinned memory here comes from torch's caching
allocator, which hands it out again only when the copies that use it have run.
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

    On the CPU host and device are the same memory.
    """

    def __init__(self, device_numbers: Tensor) -> None:
        self._device = device_numbers  # (size,)
        self._host = device_numbers

    def host(self, size: int) -> Numbers:
        """Room for ``size`` numbers to write; what it holds is arbitrary."""
        if self._device.is_cuda:
            self._host = torch.empty(size, dtype=self._device.dtype, pin_memory=True)
        numbers: Numbers = self._host[:size].numpy()
        return numbers

    def upload(self) -> None:
        """Copy what was written to the leading numbers on the device, after what runs there now."""
        if self._host is not self._device:
            self._device[: len(self._host)].copy_(self._host, non_blocking=True)


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
