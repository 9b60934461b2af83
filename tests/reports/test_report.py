"""The page as a whole, read with an HTML parser: what is on it, what it loads, and that its figures are run.json's."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from pbench.errors import UsageError
from pbench.reports.embedding import plotlyjs_source
from pbench.results import METRICS, Check, Run

SECTIONS = (
    "verdict",
    "checks",
    "cards",
    "memory",
    "progress",
    "account",
    "partition",
    "figure-2",
    "pool-map",
    "sharing",
    "prefix-tree",
    "latency",
    "timeline",
    "steps",
    "phases",
    "roofline",
    "device",
    "comparison",
    "workload-charts",
    "figures",
    "provenance",
    "raw",
    "terms",
)
LOADING = {"src", "srcset", "poster", "data", "action", "formaction", "background", "xlink:href"}

Builder = Callable[..., Any]
Render = Callable[..., Any]


def complete(builder: Any) -> Run:
    run: Run = builder.add_engine("paged").add_engine("contiguous:max").write()
    return run


CASES: dict[str, Callable[[Any], Run]] = {
    "two engines": complete,
    "one engine": lambda builder: builder.add_engine("paged").write(),
    "a baseline alone": lambda builder: builder.add_engine("contiguous:max").write(),
    "one engine failed": lambda builder: builder.add_engine("paged").add_failed_engine("contiguous:max", "OOM").write(),
    "every engine failed": lambda builder: builder.add_failed_engine("paged", "no GPU").write(),
    "interrupted": lambda builder: builder.add_engine("paged").add_engine("contiguous:max").interrupt().write(),
    "no rows": lambda builder: builder.add_engine("paged").add_engine("contiguous:max").forget_tables().write(),
    "no NVML": lambda builder: builder.add_engine("paged", has_nvml=False).write(),
    "no engine": lambda builder: builder.write(),
    "empty records": lambda builder: builder.add_engine("paged").write(workload={}, config={}, environment={}),
}


@pytest.fixture(scope="module", params=CASES)
def any_run(request: pytest.FixtureRequest, builder: Builder) -> Run:
    return CASES[request.param](builder())


@pytest.fixture(scope="module")
def any_page(any_run: Run, render: Render) -> Any:
    return render(any_run, plotlyjs="inline")


def test_every_section_is_there_and_says_something(any_run: Run, any_page: Any) -> None:
    engines = any_run.result.engines
    is_pair = len(engines) == 2 and all(engine.status == "complete" for engine in engines)
    absent = () if engines else ("checks", "cards", "figures")
    expected = [name for name in SECTIONS if name not in absent and (is_pair or name != "comparison")]
    sections = any_page.all("section")
    assert [section.attributes["id"] for section in sections] == expected
    for section in sections:
        heading = any_page.by_id(section.attributes["aria-labelledby"])
        assert len(section.text.split()) > len(heading.text.split()), section.attributes["id"]


def test_a_panel_holds_charts_or_says_why_not(any_page: Any) -> None:
    for panel in any_page.all("section", class_="panel"):
        has_charts = any(panel in figure.parents for figure in any_page.all("figure"))
        has_note = any(panel in note.parents for note in any_page.all("p", class_="note"))
        assert has_charts or has_note, panel.attributes["id"]


def test_the_page_loads_nothing(any_page: Any) -> None:
    for element in any_page.elements:
        assert not LOADING & element.attributes.keys(), element
        assert element.tag not in ("link", "iframe", "object", "embed", "img", "base"), element
        assert "url(" not in element.attributes.get("style", "")
        if element.tag == "a":
            assert element.attributes["href"].startswith("#"), element
    assert "url(" not in any_page.all("style")[0].text
    assert "@import" not in any_page.all("style")[0].text


def test_the_policy_allows_the_pages_own_scripts_and_no_others(two_engines_page: Any) -> None:
    (policy,) = two_engines_page.all("meta", http_equiv="Content-Security-Policy")
    directives = dict(part.strip().split(" ", 1) for part in policy.attributes["content"].split(";"))
    assert directives["default-src"] == "'none'"
    executed = [script.text for script in two_engines_page.all("script") if "type" not in script.attributes]
    executed.append(plotlyjs_source())  # which travels deflated
    digests = [hashlib.sha256(text.encode()).digest() for text in executed]
    hashes = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    assert sorted(directives["script-src"].split()) == sorted(hashes)


def test_ids_are_unique_and_every_link_and_label_leads_somewhere(any_page: Any) -> None:
    ids = [element.attributes["id"] for element in any_page.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for link in any_page.all("a"):
        assert link.attributes["href"][1:] in ids
    for element in any_page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert element.attributes.get(name, ids[0]) in ids


def test_figures_on_the_page_are_those_of_the_record(any_run: Run, any_page: Any) -> None:
    engines = {f"e{index}": engine for index, engine in enumerate(any_run.result.engines)}
    shown = [element for element in any_page.elements if "data-metric" in element.attributes]
    assert len(shown) == len(engines) * (len(METRICS) + 6)  # the table of all, and six cards
    for element in shown:
        value = engines[element.attributes["data-engine"]].summary.get(element.attributes["data-metric"])
        if value is None:
            assert "data-value" not in element.attributes
            assert element.text == "not measured"
        else:
            assert float(element.attributes["data-value"]) == value
            assert_reads_as(element.text, value)
    for entry, engine in zip(any_page.json("page-data")["engines"], any_run.result.engines, strict=True):
        assert entry["summary"] == engine.summary


def assert_reads_as(text: str, value: float) -> None:
    """The text is ``value`` in some unit, to its own digits."""
    number, unit = re.fullmatch(r"([-\d.,e\u202f]+)\u00a0?(\S*)", text).groups()  # type: ignore[union-attr]
    factor = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}.get(unit, 1)
    scales = (1, 1000) if unit == "s" else (1,)  # milliseconds may be written as seconds
    digits = number.replace("\u202f", "")
    tolerance = 10.0 ** -len(digits.partition(".")[2]) / 2 * 1.0001
    assert any(
        math.isclose(float(digits) * factor * scale, value, abs_tol=tolerance * factor * scale) for scale in scales
    )


def test_charts_hold_the_records_own_values(two_engines: Run, two_engines_page: Any) -> None:
    figures = two_engines_page.figures()
    steps = two_engines.steps()
    for index, engine in enumerate(two_engines.result.engines):
        mine = steps[steps["engine"] == engine.spec]
        stacked = figures[f"partition-e{index}"]["data"]
        assert [trace["name"] for trace in stacked] == [
            "token states",
            "reserved",
            "internal",
            "external",
            "cached",
            "free",
        ]
        for column, trace in zip(
            ("token_state", "reserved", "internal", "external", "cached", "free"), stacked, strict=True
        ):
            share = mine[column] * 100 / engine.pool["num_slots"]
            assert max(trace["y"]) == pytest.approx(share.max(), rel=1e-5)
            assert min(trace["y"]) == pytest.approx(share.min(), rel=1e-5)
        for parts in zip(*(trace["y"] for trace in stacked), strict=True):
            assert sum(parts) == pytest.approx(100, abs=1e-3)
    bars = figures["figure-2-bars"]["data"]
    for trace in bars:
        column = {"token states": "token_state"}.get(trace["name"], trace["name"])
        for engine in two_engines.result.engines:
            share = engine.summary[f"{column}_pct"]
            assert trace["x"][trace["y"].index(engine.spec)] == pytest.approx(share, rel=1e-4)


def test_the_parts_of_the_memory_in_use_sum_to_its_peak(two_engines: Run, two_engines_page: Any) -> None:
    bars = two_engines_page.figures()["account-bars"]["data"]
    for index, engine in enumerate(two_engines.result.engines):
        peak_gib = engine.memory["peak"] / 2**30
        assert sum(bar["x"][index] for bar in bars) == pytest.approx(peak_gib, rel=1e-5)
        for bar in bars:
            assert bar["x"][index] == pytest.approx(engine.memory[bar["name"]] / 2**30, rel=1e-4)


def test_the_verdict_and_the_ratios_on_the_cards_are_of_the_records_figures(
    two_engines: Run, two_engines_page: Any
) -> None:
    paged, contiguous = (engine.summary for engine in two_engines.result.engines)
    (sentence,) = two_engines_page.all("p", class_="sentence other")
    ratio = f"{(paged['output_tokens_per_s'] or 0) / (contiguous['output_tokens_per_s'] or 1):.2f}\u00d7"
    assert two_engines_page.by_id("verdict-word").text.endswith(f"{ratio} faster")
    assert f"paged generated {ratio} the output tokens/s of contiguous:max on the same 2\u00a0GiB" in sentence.text
    assert f"at most {paged['peak_running']} requests together against {contiguous['peak_running']}." in sentence.text
    compared = []
    for card in two_engines_page.all("article", class_="card"):
        name = card.attributes["aria-labelledby"].removeprefix("card-")
        text = next(each.text for each in two_engines_page.all("span") if is_ratio(each) and card in each.parents)
        found = re.search(r"([\d.]+)\u00d7 (as much|less)|([+\u2212][\d.]+) points", text)
        new, old = paged[name], contiguous[name]
        assert new is not None
        assert old is not None
        if found is None:
            assert "equal" in text
            assert new == pytest.approx(old, rel=0.01)
        elif found[3]:
            assert float(found[3].replace("\u2212", "-")) == pytest.approx(new - old, abs=0.051)
        else:
            assert float(found[1]) == pytest.approx(new / old if found[2] == "as much" else old / new, rel=0.006)
        compared.append(name)
    assert len(compared) == 6


def is_ratio(element: Any) -> bool:
    return bool(re.match(r"ratio\b", element.attributes.get("class", "")))


def test_the_percentiles_of_the_latency_table_are_the_records(two_engines: Run, two_engines_page: Any) -> None:
    names = {
        "time to first token": "ttft",
        "time in queue": "queue",
        "gap between tokens": "itl",
        "time per output token": "tpot",
        "end to end": "e2e",
    }
    engines = {engine.spec: engine.summary for engine in two_engines.result.engines}
    table = two_engines_page.by_id("latency-table")
    body = [row for row in two_engines_page.all("tr") if table in row.parents][1:]
    cells = two_engines_page.all("td") + two_engines_page.all("th")
    for row in body:
        label, latency, *figures = sorted_texts(row, cells, two_engines_page)
        for text, quantile in zip(figures, (50, 90, 99), strict=False):
            value = engines[label][f"{names[latency]}_ms_p{quantile}"]
            assert value is not None
            assert_reads_as(text, value)
    measured = {
        name for name in names.values() for summary in engines.values() if summary[f"{name}_ms_p99"] is not None
    }
    assert len(body) >= len(engines) * len(measured) > 4


def sorted_texts(row: Any, cells: list[Any], page: Any) -> list[str]:
    """The texts of a row's cells, as they stand."""
    own = {id(cell) for cell in cells if cell.parents[-1] is row}
    return [element.text.strip() for element in page.elements if id(element) in own]


