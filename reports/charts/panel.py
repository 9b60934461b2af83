"""What a chart hands to the page, and the look that all charts share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from pbench.reports.palette import GRID, MUTED, ON_BRIGHT, SURFACE, TEXT

if TYPE_CHECKING:
    from pbench.reports.block_map import BlockMap

_MAX_TICKS = 6
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

ROW_PX = 46
ROW_GAP = 0.56  # of a row: where its label stands


@dataclass(frozen=True, slots=True)
class Table:
    """The figures behind a chart, for those who read rather than look."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Chart:
    """One drawing. Charts on the time axis zoom together."""

    key: str  # unique on the page and safe in an HTML id
    title: str
    summary: str  # what it shows, for those who cannot see it
    figure: go.Figure
    height_px: int = 300
    is_on_time_axis: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """A question, its charts, and the table behind them. Without charts, ``missing`` says why there are none."""

    key: str
    title: str
    explanation: str
    charts: tuple[Chart, ...] = ()
    table: Table | None = None
    missing: str = ""
    block_map: "BlockMap | None" = None  # drawn by the page's own script, not by plotly


def new_figure(x_title: str, y_title: str, **axes: Any) -> go.Figure:
    """An empty figure in the page's look. ``axes`` are further layout settings (``xaxis_type="log"``, ...)."""
    axis = {
        "gridcolor": GRID.light,
        "linecolor": GRID.light,
        "zeroline": False,
        "automargin": True,
        "tickfont": {"color": MUTED.light, "size": 11},
        "title": {"font": {"color": MUTED.light, "size": 12}, "standoff": 8},
    }
    layout = go.Layout(
        template="none",
        font={"family": _FONT, "size": 12, "color": TEXT.light},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 8, "r": 12, "t": 8, "b": 8},
        hovermode="x unified",
        hoverlabel={
            "bgcolor": SURFACE.light,
            "bordercolor": GRID.light,
            "font": {"color": TEXT.light, "family": _FONT},
        },
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
            "font": {"size": 12},
        },
        xaxis=axis,
        yaxis=axis,
    )
    figure = go.Figure(layout=layout)
    figure.update_layout(xaxis_title_text=x_title, yaxis_title_text=y_title)
    figure.update_layout(**axes)
    return figure


def new_time_figure(y_title: str, **axes: Any) -> go.Figure:
    """An empty figure over the time since the start of measurement, in seconds."""
    figure = new_figure("time since the start", y_title, **axes)
    figure.update_xaxes(ticksuffix=" s", hoverformat=".4~r")
    return figure


def label_rows(figure: go.Figure, labels: Sequence[str]) -> None:
    """Write each category of the y axis above its row, from the top: beside it, labels would eat a phone's width."""
    ends = [len(labels) - 0.45, -0.7]  # downwards, with room for the first label
    figure.update_yaxes(range=ends, showgrid=False, showticklabels=False, type="category")
    figure.update_layout(legend_traceorder="normal")
    for row, label in enumerate(labels):
        figure.add_annotation(
            text=label,
            x=0,
            y=row - (1 - ROW_GAP) / 2 - 0.02,  # just above the row's bar
            xref="paper",
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
            align="left",
            font={"color": TEXT.light, "size": 12},
        )


def rows_height_px(num_rows: int) -> int:
    """Height of a chart of that many labelled rows."""
    return 100 + ROW_PX * num_rows


def hatch(shape: str, size: int = 6) -> dict[str, Any]:
    """A pattern of plotly's drawn over the fill's own colour; ``shape`` "" leaves the colour alone."""
    return {
        "shape": shape,
        "fillmode": "overlay",
        "fgcolor": ON_BRIGHT.light,
        "fgopacity": 0.35,
        "size": size,
        "solidity": 0.2,
    }


def log_ticks(least: float, greatest: float) -> list[float]:
    """Values to name on a logarithmic axis from ``least`` to ``greatest``, both above 0.

    As many of 1, 2, 3, 5, 7 times a power of ten as read well; the ends themselves where none lies between them.
    """
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(greatest)) + 1)
    for steps in ((1.0, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        shown = [tick for tick in ticks if least * 0.9 <= tick <= greatest * 1.1]
        if len(shown) <= _MAX_TICKS:
            break
    if len(shown) < 2:
        return sorted({float(f"{least:.2g}"), float(f"{greatest:.2g}")})
    return shown


def plain(values: NDArray[Any] | Sequence[float], significant_digits: int = 6) -> list[float | int | None]:
    """``values`` as a list for the page: at most that many significant digits, whole numbers as int, NaN as None."""
    rounded: list[float | int | None] = []
    for value in np.asarray(values, dtype=np.float64).tolist():
        if value != value or value in (float("inf"), float("-inf")):
            rounded.append(None)
        elif value == int(value):
            rounded.append(int(value))
        else:
            rounded.append(float(f"{value:.{significant_digits}g}"))
    return rounded


def seconds(times_ns: NDArray[Any] | Sequence[float]) -> list[float | int | None]:
    """Nanoseconds as seconds, to the microsecond: adjacent steps stay apart however long the run."""
    return plain(np.round(np.asarray(times_ns, dtype=np.float64) / 1e9, 6), significant_digits=12)
