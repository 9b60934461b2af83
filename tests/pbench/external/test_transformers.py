"""transformers' continuous batching behind the harness: tokens as ours, and only what it tells in the record."""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pbench.engine.config import EngineConfig
from pbench.engine.loading import load_engine
from pbench.engine.model_config import PRESETS, load_model_config
from pbench.engine.request import Request, SamplingParams
from pbench.engine.rope_scaling import RopeScaling
from pbench.errors import UsageError
from pbench.external.errors import ExternalError
from pbench.external.target import Receipt, RequestOutcome
from pbench.external.transformers_model import model_with_random_weights, peer_config
from pbench.external.transformers_target import TransformersTarget
from pbench.job import EngineOptions
from pbench.results import METRICS, Run, RunResult
from pbench.settings import RunOptions, resolve

RunExperiment = Callable[..., RunResult]

SECOND_NS = 1_000_000_000
PROMPTS = [[(number * 31 + 7 * i * i + i) % 512 for i in range(20 + 9 * number)] for number in range(5)]


@pytest.fixture
def options(options: RunOptions) -> RunOptions:
    """A pool of as many slots as ours, in blocks of 256: every reservation of the workload fits it."""
    return replace(options, engines=("transformers",), kv_memory="1MiB")


@pytest.fixture
def engine_options(options: RunOptions) -> EngineOptions:
    return resolve(options).engines[0]


@pytest.fixture
def target(engine_options: EngineOptions):  # type: ignore[no-untyped-def]
    one = TransformersTarget(engine_options)
    one.warm_up()
    yield one
    one.close()


def requests_of(prompts: list[list[int]], max_tokens: int) -> list[Request]:
    return [
        Request(number, prompt, SamplingParams(max_tokens=max_tokens), arrival_ns=1)
        for number, prompt in enumerate(prompts)
    ]


def receive_all(target: TransformersTarget) -> tuple[dict[int, RequestOutcome], list[Receipt]]:
    outcomes: dict[int, RequestOutcome] = {}
    receipts: list[Receipt] = []
    while target.has_unfinished:
        received = target.receive(SECOND_NS)
        outcomes |= {outcome.request_id: outcome for outcome in received.ended}
        receipts += received.receipts
    return outcomes, receipts


def our_tokens(options: EngineOptions, requests: list[Request]) -> dict[int, tuple[int, ...]]:
    engine = load_engine(options.of("paged").config())
    tokens: dict[int, tuple[int, ...]] = {request.request_id: () for request in requests}
    for request in requests:
        engine.add_request(request)
    while engine.has_unfinished:
        for token in engine.step().tokens:
            tokens[token.request_id] += (token.token_id,)
    return tokens


def test_greedy_tokens_are_ours(target: TransformersTarget, engine_options: EngineOptions) -> None:
    requests = requests_of(PROMPTS, max_tokens=24)
    for request in requests:
        target.add_request(request)
    outcomes, receipts = receive_all(target)
    expected = our_tokens(engine_options, requests)
    assert {number: outcome.output_token_ids for number, outcome in outcomes.items()} == expected
    for number, outcome in outcomes.items():
        times_ns = [receipt.time_ns for receipt in receipts if receipt.request_id == number]
        assert len(times_ns) == outcome.num_output_tokens == 24
        assert times_ns == sorted(times_ns)
        assert (outcome.first_token_ns, outcome.finished_ns) == (times_ns[0], times_ns[-1])
        assert outcome.first_scheduled_ns is not None
        assert outcome.added_ns <= outcome.first_scheduled_ns <= times_ns[0]


