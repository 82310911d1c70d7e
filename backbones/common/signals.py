"""Ending a run when a scheduler or the user asks for it, at a moment that loses nothing."""

import os
import signal
import threading
import time
from types import FrameType

from backbones.common import distributed


class StopSignals:
    """While entered, SIGTERM or Ctrl-C is noted in `received`; a second Ctrl-C acts at once.

    Only the main thread can receive signals; elsewhere this does nothing.
    """

    received: signal.Signals | None = None
    _since = 0.0

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
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
        if again:
            self.leave()

    def leave(self) -> None:
        """End as the received signal asks: KeyboardInterrupt, or exit code 143."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)


def ignore_stop_signals(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which a shell or scheduler sends to the whole group of processes,
    to the main process: it finishes its step, writes a checkpoint and then ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
