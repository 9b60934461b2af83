"""Pages about engines that ran several times: intervals everywhere, and nothing called better that noise explains."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from pbench.results import Check, Repeat, Run
from pbench.summary.intervals import interval_of

Render = Callable[..., Any]
SPEED = "output_tokens_per_s"


def repeated(made: Any, speeds: Sequence[Sequence[float]], **fields: Any) -> Run:
    """Give each engine repeats of these tokens/s, in turns; its rows are those of the first repeat."""
    for index, values in enumerate(speeds):
        engine = made.engines[index]
        summaries = [dict(engine.summary) | {SPEED: value} for value in values]
        repeats = tuple(
            Repeat(number, "complete", position=2 * number + (index + number) % 2 - 2, summary=summary)
            for number, summary in enumerate(summaries, 1)
        )
        interval = interval_of(values)
        assert interval is not None
        mean = dict(engine.summary) | {SPEED: sum(values) / len(values)}
        made.engines[index] = replace(engine, summary=mean, intervals={SPEED: interval}, repeats=repeats, **fields)
    run: Run = made.write()
    return run


@pytest.fixture
def pair(builder: Callable[..., Any]) -> Callable[..., Run]:
    def make(*speeds: Sequence[float], **fields: Any) -> Run:
        return repeated(builder(num_requests=6).add_engine("paged").add_engine("contiguous:max"), speeds, **fields)

    return make


def test_the_verdict_has_the_ratios_interval_and_the_number_of_repeats(
    pair: Callable[..., Run], render: Render
) -> None:
    page = render(pair([200.0, 202.0, 198.0], [100.0, 100.0, 100.0]))
    (sentence,) = page.all("p", class_="sentence other")
    assert page.by_id("verdict-word").text.endswith("2\u00d7 faster")
    assert "95% interval of the ratio is 1.95 to 2.05, from 3 repeats of each, run in turns" in sentence.text
    assert "no interval" not in page.by_id("verdict").text


def test_a_ratio_whose_interval_holds_one_is_no_verdict(pair: Callable[..., Run], render: Render) -> None:
    page = render(pair([110.0, 90.0, 115.0], [100.0, 102.0, 98.0]))
    assert page.by_id("verdict-word").text.endswith("No difference shown")
    assert "hero neutral" in page.by_id("verdict").attributes["class"]
    assert "not told apart [" in page.by_id("cards").text


def test_cards_carry_intervals_and_flags(pair: Callable[..., Run], render: Render) -> None:
    run = pair([200.0, 230.0, 198.0], [100.0, 101.0, 99.0], unsupported=("ttft_ms_p99",))
    card = render(run).by_id("cards").text
    assert "\u00b1 21 %" in card
    assert "repeats lie 15 % apart" in card
    assert "too few requests for this percentile" in card


def test_every_repeat_is_drawn_in_its_order_and_around_the_mean(pair: Callable[..., Run], render: Render) -> None:
    page = render(pair([200.0, 202.0, 198.0], [100.0, 101.0, 99.0]))
    order = page.figures()["repeats-order"]["data"]
    assert [(trace["x"], trace["y"]) for trace in order] == [([2, 3, 6], [200, 202, 198]), ([1, 4, 5], [100, 101, 99])]
    bars = [trace for trace in page.figures()["repeats-spread"]["data"] if trace["mode"] == "lines"]
    assert bars[0]["x"] == pytest.approx([97.5, 102.5], abs=0.1)
    (single,) = [trace for trace in page.figures()["forest-e1"]["data"] if trace["name"] == "single pairs"]
    of_speed = [x for x, y in zip(single["x"], single["y"], strict=True) if y.startswith("output tokens/s:")]
    assert of_speed == [2, 2, 2]
    rows = [row.text for row in page.all("tr") if page.by_id("repeats-table") in row.parents]
    assert any("output tokens/s" in row and "195" in row for row in rows)


def test_the_checks_of_the_record_come_with_the_worst_outcome_and_whose_it_is(
    builder: Callable[..., Any], render: Render
) -> None:
    made = builder(num_requests=6).add_engine("paged").add_engine("contiguous:max")
    outcomes = ("pass", "warn")
    made.engines = [
        replace(engine, checks=(Check("clock steady", outcome, f"it was {outcome}"),))
        for engine, outcome in zip(made.engines, outcomes, strict=True)
    ]
    first, *_ = render(made.write(checks=(Check("machine quiet", "fail", "load of 9"),))).all("ul", class_="checks")
    assert first.text.index("machine quiet") < first.text.index("clock steady")
    assert "contiguous:max: it was warn" in first.text
    assert "it was pass" not in first.text


def test_a_simulation_is_not_told_to_be_repeated(builder: Callable[..., Any], render: Render) -> None:
    made = builder(num_requests=6).add_engine("paged").add_engine("contiguous:max")
    page = render(made.write(environment={"is_simulated": True}))
    assert "--repeats" not in page.by_id("verdict").text
    assert "no noise" in page.by_id("comparison").text


def test_the_support_of_percentiles_is_the_records_and_goodput_gets_a_card(
    builder: Callable[..., Any], render: Render
) -> None:
    made = builder(num_requests=6).add_engine("paged")
    summary = dict(made.engines[0].summary) | {"itl_ms_p50": 12.0, "itl_ms_p99": 30.0, "goodput_requests_per_s": 1.5}
    repeat = Repeat(1, "complete", summary=summary, samples={"itl_ms_p99": 4321})
    made.engines[0] = replace(made.engines[0], summary=summary, repeats=(repeat,), unsupported=("ttft_ms_p99",))
    page = render(made.write())
    rows = {row.text for row in page.all("tr") if page.by_id("latency-table") in row.parents}
    assert any("gap between tokens" in row and "4\u202f321" in row and "none" in row for row in rows)
    assert any("time to first token" in row and "p99" in row for row in rows)
    assert "1.50\u00a0req/s" in page.by_id("card-goodput_requests_per_s").parents[-1].text
