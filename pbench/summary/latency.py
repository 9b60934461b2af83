"""Latencies of requests, over the finished ones of one repeat.

- ``ttft``, ``queue`` and ``e2e`` count from a request's intended arrival, so that an engine that falls behind cannot
  hide its queue; ``ttft_sent`` and ``e2e_sent`` from when it was given to the engine: in a closed loop the same.
- ``queue`` ends when the first step that computes for the request is planned.
- ``tpot`` is a request's time between its first and its last token over the tokens after the first; ``itl`` is every
  single gap between a token of a sequence and the next, so that one long stall is seen. Tokens given out at once, as a
  beam search's are, have no gap.
- Percentiles interpolate linearly between order statistics (Hyndman and Fan's type 7).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

PERCENTS = (50, 90, 99)

Floats = npt.NDArray[np.float64]
Values = dict[str, float | int | None]


def percentiles(finished: "pd.DataFrame", gaps_ns: Floats) -> tuple[Values, dict[str, int]]:
    """Percentiles in milliseconds by ``Metric.name``, and how many values each is of."""
    values: Values = {}
    samples: dict[str, int] = {}
    for name, nanoseconds in (_durations_ns(finished) | {"itl": gaps_ns}).items():
        measured = nanoseconds[~np.isnan(nanoseconds)]
        for percent in PERCENTS:
            key = f"{name}_ms_p{percent}"
            values[key] = float(np.percentile(measured, percent)) / 1e6 if len(measured) else None
            if len(measured):
                samples[key] = len(measured)
    return values, samples


def token_gaps_ns(tokens: "pd.DataFrame | None", steps: "pd.DataFrame", finished: "pd.DataFrame") -> Floats:
    """Every gap between two tokens of a sequence, of the finished requests."""
    if tokens is None or tokens.empty:
        return np.empty(0)
    own = tokens[tokens["request_id"].isin(finished["request_id"])]
    own = own.drop_duplicates(["request_id", "sequence", "step"]).sort_values(["request_id", "sequence", "step"])
    times = steps.set_index("step")["end_ns"].reindex(own["step"]).to_numpy(dtype=np.float64)
    sequences = own[["request_id", "sequence"]].to_numpy(dtype=np.int64)
    is_same = (sequences[1:] == sequences[:-1]).all(axis=1)
    return np.asarray(np.diff(times)[is_same], dtype=np.float64)


def receipt_gaps_ns(receipts: "pd.DataFrame", finished: "pd.DataFrame") -> Floats:
    """The same of an engine that tells when tokens came, where it tells how many and they are of one sequence."""
    single = finished.loc[finished["num_sequences"] == 1, "request_id"]
    own = receipts[receipts["request_id"].isin(single) & receipts["num_tokens"].notna()]
    own = own.sort_values(["request_id", "time_ns"])
    is_same = own["request_id"].to_numpy()[1:] == own["request_id"].to_numpy()[:-1]
    return np.asarray(np.diff(own["time_ns"].to_numpy(dtype=np.float64))[is_same], dtype=np.float64)


def goodput(requests: "pd.DataFrame", targets_ms: Mapping[str, float], duration_s: float | None) -> Values:
    """How many of the offered requests finished within all targets; what a request has not (a gap) it keeps."""
    durations = _durations_ns(requests)
    is_kept = (requests["status"] == "finished").to_numpy(dtype=bool)
    for name, limit_ms in targets_ms.items():
        is_kept &= ~(durations[name] > limit_ms * 1e6)
    return {
        "goodput_requests_per_s": int(is_kept.sum()) / duration_s if duration_s else None,
        "slo_attainment_pct": 100 * float(is_kept.mean()) if len(is_kept) else None,
    }


def _durations_ns(requests: "pd.DataFrame") -> dict[str, Floats]:
    """By name, one value a request; NaN where there is none."""
    times = {name: _floats(requests[f"{name}_ns"]) for name in ("arrival", "added", "first_scheduled", "first_token")}
    finished_ns = _floats(requests["finished_ns"])
    num_gaps = _floats(requests["num_output_tokens"]) / _floats(requests["num_sequences"]) - 1
    generating_ns = finished_ns - times["first_token"]
    tpot_ns = np.divide(generating_ns, num_gaps, out=np.full(len(requests), np.nan), where=num_gaps > 0)
    return {
        "ttft": times["first_token"] - times["arrival"],
        "ttft_sent": times["first_token"] - times["added"],
        "queue": times["first_scheduled"] - times["arrival"],
        "tpot": tpot_ns,
        "e2e": finished_ns - times["arrival"],
        "e2e_sent": finished_ns - times["added"],
    }


def _floats(column: "pd.Series[int]") -> Floats:
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)
