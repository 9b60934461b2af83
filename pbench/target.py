"""What the harness asks of an engine. Whatever offers this can be measured."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Protocol, runtime_checkable

from pbench.engine.config import EngineConfig
from pbench.engine.phases import Phases
from pbench.engine.pool_map import PoolMap
from pbench.engine.records import RequestRecord, StepRecord, TokenOutput
from pbench.engine.request import Request


class TargetStep(Protocol):
    """What one step gave out."""

    @property
    def record(self) -> StepRecord:
        """The step itself."""

    @property
    def tokens(self) -> Sequence[TokenOutput]:
        """The tokens that it gave out."""

    @property
    def finished(self) -> Sequence[RequestRecord]:
        """Requests that left the engine in this step."""


class Target(Protocol):
    """An engine driven step by step from outside."""

    num_slots: int
    slot_bytes: int
    pool_bytes: int
    block_size: int
    weights_bytes: int

    @property
    def has_unfinished(self) -> bool:
        """Whether a request is waiting or running."""

    def add_request(self, request: Request) -> None:
        """Put a request at the end of the queue."""

    def step(self) -> TargetStep:
        """Run one step; something must be unfinished."""

    def memory_bytes(self) -> dict[str, int]:
        """What it holds on the device, by ``pbench.memory_account.KNOWN_PARTS``."""

    def warm_up(self) -> int | None:
        """Compile and capture what the measured steps will use, and leave the pool empty.

        Returns the number of steps that ran; None where nobody counts them.
        """

    def unfinished(self) -> Sequence[RequestRecord]:
        """How the requests stand that have not left the engine."""


@runtime_checkable
class Announces(Protocol):
    """What an engine adds that can announce the phases of its steps."""

    def announce(self, phases: Phases) -> None:
        """Tell ``phases`` of every phase from now on."""


@runtime_checkable
class MapsPool(Protocol):
    """What an engine adds that can tell what lies where in its pool."""

    def pool_map(self) -> PoolMap:
        """Who holds what now, between two steps; O(pool)."""


TargetFactory = Callable[[EngineConfig, str | None], Target]


def load_factory(path: str) -> TargetFactory:
    """The factory named by ``module:attribute``."""
    module, _, attribute = path.partition(":")
    factory: TargetFactory = getattr(import_module(module), attribute)
    return factory
