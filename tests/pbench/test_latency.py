"""Latencies by hand, gaps between tokens, targets, and the packed journal of tokens."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbench.engine.records import TokenOutput
from pbench.errors import UsageError
from pbench.results import REQUEST_COLUMNS
from pbench.summary.latency import goodput, percentiles, token_gaps_ns
from pbench.summary.slo import parse_targets
from pbench.summary.support import is_supported, min_samples
from pbench.token_journal import TokenFile, read_tokens

MS = 10**6


def requests(*rows: dict[str, object]) -> pd.DataFrame:
    common = dict.fromkeys(REQUEST_COLUMNS, 0) | {"engine": "paged", "num_sequences": 1, "status": "finished"}
    numbered = [common | {"request_id": number} | row for number, row in enumerate(rows)]
    return pd.DataFrame(numbered, columns=list(REQUEST_COLUMNS)).astype(REQUEST_COLUMNS)


def times(arrival: int, added: int, scheduled: int, first: int, finished: int, num_tokens: int) -> dict[str, object]:
    names = ("arrival_ns", "added_ns", "first_scheduled_ns", "first_token_ns", "finished_ns")
    moments = (arrival, added, scheduled, first, finished)
    return {name: moment * MS for name, moment in zip(names, moments, strict=True)} | {"num_output_tokens": num_tokens}


def test_each_latency_of_a_request_by_hand() -> None:
    values, samples = percentiles(requests(times(100, 103, 110, 150, 250, 11)), np.array([10.0 * MS]))
    medians = {name.removesuffix("_ms_p50"): value for name, value in values.items() if name.endswith("p50")}
    assert medians == {"ttft": 50, "ttft_sent": 47, "queue": 10, "itl": 10, "tpot": 10, "e2e": 150, "e2e_sent": 147}
    assert set(samples.values()) == {1}


def test_a_single_token_has_no_gap_and_what_was_not_measured_has_no_samples() -> None:
    values, samples = percentiles(requests(times(0, 0, 0, 5, 5, 1)), np.empty(0))
    assert values["tpot_ms_p50"] is None
    assert values["itl_ms_p99"] is None
    assert "tpot_ms_p50" not in samples
    assert samples["ttft_ms_p99"] == 1


def test_gaps_are_between_tokens_of_one_sequence_whatever_lies_between() -> None:
    steps = pd.DataFrame({"step": [0, 1, 2, 3], "end_ns": [10, 20, 50, 60]})
    given_out = [(0, 0, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 3), (1, 0, 2), (7, 0, 2), (7, 0, 3)]
    tokens = pd.DataFrame(given_out, columns=["request_id", "sequence", "step"])
    gaps = token_gaps_ns(tokens, steps, requests({}, {}))  # request 7 did not finish
    assert sorted(gaps) == [10, 30, 40]


def test_tokens_given_out_at_once_have_no_gap() -> None:
    steps = pd.DataFrame({"step": [0, 1], "end_ns": [10, 20]})
    tokens = pd.DataFrame({"request_id": [0, 0, 0], "sequence": [0, 0, 0], "step": [1, 1, 1]})
    assert len(token_gaps_ns(tokens, steps, requests({}))) == 0
    assert len(token_gaps_ns(None, steps, requests({}))) == 0


def test_goodput_counts_finished_requests_that_kept_every_target() -> None:
    table = requests(
        times(0, 0, 0, 500, 1000, 11),  # TTFT 500 ms, 50 ms a token: just kept
        times(0, 0, 0, 501, 1000, 11),
        times(0, 0, 0, 400, 1000, 11),  # 60 ms a token
        times(0, 0, 0, 100, 100, 1),  # has no gap to be late with
        times(0, 0, 0, 100, 150, 11) | {"status": "unfinished"},
    )
    values = goodput(table, {"ttft": 500.0, "tpot": 50.0}, duration_s=4.0)
    assert values == {"goodput_requests_per_s": 0.5, "slo_attainment_pct": 40.0}
    assert goodput(table, {"ttft": 1000.0}, duration_s=None)["goodput_requests_per_s"] is None


def test_targets_are_read_with_their_units() -> None:
    assert parse_targets("ttft=500ms, tpot=0.05s") == {"ttft": 500.0, "tpot": 50.0}
    assert parse_targets(None) == {}


@pytest.mark.parametrize(
    "text", ["", "ttft", "ttft=500", "ttft=-1ms", "ttft=1e3ms", "itl=5ms", "ttft=5ms,", "ttft=5ms,ttft=6ms", "ttft=5m"]
)
def test_what_is_no_target_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="--slo"):
        parse_targets(text)


def test_a_percentile_needs_five_values_beyond_it() -> None:
    assert [min_samples(f"ttft_ms_p{percent}") for percent in (50, 90, 99)] == [10, 50, 500]
    assert not is_supported("ttft_ms_p99", 50)
    assert is_supported("ttft_ms_p50", 50)
    assert is_supported("duration_s", 0)


@given(cut=st.integers(min_value=0))
def test_a_journal_of_tokens_cut_anywhere_keeps_every_whole_step(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("journal") / "tokens.bin"
    file, whole, ends = TokenFile(path), [], [0]
    for step in range(12):
        tokens = [TokenOutput(100 + index, index % 3, 7) for index in range(step % 5)]
        file.append(step, tokens)
        whole += [(token.request_id, token.sample_index, step) for token in tokens]
        if tokens:
            ends.append(ends[-1] + 4 * (2 + 2 * len(tokens)))
    file.close()
    content = path.read_bytes()
    assert len(content) == ends[-1]
    cut %= len(content) + 1
    path.write_bytes(content[:cut])
    num_steps = sum(end <= cut for end in ends) - 1
    columns = read_tokens(path)
    rows = list(zip(columns["request_id"], columns["sequence"], columns["step"], strict=True))
    num_rows = (ends[num_steps] // 4 - 2 * num_steps) // 2
    assert rows == whole[:num_rows]


def test_no_journal_of_tokens_is_no_token(tmp_path: Path) -> None:
    assert [len(column) for column in read_tokens(tmp_path / "tokens.bin").values()] == [0, 0, 0]
