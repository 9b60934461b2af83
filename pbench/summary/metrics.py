"""The summary of one repeat of an engine, from its three tables: the figures of ``pbench.results.METRICS``.

Definitions, where more than one is in use:

- Wall time runs from the start of measurement, when the first request is offered, to the end of the last step that gave
  out a token. Loading, compiling and warming up come before it.
- Latencies: see ``pbench.summary.latency``.
- A step lasts from its start, or the end of the step before it where steps overlap, until its tokens are known.
- Means over time weigh a step by its duration and the gap to the next one, in which the pool stands as the
  step left it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pbench.results import METRICS, SHARER_COLUMNS, Sampling, SteadyState
from pbench.summary.latency import goodput, percentiles, receipt_gaps_ns, token_gaps_ns
from pbench.summary.steady_state import find_steady_state, steady_rate
from pbench.tables import Tables

if TYPE_CHECKING:
    import pandas as pd

_PARTS = ("token_state", "reserved", "internal", "external", "cached", "free")
_PEAKS = {
    "peak_device_used_bytes": "device_used_bytes",
    "peak_torch_reserved_bytes": "torch_reserved_bytes",
    "peak_torch_allocated_bytes": "torch_allocated_bytes",
    "peak_process_rss_bytes": "process_rss_bytes",
    "peak_torch_inactive_bytes": "torch_inactive_bytes",
    "peak_device_process_bytes": "device_process_bytes",
    "peak_host_used_bytes": "host_used_bytes",
}


class Summary(NamedTuple):
    """Figures by ``Metric.name``, all of METRICS, None where nothing was measured; and what to know before use."""

    values: dict[str, float | int | None]
    notes: tuple[str, ...]
    samples: dict[str, int]  # of the percentiles: how many values each is of
    steady: SteadyState | None


def summarise(tables: Tables, pool: Mapping[str, Any], targets_ms: Mapping[str, float] | None = None) -> Summary:
    """Summarise one engine. Works on what is there: a run cut short has figures up to its last token.

    Args:
        tables: what was measured.
        pool: ``EngineResult.pool``; without its ``slot_bytes`` and ``block_size`` nothing is counted in bytes.
        targets_ms: of ``--slo``, by the name of a latency; without them there is no goodput.
    """
    steps, requests, device, receipts = tables.steps, tables.requests, tables.device, tables.receipts
    finished = requests[requests["status"] == "finished"]
    duration_s, output_tokens = _output(steps) if receipts is None else _received(receipts, requests)
    # A request's whole prompt has been through the model once its first token is out, whether it is told when or not.
    has_begun = requests["first_token_ns"].notna() if receipts is None else requests["num_output_tokens"] > 0
    prompt_tokens = int(requests.loc[has_begun, "num_prompt_tokens"].sum())
    joules, energy_notes = _energy(device)
    values: dict[str, float | int | None] = {metric.name: None for metric in METRICS}
    values |= _rates(duration_s, prompt_tokens, output_tokens, len(finished))
    if receipts is None:
        gaps_ns = token_gaps_ns(tables.tokens, steps, finished)
    else:
        gaps_ns = receipt_gaps_ns(receipts, finished)
    latencies, samples = percentiles(finished, gaps_ns)
    values |= latencies
    if targets_ms:
        values |= goodput(requests, targets_ms, duration_s)
    if receipts is None:
        values |= _occupation(steps)
        values |= _sharing(steps, pool)
        values |= _counts(steps)
        values |= _prefix_rates(steps, requests)
    if (copied_blocks := values["copied_blocks"]) is not None and "slot_bytes" in pool:
        values["copied_bytes"] = int(copied_blocks) * pool["block_size"] * pool["slot_bytes"]
    values |= {name: _peak(device[column]) for name, column in _PEAKS.items()}
    values |= {"num_prompt_tokens": prompt_tokens, "num_output_tokens": output_tokens, "num_finished": len(finished)}
    process_cpu_pct = device["process_cpu_pct"].dropna()
    values["mean_process_cpu_pct"] = float(process_cpu_pct.mean()) if len(process_cpu_pct) else None
    values["energy_j"] = joules
    if joules is not None and output_tokens:
        values["joules_per_output_token"] = joules / output_tokens
    giving = steps if receipts is None else _as_steps(receipts)
    steady = find_steady_state(giving)
    if steady is not None:
        values["steady_output_tokens_per_s"] = steady_rate(giving, steady)
    step_notes = _step_notes(steps) if receipts is None else _receipt_notes(receipts)
    return Summary(values, (*step_notes, *energy_notes), samples, steady)


def sampling_of(device: "pd.DataFrame", asked_interval_s: float) -> Sampling | None:
    """How often the device was looked at; None where the sampler was off, or took no sample."""
    if device.empty or not asked_interval_s:
        return None
    gaps_s = np.diff(_floats(device["time_ns"])) / 1e9
    median_s, longest_s = (float(np.median(gaps_s)), float(gaps_s.max())) if len(gaps_s) else (None, None)
    return Sampling(asked_interval_s, len(device), median_s, longest_s)


def _output(steps: "pd.DataFrame") -> tuple[float | None, int]:
    """Seconds until the last token, and how many there were."""
    giving = steps[steps["num_output_tokens"] > 0]
    duration_s = float(giving["end_ns"].max()) / 1e9 if len(giving) else None
    return duration_s, int(steps["num_output_tokens"].sum())


def _receipt_notes(receipts: "pd.DataFrame") -> tuple[str, ...]:
    return ("nothing was measured: the engine gave out no token",) if receipts.empty else ()


def _received(receipts: "pd.DataFrame", requests: "pd.DataFrame") -> tuple[float | None, int]:
    """As ``_output``, of an engine that tells nothing of its steps."""
    duration_s = float(receipts["time_ns"].max()) / 1e9 if len(receipts) else None
    return duration_s, int(requests["num_output_tokens"].sum())


def _as_steps(receipts: "pd.DataFrame") -> "pd.DataFrame":
    """Every moment at which tokens came as a step without length; none where it is not known how many came."""
    known = receipts if receipts["num_tokens"].notna().all() else receipts.iloc[:0]
    times = known["time_ns"]
    return known.assign(start_ns=times, end_ns=times, num_output_tokens=known["num_tokens"].astype("int64"))


def _rates(
    duration_s: float | None, prompt_tokens: int, output_tokens: int, num_finished: int
) -> dict[str, float | int | None]:
    if duration_s is None:
        return {}
    return {
        "duration_s": duration_s,
        "output_tokens_per_s": output_tokens / duration_s,
        "total_tokens_per_s": (prompt_tokens + output_tokens) / duration_s,
        "requests_per_s": num_finished / duration_s,
    }


def _spans_ns(steps: "pd.DataFrame") -> npt.NDArray[np.float64]:
    """How long the pool stood as each step left it: until the next one starts."""
    start_ns = _floats(steps["start_ns"])
    return np.diff(start_ns, append=float(steps["end_ns"].iloc[-1]))


def _occupation(steps: "pd.DataFrame") -> dict[str, float | int | None]:
    if steps.empty:
        return {}
    end_ns, span_ns = _floats(steps["end_ns"]), _spans_ns(steps)
    start_ns = _floats(steps["start_ns"])
    next_ns = start_ns + span_ns
    total_ns = float(span_ns.sum())
    running = _floats(steps["num_running"])
    values: dict[str, float | int | None] = {"peak_running": int(running.max())}
    if total_ns <= 0:
        return values
    # num_running still counts the requests that this step finished; in the gap after it they are gone.
    running_ns = running * (end_ns - start_ns) + (running - _floats(steps["num_finished"])) * (next_ns - end_ns)
    values["mean_running"] = float(running_ns.sum()) / total_ns
    parts = {name: _floats(steps[name]) for name in _PARTS}
    pool = np.sum(list(parts.values()), axis=0)
    for name, slots in parts.items():
        values[f"{name}_pct"] = 100 * float((slots / pool * span_ns).sum()) / total_ns
    waste = parts["reserved"] + parts["internal"] + parts["external"]
    values["waste_pct"] = 100 * float((waste / pool * span_ns).sum()) / total_ns
    held = parts["token_state"] + parts["reserved"] + parts["internal"]
    if (held_slot_ns := float((held * span_ns).sum())) > 0:
        values["held_waste_pct"] = 100 * (1 - float((parts["token_state"] * span_ns).sum()) / held_slot_ns)
    return values


def _sharing(steps: "pd.DataFrame", pool: Mapping[str, Any]) -> dict[str, float | int | None]:
    if steps.empty or (total_ns := float((span_ns := _spans_ns(steps)).sum())) <= 0:
        return {}
    values: dict[str, float | int | None] = {}
    saved, token_state = _floats(steps["shared_saved"]), _floats(steps["token_state"])
    needed = token_state + saved  # slots that the live tokens would take without sharing
    has_tokens = needed > 0
    live_ns = float(span_ns[has_tokens].sum())
    if live_ns > 0:
        share = saved[has_tokens] / needed[has_tokens]
        values["shared_saved_pct"] = 100 * float((share * span_ns[has_tokens]).sum()) / live_ns
    num_held = np.sum([_floats(steps[name]) for name in SHARER_COLUMNS], axis=0)
    num_shared = num_held - _floats(steps[SHARER_COLUMNS[0]])
    held_ns, shared_ns = float((num_held * span_ns).sum()), float((num_shared * span_ns).sum())
    saved_slot_ns = float((saved * span_ns).sum())
    if held_ns > 0:
        values["shared_blocks_pct"] = 100 * shared_ns / held_ns
    if "slot_bytes" not in pool:
        return values
    values["shared_saved_bytes"] = round(saved_slot_ns / total_ns * pool["slot_bytes"])
    if shared_ns > 0:
        shared_slot_ns = shared_ns * pool["block_size"]
        values["shared_part_bytes"] = round(shared_slot_ns / total_ns * pool["slot_bytes"])
        values["shared_part_saved_pct"] = 100 * saved_slot_ns / (shared_slot_ns + saved_slot_ns)
        values["mean_sharers"] = 1 + saved_slot_ns / shared_slot_ns
    return values


def _counts(steps: "pd.DataFrame") -> dict[str, float | int | None]:
    if steps.empty:
        return {"num_steps": 0}
    return {
        "num_steps": len(steps),
        "preemptions": int(steps["num_preempted"].sum()),
        "recomputed_tokens": int(steps["num_recomputed_tokens"].sum()),
        "forks": int(steps["num_forks"].sum()),
        "copied_blocks": int(steps["num_copied_blocks"].sum()),
        "evicted_blocks": int(steps["num_evicted_blocks"].sum()),
        "swapped_blocks": int(steps["num_swapped_out_blocks"].sum()),
        "moved_slots": int(steps["num_moved_slots"].sum()),
    }


def _prefix_rates(steps: "pd.DataFrame", requests: "pd.DataFrame") -> dict[str, float | int | None]:
    admitted = requests[requests["first_scheduled_ns"].notna()]
    prompt_tokens = int(admitted["num_prompt_tokens"].sum())
    if not prompt_tokens:
        return {}
    return {
        "prefix_hit_rate_pct": 100 * int(admitted["num_prefix_hit_tokens"].sum()) / prompt_tokens,
        "near_miss_rate_pct": 100 * int(steps["num_near_miss_tokens"].sum()) / prompt_tokens,
    }


def _peak(column: "pd.Series[int]") -> int | None:
    measured = column.dropna()
    return int(measured.max()) if len(measured) else None


def _energy(device: "pd.DataFrame") -> tuple[float | None, tuple[str, ...]]:
    """Joules between the first and the last sample, and a note when they are integrated rather than counted."""
    counter_j = device["energy_j"].dropna()
    if len(counter_j) >= 2:
        return float(counter_j.iloc[-1] - counter_j.iloc[0]), ()
    power = device[device["power_w"].notna()]
    if len(power) < 2:
        return None, ()
    watts, time_s = _floats(power["power_w"]), _floats(power["time_ns"]) / 1e9
    joules = float((np.diff(time_s) * (watts[1:] + watts[:-1]) / 2).sum())  # trapezoids
    return joules, ("energy is integrated from power samples: this GPU has no energy counter",)


def _step_notes(steps: "pd.DataFrame") -> tuple[str, ...]:
    if steps.empty:
        return ("nothing was measured: the engine ran no step",)
    return ()


def _floats(column: "pd.Series[int]") -> npt.NDArray[np.float64]:
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)
