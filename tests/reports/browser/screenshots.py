"""Pictures of a page: its top in light and in dark, and as a phone shows it. For the README, and to be looked at.

    python tests/reports/browser/screenshots.py PAGE FOLDER [SECTION ...]

writes report.png, report-dark.png and report-phone.png, and of each named section (its id) report-SECTION.png.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
VIEWS = (("report", 1180, "light"), ("report-dark", 1180, "dark"), ("report-phone", 390, "light"))
HEIGHT = 900
DRAWING_S = 2.0  # what is in the window is drawn by then


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description="Take pictures of a page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sections", nargs="*")
    arguments = parser.parse_args()
    executable = next((found for name in NAMES if (found := shutil.which(name))), None)
    if executable is None:
        parser.error(f"no Chromium on this machine (looked for {', '.join(NAMES)}): apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--disable-gpu"], chromium_sandbox=False)
        for name, width, scheme in VIEWS:
            tab = _open(browser, arguments.page, width, scheme)
            tab.screenshot(path=arguments.folder / f"{name}.png")
            tab.close()
        for section in arguments.sections:
            tab = _open(browser, arguments.page, VIEWS[0][1], "light")
            element = tab.locator(f"#{section}")
            element.scroll_into_view_if_needed()
            time.sleep(DRAWING_S)
            element.screenshot(path=arguments.folder / f"report-{section}.png")
            tab.close()
        browser.close()


def _open(browser: Any, page: Path, width: int, scheme: str) -> Any:
    tab = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
    tab.goto(page.resolve().as_uri())
    time.sleep(DRAWING_S)
    return tab


if __name__ == "__main__":
    main()
