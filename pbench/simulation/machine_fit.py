"""What a machine reaches in fact, fitted to the steps of a real run: the roofline's parameters by least squares.

The model is that of ``pbench.engine.roofline``: a step takes a fixed overhead and the longest of its bytes over the
bandwidth, its FLOPs over the rate and, where it has prompts, the least time of a step with prompts. Which of them is
the longest is decided by the parameters, and the parameters are fitted where they are the longest: both in turns, until
nothing changes.

A step weighs 1 / the duration that the fit gives it, so that the errors of short steps count beside those of long ones
(iteratively reweighted least squares for durations whose variance grows with their mean: McCullagh and Nelder,
"Generalized Linear Models", 1989). Weights by the measured durations would make the slow steps of a noisy machine
disappear. With these, the steps together take in the fit what they took in the run.

A step's work is told from its record: bytes exactly; its FLOPs as far as the pairs of a prompt's queries and keys are
those of the run's average prompt, which is a few per cent of a prompt's arithmetic unless prompts are very long.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pbench.engine.config import MEMORY_SPECS, EngineConfig
from pbench.engine.model_config import load_model_config
from pbench.engine.roofline import Roofline, Speed, StepWork
from pbench.errors import UsageError
from pbench.results import Run
from pbench.units import display_path, format_number, printable

if TYPE_CHECKING:
    import pandas as pd

    from pbench.results import EngineResult

FEWEST_STEPS = 50
_MAX_TURNS = 50
_NUM_REWEIGHTINGS = 5

_Floats = npt.NDArray[np.float64]


class Work(NamedTuple):
    """Steps of a run: what each did and how long it took. All of shape (num_steps,)."""

    num_bytes: _Floats
    num_flops: _Floats
    has_prompts: npt.NDArray[np.bool_]
    seconds: _Floats


@dataclass(frozen=True, slots=True)
class MachineFit:
    """The fitted speed, and how well it tells the times of the run that it was fitted to."""

    source: str  # the run's id, and its machine
    speed: Speed
    num_steps: int
    measured_s: float  # of all steps together; the fit says the same
    error_pct_p50: float  # half of the steps are told as well or better
    error_pct_p90: float

    def line(self) -> str:
        """The fit for a person."""
        return (
            f"like {self.source}: fitted to {format_number(self.num_steps)} steps of {self.measured_s:.4g} s in all;"
            f" it tells half of them within {self.error_pct_p50:.2g} %, nine in ten within {self.error_pct_p90:.2g} %"
        )


def fit_machine(folder: Path, prior: Speed) -> MachineFit:
    """Fit the roofline to all of a run's engines that are ours.

    Args:
        folder: of a real run whose engines computed something.
        prior: stands for what the run cannot tell, such as the arithmetic rate where nothing was bound by it.

    Raises:
        UsageError: it is a simulated run, has too few steps, or is of a model with a sliding window.
        ResultError: it is not a run folder.
        ConfigError: its model is not known here.
    """
    run = Run(folder)
    result = run.result
    option = f"--like {display_path(folder)}"
    if result.environment.get("is_simulated"):
        raise UsageError(f"{option} is a simulated run, which says nothing of a machine; give one of `pbench run`")
    steps, requests = run.steps(), run.requests()
    parts = [
        _work(engine, *(table[table["engine"] == engine.spec] for table in (steps, requests)))
        for engine in result.engines
        if engine.spec in MEMORY_SPECS and engine.pool and (steps["engine"] == engine.spec).any()
    ]
    num_steps = sum(len(part.seconds) for part in parts)
    if num_steps < FEWEST_STEPS:
        raise UsageError(f"{option} has {num_steps} steps to fit to; at least {FEWEST_STEPS} are needed")
    work = Work(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    speed = fit_speed(work, prior)
    error_pct = 100 * np.abs(predicted_seconds(work, speed) / work.seconds - 1)
    device = (result.environment.get("gpu") or {}).get("name") or result.config.get("device", "?")
    return MachineFit(
        source=printable(f"{result.run_id} on {device}"),
        speed=speed,
        num_steps=num_steps,
        measured_s=float(work.seconds.sum()),
        error_pct_p50=float(np.percentile(error_pct, 50)),
        error_pct_p90=float(np.percentile(error_pct, 90)),
    )


def predicted_seconds(work: Work, speed: Speed) -> _Floats:
    """What the roofline says of every step. Shape (num_steps,)."""
    longest: _Floats = np.max(_bounds(work, speed), axis=0)
    return speed.overhead_ns / 1e9 + longest


def fit_speed(work: Work, prior: Speed) -> Speed:
    """The speed that tells the steps' durations best."""
    # A machine far from the prior is found from its own pace: all of it bound by bytes, or by FLOPs.
    pace = float(work.seconds.sum() / predicted_seconds(work, replace(prior, overhead_ns=0)).sum())
    near = replace(prior.at(1 / pace), overhead_ns=0)
    starts = [prior, near, replace(near, flops_per_s=near.flops_per_s / 100)]
    if work.has_prompts.any():
        starts.append(replace(prior, prompt_step_ns=round(float(np.median(work.seconds[work.has_prompts])) * 1e9)))
    fits = [_fit_from(work, start) for start in starts]
    return min(fits, key=lambda speed: _deviance(work, speed))


def _deviance(work: Work, speed: Speed) -> float:
    """How far the fit is from the durations: what the reweighted squares minimise."""
    predicted, seconds = predicted_seconds(work, speed), work.seconds
    return 2 * float((seconds * np.log(seconds / predicted) - seconds + predicted).sum())


