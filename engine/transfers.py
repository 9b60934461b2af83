"""Transfers between host and device that nobody waits for.

A copy to the device waits for the device unless its source is pinned. torch's caching allocator hands pinned memory out
again only when the copies that use it have run.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pbench.kernels.copy_numbers import TILE_SIZE, copy_numbers

PIECE_BYTES = 32 * 2**20

Numbers: TypeAlias = "np.ndarray[tuple[int], np.dtype[Any]]"


def to_device(values: Sequence[float] | Sequence[Sequence[float]], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of ``values`` on the device, without waiting for what runs there."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


class Uploads:
    """Copies of much, such as a model's weights, from memory that is not pinned, or not even read from its file yet.

    All cores fill one of two pinned pieces while the device takes the other.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._pieces = [torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2 * self._is_cuda)]
        self._taken: list[torch.cuda.Event | None] = [None, None]  # when the device has
        self._turn = 0

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy to the device, perhaps from another dtype, without waiting for the end. Both are contiguous."""
        if not self._is_cuda:
            target.copy_(source)
            return
        size = PIECE_BYTES // target.element_size()
        pieces = (torch.split(tensor.view(-1), size) for tensor in (target, source))
        for target_piece, source_piece in zip(*pieces, strict=True):
            self._turn = 1 - self._turn
            if taken := self._taken[self._turn]:
                taken.synchronize()
            piece = self._pieces[self._turn][: target_piece.nbytes].view(target.dtype)
            target_piece.copy_(piece.copy_(source_piece), non_blocking=True)
            self._taken[self._turn] = _recorded()


class Staging:
    """Numbers on their way to one place on the device: written on the host, uploaded all together.

    Two places on the host take turns: when one is written again, the step that it was written for last has run, since
    at most one step runs while another is staged. On the CPU host and device are the same memory.
    """

    def __init__(self, device_numbers: Tensor) -> None:
        self._device = device_numbers  # int64 (size,)
        self._places = _two_places(device_numbers)
        self._views: list[Numbers] = [place.numpy() for place in self._places]  # made once: a view costs microseconds
        self._turn = 0

    def host(self, size: int) -> Numbers:
        """Room for ``size`` numbers to write; what it holds is arbitrary."""
        self._turn = 1 - self._turn
        return self._views[self._turn][:size]

    def upload(self, size: int) -> None:
        """Copy the first ``size`` numbers that were written to the device, after what runs there now."""
        if self._device.is_cuda:
            size = _rounded(size, len(self._device))
            copy_numbers(self._device[:size], self._places[self._turn][:size])


class Readback:
    """Numbers on their way from the device. They may be overwritten there as soon as this is made."""

    def __init__(self, host: Tensor, event: torch.cuda.Event | None) -> None:
        self._host = host  # where they arrive
        self._event = event  # when they have; None: they are there

    def tolist(self) -> list[Any]:
        """Wait for the numbers."""
        if self._event is not None:
            self._event.synchronize()
        values: list[Any] = self._host.tolist()
        return values


def read_back(numbers: Tensor) -> Readback:
    """Read numbers of any dtype and shape back."""
    if not numbers.is_cuda:
        return Readback(numbers.clone(), None)
    host = torch.empty_like(numbers, device="cpu", pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    return Readback(host, _recorded())


class ReadbackPlaces:
    """Reads the numbers at one place on the device back in every step.

    Two places on the host take turns: when one is written again, what it held has been taken, as ``Staging`` says.
    """

    def __init__(self, device_numbers: Tensor) -> None:
        self._device = device_numbers  # int64 (size,)
        self._places = _two_places(device_numbers)
        self._turn = 0

    def read(self, size: int) -> Readback:
        """Read the first ``size`` numbers back."""
        if not self._device.is_cuda:
            return read_back(self._device[:size])
        self._turn = 1 - self._turn
        place, num_copied = self._places[self._turn], _rounded(size, len(self._device))
        copy_numbers(place[:num_copied], self._device[:num_copied])
        return Readback(place[:size], _recorded())


def _two_places(device_numbers: Tensor) -> list[Tensor]:
    """Room for them on the host, pinned; on the CPU they themselves."""
    if not device_numbers.is_cuda:
        return [device_numbers] * 2
    size, dtype = device_numbers.shape, device_numbers.dtype
    return [torch.zeros(size, dtype=dtype, pin_memory=True) for _ in range(2)]


def _rounded(size: int, most: int) -> int:
    """So many are copied instead of ``size``: each size is a launch of its own to find out about."""
    return min(-(-size // TILE_SIZE) * TILE_SIZE, most)


def _recorded() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event
