import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pbench.comparison.engines import format_ratio, print_comparison
from pbench.live import BAR_WIDTH, LineView, TerminalView, view_for, widths
from pbench.results import EngineResult, RunResult

PROGRESS: dict[str, Any] = {
    "event": "progress",
    "elapsed_ns": 2_000_000_000,
    "num_finished": 12,
    "num_output_tokens": 2468,
    "num_running": 23,
    "num_waiting": 41,
    "token_state": 50,
    "reserved": 10,
    "internal": 0,
    "external": 20,
    "cached": 5,
    "free": 15,
}


@given(parts=st.lists(st.integers(0, 10**12), min_size=1, max_size=8), width=st.integers(1, 200))
def test_cells_sum_to_the_width_and_stay_within_one_of_their_share(parts: list[int], width: int) -> None:
    cells = widths(parts, width)
    if sum(parts) == 0:
        assert cells == [0] * len(parts)
        return
    assert sum(cells) == width
    for part, count in zip(parts, cells, strict=True):
        assert abs(count - part * width / sum(parts)) < 1


def test_lines_come_at_stages_and_at_intervals_only() -> None:
    now_s = 100.0
    lines: list[str] = []
    view = LineView(lines.append, clock_s=lambda: now_s)
    view.begin("paged", 96)
    view.show({"event": "stage", "stage": "loading"})
    for _ in range(100):
        now_s += 0.1
        view.show(None if lines else PROGRESS)
    assert lines == ["paged: loading, 0 s", "paged: loading, 3 s", "paged: loading, 6 s", "paged: loading, 9 s"]
    view.show(PROGRESS)
    view.end("complete")
    assert lines[-1] == "paged: 12/96 requests, 1,234 tok/s, 23 running, 41 waiting, 2.0 s: complete"


def test_the_terminal_shows_progress_and_the_pool_and_leaves_one_line() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None, legacy_windows=False)
    view = TerminalView(console)
    view.begin("pa[red]ged\x1b[2J", 96)
    view.show(PROGRESS)
    shown = stream.getvalue()
    assert "pa[red]ged\\x1b[2J: 12/96 requests, 1,234 tok/s" in shown
    for label in ("token states 50 %", "reserved 10 %", "external 20 %", "cached 5 %", "free 15 %"):
        assert label in shown
    assert "internal" not in shown
    bar = next(line for line in shown.splitlines() if line.startswith("  pool"))
    assert sum(bar.count(mark) for mark in "█▓▒░▚·") == BAR_WIDTH
    view.end("failed")
    assert stream.getvalue().rstrip().endswith("2.0 s: failed")


def test_a_file_gets_plain_lines() -> None:
    assert isinstance(view_for(Console(file=io.StringIO())), LineView)
    assert isinstance(view_for(Console(file=io.StringIO(), force_terminal=True)), TerminalView)


def result(*engines: EngineResult) -> RunResult:
    return RunResult("id", "2026-01-01", "complete", (), {}, {}, {}, engines)


def printed(run: RunResult, width: int = 140) -> str:
    stream = io.StringIO()
    print_comparison(run, Console(file=stream, width=width))
    return stream.getvalue()


def test_engines_stand_side_by_side_with_the_first_over_the_others() -> None:
    paged = EngineResult("paged", "complete", summary={"output_tokens_per_s": 3000.0, "waste_pct": 2.0})
    contiguous = EngineResult("contiguous:max", "complete", summary={"output_tokens_per_s": 1000.0, "waste_pct": None})
    lines = printed(result(paged, contiguous)).splitlines()
    rate = next(line for line in lines if line.startswith("output tokens/s"))
    assert [cell.strip() for cell in rate.split("│")] == ["output tokens/s", "3,000 tok/s", "1,000 tok/s", "3.00x"]
    waste = next(line for line in lines if line.startswith("waste"))
    assert [cell.strip() for cell in waste.split("│")] == ["waste", "2 %", "-", "-"]
    assert not any(line.startswith("TTFT") for line in lines)  # measured by none


def test_five_engines_fit_eighty_columns() -> None:
    specs = ("paged", "contiguous:max", "contiguous:pow2", "contiguous:oracle", "static")
    summaries = ({"output_tokens_per_s": 1000.0 * (5 - index)} for index in range(5))
    engines = (EngineResult(spec, "complete", summary=summary) for spec, summary in zip(specs, summaries, strict=True))
    text = printed(result(*engines), width=80)
    assert "…" not in text
    assert "output tokens/s of paged: 1.25x contiguous:max, 1.67x contiguous:pow2, 2.50x contiguous:oracle" in text


def test_reasons_and_notes_are_printed_as_text() -> None:
    hostile = "[bold]boom[/bold] \x1b[31m\u202e"
    text = printed(
        result(
            EngineResult("paged", "failed", reason=hostile, notes=("both", "one [link=x]")),
            EngineResult("contiguous:max", "complete", notes=("both",)),
        )
    )
    assert "paged failed: [bold]boom[/bold] \\x1b[31m\\u202e" in text
    assert "note: both\n" in text
    assert "note (paged): one [link=x]" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("first", "other", "text"),
    [
        (3.0, 1.0, "3.00x"),
        (123.4, 10.0, "12.3x"),
        (0.0005, 1.0, "0.0005x"),
        (0, 2, "0x"),
        (None, 1.0, "-"),
        (1.0, None, "-"),
        (1.0, 0, "-"),
    ],
)
def test_ratios(first: float | None, other: float | None, text: str) -> None:
    assert format_ratio(first, other) == text
