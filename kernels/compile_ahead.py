"""Variants of kernels compiled side by side, before they are needed.

Triton compiles a variant when something first launches it, and the launch waits. An engine needs some sixty
variants before its first step, and one after the other they would keep one core busy for a minute, and no other.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from pbench.kernels.compiler import is_interpreted, is_known_triton

_active: list[bool] = []  # not empty within ``compiling_ahead``


def can_compile_ahead() -> bool:
    """Whether there is a compiler that we know how to have several variants compiled by at once."""
    return is_known_triton() and not is_interpreted()


def is_compiling_ahead() -> bool:
    """Whether nothing is launched just now."""
    return bool(_active)


@contextmanager
def compiling_ahead() -> Iterator[None]:
    """Compile what would be launched within, on all cores, and launch nothing; until the end, when all is compiled.

    So what kernels would have written stays as it was. What does not compile is told of when it is launched. Only where
    ``can_compile_ahead``.
    """
    import triton
    from triton.runtime.jit import JITFunction

    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, warmup: bool, **options: Any) -> Any:
        return run(self, *arguments, warmup=True, **options)

    _active.append(True)
    JITFunction.run = compile_only
    try:
        with ThreadPoolExecutor() as executor, triton.AsyncCompileMode(executor, ignore_errors=True):
            yield
    finally:
        JITFunction.run = run
        _active.pop()
