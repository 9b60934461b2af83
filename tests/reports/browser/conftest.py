"""Chromium, driven over its debugging pipe: the page as a browser shows it, with nothing to install but Chromium."""

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
TIMEOUT_S = 60.0


class Chromium:
    """A browser process: reads commands from its descriptor 3, answers on 4, each message ended by a zero byte."""

    def __init__(self, executable: str, folder: Path) -> None:
        command_out, self._commands = os.pipe()
        self._answers, answer_in = os.pipe()
        # bash, for only a shell can hand over descriptors under numbers of its own.
        redirect = f'exec "$@" 3<&{command_out} 4>&{answer_in}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", executable, *ARGUMENTS, f"--user-data-dir={folder}"],
            pass_fds=(command_out, answer_in),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_out)
        os.close(answer_in)
        self._buffer = b""
        self._last_id = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; what else arrives meanwhile goes to ``events``."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next_message())["id"] != self._last_id:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _next_message(self) -> dict[str, Any]:
        """The next answer; events before it are kept."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            while b"\0" not in self._buffer:
                ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
                assert ready, f"Chromium said nothing for {TIMEOUT_S} s"
                chunk = os.read(self._answers, 1 << 20)
                assert chunk, "Chromium ended"
                self._buffer += chunk
            raw, _, self._buffer = self._buffer.partition(b"\0")
            message: dict[str, Any] = json.loads(raw)
            if "id" in message:
                return message
            self.events.append(message)

    def close(self) -> None:
        self.call("Browser.close")
        self._process.wait(TIMEOUT_S)
        os.close(self._commands)
        os.close(self._answers)


class Tab:
    """One page in the browser."""

    def __init__(self, chromium: Chromium) -> None:
        self.chromium = chromium
        context = chromium.call("Target.createBrowserContext")["browserContextId"]
        target = chromium.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        attached = chromium.call("Target.attachToTarget", targetId=target, flatten=True)
        self._context = context
        self._session: str = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.chromium.call(method, self._session, **params)

    def open(self, path: Path) -> None:
        self.call("Page.navigate", url=path.as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until a JavaScript expression holds."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"never came true: {expression}"
            time.sleep(0.02)

    def draw_all(self) -> None:
        """Scroll through the page until every chart is drawn as it should stand now."""
        self.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
        self.wait(
            "(() => { const next = document.querySelector('.plot:not([data-drawn=fresh])');"
            " next?.scrollIntoView(); return !next; })()"
        )

    def show(self, plot_id: str) -> None:
        """Scroll to a chart and wait until it is drawn."""
        self.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
        self.evaluate(f"document.getElementById('{plot_id}').scrollIntoView()")
        self.wait(f"document.getElementById('{plot_id}').dataset.drawn === 'fresh'")

    def press(self, key: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=9)

    def resize(self, width: int, height: int = 900) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def prefer(self, scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def _mine(self, *methods: str) -> list[dict[str, Any]]:
        events = self.chromium.events
        return [
            event["params"]
            for event in events
            if event.get("sessionId") == self._session and event["method"] in methods
        ]

    def complaints(self) -> list[dict[str, Any]]:
        """Everything on the console that is not mere information, and every uncaught exception."""
        said = self._mine("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [entry for entry in said if entry.get("type") not in ("log", "info", "debug")]

    def requested_urls(self) -> list[str]:
        return [event["request"]["url"] for event in self._mine("Network.requestWillBeSent")]

    def close(self) -> None:
        self.chromium.call("Target.disposeBrowserContext", browserContextId=self._context)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    executable = next((found for name in CHROMIUM_NAMES if (found := shutil.which(name))), None)
    if executable is None or shutil.which("bash") is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(CHROMIUM_NAMES)})")
    browser = Chromium(executable, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def tab(chromium: Chromium) -> Iterator[Tab]:
    tab = Tab(chromium)
    yield tab
    tab.close()


@pytest.fixture(scope="session")
def write_page(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Renders runs into a file."""
    from pbench.reports.report import render_report

    def make(*runs: Any) -> Path:
        path = tmp_path_factory.mktemp("page") / "report.html"
        with path.open("w", encoding="utf-8") as stream:
            render_report(runs, stream)
        return path

    return make


@pytest.fixture(scope="session")
def page(write_page: Callable[..., Path], two_engines: Any) -> Path:
    """The page of a complete run of two engines."""
    return write_page(two_engines)
