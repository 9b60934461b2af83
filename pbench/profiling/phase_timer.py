"""Times the phases that an engine announces (``pbench.engine.phases``).

The host's phases (schedule, launch, wait, complete) are timed in every step, which costs about a microsecond each.
What lies within a launch is timed in every ``interval``-th step only: on a GPU by events in its stream, so nothing
waits, on the CPU by the clock. Times of events are of the stream: a kernel that the host launches too late makes its
phase longer. What a CUDA graph replays has no phases: of such a step the whole replay is known.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from pbench.summary.repeat import PhaseTime

HOST_PHASES = ("schedule", "launch", "wait", "complete")
LAUNCH_PHASES = ("prepare", "swap", "copy", "forward", "replay", "sample")  # one after the other
LAYER_PHASES = ("attention", "mlp")  # within forward
OUTSIDE = "outside"  # the harness, and waiting for requests
REST_OF_LAUNCH = "between"
REST_OF_FORWARD = "projections and norms"

_NOTHING: AbstractContextManager[None] = nullcontext()


class Stamps(Protocol):
    """Takes and compares moments on the device."""

    def now(self) -> Any:
        """A stamp of this moment in the device's order of work."""

    def has_passed(self, stamp: Any) -> bool:
        """Whether the device has come to ``stamp``."""

    def between_ns(self, first: Any, second: Any) -> float:
        """Nanoseconds between two stamps that have passed."""

    def give_back(self, stamps: list[Any]) -> None:
        """These are not needed any more."""


class ClockStamps:
    """Of the CPU: the clock itself."""

    def now(self) -> int:
        """See ``Stamps``."""
        return time.perf_counter_ns()

    def has_passed(self, stamp: int) -> bool:
        """See ``Stamps``."""
        return True

    def between_ns(self, first: int, second: int) -> float:
        """See ``Stamps``."""
        return second - first

    def give_back(self, stamps: list[int]) -> None:
        """See ``Stamps``."""


class EventStamps:
    """Of a GPU: events in the current stream, used again and again."""

    def __init__(self) -> None:
        import torch

        self._make: Callable[..., Any] = torch.cuda.Event
        self._free: list[Any] = []

    def now(self) -> Any:
        """See ``Stamps``."""
        event = self._free.pop() if self._free else self._make(enable_timing=True)
        event.record()
        return event

    def has_passed(self, stamp: Any) -> bool:
        """See ``Stamps``."""
        return bool(stamp.query())

    def between_ns(self, first: Any, second: Any) -> float:
        """See ``Stamps``."""
        return float(first.elapsed_time(second)) * 1e6

    def give_back(self, stamps: list[Any]) -> None:
        """See ``Stamps``."""
        self._free += stamps


class _Launch(NamedTuple):
    """The stamps of one launch that is timed: of each phase its beginning and its end."""

    whole: list[Any]
    phases: list[tuple[str, Any, Any]]


class _HostPhase:
    """One of the host's phases, entered again in every step."""

    def __init__(self, timer: "PhaseTimer", name: str) -> None:
        self._timer = timer
        self._name = name
        self._start_ns = 0

    def __enter__(self) -> None:
        if self._name == "launch":
            self._timer.begin_launch()
        self._start_ns = time.perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.host_ns[self._name] += time.perf_counter_ns() - self._start_ns
        if self._name == "launch":
            self._timer.end_launch()


class PhaseTimer:
    """Listens to an engine: pass it to ``Engine.announce``.

    Args:
        stamps: of the device.
        interval: within every so many launches the phases are timed.

    """

    def __init__(self, stamps: Stamps, interval: int) -> None:
        self.host_ns: dict[str, int] = dict.fromkeys(HOST_PHASES, 0)
        self._stamps = stamps
        self._interval = interval
        self._host = {name: _HostPhase(self, name) for name in HOST_PHASES}
        self._num_launches = 0
        self._launch: _Launch | None = None  # the one that is timed just now
        self._pending: deque[_Launch] = deque()  # the device may not have come to their ends
        self._begin_ns = time.perf_counter_ns()
        # By whether the model was replayed from a graph: launches, and nanoseconds of their phases
        self._num_timed = {False: 0, True: 0}
        self._device_ns: dict[bool, defaultdict[str, float]] = {False: defaultdict(float), True: defaultdict(float)}

    def __call__(self, name: str) -> AbstractContextManager[object]:
        """See ``pbench.engine.phases.Phases``."""
        host = self._host.get(name)
        if host is not None:
            return host
        return _NOTHING if self._launch is None else self._within_launch(self._launch, name)

    @contextmanager
    def _within_launch(self, launch: _Launch, name: str) -> Iterator[None]:
        begin = self._stamps.now()
        yield
        launch.phases.append((name, begin, self._stamps.now()))

    def begin_launch(self) -> None:
        """A launch begins: time it if it is its turn."""
        if self._num_launches % self._interval == 0:
            self._launch = _Launch([self._stamps.now()], [])
        self._num_launches += 1

    def end_launch(self) -> None:
        """A launch ends; the times of earlier ones are read as far as the device has come."""
        if self._launch is not None:
            self._launch.whole.append(self._stamps.now())
            self._pending.append(self._launch)
            self._launch = None
        self._read()

    def _read(self) -> None:
        while self._pending and self._stamps.has_passed(self._pending[0].whole[1]):
            whole, phases = self._pending.popleft()
            is_replayed = any(name == "replay" for name, _, _ in phases)
            totals = self._device_ns[is_replayed]
            self._num_timed[is_replayed] += 1
            totals["launch"] += self._stamps.between_ns(*whole)
            for name, begin, end in phases:
                totals[name] += self._stamps.between_ns(begin, end)
            self._stamps.give_back([*whole, *(stamp for _, *pair in phases for stamp in pair)])

    def results(self) -> tuple[PhaseTime, ...]:
        """Where the time went since the first announcement; of what the device has not finished nothing."""
        wall_ns = time.perf_counter_ns() - self._begin_ns
        self._read()
        if not self._num_launches:
            return ()
        host = self.host_ns | {OUTSIDE: wall_ns - sum(self.host_ns.values())}
        found = [
            PhaseTime("host", "all", name, spent_ns / self._num_launches / 1e6, 100 * spent_ns / wall_ns)
            for name, spent_ns in host.items()
        ]
        for is_replayed, kind in ((False, "launched"), (True, "replayed")):
            found += self._of_device(kind, self._num_timed[is_replayed], self._device_ns[is_replayed])
        return tuple(found)

    def _of_device(self, kind: str, num_timed: int, totals: "defaultdict[str, float]") -> Iterator[PhaseTime]:
        whole_ns = totals["launch"]
        if not num_timed or not whole_ns:
            return
        parts = {name: totals[name] for name in LAUNCH_PHASES if name in totals and name != "forward"}
        if "forward" in totals:
            layers = {name: totals[name] for name in LAYER_PHASES if name in totals}
            parts |= layers | {REST_OF_FORWARD: totals["forward"] - sum(layers.values())}
        parts[REST_OF_LAUNCH] = whole_ns - sum(parts.values())
        for name, spent_ns in parts.items():
            yield PhaseTime("device", kind, name, spent_ns / num_timed / 1e6, 100 * spent_ns / whole_ns, num_timed)
