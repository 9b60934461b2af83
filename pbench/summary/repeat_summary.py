"""From what a worker journalled and said to the repeat that the record keeps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pbench.environment import usable_cores
from pbench.memory_account import account_memory
from pbench.profiling.profiling import read_phases
from pbench.results import Repeat, WarmUp
from pbench.summary.metrics import sampling_of, summarise
from pbench.tables import Tables
from pbench.validity.repeat import Evidence, Watching, check_repeat
from pbench.worker import Outcome


def summarise_repeat(
    number: int,
    outcome: Outcome,
    tables: Tables,
    *,
    journal: Path,
    ready: Mapping[str, Any],
    watching: Watching | None,
    workload: Mapping[str, Any],
    sample_interval_s: float,
    targets_ms: Mapping[str, float],
    notes: tuple[str, ...] = (),
) -> Repeat:
    """The repeat ``number`` as it ended.

    Args:
        number: from 1.
        outcome: how it ended.
        tables: what was measured.
        journal: the folder that the worker journalled into.
        ready: the worker's event of this name; empty where it did not get so far.
        watching: what it cost, as the worker said at its end.
        workload: as the record keeps it.
        sample_interval_s: as it was asked for.
        targets_ms: of ``--slo``.
        notes: that hold for every engine.
    """
    pool, known_memory, warm_up = ready.get("pool", {}), ready.get("memory"), ready.get("warm_up")
    summary = summarise(tables, pool, targets_ms)
    sampling = sampling_of(tables.device, sample_interval_s)
    evidence = Evidence(
        tables=tables,
        pool=pool,
        workload=workload,
        duration_s=summary.values["duration_s"],
        steady=summary.steady,
        sampling=sampling,
        gpu=ready.get("gpu"),
        num_cached_slots=ready.get("num_cached_slots"),
        watching=watching,
        num_cores=len(usable_cores()),  # a worker inherits ours
    )
    return Repeat(
        repeat=number,
        status=outcome.status,
        reason=outcome.reason,
        memory=account_memory(known_memory, tables.device) if known_memory else {},
        summary=summary.values,
        samples=summary.samples,
        warm_up=None if warm_up is None else WarmUp(**warm_up),
        steady=summary.steady,
        sampling=sampling,
        phases=read_phases(journal),
        checks=check_repeat(evidence),
        notes=(*notes, *summary.notes, *outcome.notes),
    )
