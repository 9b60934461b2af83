"""Tables keep their figures wherever they are printed."""

import io

import pytest

from pbench.console import LOG_WIDTH, console_for


def test_a_log_is_wide_whatever_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console_for(io.StringIO()).width == LOG_WIDTH


def test_who_says_how_wide_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "97")
    assert console_for(io.StringIO()).width == 97
