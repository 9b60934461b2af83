"""Launches a kernel again as it was launched before, without what Triton works out anew for each launch.

Triton looks at every argument of a launch to find out which of a kernel's compiled variants it needs. For the many
arguments of attention that takes the host longer than a small batch takes the GPU, though a step launches the same
variant in every layer. Here the caller says by a key what a variant depends on. The first launch of a key goes through
Triton; those after it go straight to what was compiled, with addresses in the place of tensors.
"""

from collections.abc import Callable, Hashable, Sequence
from inspect import getclosurevars
from itertools import count
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch

from pbench.kernels.compile_ahead import is_compiling_ahead
from pbench.kernels.compiler import is_interpreted, is_known_triton

# Block tables grow, so keys come and go in a long run. Beyond so many all are forgotten.
MAX_KEYS = 4096

_Value = TypeVar("_Value")
_Relaunch: TypeAlias = Callable[[tuple[int, ...], tuple[float, ...], int], None]
_DATA_PTR = torch.Tensor.data_ptr


class Known(dict[Hashable, _Value]):
    """What was found out about keys."""

    def __setitem__(self, key: Hashable, value: _Value) -> None:
        """Remember it; forget all others first when they are too many."""
        if len(self) >= MAX_KEYS:
            self.clear()
        super().__setitem__(key, value)


class Launch(NamedTuple):
    """What equal keys have in common."""

    grid: tuple[int, int, int]
    integers: tuple[int, ...]  # strides and numbers of things
    options: dict[str, Any]  # compile-time constants in the order of the parameters, and Triton's options
    describe: Callable[[int], Any] | None = None  # the tensor descriptor of what lies at an address


class Launcher:
    """Of one kernel, whose parameters are pointers, integers, floats, perhaps a tensor descriptor, and constants."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._known: Known[_Relaunch] = Known()

    def __call__(
        self,
        key: Hashable,
        tensors: tuple[torch.Tensor, ...],
        values: tuple[float, ...],
        first: Callable[[], Launch],
        scratch: "Scratch | None" = None,
        described: int = 0,
    ) -> None:
        """Launch on the current stream of the current device, which holds all tensors.

        Args:
            key: equal keys mean equal launches but for ``tensors``' addresses and ``values``: the tensors' dtypes and
                whatever ``first`` depends on are part of it, and the device.
            tensors: what the first parameters point to.
            values: the floats.
            first: called when the key is new; may refuse.
            scratch: what the pointers behind ``tensors`` point to.
            described: the address that the tensor descriptor is of.
        """
        addresses = tuple(map(_DATA_PTR, tensors))
        if self.again(key, addresses, values, scratch, described):
            return
        grid, integers, options, describe = first()
        descriptors = () if describe is None else (describe(described),)
        arguments = (*tensors, *(scratch.tensors if scratch else ()), *integers, *values, *descriptors)
        compiled = self._kernel[grid](*arguments, **options)
        if is_interpreted() or is_compiling_ahead():
            return
        constants = tuple(options[name] for name in self._kernel.arg_names[len(arguments) :])
        key = _with_alignment(key, addresses)
        self._known[key] = _relaunch(compiled, grid, tensors[0].get_device(), integers, constants, describe)

    def again(
        self,
        key: Hashable,
        addresses: tuple[int, ...],
        values: tuple[float, ...],
        scratch: "Scratch | None" = None,
        described: int = 0,
    ) -> bool:
        """Launch as a call with tensors at ``addresses`` would, but only if the key is known; return whether it is.

        For what every layer calls: to make a ``first`` of all that it needs takes the host longer than to look here.
        """
        low_bits = 0
        for address in addresses:
            low_bits |= address
        if low_bits & 15:
            key = _with_alignment(key, addresses)
        relaunch = self._known.get(key)
        if relaunch is None or is_compiling_ahead():
            return False
        relaunch(addresses if scratch is None else addresses + scratch.addresses, values, described)
        return True


def _with_alignment(key: Hashable, addresses: tuple[int, ...]) -> Hashable:
    """Triton compiles apart what is not aligned."""
    low_bits = [address & 15 for address in addresses]
    return (key, *low_bits) if any(low_bits) else key


def _relaunch(
    compiled: Any,
    grid: tuple[int, int, int],
    device: int,
    integers: tuple[int, ...],
    constants: tuple[Any, ...],
    describe: Callable[[int], Any] | None,
) -> _Relaunch:
    """What launches a compiled kernel again: Triton's own way, or the call that it ends in."""
    again = compiled[grid]

    def through_triton(addresses: tuple[int, ...], values: tuple[float, ...], described: int) -> None:
        descriptors = () if describe is None else (describe(described),)
        again(*addresses, *integers, *values, *descriptors, *constants)

    innermost = _innermost(compiled) if is_known_triton() else None
    if innermost is None:
        return through_triton
    from triton import knobs
    from triton.runtime import driver

    hooks, get_stream, function = knobs.runtime, driver.active.get_current_stream, compiled.function
    width, height, depth = grid
    launch, head, takes_tuple, tensor_map = innermost
    maps: Known[tuple[Any, ...]] = Known()  # of what was described, by its address

    def relaunch(addresses: tuple[int, ...], values: tuple[Any, ...], described: int) -> None:
        if hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:  # a profiler listens
            through_triton(addresses, values, described)
            return
        if describe is not None:
            found = maps.get(described)
            if found is None:
                found = maps[described] = tensor_map(describe(described))
            values += found
        if takes_tuple:
            arguments = addresses + integers + values + constants
            launch(width, height, depth, get_stream(device), function, *head, arguments)
        else:
            stream = get_stream(device)
            launch(width, height, depth, stream, function, *head, *addresses, *integers, *values, *constants)

    return relaunch


