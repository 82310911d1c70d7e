import io
import itertools
import logging
import re

import pytest
from rich.console import Console

from backbones.common import progress
from backbones.common.progress import console_handler, track

BATCHES = [["a", "b", "c"], ["d", "e"], ["f"]]


@pytest.fixture
def terminal(monkeypatch):
    """What a terminal on stderr is sent."""
    sent = io.StringIO()
    console = Console(file=sent, force_terminal=True, width=100, _environ={})
    monkeypatch.setattr(progress, "_console", console)
    return sent


def test_without_a_terminal_the_end_is_one_line(caplog):
    with caplog.at_level(logging.INFO):
        assert list(track(BATCHES, 6, "evaluate", size=len)) == BATCHES
        assert list(track(BATCHES, 3, "read", "files")) == BATCHES
    first, second = caplog.messages
    assert re.fullmatch(r"evaluate 6/6 · \d+\.\d images/s · 0:00:00 left", first)
    assert re.fullmatch(r"read 3/3 · \d+\.\d files/s · 0:00:00 left", second)


def test_on_a_terminal_a_bar_grows(terminal, monkeypatch):
    seconds = itertools.count()
    monkeypatch.setattr("backbones.common.progress.time.monotonic", lambda: float(next(seconds)))
    list(track(BATCHES, 6, "evaluate", size=len))
    shown = terminal.getvalue()
    for part in ("evaluate", "━", "6/6 · 1.0 images/s · 0:00:00 left"):
        assert part in shown


def test_a_log_line_on_a_terminal_is_time_and_message(terminal):
    handler = console_handler()
    # logging.basicConfig would set one that puts level and module in front.
    assert handler.formatter is not None
    handler.emit(logging.LogRecord("a.module", logging.INFO, "", 0, "[b] %d images", (3,), None))
    plain = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())
    assert re.fullmatch(r"\d\d:\d\d:\d\d \[b\] 3 images\s*", plain)
