"""Pages about several runs: what a sweep adds, what runs of one engine add, and what is left out of too many."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pbench.results import Run

Render = Callable[..., Any]
GIB = 2**30


@pytest.fixture(scope="module")
def sweep(builder: Callable[..., Any]) -> list[Run]:
    """Four sizes of the pool, not in order; an engine is faster the larger its pool is."""
    runs = []
    for size in (4, 1, 2, 8):
        made = builder(f"{size}-GiB", num_requests=6).add_engine("paged").add_engine("contiguous:max")
        for index, engine in enumerate(made.engines):
            pool = dict(engine.pool) | {"pool_bytes": size * GIB}
            summary = dict(engine.summary) | {"output_tokens_per_s": 100.0 * size * (2 - index)}
            made.engines[index] = replace(engine, pool=pool, summary=summary)
        runs.append(made.write())
    return runs


def test_a_sweep_is_curves_over_the_size_of_the_pool(sweep: list[Run], render: Render) -> None:
    page = render(*sweep)
    paged, contiguous = page.figures()["capacity-output_tokens_per_s"]["data"]
    assert (paged["x"], paged["y"]) == ([1, 2, 4, 8], [200, 400, 800, 1600])
    assert (contiguous["x"], contiguous["y"]) == ([1, 2, 4, 8], [100, 200, 400, 800])
    assert len([row for row in page.all("tr") if page.by_id("capacity-table") in row.parents]) == 1 + 8
    assert "comparison" not in [section.attributes["id"] for section in page.all("section")]


def test_the_verdict_of_a_sweep_is_how_much_faster_and_with_how_much_less_memory(
    sweep: list[Run], render: Render
) -> None:
    page = render(*sweep)
    assert page.by_id("verdict-word").text.endswith("2\u00d7 faster")
    (sentence,) = page.all("p", class_="sentence other")
    assert "2\u00d7 the output tokens/s of contiguous:max with 1\u00a0GiB" in sentence.text
    assert "2\u00d7 with 8\u00a0GiB" in sentence.text
    assert "With 4\u00a0GiB it was already as fast as contiguous:max with 8\u00a0GiB" in sentence.text


def test_a_sweep_of_one_engine_says_what_more_memory_buys_it(builder: Callable[..., Any], render: Render) -> None:
    runs = [builder(f"{g}-GiB", num_requests=3).add_engine("paged").with_pool(g * GIB).write() for g in (1, 2, 4)]
    page = render(*runs)
    assert page.by_id("verdict-word").text.endswith("3 sizes")
    assert "with 1\u00a0GiB of KV memory and" in page.by_id("verdict").text


def test_a_legend_of_many_engines_names_each_once_and_long_latencies_are_in_seconds(
    builder: Callable[..., Any], render: Render
) -> None:
    runs = []
    for size in (1, 2, 4):
        made = builder(f"{size}-GiB", num_requests=3).add_engine("paged").add_engine("contiguous:max")
        for index, engine in enumerate(made.engines):
            made.engines[index] = replace(engine, summary=dict(engine.summary) | {"ttft_ms_p99": 40_000.0 / size})
        runs.append(made.with_pool(size * GIB).write())
    page = render(*runs)
    lines = page.figures()["progress-requests"]["data"]
    assert len(lines) == 12
    assert sum(line.get("showlegend", True) for line in lines) == 6
    curves = page.figures()["capacity-ttft_ms_p99"]
    assert curves["data"][0]["y"] == [40, 20, 10]
    assert curves["layout"]["yaxis"]["title"]["text"] == "s"
    assert "from 40\u00a0s to 10\u00a0s" in page.by_id("capacity-ttft_ms_p99-summary").text


def test_engines_that_are_drawn_together_look_different(sweep: list[Run], render: Render) -> None:
    page = render(*sweep)
    (card,) = page.all("article", **{"aria-labelledby": "card-output_tokens_per_s"})
    swatches = [
        (element.attributes["class"], element.attributes["style"])
        for element in page.all("span")
        if card in element.parents and element.attributes.get("class", "").startswith("swatch")
    ]
    assert len(swatches) == len(set(swatches)) == 6


def test_runs_that_differ_in_nothing_but_their_time_are_told_apart_by_it(
    builder: Callable[..., Any], render: Render
) -> None:
    runs = [
        builder(f"20261125T2156{second}Z-chat-shared", num_requests=3).add_engine("paged").write()
        for second in ("00", "30")
    ]
    page = render(*runs)
    assert [page.by_id(f"memory-e{index}-title").text for index in (0, 1)] == ["paged (21:56:00)", "paged (21:56:30)"]


def test_a_sweep_compares_no_size_with_another_and_has_cards_of_what_is_drawn(sweep: list[Run], render: Render) -> None:
    page = render(*sweep)
    assert not page.all("th", class_="against")
    assert page.by_id("cards").text.count("paged (") == 3 * 6


def test_runs_are_told_apart_by_what_their_names_do_not_share(builder: Callable[..., Any], render: Render) -> None:
    runs = [builder(f"2026-chat-{name}", num_requests=3).add_engine("paged").write() for name in ("a", "b-c")]
    page = render(*runs)
    assert [page.by_id(f"memory-e{index}-title").text for index in (0, 1)] == ["paged (a)", "paged (b-c)"]


def test_of_too_many_engines_the_smallest_middle_and_largest_pool_are_drawn_and_all_figures_are_there(
    sweep: list[Run], render: Render
) -> None:
    page = render(*sweep)
    drawn = {page.by_id(f"{key}-title").text for key in page.figures() if key.startswith("partition-e")}
    assert {text.split("(")[1] for text in drawn} == {"1-GiB)", "4-GiB)", "8-GiB)"}
    assert "show 6 of 8 engines" in page.visible_text()
    shown = {element.attributes["data-engine"] for element in page.elements if "data-metric" in element.attributes}
    assert len(shown) == 8


def test_later_runs_are_drawn_over_the_first_engine_by_engine(builder: Callable[..., Any], render: Render) -> None:
    first = builder("first", num_requests=6).add_engine("paged").add_engine("contiguous:max").write()
    made = builder("second", num_requests=6).add_engine("paged").add_engine("static")
    speed = float(first.result.engines[0].summary["output_tokens_per_s"] or 0)
    made.engines[0] = replace(
        made.engines[0], summary=dict(made.engines[0].summary) | {"output_tokens_per_s": 1.25 * speed}
    )
    figures = {key: figure for key, figure in render(first, made.write()).figures().items() if "forest" in key}
    assert list(figures) == ["forest-e0"]  # only paged ran in both
    (ratios,) = figures["forest-e0"]["data"]
    assert ratios["x"][0] == pytest.approx(1.25)
    assert ratios["y"][0].startswith("output tokens/s")
    assert all(ratio == pytest.approx(1) for ratio in ratios["x"][1:])


def test_runs_of_other_workloads_are_not_set_against_each_other(builder: Callable[..., Any], render: Render) -> None:
    first = builder("first", num_requests=3).add_engine("paged").write()
    other = builder("other", num_requests=3).add_engine("paged").write(workload={"sha256": "cd" * 32})
    assert not [key for key in render(first, other).figures() if "forest" in key]