class _Innermost(NamedTuple):
    """The call that a launch ends in; its arguments are grid, stream, function, ``head``, and those of the kernel."""

    launch: Callable[..., None]
    head: tuple[Any, ...]
    takes_tuple: bool  # of the kernel's arguments, which else follow one by one
    tensor_map: Callable[[Any], tuple[Any, ...]]  # what it takes for a descriptor


def _innermost(compiled: Any) -> _Innermost | None:
    """None where Triton allocates memory for every launch, as for a kernel that is instrumented."""
    run = compiled.run
    if run.global_scratch_size or run.profile_scratch_size:
        return None
    from triton.backends.nvidia.driver import make_tensordesc_arg

    launch = run.launch
    layouts: Sequence[Any] = getattr(compiled.metadata, "tensordesc_meta", None) or ()
    if layouts:  # what makes tensor maps anew for each launch lies around it
        launch = getclosurevars(launch).nonlocals["launcher"]

    def tensor_map(descriptor: Any) -> tuple[Any, ...]:
        return tuple(make_tensordesc_arg(descriptor, layouts[0]))

    kind, no_scratch = (run.launch_cooperative_grid, run.launch_pdl), (None, None)
    unobserved = (compiled.packed_metadata, None, None, None)
    if hasattr(run, "kernel_signature"):  # Triton 3.7; 3.6 compiles a launch for each signature
        head = (*kind, *unobserved, *no_scratch, run.arg_annotations, run.kernel_signature)
        return _Innermost(launch, head, True, tensor_map)
    return _Innermost(launch, (*kind, *no_scratch, *unobserved), False, tensor_map)


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


class SameTensors:
    """Knows the layout of two tensors that are the very same objects from launch to launch.

    It holds them, so that no other objects are taken for them. Nobody may resize them meanwhile.
    """

    __slots__ = ("_first", "_key", "_second", "addresses")

    def __init__(self) -> None:
        self._first: torch.Tensor | None = None
        self._second: torch.Tensor | None = None
        self._key = 0
        self.addresses = (0, 0)  # of the two whose layout was asked for last

    def knows(self, first: torch.Tensor, second: torch.Tensor) -> bool:
        """Whether the last launch had the same two."""
        return first is self._first and second is self._second

    def layout_of(self, first: torch.Tensor, second: torch.Tensor) -> Hashable:
        """A short ``layout_of`` the two; equal for equal layouts."""
        if first is not self._first or second is not self._second:
            self._key = short_key(layout_of(first, second))
            self._first, self._second = first, second
            self.addresses = (first.data_ptr(), second.data_ptr())
        return self._key


def short_key(key: Hashable) -> int:
    """A number for a key that is hashed often: the same for equal keys, until too many others came between."""
    short = _short_keys.get(key)
    if short is None:
        short = _short_keys[key] = next(_numbers)
    return short


_short_keys: Known[int] = Known()
_numbers = count()  # none twice: launches are known by them
