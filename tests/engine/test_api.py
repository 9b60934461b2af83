"""The Python API: what can be imported, the documented example, streaming, and priorities."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import pbench.engine
from pbench.engine import Engine, EngineConfig, Request, RequestError, SamplingParams, load_engine, load_model_config
from pbench.engine.roofline import Speed
from pbench.engine.simulation import simulated_engine

SPEED = Speed(bandwidth_bytes_per_s=4e12, flops_per_s=700e12, overhead_ns=500_000)
CONFIG = EngineConfig(
    model=load_model_config("tiny"), kv_memory_bytes=512 * 1024, max_length=256, max_batch_tokens=128, max_running=16
)


def make_engine(**changes: object) -> Engine:
    return simulated_engine(replace(CONFIG, **changes), SPEED)[0]  # type: ignore[arg-type]


def test_importing_the_package_loads_nothing_heavy_and_every_name_is_there() -> None:
    program = (
        "import sys, pbench.engine; assert not {'torch', 'numpy', 'triton'} & set(sys.modules);"
        "[getattr(pbench.engine, name) for name in pbench.engine.__all__]"
    )
    subprocess.run([sys.executable, "-P", "-c", program], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        pbench.engine.Motor  # noqa: B018


def test_the_documented_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "engine.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/engine.md", "exec"), names)
    assert "length" in capsys.readouterr().out


@pytest.mark.parametrize("has_async_steps", [True, False])
def test_a_stream_gives_out_every_token_and_none_after_an_abort(has_async_steps: bool) -> None:
    engine = make_engine(has_async_steps=has_async_steps)
    for index in range(3):
        engine.add_request(Request(index, [index] * 9, SamplingParams(max_tokens=10, n=2)))
    counts = dict.fromkeys(range(4), 0)
    for token in engine.stream():
        counts[token.request_id] += 1
        if token.request_id == 1 and counts[1] == 3:
            assert engine.abort(1) is not None
            engine.add_request(Request(3, [3] * 9, SamplingParams(max_tokens=4)))
    assert counts == {0: 20, 1: 3, 2: 20, 3: 4}
    assert not engine.has_unfinished


def test_an_aborted_id_may_be_given_to_another_request_at_once() -> None:
    engine = make_engine()
    engine.add_request(Request(0, [1] * 9, SamplingParams(max_tokens=10)))
    tokens = []
    for token in engine.stream():
        tokens.append(token.token_id)
        if len(tokens) == 3:
            engine.abort(0)
            engine.add_request(Request(0, [2] * 9, SamplingParams(max_tokens=4)))
    engine.add_request(Request(0, [2] * 9, SamplingParams(max_tokens=4)))
    assert tokens[3:] == [token.token_id for token in engine.stream()]


def test_generate_gives_each_prompt_its_completions() -> None:
    engine = load_engine(CONFIG)
    sampling = [SamplingParams(max_tokens=5, n=2, temperature=1.0), SamplingParams(max_tokens=7, logprobs=1)]
    (first, second), (third,) = engine.generate([[1, 2], [3]], sampling)
    assert [len(completion.token_ids) for completion in (first, second, third)] == [5, 5, 7]
    assert [first.scores, [score.token_id for score in third.scores]] == [[], third.token_ids]
    assert first.finish_reason == "length"
    assert engine.generate([[3]], sampling[1])[0][0].token_ids == third.token_ids
    assert engine.generate([], sampling[1]) == []


def test_generate_refuses_before_it_begins() -> None:
    engine = make_engine()
    with pytest.raises(RequestError, match="request 1 has 0 prompt tokens"):
        engine.generate([[1], []], SamplingParams(max_tokens=3))
    with pytest.raises(RequestError, match="2 prompts have 1 sampling parameters"):
        engine.generate([[1], [2]], [SamplingParams(max_tokens=3)])
    assert not engine.has_unfinished
    engine.add_request(Request(0, [1], SamplingParams(max_tokens=3)))
    with pytest.raises(RequestError, match="runs alone"):
        engine.generate([[1]], SamplingParams(max_tokens=3))


# Priorities


@pytest.mark.parametrize("has_async_steps", [True, False])
def test_the_lowest_priority_is_admitted_first_and_equals_as_they_came(has_async_steps: bool) -> None:
    engine = make_engine(max_running=1, has_async_steps=has_async_steps)
    priorities = [0, 3, -2, 0, 3, -2, 7, 0]
    for index, priority in enumerate(priorities):
        engine.add_request(Request(index, [index] * 5, SamplingParams(max_tokens=3), priority=priority))
    order = list(dict.fromkeys(token.request_id for token in engine.stream()))
    assert order == sorted(range(8), key=lambda index: (priorities[index], index))


def test_an_urgent_request_overtakes_the_queue_but_not_what_runs() -> None:
    engine = make_engine(max_running=2)
    for index in range(6):
        engine.add_request(Request(index, [index] * 5, SamplingParams(max_tokens=10)))
    order = []
    for token in engine.stream():
        if not order:
            engine.add_request(Request(9, [9] * 5, SamplingParams(max_tokens=10), priority=-1))
        order.append(token.request_id)
    assert list(dict.fromkeys(order)) == [0, 1, 9, 2, 3, 4, 5]


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_the_least_urgent_is_preempted_and_of_equals_the_newest(preemption: str) -> None:
    """Where only arrival counts it would be the last, which is the most urgent here."""
    engine = make_engine(kv_memory_bytes=40 * 16 * CONFIG.slot_bytes, preemption=preemption, host_kv_memory_bytes=2**20)
    priorities = [1, 0, 1, 0, -1, -1]
    for index, priority in enumerate(priorities):
        engine.add_request(Request(index, [index] * 20, SamplingParams(max_tokens=180), priority=priority))
        engine.step()
    preempted: dict[int, int] = {}
    while engine.has_unfinished:
        preempted |= {record.request_id: record.num_preemptions for record in engine.step().finished}
    assert len(preempted) == 6
    assert preempted[4] == preempted[5] == 0
    assert preempted[2] >= preempted[0] > 0
    assert preempted[0] >= preempted[3] >= preempted[1]
