"""Progress on a terminal as a bar, elsewhere as a plain line now and then."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn

from backbones.common import distributed

Item = TypeVar("Item")

LOG_SECONDS = 30.0
"""Time between plain lines where there is no terminal."""

logger = logging.getLogger(__name__)
_console = Console(stderr=True)


def console_handler() -> logging.Handler:
    """A log handler for stderr that does not break a bar in progress."""
    handler: logging.Handler
    if _console.is_terminal:
        handler = RichHandler(
            console=_console, show_path=False, show_level=False, log_time_format="%H:%M:%S"
        )
        # Without one, logging would put level and module before the message.
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler


def track(
    items: Iterable[Item],
    total: int | None,
    description: str,
    unit: str = "images",
    size: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Item]:
    """Pass the items on while showing how far the work is.

    `total` counts units, of which an item has `size`, as a batch has images; None where it is not
    known.
    """
    done = 0
    with TrainingProgress(description, total, unit=unit) as progress:
        for item in items:
            yield item
            done += size(item)
            progress.update(done, size(item), waited=None, notes="")


class TrainingProgress:
    """Where a run is: images/s, share of time spent waiting for data, remaining time.

    With several processes the main one shows it. Speed and share are of the last few seconds; the
    remaining time is that of the whole run, with evaluations as they have cost so far. `total` are
    the steps of that, where they are known, and `start` those taken before.
    """

    def __init__(
        self, description: str, total: int | None, start: int = 0, unit: str = "images"
    ) -> None:
        self.description, self.total, self.start, self.unit = description, total, start, unit
        self._began = self._shown = time.monotonic()
        self._window_items, self._window_waited = 0, 0.0
        self._bar: Progress | None = None
        if _console.is_terminal and distributed.is_main():
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[line]}", markup=False),
            )
            self._bar = Progress(*columns, console=_console, transient=True)
            self._task = self._bar.add_task(description, total=total, completed=start, line="")

    def __enter__(self) -> "TrainingProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, items: int, waited: float | None, notes: str) -> None:
        """Report so many items; `step` counts those before `start` too.

        `waited` are the seconds spent waiting for data, None where that is not measured.
        """
        now = time.monotonic()
        self._window_items += items
        self._window_waited += waited or 0.0
        since = now - self._shown
        if since < (1.0 if self._bar is not None else LOG_SECONDS) and step != self.total:
            return
        count = f"{step}/{self.total}" if self.total is not None else f"{step}"
        parts = [count, f"{self._window_items / max(since, 1e-9):.1f} {self.unit}/s"]
        if waited is not None:
            parts.append(f"waiting for data {100 * self._window_waited / max(since, 1e-9):.0f} %")
        if notes:
            parts.append(notes)
        if self.total is not None and step > self.start:
            seconds = (now - self._began) / (step - self.start) * (self.total - step)
            parts.append(f"{_clock(seconds)} left")
        line = " · ".join(parts)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, line=line)
        elif distributed.is_main():
            logger.info("%s %s", self.description, line)
        self._shown, self._window_items, self._window_waited = now, 0, 0.0


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