def test_the_means_in_words_and_the_cards_of_the_partition_are_the_records(
    two_engines: Run, two_engines_page: Any
) -> None:
    for index, engine in enumerate(two_engines.result.engines):
        words = two_engines_page.by_id(f"partition-e{index}-summary").text
        parts = dict(re.findall(r"(token states|reserved|internal|external|cached|free) ([\d.]+)\u00a0%", words))
        assert len(parts) == 6
        for name, text in parts.items():
            share = engine.summary[f"{'token_state' if name == 'token states' else name}_pct"]
            assert float(text) == pytest.approx(share, abs=0.051)


def test_the_records_checks_stand_on_the_page_word_for_word(builder: Builder, render: Render) -> None:
    checks = tuple(
        Check(f"check {outcome}", outcome, f"{outcome}: {1 / (n + 3):.4f} of {n + 7}")
        for n, outcome in enumerate(("fail", "warn", "unknown", "pass"))
    )
    page = render(builder().add_engine("paged").write(checks=checks))
    items = [item for item in page.all("li") if page.by_id("checks") in item.parents]
    for check, item in zip(checks, items, strict=True):
        assert item.attributes["class"] == check.outcome
        assert check.name in item.text
        assert check.detail in item.text


def test_the_prefix_trees_boxes_are_the_tokens_that_were_found_and_computed(
    two_engines: Run, two_engines_page: Any
) -> None:
    figures = {key: figure for key, figure in two_engines_page.figures().items() if key.startswith("prefix-tree")}
    assert list(figures) == ["prefix-tree-e0"]  # the other engine cannot share
    (prefix,) = two_engines.prefixes().query("engine == 'paged'").to_dict("records")
    found, computed = (
        sum(x * width for x, width in zip(trace["x"], trace["width"], strict=True))
        for trace in figures["prefix-tree-e0"]["data"]
    )
    assert found == pytest.approx(prefix["hit_tokens"])
    assert found + computed == pytest.approx(prefix["num_tokens"] * prefix["num_requests"])
    assert prefix["hit_tokens"] == two_engines.requests().query("engine == 'paged'")["num_prefix_hit_tokens"].sum()


