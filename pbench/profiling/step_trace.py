"""A Chrome trace of a window of steps, by torch's profiler, with a named range for every phase."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from pbench.engine.phases import no_phases

if TYPE_CHECKING:
    import torch.profiler

TRACE_FILE = "trace.json.gz"


class StepTrace:
    """Listens to an engine: pass it to ``Engine.announce``.

    Args:
        first_step: at which the profiler starts, counted from 0.
        num_steps: that it records.
        is_cuda: whether kernels are recorded too.

    """

    def __init__(self, first_step: int, num_steps: int, *, is_cuda: bool) -> None:
        from torch.profiler import ProfilerActivity, profile, record_function

        self._first_step = first_step
        self._num_steps = num_steps
        self._range = record_function
        cuda = [ProfilerActivity.CUDA] if is_cuda else []
        self._profiler: torch.profiler.profile = profile(activities=[ProfilerActivity.CPU, *cuda], acc_events=True)
        self._step = 0  # that is to be planned next
        self._is_on = False

    def __call__(self, name: str) -> AbstractContextManager[object]:
        """See ``pbench.engine.phases.Phases``."""
        if name == "schedule":
            self._begin_step()
        return self._range(name) if self._is_on else no_phases(name)

    def _begin_step(self) -> None:
        if self._step == self._first_step:
            self._profiler.start()
            self._is_on = True
        elif self._step == self._first_step + self._num_steps:
            self.stop()
        self._step += 1

    def stop(self) -> None:
        """Stop recording, if it is on."""
        if self._is_on:
            self._is_on = False
            self._profiler.stop()

    def write(self, folder: Path) -> str:
        """Write the trace, if there is one, and return what a reader must know."""
        self.stop()
        if self._step <= self._first_step:
            return (
                f"nothing was traced: the engine ran {self._step} steps, and the trace was to begin with step"
                f" {self._first_step}; use --profile-steps 0 {self._num_steps}"
            )
        self._profiler.export_chrome_trace(str(folder / TRACE_FILE))
        last_step = min(self._step, self._first_step + self._num_steps) - 1
        return (
            f"torch's profiler recorded steps {self._first_step} to {last_step}: these, and starting it, are slower"
            " than without"
        )