def _bounds(work: Work, speed: Speed) -> _Floats:
    """What each step takes at least: for its bytes, for its FLOPs, for having prompts. Shape (3, num_steps)."""
    return np.array(
        [
            work.num_bytes / speed.bandwidth_bytes_per_s,
            work.num_flops / speed.flops_per_s,
            work.has_prompts * (speed.prompt_step_ns / 1e9),
        ]
    )


def _fit_from(work: Work, start: Speed) -> Speed:
    """Assign and fit in turns; the best of all turns."""
    speed = best = start
    best_error = np.inf
    assigned: npt.NDArray[np.int64] | None = None
    for _ in range(_MAX_TURNS):
        bound = np.argmax(_bounds(work, speed), axis=0)
        if assigned is not None and bool((bound == assigned).all()):
            break
        assigned = bound
        bounds = (work.num_bytes * (bound == 0), work.num_flops * (bound == 1), bound == 2)
        columns = np.stack([np.ones_like(work.seconds), *bounds], axis=1)
        predicted = predicted_seconds(work, speed)
        for _ in range(_NUM_REWEIGHTINGS):
            found = _positive_least_squares(columns, work.seconds, 1 / predicted)
            predicted = np.maximum(columns @ found, predicted * 1e-3)
        overhead_s, s_per_byte, s_per_flop, prompt_s = found
        speed = Speed(
            bandwidth_bytes_per_s=float(1 / s_per_byte) if s_per_byte else start.bandwidth_bytes_per_s,
            flops_per_s=float(1 / s_per_flop) if s_per_flop else start.flops_per_s,
            overhead_ns=round(overhead_s * 1e9),
            prompt_step_ns=round(prompt_s * 1e9),
        )
        if (error := _deviance(work, speed)) < best_error:
            best, best_error = speed, error
    return best


def _positive_least_squares(columns: _Floats, seconds: _Floats, weights: _Floats) -> _Floats:
    """Coefficients, none below 0, that minimise the weighted squares; columns that would fall below it are left out."""
    roots = np.sqrt(weights)
    scales = np.maximum(np.abs(columns).max(axis=0), 1e-300)
    scaled = columns / scales * roots[:, None]
    used = [index for index in range(columns.shape[1]) if columns[:, index].any()]
    found = np.zeros(columns.shape[1])
    while used:
        solution = np.linalg.lstsq(scaled[:, used], seconds * roots, rcond=None)[0]
        if solution.min() >= 0:
            found[used] = solution / scales[used]
            break
        del used[int(solution.argmin())]
    return found


def _work(engine: "EngineResult", steps: "pd.DataFrame", requests: "pd.DataFrame") -> Work:
    """The work of an engine's steps; without those that swapped, which took the bus, and those that follow idleness."""
    config: dict[str, Any] = dict(engine.config)
    model = load_model_config(config["model"])
    if model.sliding_window is not None and model.sliding_window < config["max_length"]:
        raise UsageError(
            f"--like: model {printable(model.name)} has a sliding window of {model.sliding_window} tokens, and the"
            " record of a run does not tell how much of each context was read; give a run of another model"
        )
    roofline = Roofline(EngineConfig(model, max_length=1, dtype=config["dtype"]), Speed(1, 1, 0))
    pairs_per_token = _pairs_per_prompt_token(requests)
    context = steps["token_state"] + steps["shared_saved"]
    reads_shared_once = engine.spec == "paged" and config["is_prefix_cached"]  # as the simulated engine does
    num_read = steps["token_state"] if reads_shared_once else context
    num_prompt, num_decode = steps["num_prefill_tokens"], steps["num_decode_tokens"]
    num_copied = steps["num_copied_blocks"] * engine.pool["block_size"] + steps["num_moved_slots"]
    num_pairs = (context + num_prompt * pairs_per_token).round().astype(int)
    columns = (num_prompt + num_decode, steps["num_output_tokens"], num_read, num_pairs, num_copied, num_prompt > 0)
    works = [StepWork(*values) for values in zip(*columns, strict=True)]
    start_ns, end_ns = (steps[name].to_numpy(np.int64) for name in ("start_ns", "end_ns"))
    is_swapping = (steps["num_swapped_out_blocks"] + steps["num_swapped_in_blocks"]).to_numpy() > 0
    # What the host does between two steps belongs to the second, if the engine had anything to do.
    is_busy = ((steps["num_running"] - steps["num_finished"] + steps["num_waiting"]) > 0).to_numpy()
    begins_ns = start_ns.copy()
    begins_ns[1:][is_busy[:-1]] = end_ns[:-1][is_busy[:-1]]
    seconds = (end_ns - begins_ns) / 1e9
    kept = ~is_swapping & (seconds > 0)
    return Work(
        np.array([roofline.step_bytes(work) for work in works], np.float64)[kept],
        np.array([roofline.step_flops(work) for work in works], np.float64)[kept],
        (num_prompt > 0).to_numpy()[kept],
        seconds[kept],
    )


def _pairs_per_prompt_token(requests: "pd.DataFrame") -> float:
    """Keys that a computed token of a prompt sees, on average over the run."""
    length = requests["num_prompt_tokens"].to_numpy(np.float64)
    hits = requests["num_prefix_hit_tokens"].to_numpy(np.float64)
    num_computed = float((length - hits).sum())
    return float((length * (length + 1) - hits * (hits + 1)).sum()) / 2 / num_computed if num_computed > 0 else 0.0
