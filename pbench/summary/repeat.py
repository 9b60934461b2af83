"""What the record keeps of a repeat: one engine, played once through the workload in a process of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CONFIDENCE = 0.95  # of every interval
WIDE_SPREAD_PCT = 10.0  # repeats further apart than this are flagged

OUTCOMES = ("fail", "warn", "unknown", "pass")  # of a check, worst first; unknown: this machine cannot tell


@dataclass(frozen=True, slots=True)
class Interval:
    """Student's t interval of a figure over the repeats, at ``CONFIDENCE``, and how far apart these lie."""

    low: float
    high: float
    spread_pct: float | None  # largest minus smallest, in % of the mean; None where that is 0
    is_wide: bool = False  # flagged: they lie further apart than ``WIDE_SPREAD_PCT``


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a careful reader would verify before believing the figures."""

    name: str
    outcome: str  # one of OUTCOMES
    detail: str  # what was seen, for people
    figure: float | None = None  # what was judged
    unit: str = ""  # of the figure, as in ``Metric.unit``


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What ran before the measurement, and counts in no figure."""

    duration_s: float
    num_steps: int | None = None  # None: the engine does not say


@dataclass(frozen=True, slots=True)
class SteadyState:
    """The stretch of a repeat in which the throughput was steady: see ``pbench.summary.steady_state``."""

    start_ns: int  # since the start of measurement
    end_ns: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How often the device was looked at. Every sample's own time is in the table."""

    asked_interval_s: float
    num_samples: int
    median_interval_s: float | None  # None: of fewer than two samples
    longest_interval_s: float | None


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """Where a part of the steps' time went: see ``pbench.profiling.phase_timer``."""

    where: str  # "host" | "device"; on the CPU the device is the host
    steps: str  # "all" | "launched" kernel by kernel | "replayed" from a CUDA graph
    phase: str
    mean_ms: float  # of a step
    share_pct: float  # of all time where it is the host's, else of what the device took for such steps
    num_steps: int | None = None  # that were timed; None: all


@dataclass(frozen=True, slots=True)
class Repeat:
    """One repeat of an engine: everything that was measured of it alone. The raw rows are in the tables."""

    repeat: int  # from 1, as in the tables
    status: str  # one of ``pbench.results.STATUSES``
    reason: str | None = None
    position: int = 0  # how many repeats of any engine ran before it
    started_at: str = ""  # ISO 8601, UTC
    memory: Mapping[str, int] = field(default_factory=dict)
    summary: Mapping[str, float | int | None] = field(default_factory=dict)  # by Metric.name; None: not measured
    samples: Mapping[str, int] = field(default_factory=dict)  # by Metric.name of a percentile: values that it is of
    warm_up: WarmUp | None = None  # None: it did not get so far
    steady: SteadyState | None = None  # None: not found
    sampling: Sampling | None = None  # None: the sampler was off
    phases: tuple[PhaseTime, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Repeat":
        """The repeat that ``dataclasses.asdict`` made a dictionary of.

        Raises:
            TypeError, KeyError: a field is missing or unknown.

        """
        fields = dict(data)
        warm_up, steady, sampling = fields.pop("warm_up"), fields.pop("steady"), fields.pop("sampling", None)
        checks, notes, phases = fields.pop("checks"), fields.pop("notes"), fields.pop("phases", ())
        return cls(
            **fields,
            warm_up=None if warm_up is None else WarmUp(**warm_up),
            steady=None if steady is None else SteadyState(**steady),
            sampling=None if sampling is None else Sampling(**sampling),
            phases=tuple(PhaseTime(**phase) for phase in phases),
            checks=tuple(Check(**check) for check in checks),
            notes=tuple(notes),
        )
