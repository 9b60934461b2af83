import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pbench.experiment import Experiment, ExperimentPlan
from pbench.job import DEFAULT_ACCESS, ENGINE_FACTORY, ServerAccess
from pbench.results import RunResult
from pbench.settings import RunOptions, resolve


class SilentView:
    """Notes what an experiment shows; ``on_event`` may act on it."""

    def __init__(self, on_event: Callable[[str, Mapping[str, Any]], None] = lambda engine, event: None) -> None:
        self.on_event = on_event
        self.engine = ""
        self.ends: list[tuple[str, str]] = []

    def begin(self, engine: str, num_requests: int) -> None:
        self.engine = engine

    def show(self, event: Mapping[str, Any] | None) -> None:
        if event is not None:
            self.on_event(self.engine, event)

    def end(self, status: str) -> None:
        self.ends.append((self.engine, status))


@pytest.fixture
def options() -> RunOptions:
    """Twelve small requests, and a pool in which three of the baseline's reservations fit."""
    return RunOptions(
        workload="chat-shared-prompt",
        limit=12,
        kv_memory="400KiB",
        max_length=256,
        max_running=32,
        max_batch_tokens=256,
        device="cpu",
        overrides=("shared_tokens=64", "own_min=8", "own_max=32", "output_min=16", "output_max=48"),
        sample_interval=0.05,
    )


@pytest.fixture
def fake_engines_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers import ``fake_engines`` from this folder."""
    here = str(Path(__file__).parent)
    others = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{here}{os.pathsep}{others}" if others else here)


@pytest.fixture
def run_experiment(tmp_path: Path) -> Callable[..., RunResult]:
    """Run options as an experiment into ``tmp_path / "run"``."""

    def run(
        options: RunOptions,
        *,
        on_event: Callable[[str, Mapping[str, Any]], None] = lambda engine, event: None,
        engine_factory: str = ENGINE_FACTORY,
        timeout_s: float | None = None,
        num_repeats: int = 1,
        access: ServerAccess = DEFAULT_ACCESS,
    ) -> RunResult:
        settings = resolve(options)
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        plan = ExperimentPlan(
            folder=folder,
            run_id="test",
            created_at="2026-01-01T00:00:00+00:00",
            command=("pbench", "run"),
            workload_choice=settings.choice,
            workload=settings.workload,
            engines=settings.engines,
            environment={},
            notes=settings.notes,
            sample_interval_s=options.sample_interval,
            timeout_s=timeout_s,
            num_repeats=num_repeats,
            targets_ms=settings.targets_ms,
            engine_factory=engine_factory,
            access=access,
            profiling=settings.profiling,
        )
        return Experiment(plan, SilentView(on_event)).run()

    return run