@pytest.mark.gpu
def test_greedy_tokens_are_ours_on_a_gpu(options: RunOptions) -> None:
    one = resolve(replace(options, device="cuda", dtype="float32", kv_memory="64MiB")).engines[0]
    target = TransformersTarget(one)
    target.warm_up()
    try:
        requests = requests_of(PROMPTS, max_tokens=8)
        for request in requests:
            target.add_request(request)
        outcomes, _ = receive_all(target)
    finally:
        target.close()
    assert {number: outcome.output_token_ids for number, outcome in outcomes.items()} == our_tokens(one, requests)


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if not preset.is_kv_shape_only])
def test_a_preset_in_transformers_own_words_is_the_same_model(name: str, tmp_path: Path) -> None:
    peer = peer_config(PRESETS[name]).to_dict()
    family = "Qwen3ForCausalLM" if PRESETS[name].has_qk_norm else "LlamaForCausalLM"
    (tmp_path / "config.json").write_text(json.dumps(peer | {"architectures": [family]}))
    read = load_model_config(str(tmp_path))
    assert replace(read, name=name, eos_token_ids=()) == replace(PRESETS[name], eos_token_ids=())


@pytest.mark.parametrize(
    "changes",
    [
        {"is_head_tied": True, "rope_theta": 5e5, "rope_scaling": RopeScaling("llama3", factor=8.0)},
        {"has_qk_norm": True, "head_dim": 32, "rms_norm_eps": 1e-6},
        {"has_attention_bias": True, "rope_scaling": RopeScaling("linear", factor=2.0)},
        {"sliding_window": 5},
        {"has_qk_norm": True, "sliding_window": 4, "full_layers": (1,)},
        {"has_attention_bias": True, "sliding_window": 4, "full_layers": (0,)},
    ],
)
def test_every_family_has_our_weights_and_gives_our_tokens(changes: dict[str, Any]) -> None:
    config = replace(PRESETS["tiny"], **changes)
    engine = load_engine(EngineConfig(model=config, kv_memory_bytes=2**20, seed=3))
    engine.add_request(Request(0, PROMPTS[1], SamplingParams(max_tokens=12)))
    ours: list[int] = []
    while engine.has_unfinished:
        ours += [token.token_id for token in engine.step().tokens]
    theirs = model_with_random_weights(config, torch.float32, torch.device("cpu"), seed=3)
    generated = theirs.generate(
        torch.tensor([PROMPTS[1]]), attention_mask=torch.ones(1, len(PROMPTS[1])), max_new_tokens=12, do_sample=False
    )
    assert generated[0, len(PROMPTS[1]) :].tolist() == ours


