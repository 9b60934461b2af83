"""The block map as the page carries it: the run's own maps, none of them lost but whole moments."""

import base64
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pbench.reports import block_map
from pbench.reports.block_map import COLUMNS, block_map_panel
from pbench.reports.subjects import load_subjects
from pbench.results import Run


def unpack(engine: dict[str, Any]) -> np.ndarray:
    packed = zlib.decompress(base64.b64decode(engine["spans"]))
    return np.frombuffer(packed, dtype="<i4").reshape(len(COLUMNS), -1)


def test_the_page_carries_the_maps_of_the_run(two_engines: Run, two_engines_page: Any) -> None:
    data = two_engines_page.json("block-map-data")
    table = two_engines.pool_map()
    for engine, result in zip(data["engines"], two_engines.result.engines, strict=True):
        mine = table[table["engine"] == result.spec]
        assert engine["num_slots"] == result.pool["num_slots"]
        assert engine["times_ns"] == mine["time_ns"].unique().tolist()
        assert unpack(engine).tolist() == [mine[column].tolist() for column in COLUMNS]
        assert sum(engine["num_spans"]) == len(mine)
    assert data["times_ns"] == sorted(table["time_ns"].unique())


def test_what_the_maps_hold_is_what_the_steps_hold(two_engines: Run) -> None:
    table, steps = two_engines.pool_map(), two_engines.steps()
    parts = ["token_state", "reserved", "internal", "cached"]
    sums = table.groupby(["engine", "time_ns"])[parts].sum()
    at_step = steps.set_index(["engine", "end_ns"]).loc[sums.index, parts]
    assert (sums.to_numpy() == at_step.to_numpy()).all()


def test_too_many_moments_are_thinned_evenly_until_they_fit(two_engines: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = load_subjects([two_engines])
    whole = block_map_panel(subjects).block_map
    assert whole is not None
    size = sum(len(engine["spans"]) for engine in whole.data["engines"])
    monkeypatch.setattr(block_map, "MAX_BYTES", size // 3)
    thinned = block_map_panel(subjects).block_map
    assert thinned is not None
    assert sum(len(engine["spans"]) for engine in thinned.data["engines"]) <= size // 3
    for few, many in zip(thinned.data["engines"], whole.data["engines"], strict=True):
        assert few["times_ns"] == many["times_ns"][::4]


def test_a_run_without_maps_says_so(builder: Callable[..., Any], render: Callable[..., Any]) -> None:
    made = builder(num_requests=3).add_engine("paged")
    made.spans = []
    page = render(made.write())
    assert "kept maps of its pool" in page.by_id("pool-map").text
    assert not page.all("canvas")
