"""A driver for Triton where there is no GPU, for files of this folder that run by themselves."""

from types import SimpleNamespace
from typing import Any, NamedTuple

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver

# Triton 3.6 compiles a launcher for each signature, whose arguments follow one another. Later ones have one for all.
MAKES_LAUNCHERS = hasattr(nvidia, "make_launcher")


class Noted(NamedTuple):
    """What Triton's innermost launch was given."""

    arguments: tuple[Any, ...]
    observers: tuple[Any, Any, Any]  # what they are told, and both hooks


def without_a_gpu(capability=90, max_shared_memory=232448, on_load=lambda _name, _shared_memory: None):
    """Let Triton compile for a GPU and, where it would launch, note what it is given, in the list that is returned.

    ``on_load`` is called with each kernel's name, and the bytes of shared memory of a program.
    """
    launches = []
    properties = {"max_shared_mem": max_shared_memory, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(name, _binary, shared_memory, _device):
        on_load(name, shared_memory)
        return "module", "function", 32, 0, 1024

    def launch(*arguments):
        observers = 10 if MAKES_LAUNCHERS else 8
        if not MAKES_LAUNCHERS:
            arguments = (*arguments[:-1], *arguments[-1])
        launches.append(Noted(arguments[:observers] + arguments[observers + 3 :], arguments[observers : observers + 3]))

    if MAKES_LAUNCHERS:
        nvidia.library_dirs = list
        nvidia.compile_module_from_src = lambda **_options: SimpleNamespace(launch=launch)
    else:
        nvidia.PyKernelArg = SimpleNamespace
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda _device: 7,
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
            launcher_cls=nvidia.CudaLauncher,
            utils=SimpleNamespace(
                launch=launch,
                build_signature_metadata=tuple,
                load_binary=load_binary,
                get_device_properties=lambda _: properties,
                fill_tma_descriptor=lambda *arguments: arguments,  # the name of Triton 3.6
                fill_tma_descriptor_tiled=lambda *arguments: arguments,
            ),
        )
    )
    return launches
