"""The pool block by block at its fullest, as a figure for a paper; the page draws the same by its own script."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from pbench.reports.charts.panel import Chart, hatch, new_figure
from pbench.reports.palette import KINDS, SURFACE, TEXT
from pbench.reports.subjects import Subject

_GOLDEN_ANGLE = 137.508  # degrees: neighbouring numbers lie far apart
_ASPECT = 1.7  # of the whole grid, width to height
_ROW_PX = 9
_KINDS = {kind.column: kind for kind in KINDS}
_PARTS = ("reserved", "internal", "cached", "free")


class _Piece(NamedTuple):
    """A part of a stretch that lies in one row of the picture, in slots."""

    kind: str
    row: int
    begin: int
    length: int
    request_id: int
    is_shared: bool


def pool_chart(subject: Subject, time_ns: int, cell_slots: int) -> Chart:
    """The pool of ``subject`` as it lay at ``time_ns``, one of its map's moments; a square is ``cell_slots`` slots."""
    num_slots = subject.pool_figure("num_slots") or 1
    num_cells = -(-num_slots // cell_slots)
    per_row = min(num_cells, max(8, -(-int((num_cells * _ASPECT) ** 0.5) // 8) * 8))
    pieces = list(_pieces(subject, time_ns, per_row * cell_slots))
    num_rows = -(-num_cells // per_row)
    figure = new_figure("", "", barmode="overlay", bargap=0, hovermode=False, legend_traceorder="normal")
    figure.update_xaxes(range=[0, per_row * cell_slots], showticklabels=False, showgrid=False)
    figure.update_yaxes(range=[num_rows - 0.5, -0.5], showticklabels=False, showgrid=False)
    line_width = 0.8 if subject.is_paged else 0.0
    for kind in ("token_state", *_PARTS):
        chosen = [piece for piece in pieces if piece.kind == kind]
        if not chosen:
            continue
        look = _KINDS[kind]
        is_token = kind == "token_state"
        figure.add_trace(
            go.Bar(
                base=[piece.begin for piece in chosen],
                x=[piece.length for piece in chosen],
                y=[piece.row for piece in chosen],
                width=0.9,
                orientation="h",
                name="tokens, a colour a request; black: shared" if is_token else look.label,
                marker={
                    "color": [_color(piece) for piece in chosen] if is_token else look.shade.light,
                    "line": {"width": line_width, "color": SURFACE.light},
                    "pattern": hatch("" if is_token else look.pattern, size=4),
                },
            )
        )
    return Chart(f"pool-map-{subject.key}", subject.label, "", figure, 70 + _ROW_PX * num_rows)


def _pieces(subject: Subject, time_ns: int, row_slots: int) -> Iterator[_Piece]:
    """Every stretch of the moment, split into its parts, at the ends of rows, and (of blocks) at those of blocks."""
    table = subject.pool_map
    spans = table[table["time_ns"] == time_ns]
    block = (subject.pool_figure("block_size") or row_slots) if subject.is_paged else row_slots
    columns = ("start", "request_id", "num_sharers", "token_state", *_PARTS)
    for start, request_id, num_sharers, *lengths in spans[list(columns)].itertuples(index=False):
        at = int(start)
        for kind, length in zip(("token_state", *_PARTS), lengths, strict=True):
            for begin, end in _cut(at, at + int(length), block, row_slots):
                yield _Piece(kind, begin // row_slots, begin % row_slots, end - begin, int(request_id), num_sharers > 1)
            at += int(length)


def _cut(begin: int, end: int, block: int, row_slots: int) -> Iterator[Sequence[int]]:
    while begin < end:
        stop = min(end, (begin // block + 1) * block, (begin // row_slots + 1) * row_slots)
        yield begin, stop
        begin = stop


def _color(piece: _Piece) -> str:
    if piece.is_shared:
        return TEXT.light
    return f"hsl({piece.request_id * _GOLDEN_ANGLE % 360:.0f}, 55%, {52 + 8 * (piece.request_id * 7 % 3)}%)"
