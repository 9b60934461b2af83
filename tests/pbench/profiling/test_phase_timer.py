"""Where steps' time went: what the timer makes of the phases that it hears of."""

from collections.abc import Callable
from typing import Any

import pytest

from pbench.profiling.phase_timer import ClockStamps, EventStamps, PhaseTimer
from pbench.results import EngineResult, PhaseTime, RunResult
from pbench.settings import RunOptions

RunExperiment = Callable[..., RunResult]


class SlowDevice:
    """Stamps of a device that comes to them only when it is told to; work takes the time that it is given."""

    def __init__(self) -> None:
        self.time_ns = 0.0
        self.reached_ns = 0.0
        self.num_used = 0
        self.num_given_back = 0

    def work(self, nanoseconds: float) -> None:
        self.time_ns += nanoseconds

    def catch_up(self) -> None:
        self.reached_ns = self.time_ns

    def now(self) -> float:
        self.num_used += 1
        return self.time_ns

    def has_passed(self, stamp: float) -> bool:
        return stamp <= self.reached_ns

    def between_ns(self, first: float, second: float) -> float:
        assert second <= self.reached_ns, "read before the device came there"
        return second - first

    def give_back(self, stamps: list[Any]) -> None:
        self.num_given_back += len(stamps)


def launch(timer: PhaseTimer, device: SlowDevice, *, is_replayed: bool = False) -> None:
    with timer("schedule"):
        pass
    with timer("launch"):
        with timer("prepare"):
            device.work(1e6)
        if is_replayed:
            with timer("replay"):
                device.work(20e6)
        else:
            with timer("forward"):
                for _ in range(2):
                    device.work(1e6)  # a projection
                    with timer("attention"):
                        device.work(3e6)
                    with timer("mlp"):
                        device.work(4e6)
            with timer("sample"):
                device.work(2e6)
        device.work(1e6)  # of no phase
    with timer("wait"):
        pass
    with timer("complete"):
        pass


def found(timer: PhaseTimer, where: str, steps: str) -> dict[str, PhaseTime]:
    return {one.phase: one for one in timer.results() if (one.where, one.steps) == (where, steps)}


def test_parts_of_a_launch_are_what_the_device_took_and_sum_to_all_of_it() -> None:
    device = SlowDevice()
    timer = PhaseTimer(device, interval=1)
    for _ in range(3):
        launch(timer, device)
    device.catch_up()
    parts = found(timer, "device", "launched")
    assert {name: part.mean_ms for name, part in parts.items()} == pytest.approx(
        {"prepare": 1, "sample": 2, "attention": 6, "mlp": 8, "projections and norms": 2, "between": 1}
    )
    assert sum(part.share_pct for part in parts.values()) == pytest.approx(100)
    assert {part.num_steps for part in parts.values()} == {3}


def test_replays_are_kept_apart_from_what_is_launched() -> None:
    device = SlowDevice()
    timer = PhaseTimer(device, interval=1)
    for is_replayed in (False, True, True):
        launch(timer, device, is_replayed=is_replayed)
    device.catch_up()
    replayed = found(timer, "device", "replayed")
    assert {name: part.mean_ms for name, part in replayed.items()} == {"prepare": 1, "replay": 20, "between": 1}
    assert replayed["replay"].num_steps == 2
    assert found(timer, "device", "launched")["attention"].num_steps == 1


def test_only_every_so_many_launches_are_stamped() -> None:
    device = SlowDevice()
    timer = PhaseTimer(device, interval=4)
    for _ in range(9):
        launch(timer, device)
    device.catch_up()
    assert found(timer, "device", "launched")["mlp"].num_steps == 3
    assert device.num_used == device.num_given_back == 3 * 2 * 8


def test_nothing_is_read_that_the_device_has_not_come_to() -> None:
    device = SlowDevice()
    timer = PhaseTimer(device, interval=1)
    launch(timer, device)
    device.catch_up()
    launch(timer, device)
    assert found(timer, "device", "launched")["mlp"].num_steps == 1


def test_the_hosts_shares_sum_to_all_of_the_time() -> None:
    device = SlowDevice()
    timer = PhaseTimer(device, interval=1)
    launch(timer, device)
    host = found(timer, "host", "all")
    assert list(host) == ["schedule", "launch", "wait", "complete", "outside"]
    assert sum(part.share_pct for part in host.values()) == pytest.approx(100)


def test_without_a_step_there_is_nothing_to_say() -> None:
    assert PhaseTimer(ClockStamps(), 1).results() == ()


def check_phases(engine: EngineResult) -> None:
    for where, steps in {(one.where, one.steps) for one in engine.phases}:
        shares = [one.share_pct for one in engine.phases if (one.where, one.steps) == (where, steps)]
        assert sum(shares) == pytest.approx(100)


def test_a_run_keeps_where_the_time_went(options: RunOptions, run_experiment: RunExperiment) -> None:
    result = run_experiment(options)
    for engine in result.engines:
        check_phases(engine)
        by_name = {one.phase: one for one in engine.phases}
        assert by_name["launch"].share_pct > 10
        assert by_name["attention"].mean_ms > 0
        assert by_name["attention"].num_steps == -(-int(engine.summary["num_steps"] or 0) // 32)


@pytest.mark.gpu
def test_a_run_on_a_gpu_tells_of_the_stream(options: RunOptions, run_experiment: RunExperiment) -> None:
    from dataclasses import replace

    result = run_experiment(replace(options, engines=("paged",), device="cuda", kv_memory="8MiB"))
    (engine,) = result.engines
    check_phases(engine)
    assert {(one.where, one.steps) for one in engine.phases} >= {("host", "all"), ("device", "replayed")}


@pytest.mark.gpu
def test_events_are_used_again() -> None:
    stamps = EventStamps()
    first = stamps.now()
    stamps.give_back([first])
    assert stamps.now() is first
