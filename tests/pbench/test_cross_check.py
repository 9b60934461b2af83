"""The figures of a run against a second reading of its parquet files, in lines that share nothing with the harness."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pbench.results import RunResult
from pbench.settings import RunOptions


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def test_tokens_per_second_and_latencies_follow_from_the_raw_tables(
    options: RunOptions, run_experiment: Callable[..., RunResult], tmp_path: Path
) -> None:
    result = run_experiment(replace(options, slo="ttft=60ms,tpot=10ms"), num_repeats=2)
    steps, requests, tokens = (
        pq.read_table(tmp_path / "run" / f"{name}.parquet").to_pylist() for name in ("steps", "requests", "tokens")
    )
    for engine in result.engines:
        for repeat in engine.repeats:
            mine = (engine.spec, repeat.repeat)
            ends = {row["step"]: row["end_ns"] for row in steps if (row["engine"], row["repeat"]) == mine}
            own = [row for row in requests if (row["engine"], row["repeat"]) == mine]
            moments = defaultdict(list)
            for row in tokens:
                if (row["engine"], row["repeat"]) == mine:
                    moments[row["request_id"], row["sequence"]].append(ends[row["step"]])
            assert sum(map(len, moments.values())) == sum(row["num_output_tokens"] for row in own)
            for row in own:  # the engine's own word on each request against the steps that gave out its tokens
                of_request = moments[row["request_id"], 0]
                assert (min(of_request), max(of_request)) == (row["first_token_ns"], row["finished_ns"])
            seconds = max(ends.values()) / 1e9
            ttft = [(min(moments[row["request_id"], 0]) - row["arrival_ns"]) / 1e6 for row in own]
            e2e = [(max(moments[row["request_id"], 0]) - row["arrival_ns"]) / 1e6 for row in own]
            lengths = [len(moments[row["request_id"], 0]) for row in own]
            tpot = [(e2e[at] - ttft[at]) / (length - 1) for at, length in enumerate(lengths)]
            itl = [(b - a) / 1e6 for each in moments.values() for a, b in pairwise(sorted(each))]
            good = sum(first <= 60 and gap <= 10 for first, gap in zip(ttft, tpot, strict=True))
            expected = {
                "output_tokens_per_s": sum(row["num_output_tokens"] for row in own) / seconds,
                "requests_per_s": len(own) / seconds,
                "goodput_requests_per_s": good / seconds,
                "slo_attainment_pct": 100 * good / len(own),
            }
            for name, values in (("ttft", ttft), ("e2e", e2e), ("tpot", tpot), ("itl", itl)):
                for percent in (50, 90, 99):
                    expected[f"{name}_ms_p{percent}"] = quantile(values, percent / 100)
            assert {name: repeat.summary[name] for name in expected} == pytest.approx(expected, rel=1e-9)
        for name in expected:
            both = [repeat.summary[name] for repeat in engine.repeats]
            assert engine.summary[name] == pytest.approx(sum(value or 0 for value in both) / 2)
