"""A worker seen from its parent: starting it, hearing from it, interrupting it, and why it ended."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pbench
from pbench.units import display_path, printable
from pbench.worker import Outcome

POLL_S = 0.1
# After its last word a worker only tears down; a driver that hangs then must not hang us.
EXIT_S = 30.0
LOG_TAIL_LINES = 6
LOG_TAIL_BYTES = 8192


class WorkerProcess:
    """One worker process. Its standard error goes to ``log_path``.

    It has a process group of its own: a Ctrl-C of the terminal reaches the parent only, which passes it on exactly
    once. Should the parent be killed, the worker notices at its next event.
    """

    def __init__(self, job_path: Path, log_path: Path, timeout_s: float | None = None) -> None:
        self._log_path = log_path
        self._timeout_s = timeout_s
        self._started_s = time.monotonic()
        self._is_timed_out = False
        self._num_interrupts = 0
        self._done: Outcome | None = None
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pbench.worker", str(job_path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                process_group=0,
                env=worker_environment(),
            )

    @property
    def process_id(self) -> int:
        """The operating system's id of the process."""
        return self._process.pid

    @property
    def is_interrupted(self) -> bool:
        """Whether it was asked to stop."""
        return self._num_interrupts > 0

    def interrupt(self) -> None:
        """Ask the worker to stop after its current step; a second time, kill it."""
        self._num_interrupts += 1
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT if self._num_interrupts == 1 else signal.SIGKILL)

    def events(self) -> Iterator[dict[str, Any] | None]:
        """The worker's events until it ends; None whenever there was none for ``POLL_S`` seconds."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        pending = b""
        with self._process.stdout, selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while True:
                self._kill_if_late()
                if not selector.select(POLL_S):
                    yield None
                    continue
                chunk = os.read(descriptor, 65536)
                if not chunk:
                    return
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    event: dict[str, Any] = json.loads(line)
                    if event["event"] == "done":
                        self._done = Outcome(event["status"], event["reason"], tuple(event["notes"]))
                    yield event

    def outcome(self) -> Outcome:
        """How the worker ended: its own word, or what the operating system says. Call it after ``events`` ended."""
        try:
            code = self._process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if self._done is not None:
            return self._done
        if self._is_timed_out:
            return Outcome("failed", f"timed out after {self._timeout_s:g} s (--timeout) and was killed")
        if self._num_interrupts:
            return Outcome("interrupted", "interrupted; the worker ended before it could say more")
        return Outcome("failed", f"{_describe_exit(code)}{self._log_tail()}")

    def kill(self) -> None:
        """End the process at once, if it still runs, and wait for it."""
        self._process.kill()
        self._process.wait()

    def _kill_if_late(self) -> None:
        if self._timeout_s is None or self._done is not None or self._is_timed_out:
            return
        if time.monotonic() - self._started_s > self._timeout_s:
            self._is_timed_out = True
            self._process.kill()

    def _log_tail(self) -> str:
        with self._log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            text = log.read().decode("utf-8", errors="replace")
        lines = [printable(line.strip()) for line in text.splitlines() if line.strip()][-LOG_TAIL_LINES:]
        return f"; its last words: {' | '.join(lines)} (all of them in {display_path(self._log_path)})" if lines else ""


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"the worker ended with exit code {code} and without a result"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown to Python"
    text = f"the worker was killed by signal {-code} ({name})"
    return f"{text}, as the system does when memory runs out" if -code == signal.SIGKILL else text


def worker_environment() -> dict[str, str]:
    """The worker's environment: ours, with the project's folder where Python found it only by being started there.

    The worker runs with ``-P``, which keeps the current folder off the path, so a checkout that is not installed
    would not be found.
    """
    environment = dict(os.environ)
    root = Path(pbench.__file__).resolve().parent.parent
    if not sys.flags.safe_path and sys.path and Path(sys.path[0] or ".").resolve() == root:
        others = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{others}" if others else str(root)
    return environment
