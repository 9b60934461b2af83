from pbench.reports.glossary import GLOSSARY, explained


def test_a_term_is_explained_where_it_first_comes_in_any_case_and_number() -> None:
    text = str(explained("Blocks of the pool, the pool and Preemptions"))
    assert text.count("<abbr") == 3
    assert text.startswith(
        '<abbr title="a fixed number of token slots, the unit in which a paged memory allocates">Blocks'
    )
    assert "the pool and" in text


def test_what_is_no_term_stays_as_it_is_and_markup_is_text() -> None:
    assert str(explained("poolside <b>\u202e")) == "poolside &lt;b&gt;[U+202E]"


def test_no_word_is_explained_twice() -> None:
    words = [term.word.casefold() for term in GLOSSARY]
    assert len(words) == len(set(words))
