"""A real server process, driven over HTTP: what is measured of it, and what goes wrong with servers."""

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pbench.engine.request import Request, SamplingParams
from pbench.external.errors import ExternalError
from pbench.external.openai_target import OpenAITarget, connect
from pbench.external.target import Receipt, RequestOutcome
from pbench.job import ServerAccess
from pbench.results import METRICS, EngineResult, Run, RunResult
from pbench.settings import RunOptions, resolve

from .conftest import StartServer

RunExperiment = Callable[..., RunResult]

SECOND_NS = 1_000_000_000


def seen(url: str) -> dict[str, Any]:
    """What the server says that it has seen."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/seen") as answer:
        counts: dict[str, Any] = json.load(answer)
    return counts


def check_dropped(url: str, count: int) -> None:
    """So many connections were closed while the server was still answering; it notices when it writes."""
    for _ in range(100):
        if seen(url)["num_dropped"] == count:
            return
        time.sleep(0.05)
    pytest.fail(f"the server still serves: {seen(url)}")


def ask(target: OpenAITarget, requests: list[Request]) -> tuple[list[RequestOutcome], list[Receipt]]:
    """Send all and receive to the end."""
    for request in requests:
        target.add_request(request)
    outcomes: list[RequestOutcome] = []
    receipts: list[Receipt] = []
    while target.has_unfinished:
        received = target.receive(SECOND_NS)
        outcomes += received.ended
        receipts += received.receipts
    return sorted(outcomes, key=lambda outcome: outcome.request_id), receipts


def requests_of(count: int, max_tokens: int = 6, **sampling: Any) -> list[Request]:
    params = SamplingParams(max_tokens=max_tokens, **sampling)
    return [Request(number, [number, 7], params, arrival_ns=1) for number in range(count)]


@pytest.fixture
def open_target(start_server: StartServer):  # type: ignore[no-untyped-def]
    """A warm target for a server of one model, closed at the end."""
    opened: list[OpenAITarget] = []

    def open_one(model: str, *, timeout_s: float = 30.0, delay_s: float = 0.0) -> OpenAITarget:
        url = start_server(model, delay_s=delay_s)
        opened.append(OpenAITarget(f"openai:{url}", ServerAccess(timeout_s), None))
        opened[-1].warm_up()
        return opened[-1]

    yield open_one
    for target in opened:
        target.close()


def test_tokens_come_back_in_order_with_the_time_of_each(open_target: Callable[..., OpenAITarget]) -> None:
    target = open_target("good", delay_s=0.01)
    outcomes, receipts = ask(target, requests_of(3))
    for outcome in outcomes:
        assert outcome.status == "finished"
        assert outcome.output_token_ids == tuple(outcome.request_id + 7 + i for i in range(6))
        assert outcome.num_output_tokens == 6
        own = [receipt for receipt in receipts if receipt.request_id == outcome.request_id]
        times_ns = [receipt.time_ns for receipt in own]
        assert sum(receipt.num_tokens or 0 for receipt in own) == 6
        assert (outcome.first_token_ns, outcome.finished_ns) == (times_ns[0], times_ns[-1])
        assert outcome.added_ns < times_ns[0]
        assert times_ns[-1] - times_ns[0] >= 0.04 * SECOND_NS  # five waits of 10 ms, less what the clocks differ
    assert target.facts()["server_model"] == "good"
    assert not any("counted" in note for note in target.notes())


def test_samples_of_a_request_are_asked_for_together(open_target: Callable[..., OpenAITarget]) -> None:
    (outcome,), _ = ask(open_target("good"), requests_of(1, n=2, temperature=1.0, seed=3))
    assert outcome.num_sequences == 2
    assert outcome.num_output_tokens == 12


def test_pieces_of_several_tokens_are_told_by_the_servers_own_count(open_target: Callable[..., OpenAITarget]) -> None:
    (outcome,), receipts = ask(open_target("bursts", delay_s=0.01), requests_of(1))
    assert outcome.num_output_tokens == 6  # in two pieces
    assert [receipt.num_tokens for receipt in receipts] == [None, None]


def test_tokens_are_counted_and_labelled_where_the_server_sends_no_usage(
    open_target: Callable[..., OpenAITarget],
) -> None:
    target = open_target("no-usage")
    (outcome,), _ = ask(target, requests_of(1))
    assert outcome.num_output_tokens == 6
    assert any("counted from the pieces of the stream" in note for note in target.notes())


def test_what_a_server_refuses_is_not_asked_for_again(open_target: Callable[..., OpenAITarget]) -> None:
    target = open_target("strict")
    (outcome,), _ = ask(target, requests_of(1))
    assert (outcome.status, outcome.num_output_tokens) == ("finished", 6)
    assert any("ignore_eos" in note for note in target.notes())


def test_requests_that_end_early_are_counted(open_target: Callable[..., OpenAITarget]) -> None:
    target = open_target("early")
    outcomes, _ = ask(target, requests_of(2))
    assert [outcome.num_output_tokens for outcome in outcomes] == [3, 3]
    assert "2 requests ended before their length" in target.notes()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("broken", "the connection broke: ClientPayloadError"),
        ("cut", "the stream ended before the answer did"),
        ("babbling", "the server sent an event that is no JSON object"),
        ("sorry", "the server failed: out of memory"),
        ("silent", "no answer within 1 s (--request-timeout)"),
    ],
)
def test_a_request_that_breaks_fails_alone_and_says_why(
    open_target: Callable[..., OpenAITarget], model: str, reason: str
) -> None:
    (outcome,), receipts = ask(open_target(model, timeout_s=1.0), requests_of(1))
    assert outcome.status == "failed"
    assert (outcome.reason or "").startswith(reason)
    assert outcome.finished_ns is None
    assert outcome.num_output_tokens == (0 if model == "silent" else 3)
    assert sum(receipt.num_tokens or 0 for receipt in receipts) == outcome.num_output_tokens


def test_reading_a_token_costs_little(open_target: Callable[..., OpenAITarget]) -> None:
    target = open_target("good", delay_s=0.01)  # each token comes by itself
    busy_s = time.process_time()
    outcomes, _ = ask(target, requests_of(64, max_tokens=60))
    busy_s = time.process_time() - busy_s
    assert sum(outcome.num_output_tokens for outcome in outcomes) / busy_s > 8_000  # a slow, busy machine has 30 000


def test_giving_up_closes_connections_and_tells_how_requests_stood(
    open_target: Callable[..., OpenAITarget],
) -> None:
    target = open_target("good", delay_s=0.02)
    for request in requests_of(4, max_tokens=2000):
        target.add_request(request)
    for _ in range(10):
        target.receive(SECOND_NS // 50)
    outcomes = target.give_up().ended
    assert [outcome.status for outcome in outcomes] == ["unfinished"] * 4
    assert all(0 < outcome.num_output_tokens < 2000 and outcome.finished_ns is None for outcome in outcomes)
    assert not target.has_unfinished
    check_dropped(target._address.base_url, 4)


def test_a_server_that_is_not_there_is_named(open_target: Callable[..., OpenAITarget]) -> None:
    target = OpenAITarget("openai:http://127.0.0.1:9", ServerAccess(), None)
    with pytest.raises(ExternalError, match=r"http://127.0.0.1:9/v1: no connection: .*refused"):
        target.warm_up()
    target.close()


def test_of_several_models_one_must_be_named(start_server: StartServer) -> None:
    url = start_server("good", "early")
    target = OpenAITarget(f"openai:{url}", ServerAccess(), None)
    with pytest.raises(ExternalError, match="it serves: good, early"):
        target.warm_up()
    target.close()
    target = OpenAITarget(f"openai:{url}#early", ServerAccess(), None)
    target.warm_up()
    assert target.facts()["server_model"] == "early"
    target.close()


def test_the_key_is_sent_and_kept_nowhere(
    start_server: StartServer,
    options: RunOptions,
    run_experiment: RunExperiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = start_server("good")
    monkeypatch.setenv("SOME_KEY", "a-secret")
    run_experiment(replace(options, engines=(f"openai:{url}",)), access=ServerAccess(30.0, "SOME_KEY"))
    assert set(seen(url)["keys"]) == {None, "Bearer a-secret"}  # None: by this test
    for path in (tmp_path / "run").iterdir():
        assert b"a-secret" not in path.read_bytes()
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(ExternalError, match="SOME_KEY: this environment variable is not set"):
        connect(resolve(replace(options, engines=(f"openai:{url}",))).engines[0], ServerAccess(30.0, "SOME_KEY"))


def check_blank(engine: EngineResult, known: set[str]) -> None:
    """Only what such an engine can tell has a figure; nothing else is 0."""
    assert set(engine.summary) == {metric.name for metric in METRICS}
    told = {name for name, value in engine.summary.items() if value is not None}
    assert told - {"steady_output_tokens_per_s"} == known  # a short run need not become steady


SERVED = {
    *("output_tokens_per_s", "total_tokens_per_s", "requests_per_s", "duration_s", "num_finished"),
    *("num_prompt_tokens", "num_output_tokens"),
    *(
        f"{name}_ms_p{percent}"
        for name in ("ttft", "ttft_sent", "tpot", "itl", "e2e", "e2e_sent")
        for percent in (50, 90, 99)
    ),
}


def test_a_run_of_a_server_records_what_it_tells_and_leaves_the_rest_blank(
    start_server: StartServer, options: RunOptions, run_experiment: RunExperiment, tmp_path: Path
) -> None:
    spec = f"openai:{start_server('good', delay_s=0.002)}"
    result = run_experiment(replace(options, engines=(spec, "paged")))
    served, ours = result.engines
    assert result.status == "complete"
    check_blank(served, SERVED)
    run = Run(tmp_path / "run")
    requests = run.requests().query("engine == @spec")
    assert list(requests["status"]) == ["finished"] * 12
    blank = ("first_scheduled_ns", "num_prefix_hit_tokens", "num_recomputed_tokens", "num_preemptions")
    for column in (*blank, "kv_byte_seconds", "reason"):
        assert requests[column].isna().all()
    assert (requests["added_ns"] <= requests["first_token_ns"]).all()
    receipts = run.receipts()
    assert set(receipts["engine"]) == {spec}
    assert receipts["num_tokens"].sum() == requests["num_output_tokens"].sum()
    assert requests["num_output_tokens"].sum() == result.workload["total_output_tokens"]
    assert served.summary["duration_s"] == receipts["time_ns"].max() / 1e9
    assert set(run.steps()["engine"]) == set(run.device()["engine"]) == {"paged"}
    assert set(run.prefixes()["engine"]) == {"paged"}
    assert served.pool == {}
    assert served.memory == {}
    assert served.config["block_size"] is None
    assert served.config["server_model"] == "good"
    assert ours.config["block_size"] == result.config["block_size"] == 16
    assert any(note.startswith("it has settings of its own; not applied: kv_memory_bytes") for note in served.notes)


def test_recorded_arrivals_are_sent_at_their_time(
    start_server: StartServer, options: RunOptions, run_experiment: RunExperiment, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [{"arrival_s": arrival_s, "input_length": 20, "output_length": 50} for arrival_s in (0, 0.2, 0.25, 0.6)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    spec = f"openai:{start_server('good', delay_s=0.01)}"
    run_experiment(replace(options, engines=(spec,), workload=str(path), arrivals="recorded", overrides=()))
    requests = Run(tmp_path / "run").requests()
    lateness_ns = (requests["added_ns"] - requests["arrival_ns"]).astype(int)
    assert (lateness_ns >= 0).all()
    assert lateness_ns.min() < 0.015 * SECOND_NS  # less than one wait: each is met, and not only looked for


def test_a_closed_loop_sends_when_another_ends(
    start_server: StartServer, options: RunOptions, run_experiment: RunExperiment, tmp_path: Path
) -> None:
    spec = f"openai:{start_server('good', delay_s=0.002)}"
    run_experiment(replace(options, engines=(spec,), arrivals="closed:2"))
    requests = Run(tmp_path / "run").requests()
    for _, request in requests.iterrows():
        others = requests[requests["request_id"] != request["request_id"]]
        is_there = (others["added_ns"] <= request["added_ns"]) & (others["finished_ns"] > request["added_ns"])
        assert is_there.sum() <= 1


def test_requests_that_fail_fail_the_engine_and_are_counted_by_reason(
    start_server: StartServer, options: RunOptions, run_experiment: RunExperiment, tmp_path: Path
) -> None:
    result = run_experiment(replace(options, engines=(f"openai:{start_server('flaky')}",)))
    engine = result.engines[0]
    assert engine.status == "failed"
    assert engine.reason == "4 of 12 requests failed: HTTP 503 Service Unavailable: overloaded, try later (4x)"
    assert engine.summary["num_finished"] == 8
    requests = Run(tmp_path / "run").requests()
    assert set(requests[requests["status"] == "failed"]["reason"]) == {
        "HTTP 503 Service Unavailable: overloaded, try later"
    }


def test_ctrl_c_drops_the_requests_and_keeps_what_came(
    start_server: StartServer, options: RunOptions, run_experiment: RunExperiment, tmp_path: Path
) -> None:
    url = start_server("good", delay_s=0.1)
    interrupts: list[int] = []

    def interrupt(_engine: str, event: Mapping[str, Any]) -> None:
        if event["event"] == "progress" and event["num_output_tokens"] > 20 and not interrupts:
            interrupts.append(event["num_output_tokens"])
            os.kill(os.getpid(), signal.SIGINT)

    result = run_experiment(replace(options, engines=(f"openai:{url}",)), on_event=interrupt)
    assert result.status == "interrupted"
    requests = Run(tmp_path / "run").requests()
    assert set(requests["status"]) == {"unfinished"}
    assert requests["num_output_tokens"].sum() == Run(tmp_path / "run").receipts()["num_tokens"].sum() > 20
    assert result.engines[0].summary["output_tokens_per_s"] is not None
    check_dropped(url, 12)