def test_every_chart_has_a_title_a_summary_and_a_table_in_its_section(two_engines_page: Any) -> None:
    for plot in two_engines_page.all("div", class_="plot"):
        key = plot.attributes["id"]
        assert two_engines_page.by_id(f"{key}-title").text.strip()
        assert two_engines_page.by_id(f"{key}-summary").text.strip()
    for panel in two_engines_page.all("section", class_="panel"):
        table = two_engines_page.by_id(f"{panel.attributes['id']}-table")
        assert panel in table.parents
        rows = [row for row in two_engines_page.all("tr") if table in row.parents]
        assert len(rows) > 1


def test_table_rows_are_as_wide_as_their_heads(any_page: Any) -> None:
    for table in any_page.all("table"):
        widths = {
            sum(cell.parents[-1] is row for cell in any_page.all("td") + any_page.all("th"))
            for row in any_page.all("tr")
            if table in row.parents
        }
        assert len(widths) == 1, table


def test_every_colour_of_a_chart_has_a_dark_shade(two_engines_page: Any) -> None:
    known = two_engines_page.json("dark-by-light")
    used = set(re.findall(r'"(#[0-9a-fA-F]{3,8})"', json.dumps(two_engines_page.figures())))
    assert len(used) > 8
    assert used <= known.keys()
    assert len(set(known.values())) == len(known)


