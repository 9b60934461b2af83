"""What a person sees while a run goes on: a live view on a terminal, plain lines anywhere else."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pbench.units import format_number, printable

LINE_INTERVAL_S = 3.0
BAR_WIDTH = 48

# Each part of the pool has its own character, so that the bar reads without colours too.
POOL_PARTS = (
    ("token_state", "token states", "█", "green"),
    ("reserved", "reserved", "▓", "yellow"),
    ("internal", "internal", "▒", "red"),
    ("external", "external", "░", "magenta"),
    ("cached", "cached", "▚", "cyan"),
    ("free", "free", "·", "bright_black"),
)


class View(Protocol):
    """Watches one engine after the other."""

    def begin(self, engine: str, num_requests: int) -> None:
        """An engine starts."""

    def show(self, event: Mapping[str, Any] | None) -> None:
        """Its worker said something; None: it said nothing for a moment."""

    def end(self, status: str) -> None:
        """It ended."""


@dataclass(slots=True)
class EngineState:
    """What is known of the engine that runs just now."""

    engine: str
    num_requests: int
    started_s: float
    stage: str = "starting"
    progress: Mapping[str, Any] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take over what an event says."""
        if event["event"] == "stage":
            self.stage = event["stage"]
        elif event["event"] == "progress":
            self.progress = event

    def line(self, now_s: float) -> str:
        """How the engine does, in one line."""
        name = printable(self.engine)
        if not self.progress:
            return f"{name}: {self.stage}, {now_s - self.started_s:.0f} s"
        progress = self.progress
        elapsed_s = progress["elapsed_ns"] / 1e9
        rate = progress["num_output_tokens"] / elapsed_s if elapsed_s > 0 else 0.0
        if "num_sent" in progress:  # an engine that does not tell which of them run
            where = f"{progress['num_sent']} in the engine"
        else:
            where = f"{progress['num_running']} running, {progress['num_waiting']} waiting"
        return (
            f"{name}: {progress['num_finished']}/{self.num_requests} requests, {format_number(round(rate))} tok/s,"
            f" {where}, {elapsed_s:.1f} s"
        )


class LineView:
    """A plain line when an engine changes its stage, and every ``LINE_INTERVAL_S`` seconds while it runs."""

    def __init__(self, write: Callable[[str], object], clock_s: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock_s = clock_s
        self._state: EngineState | None = None
        self._next_line_s = 0.0

    def begin(self, engine: str, num_requests: int) -> None:
        """An engine starts."""
        self._state = EngineState(engine, num_requests, self._clock_s())
        self._next_line_s = self._clock_s() + LINE_INTERVAL_S

    def show(self, event: Mapping[str, Any] | None) -> None:
        """Write a line when one is due."""
        assert self._state is not None
        if event is not None:
            self._state.take(event)
        is_new_stage = event is not None and event["event"] == "stage"
        if is_new_stage or self._clock_s() >= self._next_line_s:
            self._next_line_s = self._clock_s() + LINE_INTERVAL_S
            self._write(self._state.line(self._clock_s()))

    def end(self, status: str) -> None:
        """Write how the engine ended."""
        assert self._state is not None
        self._write(f"{self._state.line(self._clock_s())}: {status}")
        self._state = None


class TerminalView:
    """A progress bar and a bar of the pool, redrawn in place; one line stays behind for every engine."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._state: EngineState | None = None

    def begin(self, engine: str, num_requests: int) -> None:
        """An engine starts: begin to draw."""
        self._state = EngineState(engine, num_requests, time.monotonic())
        self._live = Live(self._draw(), console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def show(self, event: Mapping[str, Any] | None) -> None:
        """Draw what is known now."""
        assert self._state is not None
        assert self._live is not None
        if event is not None:
            self._state.take(event)
        self._live.update(self._draw(), refresh=True)

    def end(self, status: str) -> None:
        """Replace the drawing by one line."""
        assert self._state is not None
        assert self._live is not None
        self._live.stop()
        self._console.print(Text(f"{self._state.line(time.monotonic())}: {status}"))
        self._live = self._state = None

    def _draw(self) -> Group:
        assert self._state is not None
        line = Text(self._state.line(time.monotonic()))
        progress = self._state.progress
        if not progress:
            return Group(line)
        bar = _progress_bar(progress["num_finished"], self._state.num_requests)
        return Group(line, bar, *(_pool_bar(progress) if "token_state" in progress else ()))


def view_for(console: Console) -> View:
    """The view that suits where ``console`` writes to."""
    if console.is_terminal and not console.is_dumb_terminal:
        return TerminalView(console)
    return LineView(lambda line: console.print(Text(line), soft_wrap=True))


def widths(parts: list[int], width: int) -> list[int]:
    """``width`` cells shared out in proportion to ``parts``, by largest remainder; they sum to ``width``."""
    total = sum(parts)
    if total <= 0:
        return [0] * len(parts)
    cells = [part * width // total for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda index: parts[index] * width % total, reverse=True)
    for index in by_remainder[: width - sum(cells)]:
        cells[index] += 1
    return cells


def _progress_bar(num_finished: int, num_requests: int) -> Text:
    done, left = widths([num_finished, num_requests - num_finished], BAR_WIDTH)
    return Text.assemble("  requests ", ("━" * done, "green"), ("─" * left, "bright_black"))


def _pool_bar(usage: Mapping[str, int]) -> tuple[Text, Text]:
    slots = [usage[key] for key, *_ in POOL_PARTS]
    bar, legend = Text("  pool     "), Text("           ")
    for (_, label, mark, style), num_slots, cells in zip(POOL_PARTS, slots, widths(slots, BAR_WIDTH), strict=True):
        bar.append(mark * cells, style)
        if num_slots:
            legend.append(mark, style)
            legend.append(f" {label} {100 * num_slots / sum(slots):.0f} %  ")
    return bar, legend
