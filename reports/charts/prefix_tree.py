"""The tree of shared prefixes: what prompts begin with alike, who found it in the cache, and what that saved."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from pbench.reports.charts.panel import Chart, Panel, Table, hatch, new_figure
from pbench.reports.palette import GREEN, GREY, ON_BRIGHT, SURFACE
from pbench.reports.quantity import format_number, format_quantity
from pbench.reports.subjects import Subject

_MIN_LABELLED_SHARE = 0.06  # of the requests: lower boxes have no room for a label
_MIN_DRAWN_SHARE = 1 / 2000  # of the requests: lower boxes are below a pixel
_MAX_TABLE_ROWS = 120
_MAX_HEIGHT_PX = 460


class _Prefix(NamedTuple):
    """A row of PREFIX_COLUMNS."""

    parent: int
    start: int
    num_tokens: int
    num_requests: int
    num_hit_requests: int
    hit_tokens: int

    @property
    def label(self) -> str:
        """Its size in words."""
        return f"{format_number(self.num_tokens)} tokens of {format_number(self.num_requests)} requests"


def prefix_tree_panel(subjects: Sequence[Subject]) -> Panel:
    """One chart an engine that found prefixes in its cache, and a table of every prefix and engine."""
    known = [subject for subject in subjects if len(subject.prefixes)]
    key, title = "prefix-tree", "The tree of shared prefixes"
    explanation = (
        "Prompts from their first token, left to right. Each box is a beginning that several requests have in common:"
        " as wide as it has tokens, as high as it has requests. What was found in the cache is green; the rest was"
        " computed, once at least, or again because it had been evicted or nothing could be shared."
    )
    if not known:
        has_rows = any(len(subject.requests) for subject in subjects)
        missing = "No two prompts begin alike: there is nothing to share." if has_rows else "The run kept no requests."
        return Panel(key, title, explanation, missing=missing)
    drawn = [subject for subject in known if subject.prefixes["hit_tokens"].any()] or known[:1]
    return Panel(key, title, explanation, tuple(map(_chart, drawn)), _table(known))


def _prefixes(subject: Subject) -> list[_Prefix]:
    return [_Prefix(*row) for row in subject.prefixes[list(_Prefix._fields)].to_numpy(dtype=np.int64).tolist()]


def _places(prefixes: Sequence[_Prefix]) -> list[int]:
    """The first request of each box, its parent's requests beginning at its parent's."""
    places: list[int] = []
    next_free: dict[int, int] = {}
    for prefix in prefixes:
        begin = next_free.get(prefix.parent, 0 if prefix.parent < 0 else places[prefix.parent])
        places.append(begin)
        next_free[prefix.parent] = begin + prefix.num_requests
    return places


def _chart(subject: Subject) -> Chart:
    prefixes = _prefixes(subject)
    begins = _places(prefixes)
    most = max(begin + prefix.num_requests for begin, prefix in zip(begins, prefixes, strict=True))
    found, computed = _boxes("found in the cache"), _boxes("computed")
    for begin, row in zip(begins, prefixes, strict=True):
        if row.num_requests < _MIN_DRAWN_SHARE * most:
            continue
        share = row.hit_tokens / (row.num_tokens * row.num_requests)
        hover = (
            f"{row.label}, after {format_number(row.start)} shared before"
            f"<br>{format_number(row.num_hit_requests)} requests found {format_number(row.hit_tokens)} tokens"
            f" in the cache ({format_quantity(100 * share, '%')})"
        )
        height = row.num_requests * share
        has_label = row.num_requests >= _MIN_LABELLED_SHARE * most
        for boxes, low, high in ((found, begin, begin + height), (computed, begin + height, begin + row.num_requests)):
            if high > low:
                is_larger = (high - low) * 2 >= row.num_requests
                boxes["base"].append(row.start)
                boxes["x"].append(row.num_tokens)
                boxes["y"].append((low + high) / 2)
                boxes["width"].append(high - low)
                boxes["text"].append(row.label if has_label and is_larger else "")
                boxes["customdata"].append(hover)
    end = max(prefix.start + prefix.num_tokens for prefix in prefixes)
    figure = new_figure(
        "tokens from the start of the prompt",
        "requests",
        barmode="overlay",
        hovermode="closest",
        xaxis_range=[0, end],
        yaxis_range=[most, 0],
        legend_traceorder="normal",
        uniformtext={"mode": "hide", "minsize": 10},
    )
    for boxes, shade, pattern in ((found, GREEN, ""), (computed, GREY, "/")):
        figure.add_trace(
            go.Bar(
                **boxes,
                orientation="h",
                marker={
                    "color": shade.light,
                    "line": {"color": SURFACE.light, "width": 1.5},
                    "pattern": hatch(pattern, size=8),
                },
                textposition="inside",
                insidetextanchor="start",
                textangle=0,
                textfont={"color": ON_BRIGHT.light, "size": 12},
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    return Chart(
        f"prefix-tree-{subject.key}",
        subject.label,
        _summary(subject),
        figure,
        min(_MAX_HEIGHT_PX, 180 + 24 * len(prefixes)),
    )


def _boxes(name: str) -> dict[str, Any]:
    return {"name": name, "base": [], "x": [], "y": [], "width": [], "text": [], "customdata": []}


def _summary(subject: Subject) -> str:
    prefixes = _prefixes(subject)
    largest = max(prefixes, key=lambda prefix: prefix.num_tokens * prefix.num_requests)
    return (
        f"{_saved(subject, sum(prefix.hit_tokens for prefix in prefixes))} found in the cache instead of computed and"
        f" stored once more. The largest prefix: {largest.label}; {format_number(largest.num_hit_requests)} found it."
    )


def _saved(subject: Subject, num_tokens: int) -> str:
    slot_bytes = subject.pool_figure("slot_bytes")
    if slot_bytes is None:
        return f"{format_number(num_tokens)} tokens"
    return f"{format_number(num_tokens)} tokens ({format_quantity(num_tokens * slot_bytes, 'bytes')} of KV)"


def _table(subjects: Sequence[Subject]) -> Table:
    rows: list[tuple[int, tuple[str, ...]]] = []  # beside each what it saved
    for subject in subjects:
        names: list[str] = []
        num_children: dict[int, int] = {}
        slot_bytes = subject.pool_figure("slot_bytes")
        for row in _prefixes(subject):
            num_children[row.parent] = number = num_children.get(row.parent, 0) + 1
            names.append(f"{names[row.parent]}.{number}" if row.parent >= 0 else str(number))
            saved_bytes = None if slot_bytes is None else row.hit_tokens * slot_bytes
            figures = (row.start, row.num_tokens, row.num_requests, row.num_hit_requests, row.hit_tokens)
            texts = (subject.label, names[-1], *map(format_number, figures), format_quantity(saved_bytes, "bytes"))
            rows.append((row.hit_tokens, texts))
    columns = ("engine", "prefix", "after tokens", "tokens", "requests", "that found it", "tokens found", "bytes saved")
    note = "prefix 1.2 goes on after prefix 1; of each level the prefixes that save most"
    if len(rows) > _MAX_TABLE_ROWS:
        note += f"; of {len(rows)} the {_MAX_TABLE_ROWS} that save most"
        least = sorted((saved for saved, _ in rows), reverse=True)[_MAX_TABLE_ROWS - 1]
        rows = [row for row in rows if row[0] >= least][:_MAX_TABLE_ROWS]
    return Table(columns, tuple(texts for _, texts in rows), note)
