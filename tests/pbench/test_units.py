import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbench.errors import UsageError
from pbench.units import format_bytes, format_number, format_quantity, parse_bytes, printable, slug


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("1048576", 1048576),
        ("8GiB", 8 * 2**30),
        ("24MB", 24_000_000),
        ("1.5 kib", 1536),
        (" 2tb ", 2 * 10**12),
        ("100b", 100),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_sizes_are_exact(text: str, num_bytes: int) -> None:
    assert parse_bytes(text, "--kv-memory") == num_bytes


@pytest.mark.parametrize("text", ["", "8 gigs", "-1", "0", "0.4", "1e9", "nan", "inf", "8GiB8", "٨", "1_000"])
def test_what_is_no_size_is_refused_by_option_and_value(text: str) -> None:
    with pytest.raises(UsageError, match="--kv-memory") as caught:
        parse_bytes(text, "--kv-memory")
    assert repr(text) in str(caught.value)


@given(st.integers(min_value=1, max_value=2**50))
def test_a_formatted_size_reads_back_to_three_digits(num_bytes: int) -> None:
    assert parse_bytes(format_bytes(num_bytes), "x") == pytest.approx(num_bytes, rel=6e-3)


@given(st.text())
def test_printable_text_has_nothing_that_a_terminal_acts_on(text: str) -> None:
    assert printable(text).isprintable()


def test_printable_text_stays_as_it_is() -> None:
    assert printable("naïve [red] 漢字") == "naïve [red] 漢字"
    assert printable("\x1b[2J\u202e") == "\\x1b[2J\\u202e"


@given(st.text())
def test_a_slug_is_one_safe_path_component(text: str) -> None:
    assert slug(text) not in ("", ".", "..")
    assert not set(slug(text)) & set("/\\:\0 \n")


def test_numbers_read_like_a_person_writes_them() -> None:
    assert [format_number(value) for value in (0, 7, 1234, 1234.5, 12.345, 0.01234)] == [
        "0",
        "7",
        "1,234",
        "1,234",
        "12.3",
        "0.0123",
    ]
    assert format_quantity(3 * 2**30, "bytes") == "3 GiB"
    assert format_quantity(12.5, "tok/s") == "12.5 tok/s"
    assert format_quantity(3, "") == "3"
