"""Text that others wrote appears as text, wherever it comes from and wherever it goes."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from pbench.reports.embedding import json_block
from pbench.reports.text import visible
from pbench.results import Run

HOSTILE = {
    "a script": "<script>window.hit=1</script>",
    "the end of a script": "</script><img src=x onerror=window.hit=1>",
    "the start of a comment": "<!--<script>",
    "quotes": '"\' onmouseover=window.hit=1 x="',
    "an entity": "&lt;b&gt; &amp;amp;",
    "a template": "{{ 7 * 7 }} {% raw %} ${7*7} %{y} $x^2$",
    "plotly's markup": '<b>bold</b><a href="javascript:window.hit=1">x</a><br>',
    "bidi marks": "abc\u202egnp.exe\u202c \u2066x\u2069 \u200f",
    "controls": "a\x00b\x1b[31mred\x07\r\n\u2028\u2029\ufeff",
    "a lone surrogate": "a\ud800b",
    "10 000 characters": "x" * 9_990 + "<b>the end",
}


def hostile_run(builder: Callable[..., Any], text: str) -> Run:
    """A run in which every free text is ``text``, and every key that others may choose."""
    made = builder("run-a", num_requests=6).add_engine("paged").add_engine("contiguous:max")
    renamed = f"{text}:paged"
    for rows in (made.steps, made.requests, made.device, made.spans, made.prefixes):
        for row in rows:
            row["engine"] = renamed if row["engine"] == "paged" else row["engine"]
    made.engines[0] = replace(made.engines[0], spec=renamed, reason=text, notes=(text, text), config={text: text})
    made.add_failed_engine("contiguous:oracle", text)
    run: Run = made.write(
        run_id=text,
        created_at=text,
        command=("pbench", text),
        workload={"name": text, "description": text, "source": text, "parameters": {text: [text]}},
        config={"model": text, text: text},
        environment={"gpu": {"name": text}, text: {text: text}},
    )
    return run


# run.json is UTF-8: a lone surrogate cannot come from there.
WRITABLE = {name: text for name, text in HOSTILE.items() if name != "a lone surrogate"}


class HostilePage(NamedTuple):
    text: str
    page: Any


@pytest.fixture(scope="module", params=WRITABLE)
def hostile(request: pytest.FixtureRequest, builder: Callable[..., Any], render: Callable[..., Any]) -> HostilePage:
    text = WRITABLE[request.param]
    return HostilePage(text, render(hostile_run(builder, text)))


@pytest.fixture(scope="module")
def harmless_page(builder: Callable[..., Any], render: Callable[..., Any]) -> Any:
    return render(hostile_run(builder, "plain text"))


def test_hostile_text_makes_no_element_and_no_attribute(hostile: HostilePage, harmless_page: Any) -> None:
    shape, harmless_shape = (
        [(element.tag, tuple(element.attributes), len(element.parents)) for element in page.elements]
        for page in (hostile.page, harmless_page)
    )
    assert shape == harmless_shape


def test_hostile_text_reads_as_it_was_written(hostile: HostilePage) -> None:
    whole = hostile.page.visible_text()
    assert visible(hostile.text).replace("\r", "") in whole.replace("\r", "")
    assert not any(mark in whole for mark in "\x00\x1b\x07\u202e\u2066\u200f\u2028\ufeff")


def test_hostile_text_is_literal_in_plotlys_labels(hostile: HostilePage) -> None:
    own = ("<br>", "<extra></extra>", "<extra>%{y}</extra>")

    def strings(value: Any, key: str = "") -> list[tuple[str, str]]:
        if isinstance(value, dict):
            return [pair for name, item in value.items() for pair in strings(item, name)]
        if isinstance(value, list):
            return [pair for item in value for pair in strings(item, key)]
        return [(key, value)] if isinstance(value, str) else []

    found = [pair for figure in hostile.page.figures().values() for pair in strings(figure)]
    assert len(found) > 100
    for key, label in found:
        remaining = label
        for piece in own:
            remaining = remaining.replace(piece, "")
        assert "<" not in remaining, label
        assert "$" not in remaining, label
        assert len(label) < 200, label
        if key != "hovertemplate":
            assert "%{" not in remaining, label


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_data_blocks_never_hold_a_tag_and_read_back_the_same(text: str) -> None:
    block = str(json_block({"key": text, text: [text]}))
    assert not set("<>&\u2028\u2029") & set(block)
    assert json.loads(block) == {"key": text, text: [text]}
