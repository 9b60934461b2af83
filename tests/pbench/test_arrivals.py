from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbench.arrivals import Arrivals, PreparedRequest, prepare
from pbench.engine.request import SamplingParams
from pbench.job import WorkloadChoice

START_NS = 10**12


def prepared(times_ns: list[int]) -> list[PreparedRequest]:
    return [
        PreparedRequest(number, time_ns, array("i", [1, 2, 3]), SamplingParams(max_tokens=4))
        for number, time_ns in enumerate(times_ns)
    ]


@given(
    times_ns=st.lists(st.integers(min_value=0, max_value=1000), min_size=1).map(sorted),
    looks_ns=st.lists(st.integers(min_value=0, max_value=400)),
)
def test_an_open_loop_offers_each_once_when_due_and_keeps_intended_times(
    times_ns: list[int], looks_ns: list[int]
) -> None:
    arrivals = Arrivals(prepared(times_ns), START_NS)
    offered = []
    now_ns = START_NS
    for wait_ns in [*looks_ns, 2000]:
        now_ns += wait_ns
        for request in arrivals.due(now_ns, num_in_engine=10**6):
            assert request.arrival_ns <= now_ns
            offered.append(request)
        assert not arrivals.has_more or arrivals.wait_ns(now_ns) > 0
    assert [request.request_id for request in offered] == list(range(len(times_ns)))
    assert [request.arrival_ns - START_NS for request in offered] == times_ns
    assert not arrivals.has_more


def test_waiting_for_the_next_arrival_ends_exactly_then() -> None:
    arrivals = Arrivals(prepared([700]), START_NS)
    assert arrivals.wait_ns(START_NS + 100) == 600
    assert list(arrivals.due(START_NS + 699, 0)) == []
    assert [request.request_id for request in arrivals.due(START_NS + 700, 0)] == [0]


@given(concurrency=st.integers(1, 5), finishing=st.lists(st.integers(0, 5), max_size=30))
def test_a_closed_loop_never_exceeds_its_concurrency_and_counts_from_the_offer(
    concurrency: int, finishing: list[int]
) -> None:
    arrivals = Arrivals(prepared([0] * 10), START_NS, concurrency)
    num_in_engine, now_ns, offered = 0, START_NS, []
    for num_finishing in finishing:
        now_ns += 50
        for request in arrivals.due(now_ns, num_in_engine):
            assert request.arrival_ns == now_ns
            offered.append(request.request_id)
            num_in_engine += 1
        assert num_in_engine <= concurrency
        assert num_in_engine == concurrency or not arrivals.has_more
        num_in_engine -= min(num_finishing, num_in_engine)
    assert offered == list(range(len(offered)))


def test_prompts_have_their_lengths_and_share_their_prefix() -> None:
    workload = WorkloadChoice("chat-shared-prompt", limit=3).load()
    requests = prepare(workload, vocab_size=100)
    prompts = [request.at(5).prompt_token_ids for request in requests]
    assert [len(prompt) for prompt in prompts] == [request.input_length for request in workload.requests]
    assert [request.sampling.max_tokens for request in requests] == [
        request.output_length for request in workload.requests
    ]
    assert prompts[0][:1024] == prompts[1][:1024] == prompts[2][:1024]
    assert prompts[0][1024:1050] != prompts[1][1024:1050]
    assert all(0 <= token_id < 100 for prompt in prompts for token_id in prompt)
    assert requests[0].at(5).arrival_ns == 5


def test_no_end_token_cuts_an_answer_short() -> None:
    requests = prepare(WorkloadChoice("chat-shared-prompt", limit=1).load(), vocab_size=100)
    assert requests[0].sampling.stop_token_ids == ()
    assert requests[0].sampling.temperature == pytest.approx(0.0)
