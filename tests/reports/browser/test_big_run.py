"""The page about a long run in a browser: it comes at once, and the slider follows the hand."""

from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from typing import Any

MOVE = (
    "(() => {{ const slider = document.getElementById('map-time'); const begin = performance.now();"
    " slider.value = {}; slider.dispatchEvent(new Event('input')); return performance.now() - begin; }})()"
)


def test_it_paints_within_two_seconds_and_the_slider_moves_within_a_tenth(
    big_run: Any, write_page: Callable[..., Path], tab: Any, tmp_path: Path
) -> None:
    tab.open(write_page(big_run.write_big_run(tmp_path / "big", num_steps=50_000, num_requests=5_000)))
    tab.wait("performance.getEntriesByName('first-contentful-paint').length")
    assert tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") < 2000
    tab.show("block-map")
    # The quicker moves: what others do on this machine is not the page's.
    assert quantiles((tab.evaluate(MOVE.format(position)) for position in range(1, 41)), n=4)[0] < 100
    assert tab.complaints() == []