def test_a_request_counts_as_added_before_transformers_can_schedule_it(
    target: TransformersTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = target._manager.add_request
    entered_ns: list[int] = []

    def note_and_add(*args: Any, **kwargs: Any) -> str:
        entered_ns.append(time.monotonic_ns())
        return str(add(*args, **kwargs))

    monkeypatch.setattr(target._manager, "add_request", note_and_add)
    [request] = requests_of(PROMPTS[:1], max_tokens=2)
    target.add_request(request)
    outcomes, _ = receive_all(target)
    assert outcomes[0].added_ns <= entered_ns[0]


def test_giving_up_tells_how_requests_stood(target: TransformersTarget) -> None:
    for request in requests_of(PROMPTS, max_tokens=200):
        target.add_request(request)
    done = target.receive(SECOND_NS // 2).ended
    received = target.give_up()
    outcomes = [*done, *received.ended]
    assert sorted(outcome.request_id for outcome in outcomes) == list(range(len(PROMPTS)))
    stopped = [outcome for outcome in received.ended if outcome.status == "unfinished"]
    for outcome in stopped:
        assert outcome.num_output_tokens < 200
        assert outcome.finished_ns is None
        assert outcome.reason is None
        num_receipts = sum(receipt.request_id == outcome.request_id for receipt in received.receipts)
        assert num_receipts == outcome.num_output_tokens
    assert not target.has_unfinished


def test_of_a_preempted_request_only_what_is_told_is_kept(engine_options: EngineOptions) -> None:
    # Three blocks, and two requests that come to need two each: one of them must give up its block and start again.
    target = TransformersTarget(replace(engine_options, kv_memory_bytes=3 * 256 * 512, max_length=512))
    target.warm_up()
    try:
        for request in requests_of([[number] * 200 for number in (1, 2)], max_tokens=150):
            target.add_request(request)
        outcomes, receipts = receive_all(target)
    finally:
        target.close()
    assert {outcome.status for outcome in outcomes.values()} == {"finished"}
    assert {outcome.num_output_tokens for outcome in outcomes.values()} == {150}
    by_request = Counter(receipt.request_id for receipt in receipts)
    preempted = [number for number in outcomes if by_request[number] < 150]
    assert preempted, "the pool was large enough"
    for number, outcome in outcomes.items():
        is_blank = number in preempted
        assert (outcome.first_token_ns is None) == (outcome.first_scheduled_ns is None) == is_blank
        assert outcome.finished_ns is not None
    assert any(note.startswith(f"{len(preempted)} requests started again") for note in target.notes())


def test_requests_fail_when_its_thread_dies_and_no_more_are_taken(
    target: TransformersTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(target._manager.batch_processor, "prepare_next_batch", fail)
    first, second = requests_of(PROMPTS[:2], max_tokens=200)
    target.add_request(first)
    outcomes, _ = receive_all(target)
    assert (outcomes[0].status, outcomes[0].reason) == ("failed", "no more memory")
    while target._manager.is_running():
        time.sleep(0.01)
    with pytest.raises(ExternalError, match="takes no more requests"):
        target.add_request(second)


def test_a_run_records_what_it_tells_and_leaves_the_rest_blank(
    options: RunOptions, run_experiment: RunExperiment, tmp_path: Path
) -> None:
    result = run_experiment(replace(options, engines=("transformers", "paged")))
    assert result.status == "complete"
    theirs, ours = result.engines
    told = {
        *("output_tokens_per_s", "total_tokens_per_s", "requests_per_s", "duration_s", "num_finished"),
        *(
            f"{name}_ms_p{percent}"
            for name in ("ttft", "ttft_sent", "queue", "tpot", "itl", "e2e", "e2e_sent")
            for percent in (50, 90, 99)
        ),
        *("num_prompt_tokens", "num_output_tokens", "peak_process_rss_bytes", "peak_host_used_bytes"),
        "mean_process_cpu_pct",
    }
    known = {metric.name for metric in METRICS if theirs.summary[metric.name] is not None}
    assert known - {"steady_output_tokens_per_s"} == told  # a short run need not become steady
    assert theirs.pool == {
        "num_slots": 2048,
        "slot_bytes": 512,
        "pool_bytes": 2**20,
        "block_size": 256,
        "weights_bytes": ours.pool["weights_bytes"],
    }
    assert set(theirs.memory) == {"weights", "pool", "unexplained", "peak"}
    assert theirs.config["attention"] == "paged|sdpa"
    assert theirs.config["eviction"] is None
    run = Run(tmp_path / "run")
    requests = run.requests().query("engine == 'transformers'")
    assert list(requests["status"]) == ["finished"] * 12
    assert requests["first_scheduled_ns"].notna().all()
    for column in ("num_prefix_hit_tokens", "num_recomputed_tokens", "num_preemptions", "kv_byte_seconds", "reason"):
        assert requests[column].isna().all()
    assert len(run.receipts()) == requests["num_output_tokens"].sum() == result.workload["total_output_tokens"]
    assert set(run.steps()["engine"]) == {"paged"}
    assert set(run.device()["engine"]) == {"transformers", "paged"}


def test_a_pool_of_too_few_of_its_blocks_is_refused_before_the_start(options: RunOptions) -> None:
    with pytest.raises(UsageError, match="use --kv-memory 131072 or more"):
        resolve(replace(options, kv_memory="100KiB", engines=("transformers",)))


def test_what_it_computes_with_is_on_the_device(target: TransformersTarget) -> None:
    assert all(parameter.device == torch.device("cpu") for parameter in target._model.parameters())
    assert target._manager.batch_processor.cache.num_blocks == 8
