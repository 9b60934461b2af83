"""The page as a browser shows it: the system's Chromium, driven by Playwright. Skipped where either is missing."""

import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TIMEOUT_S = 60.0
# As a hand does; the time ends with the task after the next frame, when all that the move changed is on the screen.
MOVE_SLIDER = """async (position) => {
  const slider = document.getElementById("map-time");
  const begin = performance.now();
  slider.value = position;
  slider.dispatchEvent(new Event("input"));
  await new Promise(requestAnimationFrame);
  await new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = resolve;
    port2.postMessage(0);
  });
  return performance.now() - begin;
}"""


class Tab:
    """One page in a context of its own, that listens to all it says and all it asks for."""

    def __init__(self, browser: Any) -> None:
        self._context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
        self.page = self._context.new_page()
        self.page.set_default_timeout(TIMEOUT_S * 1000)
        self._said: list[str] = []
        self._urls: list[str] = []
        self.page.on("console", self._note_message)
        self.page.on("pageerror", lambda error: self._said.append(f"uncaught: {error}"))
        self.page.on("request", lambda request: self._urls.append(request.url))

    def _note_message(self, message: Any) -> None:
        if message.type not in ("log", "info", "debug"):
            self._said.append(f"{message.type}: {message.text}")

    def open(self, path: Path) -> None:
        self.page.goto(path.as_uri())
        self.evaluate("document.documentElement.style.scrollBehavior = 'auto'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        return self.page.evaluate(expression)

    def wait(self, expression: str) -> None:
        """Wait until a JavaScript expression holds."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"never came true: {expression}"
            time.sleep(0.02)

    def draw_all(self) -> None:
        """Scroll through the page until every chart and the block map are drawn as they should stand now."""
        self.wait(
            "(() => { const next = document.querySelector("
            "'.plot:not([data-drawn=fresh]), .block-map:not([data-drawn=fresh])');"
            " next?.scrollIntoView(); return !next; })()"
        )

    def barriers(self) -> list[Any]:
        """What axe-core calls a serious or critical barrier, with every fold of the page open."""
        spec = importlib.util.find_spec("axe_core_python")
        if spec is None or spec.origin is None:
            pytest.skip("axe-core is not installed (pip install axe-core-python)")
        self.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        self.evaluate((Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8") + "; 0")
        found: list[Any] = self.evaluate(
            "axe.run().then((r) => r.violations.map((v) => [v.impact, v.id, v.nodes.map((n) => n.html)]))"
        )
        return [violation for violation in found if violation[0] in ("serious", "critical")]

    def show(self, element_id: str) -> None:
        """Scroll to a chart, or to the block map, and wait until it is drawn."""
        self.evaluate(f"document.getElementById('{element_id}').scrollIntoView()")
        self.wait(f"document.getElementById('{element_id}').dataset.drawn === 'fresh'")

    def move_slider(self, position: int) -> float:
        """Move the block map's slider; milliseconds until the window shows it."""
        milliseconds: float = self.page.evaluate(MOVE_SLIDER, position)
        return milliseconds

    def slow_down(self, factor: float) -> None:
        """Let the page have so much less of the processor."""
        self._context.new_cdp_session(self.page).send("Emulation.setCPUThrottlingRate", {"rate": factor})

    def resize(self, width: int, height: int = 900) -> None:
        self.page.set_viewport_size({"width": width, "height": height})

    def prefer(self, scheme: str) -> None:
        self.page.emulate_media(color_scheme=scheme)

    def complaints(self) -> list[str]:
        """Everything on the console that is not mere information, and every uncaught exception."""
        return self._said

    def requested_urls(self) -> list[str]:
        return self._urls

    def close(self) -> None:
        self._context.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    executable = next((found for name in CHROMIUM_NAMES if (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(CHROMIUM_NAMES)})")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=list(ARGUMENTS), chromium_sandbox=False)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Any) -> Iterator[Tab]:
    tab = Tab(chromium)
    yield tab
    tab.close()


@pytest.fixture(scope="session")
def write_page(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Renders runs into a file."""
    from pbench.reports.report import render_report

    def make(*runs: Any, plotlyjs: str = "inline") -> Path:
        path = tmp_path_factory.mktemp("page") / "report.html"
        with path.open("w", encoding="utf-8") as stream:
            render_report(runs, stream, plotlyjs=plotlyjs)
        return path

    return make


@pytest.fixture(scope="session")
def page(write_page: Callable[..., Path], two_engines: Any) -> Path:
    """The page of a complete run of two engines."""
    return write_page(two_engines)
