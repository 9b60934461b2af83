"""Triton, and where it is not installed (macOS) what lets the files of the kernels load without it.

This folder has no ``__init__.py`` on purpose: from the repository's root a regular package called ``kernels``
would shadow Hugging Face's package of that name, which transformers imports.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

__all__ = [
    "HAS_TRITON",
    "IS_INTERPRETED",
    "is_interpreted",
    "is_known_triton",
    "jit",
    "let_next_launch",
    "tl",
    "wait_and_let_next",
    "wait_for_previous",
]

HAS_TRITON = find_spec("triton") is not None

if HAS_TRITON:
    import triton
    from triton import language as tl

    # Of a kernel that is launched early (launch.py): it waits until the kernel before it is done and what that wrote is
    # there. Before that it writes nothing, and reads nothing but weights, which nobody writes, and in a decode's
    # attention what is settled: a plan with what belongs to it, and KV of earlier steps (decode_attention.py). Every
    # program waits, so after the wait all kernels before are done, even where each lets the next one be launched before
    # its own wait.
    from triton.language.extra.cuda import gdc_launch_dependents as let_next_launch
    from triton.language.extra.cuda import gdc_wait as wait_for_previous
else:
    # What the signatures of kernels name; nothing else of Triton is touched before a kernel is launched.
    tl = SimpleNamespace(constexpr=object, pointer_type=object, tensor=object, tuple=tuple)
    let_next_launch = wait_for_previous = None


def jit(
    *, do_not_specialize: Sequence[str] = (), do_not_specialize_on_alignment: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a Triton kernel, or a function that kernels call.

    Both arguments keep Triton from compiling once more in the middle of a run, because a launch differs from those
    before: ``do_not_specialize`` names the integers whose value changes (1 and multiples of 16 are special), and
    ``do_not_specialize_on_alignment`` the pointers that are not always at a multiple of 16 bytes.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        if not HAS_TRITON:
            return function
        return triton.jit(
            function,
            do_not_specialize=list(do_not_specialize),
            do_not_specialize_on_alignment=list(do_not_specialize_on_alignment),
        )

    return decorate


@cache
def is_known_triton() -> bool:
    """Whether Triton is of a version whose inner parts we know: how a launch ends, and Gluon, its lower layer."""
    return HAS_TRITON and triton.__version__.startswith(("3.6.", "3.7."))


def is_interpreted() -> bool:
    """Whether Triton interprets kernels, on CPU tensors: ``TRITON_INTERPRET`` was 1 when it was imported."""
    return HAS_TRITON and bool(triton.knobs.runtime.interpret)


# For kernels to branch on.
IS_INTERPRETED = tl.constexpr(is_interpreted()) if HAS_TRITON else False


@jit()
def wait_and_let_next(is_time: tl.tensor) -> tl.tensor:
    """In a loop: where ``is_time``, wait for the kernel before and let the next one be launched.

    Returns 0, to be added to the address of what may be read only then: in a loop that loads ahead, Triton moves an
    ``if`` without a result behind everything else.
    """
    return tl.inline_asm_elementwise(
        """
        {
        .reg .pred is_time;
        setp.ne.b32 is_time, $1, 0;
        @is_time griddepcontrol.wait;
        @is_time griddepcontrol.launch_dependents;
        mov.b32 $0, 0;
        }
        """,
        constraints="=r,r",
        args=[is_time.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
