"""The block map in a browser: the slider moves it, and whatever is pointed at says whose it is."""

from pathlib import Path
from statistics import quantiles
from typing import Any

import pytest

PIXELS = "document.getElementById('map-e{}').toDataURL()"
READ = "document.getElementById('map-e{}-read').textContent"


@pytest.fixture
def shown(page: Path, tab: Any) -> Any:
    tab.open(page)
    tab.show("block-map")
    return tab


def test_the_slider_moves_every_picture_and_says_the_time(shown: Any) -> None:
    seen = set()
    for position in (0, 9, 30):
        shown.move_slider(position)
        seen.add((shown.evaluate(PIXELS.format(0)), shown.evaluate(PIXELS.format(1))))
        assert shown.evaluate("document.getElementById('map-clock').textContent") in shown.evaluate(
            "document.getElementById('map-time').getAttribute('aria-valuetext')"
        )
    assert len({paged for paged, _ in seen}) == len({contiguous for _, contiguous in seen}) == 3


def test_a_move_of_the_slider_takes_less_than_a_tenth_of_a_second(shown: Any) -> None:
    shown.move_slider(0)
    # Nine moves of ten: what others do on this machine is not the page's.
    assert quantiles((shown.move_slider(position) for position in range(1, 30)), n=10)[-1] < 100


def test_play_runs_through_the_moments_and_pause_stops_it(shown: Any) -> None:
    shown.move_slider(0)
    button = shown.page.get_by_role("button", name="Play")
    button.click()
    shown.wait("document.getElementById('map-time').value > 3")
    shown.page.get_by_role("button", name="Pause").click()
    value = shown.evaluate("document.getElementById('map-time').value")
    shown.page.wait_for_timeout(300)
    assert shown.evaluate("document.getElementById('map-time').value") == value


def test_the_pointer_names_the_request_and_dims_all_others_in_every_picture(shown: Any) -> None:
    before = [shown.evaluate(PIXELS.format(index)) for index in range(2)]
    shown.page.locator("#map-e1").hover(position={"x": 5, "y": 5})
    assert "request" in shown.evaluate(READ.format(1))
    assert "Slots 0 to 2\u202f047" in shown.evaluate(READ.format(1))
    assert [shown.evaluate(PIXELS.format(index)) for index in range(2)] != before
    shown.page.locator("#map-e0").hover(position={"x": 5, "y": 5})
    assert "Block 0: request" in shown.evaluate(READ.format(0))
    assert "sequences share it" in shown.evaluate(READ.format(0))
    shown.page.mouse.move(0, 0)
    assert [shown.evaluate(PIXELS.format(index)) for index in range(2)] == before


def test_the_arrow_keys_go_from_block_to_block_and_from_extent_to_extent(shown: Any) -> None:
    shown.page.locator("#map-e0").focus()
    for expected in ("Block 1:", "Block 2:"):
        shown.page.keyboard.press("ArrowRight")
        assert shown.evaluate(READ.format(0)).startswith(expected)
    shown.page.keyboard.press("End")
    assert shown.evaluate(READ.format(0)).startswith("Block 1\u202f023:")
    shown.page.locator("#map-e1").focus()
    shown.page.keyboard.press("ArrowRight")
    assert shown.evaluate(READ.format(1)).startswith("Slots 2\u202f048 to 4\u202f095: request")


def test_the_picture_can_be_saved(shown: Any, tmp_path: Path) -> None:
    with shown.page.expect_download() as download:
        shown.page.get_by_role("button", name="Save the pool of paged as PNG").click()
    download.value.save_as(tmp_path / "saved.png")
    assert download.value.suggested_filename == "pbench-map-e0.png"
    assert (tmp_path / "saved.png").read_bytes().startswith(b"\x89PNG")


def test_the_map_changes_with_the_theme_and_back(shown: Any) -> None:
    light = shown.evaluate(PIXELS.format(0))
    shown.evaluate("document.querySelector('#theme [value=dark]').click()")
    assert shown.evaluate(PIXELS.format(0)) != light
    shown.evaluate("document.querySelector('#theme [value=light]').click()")
    assert shown.evaluate(PIXELS.format(0)) == light
    assert shown.complaints() == []
