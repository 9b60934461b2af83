"""The text of a sequence while its tokens come: never taken back, and cut before the first stop string."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from pbench.engine.text_stream import TextStream


def stream_all(decode, token_ids: Sequence[int], stop: tuple[str, ...] = ()) -> list[str]:
    """The text of every token up to the end, or to a stop string; the last holds what was kept back."""
    stream, texts = TextStream(decode, stop), []
    for token_id in token_ids:
        texts.append(stream.feed(token_id))
        if stream.is_stopped:
            return texts
    return [*texts, stream.finish()]


def decode_bytes(token_ids: list[int]) -> str:
    """A token is a byte, as in a byte-level tokenizer at its worst."""
    return bytes(token_ids).decode(errors="replace")


def byte_fallback_tokenizer() -> Tokenizer:
    """Words with a leading space that the first one loses, and bytes: as in Llama 2's tokenizer."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁bc", "d"]
    tokenizer = Tokenizer(
        models.BPE({word: index for index, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_tokens([AddedToken("<end>", special=True)])
    return tokenizer


FALLBACK = byte_fallback_tokenizer()


@given(st.text(max_size=60))
def test_the_texts_of_all_tokens_are_the_text(text: str) -> None:
    """Also of characters that take several tokens; and each is given out with the token that completes it."""
    token_ids = list(text.encode())
    texts = stream_all(decode_bytes, token_ids)
    assert "".join(texts) == text
    done = 0
    for character in text.rstrip("\N{REPLACEMENT CHARACTER}"):
        done += len(character.encode())
        given_out = "".join(texts[:done])
        if "\N{REPLACEMENT CHARACTER}" not in text:
            assert given_out == token_text(text, done)


def token_text(text: str, num_bytes: int) -> str:
    return text.encode()[:num_bytes].decode()


@given(st.lists(st.integers(0, 255), max_size=60))
def test_bytes_that_are_no_text_are_told_at_last(token_ids: list[int]) -> None:
    assert "".join(stream_all(decode_bytes, token_ids)) == decode_bytes(token_ids)


@given(st.lists(st.one_of(st.integers(257, 259), st.sampled_from([0xE4 + 1, 0xBD + 1, 0xA0 + 1])), max_size=80))
def test_a_tokenizer_that_falls_back_to_bytes_is_followed(token_ids: list[int]) -> None:
    """Its bytes are text only as long as all in a row are."""

    def decode(ids: list[int]) -> str:
        return str(FALLBACK.decode(ids))

    texts = stream_all(decode, token_ids)
    if "\N{REPLACEMENT CHARACTER}" not in decode(token_ids):
        assert "".join(texts) == decode(token_ids)


def first_stop(text: str, stop: tuple[str, ...]) -> str | None:
    """What comes before the stop string that is complete first, read character by character; None: none comes."""
    for end in range(1, len(text) + 1):
        matches = [one for one in stop if text.endswith(one, 0, end)]
        if matches:
            return text[: end - max(map(len, matches))]
    return None


@given(
    pieces=st.lists(st.text("ab", min_size=1, max_size=4), max_size=30),
    stop=st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=3).map(tuple),
)
def test_text_ends_before_the_first_stop_string_however_it_is_split(pieces: list[str], stop: tuple[str, ...]) -> None:
    text, texts = "".join(pieces), []
    texts = stream_all(lambda ids: "".join(pieces[i] for i in ids), range(len(pieces)), stop)
    expected = first_stop(text, stop)
    assert "".join(texts) == (text if expected is None else expected)
    if expected is not None:
        end = next(n for n in range(len(pieces) + 1) if first_stop("".join(pieces[:n]), stop) is not None)
        assert len(texts) == end, "it ends with the token that completes the stop string"


def test_what_may_begin_a_stop_string_is_held_and_nothing_else() -> None:
    pieces = ["x", "<", "e", "n", "x", "<en", "d>y"]
    stream = TextStream(lambda ids: "".join(pieces[i] for i in ids), ("<end>",))
    assert [stream.feed(index) for index in range(7)] == ["x", "", "", "", "<enx", "", ""]
    assert stream.is_stopped


def test_a_token_costs_the_same_however_long_the_sequence() -> None:
    lengths = []

    def decode(ids: list[int]) -> str:
        lengths.append(len(ids))
        return decode_bytes(ids)

    stream_all(decode, list(("a\N{HORIZONTAL ELLIPSIS}" * 400).encode()))
    assert max(lengths) < 30
    assert len(lengths) < 1600 * 1.2
