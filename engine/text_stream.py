"""TextStream: the text of one sequence while its tokens come, up to a stop string."""

from collections.abc import Callable
from typing import TypeAlias

from pbench.engine.records import FinishReason

# Token ids to their text; a tokenizer's own ``decode``.
Decode: TypeAlias = Callable[[list[int]], str]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what stands for bytes that are no character, or not yet
_MAX_MISSING = 3  # a character has at most four bytes, so that so many at the end may still become one
_WINDOW = 16  # tokens decoded together, about
_OVERLAP = 4  # of them, kept as the context of the next ones: a token's text may depend on those before it


class TextStream:
    """Decodes a sequence token by token and looks for its stop strings.

    ``feed`` returns what has become certain: not the bytes of a character that is still incomplete, and not what may
    be the beginning of a stop string. So no text that was given out is ever taken back, and how the text is split into
    tokens changes nothing of it.

    A token costs one call of ``decode`` with some 16 token ids, however long the sequence is.
    """

    __slots__ = ("_beginnings", "_decode", "_held", "_stop", "_told", "_window", "is_stopped")

    def __init__(self, decode: Decode, stop: tuple[str, ...] = ()) -> None:
        self._decode = decode
        self._stop = stop
        beginnings = {one[:length] for one in stop for length in range(1, len(one))}
        self._beginnings = tuple(sorted(beginnings, key=len, reverse=True))
        self._window: list[int] = []  # the latest tokens
        self._told = ""  # of the window's text: what is certain
        self._held = ""  # certain, but perhaps the beginning of a stop string
        self.is_stopped = False  # a stop string has come

    def feed(self, token_id: int) -> str:
        """Take the next token; returns the text that may be given out."""
        self._window.append(token_id)
        text = self._decode(self._window)
        certain = _without_incomplete_end(text)
        if not certain.startswith(self._told):  # what is incomplete has changed the characters before it, for now
            return ""
        new, self._told = certain[len(self._told) :], certain
        if len(self._window) > _WINDOW and certain == text:
            self._shorten_window()
        return self._pass_on(new, is_last=False)

    def advance(self, token_id: int, reason: FinishReason | None) -> tuple[str, FinishReason | None]:
        """Take the next token, and ``reason`` if it is the last; the text, and why the sequence ends, if it does.

        A stop token has no text.
        """
        text = "" if reason == "stop" else self.feed(token_id)
        if reason is not None and not self.is_stopped:
            text += self.finish()
        return text, "stop" if self.is_stopped else reason

    def finish(self) -> str:
        """The text that was held back: nothing follows."""
        text = self._decode(self._window)
        return self._pass_on(text[len(self._told) :], is_last=True)

    def _shorten_window(self) -> None:
        tail = self._window[-_OVERLAP:]
        text = self._decode(tail)
        if self._told.endswith(text):  # not, for one, where it begins in the middle of a character
            self._window, self._told = tail, text

    def _pass_on(self, new: str, *, is_last: bool) -> str:
        """Give out what is held and ``new``, but for what a stop string begins or may begin."""
        text = self._held + new
        self._held = ""
        # The one that is complete first, and of those the longest: whatever the tokens are.
        found = min(((at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            self.is_stopped = True
            return text[: found[1]]
        if not is_last and text.endswith(self._beginnings):
            self._held = next(beginning for beginning in self._beginnings if text.endswith(beginning))
            return text[: -len(self._held)]
        return text


def _without_incomplete_end(text: str) -> str:
    num_missing = 0
    while num_missing < _MAX_MISSING and text.endswith(_REPLACEMENT, 0, len(text) - num_missing):
        num_missing += 1
    return text[: len(text) - num_missing]
