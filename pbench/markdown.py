"""Text for Markdown."""

import re

_MARKS = re.compile(r"([\\`*_\[\]<>|])")


def escaped(text: str) -> str:
    """Text in which nothing is a mark of Markdown or HTML."""
    return _MARKS.sub(r"\\\1", text)
