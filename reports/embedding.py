"""What the page carries inside itself: plotly.js, its own style and script, data blocks, and raw files to download."""

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from pbench.errors import UsageError
from pbench.reports.quantity import format_quantity
from pbench.results import POOL_MAP_FILE, PREFIX_FILE, Run

PLOTLYJS_MODES = ("inline", "cdn", "directory")
PLOTLYJS_FILE = "plotly.min.js"  # beside the page in the mode "directory"

# Raw files beyond this stay where they are: the page must stay small enough to be mailed.
ATTACHED_BYTES_LIMIT = 3 * 1024**2

_RAW_FILES = ("run.json", "steps.parquet", "requests.parquet", "device.parquet", PREFIX_FILE, POOL_MAP_FILE)
# In a script element "</script" ends the element and "<!--" changes its state: JSON can be written without either.
_SCRIPT_ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A raw file of a run. ``base64_text`` is None when it was too large to carry; ``where`` then says its place."""

    file_name: str
    size_text: str
    base64_text: str | None
    where: str


@dataclass(frozen=True, slots=True)
class PlotlyScript:
    """How the page gets plotly.js: inside it, or from ``url``. ``csp`` is the source its policy must allow."""

    deflated: Markup | None  # base64 of the deflated code, which the page unpacks and runs: a third of its size
    url: str | None
    integrity: str | None
    csp: str


def plotly_script(mode: str) -> PlotlyScript:
    """plotly.js the way ``mode``, one of PLOTLYJS_MODES, asks for it.

    Raises:
        UsageError: another mode.

    """
    if mode not in PLOTLYJS_MODES:
        raise UsageError(f"plotlyjs {mode!r} is not one of {', '.join(PLOTLYJS_MODES)}")
    source = plotlyjs_source()
    if mode == "inline":
        return PlotlyScript(_deflated(source), None, None, _csp_hash(source))
    if mode == "directory":
        return PlotlyScript(None, PLOTLYJS_FILE, None, "'self' file:")
    url = f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"
    return PlotlyScript(None, url, _sha256(source), url)


@cache
def plotlyjs_source() -> str:
    """plotly.js as the installed plotly package ships it."""
    source: str = get_plotlyjs()
    return source


@cache
def _deflated(text: str) -> Markup:
    return Markup(base64.b64encode(zlib.compress(text.encode(), 9)).decode("ascii"))


@cache
def asset(name: str) -> Markup:
    """A file of reports/assets: the page's own script or style."""
    return Markup((resources.files("pbench.reports") / "assets" / name).read_text(encoding="utf-8"))


def content_security_policy(plotly: PlotlyScript, scripts: Sequence[str]) -> str:
    """A policy under which the page runs ``scripts`` and plotly.js, and loads nothing else from anywhere.

    Even text that slipped through escaping could then neither run nor call home. Plotly writes style rules at run time,
    so styles stay open.
    """
    hashes = " ".join(_csp_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {plotly.csp} {hashes}; style-src 'unsafe-inline'; img-src data: blob:;"
        " base-uri 'none'; form-action 'none'"
    )


def json_block(value: Any) -> Markup:
    """``value`` as JSON that can stand inside a script element of type application/json."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_SCRIPT_ESCAPES))


def figure_block(figure: go.Figure) -> Markup:
    """A plotly figure as JSON that can stand inside a script element of type application/json."""
    return Markup(figure.to_json(validate=False, engine="json").translate(_SCRIPT_ESCAPES))


def attachments(runs: Sequence[Run], budget: int = ATTACHED_BYTES_LIMIT) -> list[Attachment]:
    """The raw files of every run that exist: carried smallest first, as long as all fit ``budget`` bytes."""
    paths = [run.path / name for run in runs for name in _RAW_FILES if (run.path / name).is_file()]
    num_bytes = {path: path.stat().st_size for path in paths}
    carried = set()
    for path in sorted(paths, key=num_bytes.__getitem__):
        if num_bytes[path] > budget:
            break
        budget -= num_bytes[path]
        carried.add(path)
    is_alone = len(runs) == 1
    return [
        Attachment(
            path.name if is_alone else f"{path.parent.name}-{path.name}",
            format_quantity(num_bytes[path], "bytes"),
            base64.b64encode(path.read_bytes()).decode("ascii") if path in carried else None,
            str(path),
        )
        for path in paths
    ]


def _sha256(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


def _csp_hash(text: str) -> str:
    return f"'{_sha256(text)}'"
