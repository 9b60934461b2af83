"""Engines for workers under test: the real one made slower, or made to fail in a way of its own.

Each public function is an engine factory. What is changed is the step, and only once the engine is warm.
"""

import os
import signal
import sys
import time
from collections.abc import Callable

import torch

from pbench.engine.config import EngineConfig
from pbench.engine.engine import Engine
from pbench.engine.loading import load_engine
from pbench.engine.plan import StepPlan
from pbench.nvml import NvmlDevice

NUM_GOOD_STEPS = 5


def slow(config: EngineConfig, weights: str | None) -> Engine:
    """Every step takes at least 20 ms, so that a test can act in the middle of a run."""
    return _with_step(load_engine(config, weights), lambda step: time.sleep(0.02))


def chatty(config: EngineConfig, weights: str | None) -> Engine:
    """Prints to standard output, as libraries do."""
    return _with_step(load_engine(config, weights), lambda step: print("not an event", flush=True))


def out_of_memory(config: EngineConfig, weights: str | None) -> Engine:
    def fail() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return _failing(config, weights, fail)


def killed(config: EngineConfig, weights: str | None) -> Engine:
    def fail() -> None:
        print("the last words\x1b[31m of the worker", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    return _failing(config, weights, fail)


def exiting(config: EngineConfig, weights: str | None) -> Engine:
    return _failing(config, weights, lambda: os._exit(7))


def hanging(config: EngineConfig, weights: str | None) -> Engine:
    return _failing(config, weights, lambda: time.sleep(600))


def without_nvml_half_way(config: EngineConfig, weights: str | None) -> Engine:
    """The worker finds an NVML, which loses its GPU at the fourth sample."""
    from test_nvml import FakeNvml

    import __main__  # the worker

    class Library(FakeNvml):
        def nvmlDeviceGetMemoryInfo(self, handle: int) -> object:  # noqa: N802
            if self.calls.count("nvmlDeviceGetMemoryInfo") == 3:
                self.broken["nvmlDeviceGetMemoryInfo"] = self.NVMLError_GpuIsLost("GPU is lost")
            return super().nvmlDeviceGetMemoryInfo(handle)

    __main__._open_nvml = lambda device: (NvmlDevice.open("aaaa", Library()), None)
    return slow(config, weights)


def _failing(config: EngineConfig, weights: str | None, fail: Callable[[], None]) -> Engine:
    """Fails instead of its sixth measured step, in the paged engine only."""

    def act(step: int) -> None:
        if config.memory == "paged" and step >= NUM_GOOD_STEPS:
            fail()

    return _with_step(load_engine(config, weights), act)


def _with_step(engine: Engine, act: Callable[[int], object]) -> Engine:
    """The engine with ``act(number of the step)`` before each of its measured steps."""
    launch, warm_up = engine.runner.launch, engine.warm_up

    def warm_up_then_act() -> int:
        num_steps = warm_up()

        def act_then_launch(plan: StepPlan):  # type: ignore[no-untyped-def]
            act(plan.step)
            return launch(plan)

        engine.runner.launch = act_then_launch  # type: ignore[method-assign]
        return num_steps

    engine.warm_up = warm_up_then_act  # type: ignore[method-assign]
    return engine
