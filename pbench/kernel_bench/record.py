"""The file of a bench of kernels, written while it measures: a killed process loses a moment only."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pbench.environment import gpu_environment, host_environment
from pbench.kernel_bench.bench import KernelPlan, document
from pbench.kernel_bench.ceilings import Ceilings
from pbench.kernel_bench.measurement import Measurement
from pbench.text_output import write_out

WRITE_INTERVAL_S = 1.0


class KernelRecord:
    """What was measured, in memory and, where the user named a file, in that too. Its status is one of a run's."""

    def __init__(self, out: Path | None, ceilings: Ceilings, plan: KernelPlan) -> None:
        self.measurements: list[Measurement] = []
        self._out = out
        self._ceilings = ceilings
        self._plan = plan
        self._environment: dict[str, Any] = {}
        self._written_s = 0.0

    def __enter__(self) -> Self:
        """Begin the file: what cannot be written is refused before the work.

        Raises:
            UsageError: the file cannot be written.

        """
        if self._out is not None:
            device = self._plan.device
            gpu = gpu_environment(device, None) if device.type == "cuda" else None
            self._environment = host_environment() | {"gpu": gpu}
        self._write("running")
        return self

    def add(self, measurement: Measurement) -> None:
        """Keep one; the whole file is written anew if the last time is long ago."""
        self.measurements.append(measurement)
        if time.monotonic() - self._written_s >= WRITE_INTERVAL_S:
            self._write("running")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say how it ended."""
        if isinstance(error, Exception) or any(one.is_fault for one in self.measurements):
            self._write("failed")
        else:
            self._write("interrupted" if error else "complete")

    def _write(self, status: str) -> None:
        if self._out is not None:
            whole = document(self._ceilings, self.measurements, self._plan)
            fields = {"status": status} | whole | {"environment": self._environment}
            write_out(self._out, json.dumps(fields, indent=1) + "\n")
            self._written_s = time.monotonic()
