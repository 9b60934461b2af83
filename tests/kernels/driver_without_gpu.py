"""A driver for Triton where there is no GPU, for files of this folder that run by themselves."""

from itertools import chain, repeat
from types import SimpleNamespace

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import make_tensordesc_arg
from triton.runtime import driver


class FakeLauncher:
    """Notes what Triton would hand to the driver: of a descriptor a tensor map, its shape and its strides."""

    def __init__(self, metadata, launches):
        def launcher(*arguments):
            launches.append(arguments)

        def inner(*arguments):
            layouts = iter(getattr(metadata, "tensordesc_meta", None) or repeat(None))
            parts = [
                make_tensordesc_arg(one, next(layouts)) if hasattr(one, "block_shape") else [one] for one in arguments
            ]
            launcher(*chain.from_iterable(parts))

        self.launch = inner

    def __call__(self, *arguments):
        self.launch(*arguments)


def without_a_gpu(capability=90, max_shared_memory=232448, on_load=lambda _name, _shared_memory: None):
    """Let Triton compile for a GPU and, where it would launch, note what it is given, in the list that is returned.

    ``on_load`` is called with each kernel's name, and the bytes of shared memory of a program.
    """
    launches = []
    properties = {"max_shared_mem": max_shared_memory, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(name, _binary, shared_memory, _device):
        on_load(name, shared_memory)
        return "module", "function", 32, 0, 1024

    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda _device: 7,
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
            launcher_cls=lambda _source, metadata: FakeLauncher(metadata, launches),
            utils=SimpleNamespace(
                load_binary=load_binary,
                get_device_properties=lambda _: properties,
                fill_tma_descriptor=lambda *arguments: arguments,  # the name of Triton 3.6
                fill_tma_descriptor_tiled=lambda *arguments: arguments,
            ),
        )
    )
    return launches
