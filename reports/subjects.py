"""Subjects: the engines on the page, each with its own rows of its run's tables."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from pbench.reports.palette import Ink, ink
from pbench.reports.reduction import Floats
from pbench.results import EngineResult, Run, RunResult

if TYPE_CHECKING:
    import pandas as pd

_STAMP = re.compile(r"(?P<day>\d{8})T(?P<hour>\d\d)(?P<minute>\d\d)(?P<second>\d\d)Z")  # in a run's id, unless named


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """One engine of one run: what is compared on the page. Of its repeats the tables are the typical one's."""

    key: str  # unique on the page and safe in an HTML id
    label: str  # unique on the page; text that others wrote
    ink: Ink
    run: RunResult
    engine: EngineResult
    steps: "pd.DataFrame"  # STEP_COLUMNS, this engine's rows, in order of time
    requests: "pd.DataFrame"  # REQUEST_COLUMNS, this engine's rows
    device: "pd.DataFrame"  # DEVICE_COLUMNS, this engine's rows, in order of time
    prefixes: "pd.DataFrame"  # PREFIX_COLUMNS, this engine's rows, parents first
    pool_map: "pd.DataFrame"  # POOL_MAP_COLUMNS, this engine's rows, in order of time and address
    other_steps: "tuple[pd.DataFrame, ...]" = ()  # those of its other complete repeats, as ``steps``
    receipts: "pd.DataFrame | None" = None  # RECEIPT_COLUMNS, this engine's rows, in order of time

    def metric(self, name: str) -> float | int | None:
        """A figure of the summary; None when it was not measured."""
        return self.engine.summary.get(name)

    def pool_figure(self, name: str) -> int | None:
        """A figure of the pool (num_slots, slot_bytes, pool_bytes, ...); None when the engine never got so far."""
        value = self.engine.pool.get(name)
        return value if isinstance(value, int) else None

    @property
    def giving(self) -> "pd.DataFrame":
        """When tokens were given out: its steps, or of an engine without any its receipts as steps without length.

        Empty where it is not known how many tokens came.
        """
        receipts = self.receipts
        if len(self.steps) or receipts is None or receipts["num_tokens"].isna().any():
            return self.steps
        times, tokens = receipts["time_ns"], receipts["num_tokens"]
        return receipts.assign(start_ns=times, end_ns=times, num_output_tokens=tokens)

    @property
    def num_repeats(self) -> int:
        """How often it ran to its end; a record without repeats is one."""
        return sum(repeat.status == "complete" for repeat in self.engine.repeats) or 1

    @property
    def is_simulated(self) -> bool:
        """Whether its times are a model's, without noise."""
        return bool(self.run.environment.get("is_simulated"))

    @property
    def is_paged(self) -> bool:
        """Whether its KV memory is in blocks."""
        return self.engine.spec.startswith("paged")

    @property
    def is_contiguous(self) -> bool:
        """Whether its KV memory is in extents: a baseline."""
        return self.engine.spec.startswith("contiguous")

    @property
    def blocked_share(self) -> float | None:
        """Share (0..1) of the steps' time in which a request waited for memory alone; None without steps."""
        if self.steps.empty:
            return None
        step_ns = (self.steps["end_ns"] - self.steps["start_ns"]).to_numpy(dtype=np.float64)
        total_ns = step_ns.sum()
        return (
            float(step_ns[self.steps["is_memory_blocked"].to_numpy(dtype=bool)].sum() / total_ns) if total_ns else 0.0
        )


def load_subjects(runs: Sequence[Run]) -> list[Subject]:
    """Every engine of every run, in order. Each table is read once.

    Raises:
        ResultError: a run folder cannot be read.
    """
    results = [run.result for run in runs]
    names = _short_names([result.run_id for result in results])
    times_seen = Counter(engine.spec for result in results for engine in result.engines)
    subjects: list[Subject] = []
    for run, result in zip(runs, results, strict=True):
        steps, requests, device = run.steps(), run.requests(), run.device()
        prefixes, pool_map, receipts = run.prefixes(), run.pool_map(), run.receipts()
        for engine in result.engines:
            rows = partial(_rows_of, engine.spec, engine.typical_repeat)
            index = len(subjects)
            label = engine.spec if times_seen[engine.spec] == 1 else f"{engine.spec} ({names[result.run_id]})"
            if any(label == subject.label for subject in subjects):  # the same run, given twice
                label = f"{label} #{index + 1}"
            subjects.append(
                Subject(
                    key=f"e{index}",
                    label=label,
                    ink=ink(index),
                    run=result,
                    engine=engine,
                    steps=rows(steps, "end_ns"),
                    requests=rows(requests, "arrival_ns"),
                    device=rows(device, "time_ns"),
                    prefixes=rows(prefixes, "prefix"),
                    pool_map=rows(pool_map, "time_ns"),
                    receipts=rows(receipts, "time_ns"),
                    other_steps=tuple(
                        others
                        for repeat in engine.repeats
                        if repeat.status == "complete" and repeat.repeat != engine.typical_repeat
                        if len(others := _rows_of(engine.spec, repeat.repeat, steps, "end_ns"))
                    ),
                )
            )
    return subjects


def _short_names(run_ids: Sequence[str]) -> dict[str, str]:
    """Run ids without the words that all of them begin with: those of a sweep differ in their last word only.

    Runs that differ in nothing but when they began are told apart by that, as a time of the day where all are of one.
    """
    words = {run_id: run_id.split("-") for run_id in run_ids}
    columns = zip(*words.values(), strict=False)
    num_common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns)) if len(words) > 1 else 0
    rests = {run_id: parts[num_common:] for run_id, parts in words.items()}
    stamps = {run_id: _STAMP.fullmatch(rest[0]) for run_id, rest in rests.items() if rest}
    tails = {tuple(rest[1:]) for rest in rests.values()}
    if len(tails) == 1 and len(stamps) == len(rests) > 1 and all(stamps.values()):
        is_one_day = len({stamp["day"] for stamp in stamps.values() if stamp}) == 1
        form = r"\g<hour>:\g<minute>:\g<second>" if is_one_day else r"\g<day> \g<hour>:\g<minute>:\g<second>"
        return {run_id: stamp.expand(form) for run_id, stamp in stamps.items() if stamp}
    return {run_id: "-".join(rest) or run_id for run_id, rest in rests.items()}


def floats(table: "pd.DataFrame", column: str) -> Floats:
    """A column as float64, a missing value as NaN."""
    return table[column].to_numpy(dtype=np.float64, na_value=np.nan)


def _rows_of(spec: str, repeat: int, table: "pd.DataFrame", time_column: str) -> "pd.DataFrame":
    is_own = (table["engine"] == spec) & (table["repeat"] == repeat)
    return table[is_own].sort_values(time_column, kind="stable").reset_index(drop=True)
