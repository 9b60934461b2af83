"""The phases of a step, as they are announced."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from pbench.engine.config import EngineConfig
from pbench.engine.engine import Engine
from pbench.engine.loading import load_engine
from pbench.engine.model_config import PRESETS
from pbench.engine.phases import announced, no_phases
from pbench.engine.request import Request, SamplingParams

NUM_LAYERS = PRESETS["tiny"].num_layers


class Listener:
    """Notes every phase with those that it lies in."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.seen: list[tuple[str, ...]] = []

    def __call__(self, name: str) -> AbstractContextManager[None]:
        return self._phase(name)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self.open.append(name)
        self.seen.append(tuple(self.open))
        yield
        assert self.open.pop() == name


def make_engine(memory: str = "paged", **changes: object) -> Engine:
    return load_engine(EngineConfig(model=PRESETS["tiny"], memory=memory, kv_memory_bytes=2**20, **changes))  # type: ignore[arg-type]


def run(engine: Engine, num_requests: int = 2) -> list[int]:
    for number in range(num_requests):
        engine.add_request(Request(number, [5, 6, 7, number], SamplingParams(max_tokens=3)))
    tokens = []
    while engine.has_unfinished:
        tokens += [token.token_id for token in engine.step().tokens]
    return tokens


def test_a_step_goes_through_its_phases_in_order() -> None:
    engine, listener = make_engine(has_async_steps=False), Listener()
    engine.announce(listener)
    engine.add_request(Request(0, [5, 6, 7], SamplingParams(max_tokens=1)))
    engine.step()
    layer = [("launch", "forward", "attention"), ("launch", "forward", "mlp")]
    assert listener.seen == [
        ("schedule",),
        ("launch",),
        ("launch", "prepare"),
        ("launch", "prepare"),
        ("launch", "forward"),
        *layer * NUM_LAYERS,
        ("launch", "sample"),
        ("wait",),
        ("complete",),
    ]
    assert not listener.open


def test_listening_changes_no_token() -> None:
    heard, unheard = make_engine(), make_engine()
    heard.announce(Listener())
    assert run(heard) == run(unheard)


def test_moved_extents_are_copies() -> None:
    engine, listener = make_engine("contiguous:pow2", max_length=256), Listener()
    engine.announce(listener)
    for number in range(3):
        engine.add_request(Request(number, list(range(1, 30)), SamplingParams(max_tokens=40)))
    num_moved = 0
    while engine.has_unfinished:
        num_moved += engine.step().record.num_moved_slots
    assert num_moved > 0
    assert ("launch", "copy") in listener.seen


def test_nobody_listening_is_no_wrapper() -> None:
    assert announced(run, "x", no_phases) is run


@pytest.mark.gpu
def test_what_a_graph_replays_announces_nothing_within_it() -> None:
    engine, listener = make_engine(device="cuda", dtype="bfloat16"), Listener()
    engine.warm_up()
    engine.announce(listener)
    run(engine)
    assert ("launch", "replay") in listener.seen
    assert not any(phases[:2] == ("launch", "replay") and len(phases) > 2 for phases in listener.seen)
