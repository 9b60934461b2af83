"""Ten thousand requests that come, end and are aborted at random: nothing leaks, starves, is lost or told twice."""

import gc
import random
from dataclasses import dataclass, field, replace

import pytest

from pbench.engine.config import MEMORY_SPECS, EngineConfig
from pbench.engine.engine import Engine
from pbench.engine.model_config import PRESETS
from pbench.engine.plan import Sample
from pbench.engine.records import RequestRecord, TokenOutput
from pbench.engine.request import Request, SamplingParams
from pbench.engine.roofline import Roofline, Speed
from pbench.engine.sequence import RequestState, Sequence
from pbench.engine.simulation import SimulatedClock, SimulatedRunner

SPEED = Speed(bandwidth_bytes_per_s=4e12, flops_per_s=700e12, overhead_ns=500_000)
CONFIG = EngineConfig(
    model=PRESETS["tiny"],
    kv_memory_bytes=400 * PRESETS["tiny"].kv_bytes_per_token("float32"),
    max_length=96,
    max_batch_tokens=64,
    max_running=12,
)
LETTERS = "abc"  # tokens have texts of few letters, so that stop strings come


def decode(token_ids: list[int]) -> str:
    return "".join(LETTERS[token_id % len(LETTERS)] for token_id in token_ids)


def random_request(request_id: int, chance: random.Random, memory: str) -> Request:
    """Prompts that often share their beginning; every way of ending; some samples, few beams."""
    shared = [chance.randrange(4)] * chance.choice([0, 0, 16, 32])
    prompt = shared + [chance.randrange(500) for _ in range(chance.randint(1, 20))]
    num_beams = chance.choice([1] * 19 + [2]) if memory == "paged" else 1
    is_plain = num_beams > 1 or chance.random() < 0.5
    sampling = SamplingParams(
        max_tokens=chance.randint(1, 40),
        temperature=chance.choice([0.0, 1.0]),
        seed=chance.randrange(1000),
        n=1 if num_beams > 1 else chance.choice([1, 1, 1, 1, 2, 3]),
        beam_width=num_beams,
        stop_token_ids=tuple(chance.sample(range(500), chance.choice([0, 0, 30]))) if num_beams == 1 else (),
        stop=() if is_plain else tuple("".join(chance.choices(LETTERS, k=4)) for _ in range(2)),
        logprobs=None if is_plain else chance.choice([None, None, 2]),
        detokenize=chance.random() < 0.7 if is_plain else True,
    )
    return Request(request_id, prompt, sampling, priority=chance.choice([0, 0, 0, 0, -1, 1, 2]))


def expected_tokens(runner: SimulatedRunner, request: Request, sample_index: int) -> list[int]:
    """What the simulated model says to this request alone: it looks at one token and its position only."""
    sampling, token_ids = request.sampling, []
    sample = Sample(0, sampling.temperature, sampling.seed + sample_index)
    last = request.prompt_token_ids[-1]
    while len(token_ids) < sampling.max_tokens:
        chosen = runner._choose(last, len(request.prompt_token_ids) + len(token_ids), sample)
        assert isinstance(chosen, int)
        token_ids.append(chosen)
        last = chosen
        if last in sampling.stop_token_ids or any(stop in decode(token_ids) for stop in sampling.stop):
            break
    return token_ids


@dataclass
class Soak:
    """A run: an engine, what it was given, and all that it gave out."""

    engine: Engine
    runner: SimulatedRunner
    requests: list[Request] = field(default_factory=list)
    tokens: dict[tuple[int, int], list[TokenOutput]] = field(default_factory=dict)
    records: dict[int, RequestRecord] = field(default_factory=dict)
    num_preempted: int = 0
    num_steps: int = 0

    def run(self, num_requests: int, chance: random.Random) -> None:
        engine = self.engine
        while engine.has_unfinished or len(self.requests) < num_requests:
            # Bursts, so that the queue grows and empties.
            if len(self.requests) < num_requests and (not engine.has_unfinished or chance.random() < 0.25):
                for _ in range(min(chance.randint(1, 24), num_requests - len(self.requests))):
                    request = random_request(len(self.requests), chance, engine.config.memory)
                    self.requests.append(request)
                    engine.add_request(request)
            if chance.random() < 0.15:  # somebody new or old; often gone already
                self.abort(max(len(self.requests) - 1 - int(chance.expovariate(1 / 20)), 0))
            if engine.has_unfinished:
                self.step()

    def abort(self, request_id: int) -> None:
        record = self.engine.abort(request_id)
        assert (record is None) == (request_id in self.records), "it is gone if, and only if, it was told so"
        if record is not None:
            self.take_record(record)

    def step(self) -> None:
        step = self.engine.step()
        self.num_steps += 1
        self.num_preempted += step.record.num_preempted
        for token in step.tokens:
            assert token.request_id not in self.records, "a token after the end"
            self.tokens.setdefault((token.request_id, token.sample_index), []).append(token)
        for record in step.finished:
            self.take_record(record)
        if self.num_steps % 16 == 0:
            self.engine.memory.check_integrity()
            assert step.record.usage.pool == self.engine.num_slots

    def take_record(self, record: RequestRecord) -> None:
        assert record.request_id not in self.records, "a request ends twice"
        self.records[record.request_id] = record


