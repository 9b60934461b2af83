"""Making a whole run folder of what a killed run left behind.

The record of such a run is read as failed (``pbench.results.read_result``); what it measured last is in its journal
only. The same holds for a run whose disk was full, once there is room again.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from pbench.disk_reserve import DiskReserve
from pbench.experiment import JOB_FILE, JOURNAL_FOLDER, READY_FILE
from pbench.job import Job
from pbench.pool_history import gather_pool_maps
from pbench.profiling.profiling import keep_recordings
from pbench.results import KILLED, EngineResult, Repeat, RunResult, is_gone, read_result, write_result
from pbench.summary.aggregation import aggregate
from pbench.summary.repeat_summary import summarise_repeat
from pbench.tables import Tables, read_journal, write_tables
from pbench.validity.run import check_run
from pbench.worker import Outcome


def salvage(folder: Path) -> bool:
    """Turn the journals of a run whose process is gone into its tables and figures; False where there is nothing to do.

    Nothing is done either where the folder cannot be written: the record is readable as it is.

    Raises:
        ResultError: it is no run folder, or a journal is damaged.

    """
    journals = folder / JOURNAL_FOLDER
    if not journals.is_dir() or not is_gone((result := read_result(folder)).process) or has_worker(folder):
        return False
    jobs = [(Job.read(path / JOB_FILE), path) for path in journals.iterdir() if (path / JOB_FILE).exists()]
    if not jobs:  # a simulation's, which is quicker to play again
        return False
    specs = [engine.spec for engine in result.engines]
    jobs.sort(key=lambda one: (specs.index(one[0].engine.memory), one[0].repeat))
    found = [_Found(job, path, read_journal(path, job.engine.memory, job.repeat)) for job, path in jobs]
    engines = tuple(_completed(result, engine, found) for engine in result.engines)
    try:
        write_tables(folder, [one.tables for one in found])
        gather_pool_maps(folder, [one.journal for one in found])
        for one in found:
            keep_recordings(one.journal, folder, one.journal.name)
        write_result(folder, replace(result, engines=engines, checks=check_run(engines, result.workload)))
        shutil.rmtree(journals)
        DiskReserve(folder).release()
    except OSError:
        return False
    return True


def has_worker(folder: Path) -> bool:
    """Whether a worker still writes there: it notices that nobody listens when it next has something to say."""
    journals = (folder / JOURNAL_FOLDER).resolve()
    processes = [process.info for process in psutil.process_iter(["cmdline", "cwd"])]
    jobs = (  # a worker is told its job by a path that may be relative to where it stands
        Path(info["cwd"], argument)
        for info in processes
        for argument in info["cmdline"] or ()
        if argument.endswith(JOB_FILE) and info["cwd"]
    )
    return any(journals in job.resolve().parents for job in jobs)


class _Found(NamedTuple):
    """A repeat that left a journal."""

    job: Job
    journal: Path
    tables: Tables


def _completed(result: RunResult, engine: EngineResult, found: Sequence[_Found]) -> EngineResult:
    """The engine with the repeats that its record lacks."""
    known = {repeat.repeat for repeat in engine.repeats}
    missing = [one for one in found if one.job.engine.memory == engine.spec and one.job.repeat not in known]
    if not missing:
        return engine
    num_repeats = int(result.config["num_repeats"])
    repeats = sorted((*engine.repeats, *(_repeat(result, one) for one in missing)), key=lambda each: each.repeat)
    for ready in map(_ready, missing):
        config = dict(engine.config) | ready.get("facts", {})
        engine = replace(engine, pool=ready.get("pool", engine.pool), config=config)
    whole = aggregate(engine, repeats, num_repeats)
    if len(repeats) == num_repeats:
        return whole
    return replace(whole, reason=f"{whole.reason}; {len(repeats)} of {num_repeats} repeats were started")


def _repeat(result: RunResult, found: _Found) -> Repeat:
    return summarise_repeat(
        found.job.repeat,
        Outcome("failed", KILLED),
        found.tables,
        journal=found.journal,
        ready=_ready(found),
        watching=None,
        workload=result.workload,
        sample_interval_s=found.job.sample_interval_s,
        targets_ms=result.config["targets_ms"],
    )


def _ready(found: _Found) -> dict[str, Any]:
    """What the worker said when it was ready; empty where it did not get so far."""
    path = found.journal / READY_FILE
    ready: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return ready
