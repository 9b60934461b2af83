"""The phases of a step, announced to whoever wants to time or trace them: by default to nobody.

    schedule    the host plans a step
    launch      the host starts it; on the CPU it runs
        prepare     tables, and uploading the batch
        swap, copy  what the plan moves before the batch runs
        forward     the model, kernel by kernel; within it attention and mlp of every layer
        replay      or the model as a CUDA graph
        sample      scoring and choosing tokens, where that is not in the graph
    wait        the host waits for the tokens of the step before
    complete    the host takes them over

Whoever listens must do so after the engine has warmed up: what is captured in a CUDA graph announces nothing.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeAlias, TypeVar

# Called with a phase's name as it begins; the context that it returns is left as the phase ends.
Phases: TypeAlias = Callable[[str], AbstractContextManager[object]]

P = ParamSpec("P")
T = TypeVar("T")

_NOTHING: AbstractContextManager[None] = nullcontext()


def no_phases(_name: str) -> AbstractContextManager[None]:
    """Listen to nothing."""
    return _NOTHING


def announced(function: Callable[P, T], name: str, phases: Phases) -> Callable[P, T]:
    """``function`` as a phase; itself when nobody listens."""
    if phases is no_phases:
        return function

    def in_phase(*args: P.args, **kwargs: P.kwargs) -> T:
        with phases(name):
            return function(*args, **kwargs)

    return in_phase
