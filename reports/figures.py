"""Figures for a paper: every chart of a page as a file of its own, drawn by plotly.js in a headless Chromium."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from pbench.errors import UsageError
from pbench.reports.charts.panel import Panel

FORMATS = ("svg", "png", "pdf")
_WIDTH_PX = 640
_PNG_SCALE = 3  # a column of a page, 84 mm wide, then has 580 dots an inch
_INSTALL = "pip install -e '.[figures]'"
_ENGINE_KEY = re.compile(r"-e(\d+)$")


def write_figures(panels: Sequence[Panel], labels: Mapping[str, str], folder: Path, image_format: str) -> list[Path]:
    """Write every chart of a page into ``folder``, which is made if it is missing; charts of the light theme.

    Args:
        panels: the charts, each on white paper and without its title, which belongs into the paper's caption.
        labels: of the engines, by the keys that end their charts' keys.
        folder: gets one file a chart, named by the chart and its engine: ``partition-paged.svg``.
        image_format: one of FORMATS.

    Returns:
        The files, in the order of the page.

    Raises:
        UsageError: kaleido or a Chromium is missing, or the folder cannot be written.

    """
    kaleido = _kaleido()
    charts = [
        chart
        for panel in panels
        for chart in (*panel.charts, *(panel.block_map.paper_charts() if panel.block_map else ()))
    ]
    paths = [folder / f"{name}.{image_format}" for name in _names(labels, [chart.key for chart in charts])]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kaleido.write_fig_from_object_sync(
            [
                {
                    "fig": _on_white(chart.figure),
                    "path": str(path),
                    "opts": {
                        "format": image_format,
                        "width": _WIDTH_PX,
                        "height": chart.height_px,
                        "scale": _PNG_SCALE if image_format == "png" else 1,
                    },
                }
                for chart, path in zip(charts, paths, strict=True)
            ],
            cancel_on_error=True,
            kopts={"mathjax": False},  # it would be fetched from a server
        )
    except kaleido.errors.ChromeNotFoundError as error:
        raise UsageError(
            "--figures draws in Chrome or Chromium, and neither was found: apt-get install chromium, or name it in"
            " the environment variable BROWSER_PATH"
        ) from error
    except (kaleido.errors.BrowserClosedError, kaleido.errors.BrowserFailedError) as error:
        raise UsageError(f"--figures: the browser did not start: {_first_line(error)}") from error
    except OSError as error:
        raise UsageError(f"--figures {folder}: cannot be written: {error.strerror or error}") from error
    return paths


def _kaleido() -> Any:
    try:
        import kaleido
        import kaleido.errors
    except ImportError:
        raise UsageError(f"--figures needs kaleido, which is not installed: {_INSTALL}") from None
    return kaleido


def _names(labels: Mapping[str, str], keys: Sequence[str]) -> list[str]:
    """The charts' keys, with the engine's label in place of its number; unique, whatever the labels are."""
    slugs = {key: _slug(label) for key, label in labels.items()}
    is_unique = len(set(slugs.values())) == len(slugs)

    def name(match: re.Match[str]) -> str:
        key = f"e{match[1]}"
        return f"-{slugs[key]}" if is_unique else f"-{key}-{slugs[key]}"

    return [_ENGINE_KEY.sub(name, key) for key in keys]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:60] or "unnamed"


def _on_white(figure: go.Figure) -> dict[str, Any]:
    drawn: dict[str, Any] = go.Figure(figure).update_layout(paper_bgcolor="#ffffff").to_dict()
    return drawn


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