def test_time_axes_all_reach_the_end_of_the_longest_engine(two_engines: Run, two_engines_page: Any) -> None:
    end_s = two_engines.steps()["end_ns"].max() / 1e9
    on_time_axis = [
        plot.attributes["id"]
        for plot in two_engines_page.all("div", class_="plot")
        if "data-time-axis" in plot.attributes
    ]
    figures = two_engines_page.figures()
    assert len(on_time_axis) > 8
    for key in on_time_axis:
        assert figures[key]["layout"]["xaxis"]["range"] == [0, end_s]


def test_a_simulated_device_is_named_in_place_of_the_machines_own(builder: Builder, render: Render) -> None:
    page = render(builder().add_engine("paged").write(config={"model": "llama-8b", "device": "simulated h200"}))
    (overline,) = page.all("p", class_="overline")
    assert "simulated h200" in overline.text
    assert "NVIDIA H200" not in overline.text


def test_several_runs_stand_side_by_side_under_names_of_their_own(builder: Builder, render: Render) -> None:
    runs = [complete(builder("first")), complete(builder("second", seed=1))]
    page = render(*runs)
    head = [cell.text.strip() for cell in page.all("th", scope="col") if "paged" in cell.text]
    assert any("paged (first)" in text for text in head)
    assert any("paged (second)" in text for text in head)
    assert len(page.json("page-data")["engines"]) == 4
    assert "run_id" in page.json("page-data")["engines"][0]


def test_the_same_run_given_twice_has_two_names(two_engines: Run, render: Render) -> None:
    page = render(two_engines, two_engines)
    labels = [page.by_id(f"memory-e{index}-title").text for index in range(4)]
    assert len(set(labels)) == 4


def test_cdn_mode_names_plotlys_server_and_the_files_hash(two_engines: Run, render: Render) -> None:
    page = render(two_engines, plotlyjs="cdn")
    (script,) = [script for script in page.all("script") if "src" in script.attributes]
    assert re.fullmatch(r"https://cdn\.plot\.ly/plotly-[\d.]+\.min\.js", script.attributes["src"])
    assert script.attributes["integrity"].startswith("sha256-")
    assert len(page.source) < 1_000_000


def test_directory_mode_names_the_file_beside_the_page(two_engines: Run, render: Render) -> None:
    page = render(two_engines)
    (script,) = [script for script in page.all("script") if "src" in script.attributes]
    assert script.attributes["src"] == "plotly.min.js"
    assert "integrity" not in script.attributes


def test_an_unknown_way_to_plotlyjs_is_refused_by_name(two_engines: Run, render: Render) -> None:
    with pytest.raises(UsageError, match=r"'web'.*inline, cdn, directory"):
        render(two_engines, plotlyjs="web")


def test_a_page_is_the_same_every_time(two_engines: Run, render: Render) -> None:
    assert render(two_engines).source == render(two_engines).source
