import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbench.reports.quantity import TIMES, compare, format_number, format_quantity
from pbench.results import METRICS, Metric

SPEED = Metric("speed", "speed", "tok/s", True, "")
LATENCY = Metric("latency", "latency", "ms", False, "")
SHARE = Metric("share", "share", "%", False, "")
NEITHER = Metric("steps", "steps", "", None, "")


@given(st.floats(min_value=1e-12, max_value=1e15))
def test_a_number_is_written_to_three_digits_or_better(value: float) -> None:
    written = float(format_number(value).replace("\u202f", ""))
    assert math.isclose(written, value, rel_tol=0.0051)


@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_a_count_is_written_exactly(value: int) -> None:
    assert int(format_number(value).replace("\u202f", "")) == value


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "tok/s", "not measured"),
        (0, "J", "0\u00a0J"),
        (1536, "bytes", "1.50\u00a0KiB"),
        (8 * 2**30, "bytes", "8\u00a0GiB"),
        (9_999, "ms", "9\u202f999\u00a0ms"),
        (10_000, "ms", "10\u00a0s"),
        (0.02, "%", "0.02\u00a0%"),
        (96.31, "%", "96.3\u00a0%"),
        (24, "", "24"),
    ],
)
def test_a_quantity_reads(value: float | None, unit: str, text: str) -> None:
    assert format_quantity(value, unit) == text


def test_figures_beside_each_other_share_the_unit_of_the_largest() -> None:
    assert format_quantity(309, "ms", largest=48_400) == "0.309\u00a0s"
    assert format_quantity(2**20, "bytes", largest=2**30) == "0.000977\u00a0GiB"


@pytest.mark.parametrize(
    ("metric", "value", "baseline", "text", "direction", "tone"),
    [
        (SPEED, 300.0, 100.0, f"3{TIMES} as much", "up", "better"),
        (SPEED, 50.0, 100.0, f"2{TIMES} less", "down", "worse"),
        (LATENCY, 50.0, 100.0, f"2{TIMES} less", "down", "better"),
        (LATENCY, 102.0, 100.0, f"1.02{TIMES} as much", "up", "neutral"),
        (SPEED, 100.5, 100.0, "equal", "same", "neutral"),
        (SHARE, 1.5, 33.9, "\u221232.4 points", "down", "better"),
        (NEITHER, 10.0, 1.0, f"10{TIMES} as much", "up", "neutral"),
        (LATENCY, 5.0, 0.0, "5\u00a0ms against 0\u00a0ms", "up", "worse"),
    ],
)
def test_a_comparison_says_how_much_which_way_and_whether_it_is_good(
    metric: Metric, value: float, baseline: float, text: str, direction: str, tone: str
) -> None:
    assert compare(value, baseline, metric) == (text, direction, tone)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_what_was_not_measured_is_not_compared(metric: Metric) -> None:
    assert compare(None, 1.0, metric) is None
    assert compare(1.0, None, metric) is None
