"""Text that others wrote (workload names, paths, failure reasons), made safe to show.

HTML escaping itself is the template's (jinja2's autoescape). What stands here is what escaping does not cover:
characters that act without being seen, and the small HTML dialect that plotly renders in its labels.
"""

import re

# C0 and C1 controls except tab and newline, soft and zero-width marks, bidirectional controls, line and paragraph
# separators, the byte-order mark, and lone surrogates (which UTF-8 cannot even write).
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_LABEL_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "{": "&#123;", "}": "&#125;", "$": "&#36;"}
_LABEL_SPECIAL = re.compile(r"[&<>{}$]")

LABEL_CHARS = 48


def visible(text: str) -> str:
    """Write characters that act unseen (controls, bidirectional marks, lone surrogates) as ``[U+202E]``."""
    return _UNSEEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", text)


def shorten(text: str, max_chars: int) -> str:
    """Cut the middle out of ``text`` so that at most ``max_chars`` characters remain, an ellipsis included."""
    if len(text) <= max_chars:
        return text
    num_tail = (max_chars - 1) // 3
    return f"{text[: max_chars - 1 - num_tail]}…{text[len(text) - num_tail :]}"


def plot_label(text: str) -> str:
    """``text`` as a plotly label shows it literally.

    Plotly renders tags and decodes entities in labels, fills in ``%{...}`` in hover templates, and hands ``$...$``
    to MathJax; so those characters become entities, which plotly turns back into characters and nothing more.
    """
    flat = " ".join(shorten(visible(text), LABEL_CHARS).split())
    return _LABEL_SPECIAL.sub(lambda match: _LABEL_ESCAPES[match[0]], flat)
