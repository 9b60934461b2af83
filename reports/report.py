"""The HTML report: one page about one or several runs, and the common look of all pages."""

from collections.abc import Sequence
from functools import cache
from typing import Any, TextIO

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pbench.reports.embedding import asset, content_security_policy, figure_block, json_block, plotly_script
from pbench.reports.glossary import explained
from pbench.reports.page import Page, build_page
from pbench.reports.palette import dark_by_light, shade_variables
from pbench.reports.reduction import METHOD
from pbench.reports.roofline import NOTHING_KNOWN, Bench
from pbench.reports.text import visible
from pbench.results import Run


def render_report(
    runs: Sequence[Run], stream: TextIO, *, plotlyjs: str = "inline", bench: Bench = NOTHING_KNOWN
) -> None:
    """Write one self-contained HTML page about every engine of ``runs`` to ``stream``.

    Args:
        runs: run folders, in the order in which their engines are shown. Engines that failed or measured nothing are
            shown as such.
        stream: text, to be encoded as UTF-8.
        plotlyjs: "inline" (the page loads nothing from anywhere), "cdn" (plotly.js from plotly's own server, checked
            by its hash), or "directory" (plotly.min.js beside the page; the caller puts it there).
        bench: what is known of the machines.

    Raises:
        ResultError: a run folder cannot be read.
        UsageError: another ``plotlyjs``.

    """
    render_page(build_page(runs, bench), stream, plotlyjs=plotlyjs)


def render_page(page: Page, stream: TextIO, *, plotlyjs: str = "inline") -> None:
    """Write a page that ``build_page`` made, as ``render_report`` does."""
    scripts = ("theme.js", "page.js", "block_map.js")
    render_template("report.html", stream, plotlyjs, scripts, page=page, reduction_method=METHOD)


def render_template(template: str, stream: TextIO, plotlyjs: str, scripts: Sequence[str], **content: Any) -> None:
    """Write a page in the common look; ``content`` is what its template names, ``page`` among it.

    Raises:
        UsageError: another ``plotlyjs`` than in ``render_report``.
    """
    plotly = plotly_script(plotlyjs)
    texts = {name: asset(name) for name in scripts}
    stream.writelines(
        _environment()
        .get_template(template)
        .generate(
            plotly=plotly,
            policy=content_security_policy(plotly, list(texts.values())),
            scripts=texts,
            style=asset("page.css"),
            shades=Markup(shade_variables()),
            dark_by_light=dark_by_light(),
            **content,
        )
    )


@cache
def _environment() -> Environment:
    """Templates in which every expression is escaped, and every string shows the characters that act unseen."""
    environment = Environment(
        loader=PackageLoader("pbench.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["json_block"] = json_block
    environment.filters["figure_block"] = figure_block
    environment.filters["explained"] = explained
    return environment
