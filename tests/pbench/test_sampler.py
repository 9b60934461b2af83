import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbench.journal import DeviceSample
from pbench.sampler import SLOW_INTERVAL_NS, DeviceProbe, Sampler


def sample_at(time_ns: int) -> DeviceSample:
    return DeviceSample(time_ns, "process", process_rss_bytes=1)


@given(
    interval_ms=st.integers(min_value=1, max_value=1000),
    delays_ms=st.lists(st.floats(min_value=0, max_value=5000), min_size=1, max_size=50),
)
def test_every_wait_ends_on_the_absolute_schedule(interval_ms: int, delays_ms: list[float]) -> None:
    """However long samples take, the next one falls on start + k x interval: lateness never adds up."""
    start_ns = 10**12
    interval_ns = interval_ms * 1_000_000
    now_ns = start_ns
    sampler = Sampler(
        sample_at, lambda _: None, start_ns=start_ns, interval_s=interval_ms / 1000, clock_ns=lambda: now_ns
    )
    for delay_ms in delays_ms:
        now_ns += int(delay_ms * 1e6)
        wait_ns = sampler.wait_ns()
        assert 0 < wait_ns <= interval_ns
        now_ns += wait_ns
        assert (now_ns - start_ns) % interval_ns == 0


def test_samples_span_the_run_and_keep_their_rate() -> None:
    samples: list[DeviceSample] = []
    start_ns = time.monotonic_ns()
    sampler = Sampler(sample_at, samples.append, start_ns=start_ns, interval_s=0.01)
    sampler.start()
    time.sleep(0.3)
    stopping_ns = time.monotonic_ns() - start_ns
    sampler.stop()
    times_ns = [sample.time_ns for sample in samples]
    assert times_ns == sorted(times_ns)
    assert times_ns[0] < 10_000_000
    assert times_ns[-1] >= stopping_ns
    assert 5 <= len(samples) <= 33  # a busy machine may miss some; none is ever made up
    assert not any(thread.name == "pbench-sampler" for thread in threading.enumerate())


def test_cpu_shares_are_since_the_sample_before() -> None:
    probe = DeviceProbe(None, None)
    first = probe(0)
    assert (first.host_cpu_pct, first.process_cpu_pct) == (None, None)  # since when?
    end_s = time.process_time() + 0.2
    while time.process_time() < end_s:
        pass
    busy = probe(SLOW_INTERVAL_NS)
    time.sleep(0.2)
    assert probe(SLOW_INTERVAL_NS + 1).process_cpu_pct is None  # it is not looked at as often as the rest
    idle = probe(2 * SLOW_INTERVAL_NS)
    assert busy.host_cpu_pct is not None
    assert 0 < busy.host_cpu_pct <= 100
    assert busy.process_cpu_pct is not None
    assert idle.process_cpu_pct is not None
    assert busy.process_cpu_pct > 2 * idle.process_cpu_pct


def test_the_sampler_tells_how_much_cpu_it_took() -> None:
    now_ns = 0

    def take_a_while(time_ns: int) -> DeviceSample:
        nonlocal now_ns
        now_ns += 7
        return sample_at(time_ns)

    sampler = Sampler(take_a_while, lambda _: None, start_ns=0, interval_s=1.0, cpu_clock_ns=lambda: now_ns)
    sampler.sample()
    sampler.sample()
    assert sampler.busy_ns == 14


def test_an_error_in_the_thread_comes_out_of_stop() -> None:
    seen: list[DeviceSample] = []

    def fail_later(sample: DeviceSample) -> None:
        seen.append(sample)
        if len(seen) > 1:
            raise OSError("no space left on device")

    sampler = Sampler(sample_at, fail_later, start_ns=time.monotonic_ns(), interval_s=0.001)
    sampler.start()
    time.sleep(0.1)
    with pytest.raises(OSError, match="no space left"):
        sampler.stop()


def test_without_nvml_the_process_is_measured_and_named_as_the_source() -> None:
    ballast = bytearray(b"x" * 50_000_000)
    sample = DeviceProbe(None, None)(7)
    assert (sample.time_ns, sample.source) == (7, "process")
    assert sample.process_rss_bytes is not None
    assert sample.process_rss_bytes > len(ballast)
    told = {name for name in sample._fields[2:] if getattr(sample, name) is not None}
    about_host = {"host_used_bytes", "host_swapped_bytes"}
    assert told - about_host == {"process_rss_bytes"}
    assert sample.host_used_bytes is not None
    assert sample.host_used_bytes > sample.process_rss_bytes
    assert DeviceProbe(None, None).lost_note is None


def test_a_sample_costs_well_below_two_milliseconds() -> None:
    probe = DeviceProbe(None, None)
    durations_ns = []
    for _ in range(50):
        start_ns = time.perf_counter_ns()
        probe(0)
        durations_ns.append(time.perf_counter_ns() - start_ns)
    assert min(durations_ns) < 1_000_000
