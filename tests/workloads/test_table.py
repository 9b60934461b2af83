import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbench.workloads.request import Segment, WorkloadRequest
from pbench.workloads.row import PRIVATE, Row, private_row
from pbench.workloads.table import RequestTable, RequestTableBuilder


def table(*rows: Row, chosen: list[int] | None = None) -> RequestTable:
    builder = RequestTableBuilder()
    for row in rows:
        builder.append(row)
    return builder.build(None if chosen is None else np.asarray(chosen, dtype=np.int64))


def row(*segments: tuple[int, int], at_ns: int = 0, ids: tuple[int, ...] | None = None, n: int = 1) -> Row:
    parts = tuple(Segment(*segment) for segment in segments)
    length = sum(part.length for part in parts) if ids is None else len(ids)
    return Row(1, at_ns, length, 7, parts, ids, n)


ROWS = st.lists(
    st.one_of(
        st.builds(
            lambda segments, n: row(*segments, n=n),
            st.lists(st.tuples(st.integers(-1, 4), st.integers(1, 9)), min_size=1, max_size=4),
            st.integers(1, 4),
        ),
        st.builds(lambda ids: row(ids=tuple(ids)), st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5)),
    ),
    min_size=1,
    max_size=8,
)


def test_requests_come_back_as_they_went_in() -> None:
    requests = table(row((8, 3), (PRIVATE, 2), at_ns=5), row(ids=(4, 5), at_ns=1_500_000_000), row((8, 4), n=3))
    assert list(requests) == [
        WorkloadRequest(0, 5e-9, 5, 7, (Segment(0, 3), Segment(1, 2))),
        WorkloadRequest(1, 1.5, 2, 7, (), (4, 5)),
        WorkloadRequest(2, 0.0, 4, 7, (Segment(0, 4),), None, 3),
    ]


def test_it_is_a_sequence() -> None:
    requests = table(*(row((key, 1)) for key in range(5)))
    assert len(requests) == 5
    assert requests[-1] == requests[4]
    assert [each.request_id for each in requests[1:4:2]] == [1, 3]
    assert requests[3] in requests
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"request {index} of 5"):
            requests[index]


@given(ROWS, st.data())
def test_chosen_rows_are_as_if_they_had_been_the_only_ones(rows: list[Row], data: st.DataObject) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1)))
    some, alone = table(*rows, chosen=chosen), table(*(rows[index] for index in chosen))
    assert list(some) == list(alone)
    assert some.sha256(None) == alone.sha256(None)


@given(ROWS, st.permutations(range(5)))
def test_the_hash_does_not_depend_on_what_a_source_calls_its_keys(rows: list[Row], names: list[int]) -> None:
    renamed = [
        each._replace(
            segments=tuple(Segment(key if key == PRIVATE else 1000 + names[key], n) for key, n in each.segments)
        )
        for each in rows
    ]
    assert table(*renamed).sha256(None) == table(*rows).sha256(None)


def test_the_hash_depends_on_everything_that_is_played() -> None:
    base = (row((0, 4), (1, 4)), row((0, 4), (2, 4), at_ns=9))
    variants = [
        base,
        base[:1],
        (base[0], base[1]._replace(arrival_ns=8)),
        (base[0], base[1]._replace(output_length=8)),
        (base[0], base[1]._replace(n=2)),
        (base[0], base[1]._replace(beam_width=2)),
        (base[0], row((0, 4), (1, 4), at_ns=9)),
        (base[0], row((0, 4), (2, 3), at_ns=9)),
        (base[0], row((0, 8), at_ns=9)),
        (base[0], row(ids=tuple(range(8)), at_ns=9)),
        (base[0], row(ids=(*range(7), 9), at_ns=9)),
    ]
    hashes = [table(*variant).sha256(None) for variant in variants]
    assert len({*hashes, table(*base).sha256(4), table(*base).sha256(5)}) == len(variants) + 2


def test_the_hash_never_changes() -> None:
    rows = (row((8, 3), (PRIVATE, 2), at_ns=5), row(ids=(4, 5), at_ns=6), row((8, 4), at_ns=7, n=3))
    expected = "24837834e392ee902e36ab242f34420f7017ed4faccc7c1b52a318f0eb1b5f7a"
    assert table(*rows).sha256(None) == expected


def test_arrivals_must_not_go_back() -> None:
    with pytest.raises(AssertionError):
        table(row((0, 1)), row((0, 1))).with_arrivals(np.array([1, 0]))


def test_a_row_takes_bytes_and_not_objects() -> None:
    num_rows = 20_000
    tracemalloc.start()
    builder = RequestTableBuilder()
    for line in range(num_rows):
        builder.append(private_row(line, line, 100, 10))
    requests = builder.build()
    current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(requests) == num_rows
    assert current / num_rows < 200
    assert peak / num_rows < 400
