"""Ending a run when a scheduler or the user asks for it, at a moment that loses nothing."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from backbones.common import distributed


class StopSignals:
    """While entered, SIGTERM or Ctrl-C is noted in `received`; a second Ctrl-C acts at once.

    Only the main thread can receive signals; elsewhere this does nothing. The message names the
    unit of work that is to be finished; with `exits` a second Ctrl-C ends the process then and
    there, see `ctrl_c_twice_exits`.
    """

    received: signal.Signals | None = None
    _since = 0.0

    def __init__(self, unit: str = "step", exits: bool = False) -> None:
        self._unit, self._exits = unit, exits

    def __enter__(self) -> "StopSignals":
        self._former = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Not so a second SIGTERM, nor a Ctrl-C right after the first: `timeout` and some schedulers
        # signal the process and then its group, and the step under way is to be finished.
        again = number == self.received == signal.SIGINT and time.monotonic() - self._since > 1
        self.received, self._since = signal.Signals(number), time.monotonic()
        if not again and distributed.is_main():
            # Not by logging, which may be what was interrupted.
            text = f"\nstopping after this {self._unit}; Ctrl-C again stops at once\n"
            os.write(2, text.encode())
        if again and self._exits:
            _exit()
        if again:
            self.leave()

    def leave(self) -> None:
        """End as the received signal asks: KeyboardInterrupt, or exit code 143."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def ctrl_c_twice_exits() -> Iterator[None]:
    """Until the block ends, Ctrl-C raises KeyboardInterrupt, and another one ends the process.

    Python would raise a second one while it waits for threads that are in C++ code, and these abort
    with a message of their own when Python is gone. After a first one this stays in force.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # a program in the background is deaf to it
        return
    since: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        since.append(time.monotonic())
        if len(since) == 1:
            raise KeyboardInterrupt
        if since[-1] > since[0] + 1:  # see `StopSignals`
            _exit()

    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        if in_main and not since:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit() -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)


def ignore_stop_signals(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which a shell or scheduler sends to the whole group of processes,
    to the main process: it finishes its step, writes a checkpoint and then ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
