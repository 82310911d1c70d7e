"""What a command logs before there is a file for it."""

import logging
from collections import deque
from collections.abc import Iterable
from logging.handlers import QueueHandler
from queue import SimpleQueue

MOST = 1000
"""Records that are kept, the latest: commands that open no log never ask for them."""


class _EarlyLog(QueueHandler):
    """Keeps records with their text made, so that pickle takes them."""

    def __init__(self, before: Iterable[logging.LogRecord]) -> None:
        super().__init__(SimpleQueue())
        self.records = deque(before, MOST)

    def enqueue(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def keep_early_log(before: Iterable[logging.LogRecord] = ()) -> None:
    """Keep what is logged from here on, after what was logged `before` in another process."""
    logging.getLogger().addHandler(_EarlyLog(before))


def take_early_log() -> list[logging.LogRecord]:
    """What has been kept; from here on nothing is."""
    root = logging.getLogger()
    records: list[logging.LogRecord] = []
    for handler in list(root.handlers):
        if isinstance(handler, _EarlyLog):
            root.removeHandler(handler)
            records += handler.records
    return records
