import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbench.reports.text import LABEL_CHARS, plot_label, shorten, visible

PRINTABLE = st.text(
    st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp", "Zs", "Co", "Cn")), max_size=LABEL_CHARS
)


@given(st.text())
def test_visible_text_can_be_written_as_utf_8_and_hides_nothing(text: str) -> None:
    shown = visible(text)
    assert shown.encode().decode() == shown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069]", shown)


@given(PRINTABLE)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_a_bidi_mark_is_named() -> None:
    assert visible("abc\u202egnp") == "abc[U+202E]gnp"


@given(st.text(), st.integers(2, 60))
def test_shortened_text_keeps_its_limit_and_its_start(text: str, max_chars: int) -> None:
    short = shorten(text, max_chars)
    assert len(short) == min(len(text), max_chars)
    assert short == text or (short.count("…") >= 1 and short[0] == text[0])


@given(PRINTABLE)
def test_a_label_decodes_to_the_text_it_stands_for(text: str) -> None:
    assert html.unescape(plot_label(text)) == " ".join(text.split())


@given(st.text())
def test_a_label_holds_nothing_that_plotly_would_act_on(text: str) -> None:
    assert not re.search(r"[<>${}]|&(?!(amp|lt|gt|#\d+);)", plot_label(text))


@pytest.mark.parametrize("text", ["%{customdata}", "$\\alpha$", "<a href='x'>", "&lt;b&gt;"])
def test_plotlys_own_languages_are_taken_literally(text: str) -> None:
    label = plot_label(text)
    assert html.unescape(label) == text
    assert label != text
