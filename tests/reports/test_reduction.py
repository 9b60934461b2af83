import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pbench.reports.reduction import common_window_ns, m4_rows, rate_over_time, spread_rows

GAPS = arrays(np.int64, st.integers(1, 400), elements=st.integers(0, 50))


@given(GAPS, st.integers(1, 20), st.data())
def test_m4_keeps_the_first_last_least_and_greatest_of_every_interval(
    gaps: np.ndarray, num_buckets: int, data: st.DataObject
) -> None:
    times = np.cumsum(gaps)
    values = data.draw(arrays(np.float64, len(times), elements=st.floats(-1e6, 1e6, width=32)))
    rows = m4_rows(times, [values], num_buckets)
    assert (np.diff(rows) > 0).all()
    if len(times) <= 2 * num_buckets:
        assert rows.tolist() == list(range(len(times)))
        return
    assert len(rows) <= 4 * num_buckets
    elapsed = times - times[0]
    buckets = np.minimum(elapsed * num_buckets // max(int(elapsed[-1]), 1), num_buckets - 1)
    for bucket in np.unique(buckets):
        members = np.flatnonzero(buckets == bucket)
        kept = rows[(rows >= members[0]) & (rows <= members[-1])]
        assert {members[0], members[-1]} <= set(kept)
        assert values[kept].max() == values[members].max()
        assert values[kept].min() == values[members].min()


def test_m4_passes_over_what_was_not_measured() -> None:
    values = np.full(1000, np.nan)
    values[[3, 500, 501]] = 7.0, 9.0, -2.0
    rows = m4_rows(np.arange(1000), [values], 10)
    assert np.nanmax(values[rows]) == 9
    assert np.nanmin(values[rows]) == -2


def test_m4_of_a_million_rows_is_short_and_keeps_a_single_peak() -> None:
    values = np.zeros(1_000_000)
    values[777_777] = 1.0
    rows = m4_rows(np.arange(1_000_000), [values])
    assert len(rows) <= 1200
    assert 777_777 in rows


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 1000), st.integers(0, 500)), min_size=1, max_size=100),
    st.floats(1, 5000),
)
def test_windows_add_up_to_all_that_was_done(steps: list[tuple[int, int, int]], window_ns: float) -> None:
    gaps, widths, amounts = (np.array(column) for column in zip(*steps, strict=True))
    end_ns = np.cumsum(gaps + widths)
    rate = rate_over_time(end_ns - widths, end_ns, amounts.astype(float), window_ns)
    edges_ns = np.append(np.arange(len(rate.per_s)) * window_ns, end_ns[-1])
    assert (rate.per_s >= -1e-6).all()
    assert (rate.per_s * np.diff(edges_ns) / 1e9).sum() == pytest.approx(amounts.sum(), rel=1e-9, abs=1e-9)


def test_a_steady_engine_has_a_steady_rate_but_for_the_idle_start() -> None:
    start_ns = np.arange(100) * 10 + 500
    rate = rate_over_time(start_ns, start_ns + 10, np.full(100, 20.0), 100)
    assert rate.per_s[:5] == pytest.approx(0)
    assert rate.per_s[5:] == pytest.approx(2e9)


@given(st.integers(1, 5000), st.integers(2, 300))
def test_spread_rows_hold_the_ends_and_stay_within_the_limit(num_rows: int, max_rows: int) -> None:
    rows = spread_rows(num_rows, max_rows)
    assert len(rows) == min(num_rows, max_rows)
    assert rows[0] == 0
    assert rows[-1] == num_rows - 1
    assert (np.diff(rows) > 0).all()


def test_the_common_window_holds_several_steps_of_every_engine() -> None:
    quick, slow = np.arange(1, 1001) * 10, np.arange(1, 21) * 500
    window_ns = common_window_ns([quick, slow])
    assert window_ns >= 8 * 500
    assert common_window_ns([np.arange(1, 100_001)]) == pytest.approx(100_000 / 120)