VARIANTS = [{"memory": memory} for memory in MEMORY_SPECS]
VARIANTS += [
    {"memory": "paged", "preemption": "swap", "host_kv_memory_bytes": 2**20},
    {"memory": "paged", "is_prefix_cached": False, "is_prefill_chunked": False, "max_batch_tokens": 96},
]


@pytest.mark.parametrize("has_async_steps", [True, False])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_whatever_comes_and_goes_every_request_gets_its_own_and_leaves_nothing(
    variant: dict[str, object], has_async_steps: bool
) -> None:
    """10 000 requests in all over memories and modes, which is 720 for each of the 14."""
    config = replace(CONFIG, has_async_steps=has_async_steps, **variant)  # type: ignore[arg-type]
    known_before = known()  # held, so that none of other tests' goes meanwhile and makes room for one of ours
    clock = SimulatedClock()
    runner = SimulatedRunner(config, Roofline(config, SPEED), clock)
    soak = Soak(Engine(config, runner, clock, decode), runner)
    soak.run(720, random.Random(f"{variant} {has_async_steps}"))

    assert sorted(soak.records) == list(range(720)), "every request ends once"
    statuses = [record.status for record in soak.records.values()]
    assert statuses.count("aborted") > 20
    assert statuses.count("finished") > 500
    if config.memory == "paged":
        assert soak.num_preempted > 0, "the pool was meant to be too small"
    for request in soak.requests:
        check_tokens(soak, request)
    check_order(soak)

    engine = soak.engine
    engine.memory.check_integrity()
    usage = engine.memory.usage(None)
    assert usage.free + usage.cached == engine.num_slots, "the pool is not whole"
    assert not engine.has_unfinished
    assert engine.unfinished() == []
    assert known().keys() == known_before.keys(), "a request is still known"


def known() -> dict[int, object]:
    """By id, requests and sequences that anything in this process still refers to; other tests may have left some."""
    return {id(thing): thing for thing in gc.get_objects() if type(thing) in (RequestState, Sequence)}


def check_tokens(soak: Soak, request: Request) -> None:
    """None lost, none doubled, none of another: exactly its own, or a beginning of them where it was aborted."""
    record, sampling = soak.records[request.request_id], request.sampling
    outputs = [soak.tokens.get((request.request_id, index), []) for index in range(sampling.n)]
    assert record.num_output_tokens == sum(map(len, outputs))
    for index, output in enumerate(outputs):
        token_ids = [token.token_id for token in output]
        if sampling.beam_width > 1:
            assert len(token_ids) == (sampling.max_tokens if record.status == "finished" else 0)
            continue
        expected = expected_tokens(soak.runner, request, index)
        is_whole = len(token_ids) == len(expected)
        assert token_ids == expected[: len(token_ids)]
        assert is_whole or record.status == "aborted"
        if output:
            reasons = [token.finish_reason for token in output]
            assert reasons[:-1] == [None] * (len(reasons) - 1)
            assert (reasons[-1] is not None) == is_whole
            check_text(sampling, output, is_whole=is_whole)
        assert all((token.score is not None) == (sampling.logprobs is not None) for token in output)


def check_text(sampling: SamplingParams, output: list[TokenOutput], *, is_whole: bool) -> None:
    text = "".join(token.text for token in output)
    if not sampling.detokenize:
        assert text == ""
        return
    token_ids = [token.token_id for token in output]
    if token_ids[-1] in sampling.stop_token_ids:
        token_ids.pop()
    whole = decode(token_ids)
    ends = [whole.index(stop) for stop in sampling.stop if stop in whole]
    expected = whole[: min(ends)] if ends else whole
    assert text == expected if is_whole else expected.startswith(text)


def check_order(soak: Soak) -> None:
    """Nobody is overtaken by one of a later rank: so among equals, who came first is served first."""
    ranked = sorted(soak.requests, key=lambda request: (request.priority, request.request_id))
    records = [soak.records[request.request_id] for request in ranked]
    for index, later in enumerate(records):
        if later.first_scheduled_ns is None:
            continue
        for earlier in records[:index]:
            left_queue_ns = earlier.finished_ns if earlier.first_scheduled_ns is None else earlier.first_scheduled_ns
            is_overtaken = earlier.added_ns < later.first_scheduled_ns < left_queue_ns
            assert not is_overtaken, f"{later.request_id} was served before {earlier.request_id}"
