"""The history of many runs: what was measured of the same thing, run after run, and where it changed its level."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pbench.errors import ResultError, UsageError
from pbench.reports.change_points import Step, find_steps
from pbench.results import METRICS, EngineResult, Metric, RunResult, read_result

TREND_METRICS = (
    "output_tokens_per_s",
    "ttft_ms_p99",
    "tpot_ms_p50",
    "mean_running",
    "waste_pct",
    "prefix_hit_rate_pct",
    "preemptions",
    "peak_device_used_bytes",
    "joules_per_output_token",
)
_METRIC_BY_NAME = {metric.name: metric for metric in METRICS}

# What must be equal before runs lie on one line. The seed goes with the hash: prompts are made from both.
_IDENTITY = (
    ("workload", "name"),
    ("workload", "sha256"),
    ("workload", "seed"),
    ("workload", "arrivals"),
    ("workload", "num_requests"),
    ("config", "model"),
    ("config", "dtype"),
    ("config", "device"),
    ("config", "kv_memory_bytes"),
    ("environment", "gpu", "name"),
    ("environment", "cpu", "model"),
)


class Point(NamedTuple):
    """One engine of one run."""

    run: RunResult
    engine: EngineResult

    @property
    def commit(self) -> str:
        """The commit that was measured, short, with a star where the tree had changes; "?" where it is not known."""
        pbench = self.run.environment.get("pbench")
        pbench = pbench if isinstance(pbench, dict) else {}
        commit = str(pbench.get("git_commit") or "?")[:9]
        return f"{commit}*" if pbench.get("is_git_dirty") else commit


@dataclass(frozen=True, slots=True)
class Trend:
    """One figure of one engine: ``values[i]`` is that of ``points[i]``, in order of time."""

    spec: str
    metric: Metric
    points: tuple[Point, ...]
    values: tuple[float, ...]
    steps: tuple[Step, ...]

    def tone(self, step: Step) -> str:
        """How the step is judged: better | worse | neutral."""
        if self.metric.is_higher_better is None:
            return "neutral"
        return "better" if (step.after > step.before) == self.metric.is_higher_better else "worse"


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of one workload, model and machine, with pools of one size."""

    key: str
    runs: tuple[RunResult, ...]  # in order of time
    trends: tuple[Trend, ...]

    @property
    def title(self) -> str:
        """What was measured, in a line."""
        run = self.runs[0]
        parts = [_at(run, path) for path in (("workload", "name"), ("config", "model"), ("config", "dtype"))]
        device = _at(run, ("config", "device"))
        is_simulated = str(device).startswith("simulated")
        gpu, cpu = _at(run, ("environment", "gpu", "name")), _at(run, ("environment", "cpu", "model"))
        parts.append(device if is_simulated else gpu or cpu)
        return " · ".join(str(part) for part in parts if part)


@dataclass(frozen=True, slots=True)
class History:
    """All groups, those with the most runs first, and the folders that could not take part, with the reason."""

    groups: tuple[Group, ...]
    left_out: tuple[str, ...]

    @property
    def trends(self) -> tuple[Trend, ...]:
        """Those of all groups."""
        return tuple(trend for group in self.groups for trend in group.trends)


def read_history(folder: Path, metrics: Sequence[str] = TREND_METRICS) -> History:
    """Read every run folder at or below ``folder``; of each only run.json.

    Raises:
        UsageError: no run folder is there that can be read, or a metric has no such name.
    """
    unknown = [name for name in metrics if name not in _METRIC_BY_NAME]
    if unknown:
        raise UsageError(f"metric {unknown[0]!r} is not one of {', '.join(_METRIC_BY_NAME)}")
    runs: list[RunResult] = []
    left_out = []
    for path in sorted(folder.rglob("run.json")):
        try:
            runs.append(read_result(path.parent))
        except ResultError as error:
            left_out.append(str(error))
    if not runs:
        rest = f"; {left_out[0]}" if left_out else ""
        raise UsageError(f"{folder} holds no run folder that can be read{rest}")
    by_identity: dict[tuple[str, ...], list[RunResult]] = {}
    for run in sorted(runs, key=lambda run: (run.created_at, run.run_id)):
        by_identity.setdefault(tuple(str(_at(run, path)) for path in _IDENTITY), []).append(run)
    kinds = sorted(by_identity.values(), key=len, reverse=True)
    groups = [Group(f"g{index}", tuple(kind), tuple(_trends(kind, metrics))) for index, kind in enumerate(kinds)]
    return History(tuple(groups), tuple(left_out))


def _trends(runs: Sequence[RunResult], metrics: Sequence[str]) -> list[Trend]:
    """One for every engine and every metric that was measured at all. Only complete engines count."""
    is_exact = all(run.environment.get("is_simulated") for run in runs)
    points = [Point(run, engine) for run in runs for engine in run.engines if engine.status == "complete"]
    trends = []
    for name in metrics:
        for spec in dict.fromkeys(point.engine.spec for point in points):
            pairs = [
                (point, float(value))
                for point in points
                if point.engine.spec == spec and (value := point.engine.summary.get(name)) is not None
            ]
            if not pairs:
                continue
            values = tuple(value for _, value in pairs)
            steps = find_steps(np.array(values), is_exact=is_exact)
            trends.append(Trend(spec, _METRIC_BY_NAME[name], tuple(point for point, _ in pairs), values, tuple(steps)))
    return trends


def _at(run: RunResult, path: Sequence[str]) -> Any:
    """A leaf of the record; None where it is missing."""
    value: Any = getattr(run, path[0])
    for name in path[1:]:
        value = value.get(name) if isinstance(value, dict) else None
    return value
