"""Launches a kernel again as it was launched before, without what Triton works out anew for each launch.

Triton looks at every argument of a launch to find out which of a kernel's compiled variants it needs. For the many
arguments of attention that takes the host longer than a small batch takes the GPU, though a step launches the same
variant in every layer. Here the caller says by a key what a variant depends on. The first launch of a key goes through
Triton; those after it go straight to what was compiled, with addresses in the place of tensors.
"""

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, NamedTuple

import torch

from pbench.kernels.compiler import is_interpreted

# Block tables grow, so keys come and go in a long run. Beyond so many all are forgotten.
MAX_KEYS = 4096


class Launch(NamedTuple):
    """What equal keys have in common."""

    grid: tuple[int, int, int]
    integers: tuple[int, ...]  # strides and numbers of things
    options: dict[str, Any]  # compile-time constants in the order of the parameters, and Triton's options


class Launcher:
    """Of one kernel. Its parameters are pointers, integers, other numbers, compile-time constants, in this order."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._known: dict[Hashable, tuple[Callable[..., None], tuple[int, ...], tuple[Any, ...]]] = {}

    def __call__(
        self,
        key: Hashable,
        tensors: tuple[torch.Tensor, ...],
        numbers: tuple[float, ...],
        first: Callable[[], Launch],
        scratch: "Scratch | None" = None,
    ) -> None:
        """Launch on the current stream of the current device, which holds all tensors.

        Args:
            key: equal keys mean equal launches but for ``tensors``' addresses and ``numbers``: the tensors' dtypes and
                whatever ``first`` depends on are part of it, and the device.
            tensors: what the first parameters point to.
            numbers: floats, behind the integers.
            first: called when the key is new; may refuse.
            scratch: what the pointers behind ``tensors`` point to.
        """
        addresses = [tensor.data_ptr() for tensor in tensors]
        full_key = (key, *[address & 15 for address in addresses])  # Triton compiles apart what is not aligned
        known = self._known.get(full_key)
        if known is not None:
            run, integers, constants = known
            run(*addresses, *(scratch.addresses if scratch else ()), *integers, *numbers, *constants)
            return
        grid, integers, options = first()
        arguments = (*tensors, *(scratch.tensors if scratch else ()), *integers, *numbers)
        compiled = self._kernel[grid](*arguments, **options)
        if is_interpreted():
            return
        if len(self._known) >= MAX_KEYS:
            self._known.clear()
        names = self._kernel.arg_names[len(arguments) :]
        run = _relaunch(compiled, grid, tensors[0].get_device())
        self._known[full_key] = run, integers, tuple(options[name] for name in names)


def _relaunch(compiled: Any, grid: tuple[int, int, int], device: int) -> Callable[..., None]:
    """What launches a compiled kernel again: Triton's own way, or the call that it ends in."""
    again: Callable[..., None] = compiled[grid]
    if not _calls_driver_alike():
        return again
    from triton import knobs
    from triton.runtime import driver

    hooks, get_stream = knobs.runtime, driver.active.get_current_stream
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata

    def relaunch(*arguments: Any) -> None:
        if hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:  # a profiler listens
            again(*arguments)
        else:
            run(*grid, get_stream(device), function, metadata, None, None, None, *arguments)

    return relaunch


@cache
def _calls_driver_alike() -> bool:
    """Whether this version of Triton is one whose launches are known to end in the same call."""
    import triton

    return tuple(triton.__version__.split(".")[:2]) in (("3", "6"), ("3", "7"))


class Scratch:
    """Tensors that many launches share: whole allocations, which are aligned, or such as need not be."""

    __slots__ = ("addresses", "tensors")

    def __init__(self, *tensors: torch.Tensor) -> None:
        self.tensors = tensors
        self.addresses = tuple(tensor.data_ptr() for tensor in tensors)


class Checked(set[Hashable]):
    """Layouts of arguments that were found to fit."""

    def add(self, layout: Hashable) -> None:
        """Remember one; forget all others first when they are too many."""
        if len(self) >= MAX_KEYS:
            self.clear()
        super().add(layout)


def layout_of(*tensors: torch.Tensor) -> Hashable:
    """All that checks and compilation look at: dtypes, shapes and strides, and on which device the first lies."""
    return (tensors[0].get_device(), *[(tensor.dtype, tensor.shape, tensor.stride()) for tensor in tensors])
