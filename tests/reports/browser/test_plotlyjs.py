"""Pages that find plotly.js outside themselves, in a browser: they ask for that one file, and for its very text."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs_version

from pbench.__main__ import main
from pbench.reports.embedding import PLOTLYJS_FILE, plotlyjs_source
from pbench.results import Run

CDN_URL = f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"
NUM_DRAWN = "document.querySelectorAll('.plot .main-svg .trace, .plot .main-svg .bars').length"
SAID = "document.querySelector('.plot').textContent"


@pytest.fixture
def cdn_page(write_page: Callable[..., Path], two_engines: Run) -> Path:
    return write_page(two_engines, plotlyjs="cdn")


def serve(tab: Any, text: str) -> list[str]:
    """Stand in for plotly's server; the addresses that reach the network are noted in what is returned."""
    headers = {"Access-Control-Allow-Origin": "*", "Content-Type": "text/javascript"}
    served: list[str] = []

    def fulfill(route: Any) -> None:
        served.append(route.request.url)
        route.fulfill(body=text, headers=headers)

    tab.page.route(re.compile("^https://"), fulfill)
    return served


def test_a_cdn_page_asks_for_plotlys_script_alone_and_draws_with_it(cdn_page: Path, tab: Any) -> None:
    serve(tab, plotlyjs_source())
    tab.open(cdn_page)
    tab.draw_all()
    assert tab.requested_urls() == [cdn_page.as_uri(), CDN_URL]
    assert tab.evaluate(NUM_DRAWN) > 20
    assert tab.complaints() == []


def test_a_cdn_page_runs_no_other_script_than_the_one_it_was_made_with(cdn_page: Path, tab: Any) -> None:
    serve(tab, f"window.hit = 1; {plotlyjs_source()}")
    tab.open(cdn_page)
    tab.wait(f"{SAID}.includes('could not be loaded')")
    assert tab.evaluate("window.hit") is None
    assert any("integrity" in complaint for complaint in tab.complaints())


def test_a_cdn_page_may_load_nothing_from_anywhere_else(cdn_page: Path, tab: Any) -> None:
    served = serve(tab, plotlyjs_source())
    tab.open(cdn_page)
    blocked = (
        "new Promise((resolve) => {{ document.addEventListener('securitypolicyviolation', (event) =>"
        " resolve([event.blockedURI, event.effectiveDirective])); {} }})"
    )
    script = "const made = document.createElement('script'); made.src = '{}'; document.head.append(made)"
    for url in ("https://example.org/x.js", "https://cdn.plot.ly/x.js"):
        assert tab.evaluate(blocked.format(script.format(url))) == [url, "script-src-elem"]
    url = "https://cdn.plot.ly/x"
    assert tab.evaluate(blocked.format(f"fetch('{url}').catch(() => 0)")) == [url, "connect-src"]
    assert served == [CDN_URL]


def test_a_cdn_page_without_a_network_says_so_and_keeps_its_tables(cdn_page: Path, tab: Any) -> None:
    tab.page.route(re.compile("^https://"), lambda route: route.abort())
    tab.open(cdn_page)
    tab.wait(f"{SAID}.includes('could not be loaded')")
    assert tab.evaluate("document.querySelectorAll('details.behind table tr').length") > 20


def test_a_page_with_plotlyjs_beside_it_draws_from_the_folder(two_engines: Run, tab: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(two_engines.path), "--out", str(page), "--plotlyjs", "directory"]) == 0
    tab.open(page)
    tab.draw_all()
    assert tab.requested_urls() == [page.as_uri(), (tmp_path / PLOTLYJS_FILE).as_uri()]
    assert tab.evaluate(NUM_DRAWN) > 20
    assert tab.complaints() == []
