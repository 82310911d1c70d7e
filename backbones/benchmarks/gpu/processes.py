"""Functions in processes of their own, which may die or take too long, and lose nothing by it."""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from backbones.common.cli import prepare_process

Turn = Callable[[], Iterable[Any]]

END = object
"""Class that stands for the end of a turn: pickle finds it again as itself."""

GRACE = 15.0
"""Seconds between being asked to end and being killed."""


class TurnError(RuntimeError):
    """A turn failed; its traceback is in the notes."""


class OwnProcess:
    """A new process that takes one turn each time that it is told to begin.

    It imports what it needs at once, so that a process made early begins without delay. It is
    killed with the processes that it started. The turns, which yield what is to be sent here, are
    pickled together: what they share is shared there too.
    """

    def __init__(self, *turns: Turn) -> None:
        # Without a GPU a copy of this process will do, which begins at once.
        context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
        self._pipe, theirs = context.Pipe()
        # A process of such a process stays in that one's group.
        self._leads = multiprocessing.parent_process() is None
        self._process = context.Process(target=_take_turns, args=(theirs, turns, self._leads))
        self._process.start()
        theirs.close()

    def begin(self) -> "OwnProcess":
        """Tell it to take one turn more, after those that it was told before."""
        with suppress(OSError):  # it died, as `values` will say
            self._pipe.send(None)
        return self

    def values(self, seconds: float) -> Iterator[Any]:
        """What the next turn yields, as it comes.

        After so many seconds the process is asked to end by SIGTERM, and killed a little later.

        Raises:
            TurnError: the turn raised something, or the process died or took too long.
        """
        if self._pipe.closed:
            raise TurnError("not done: its process had ended before")
        until, is_late = time.monotonic() + seconds, False
        while True:
            if not self._pipe.poll(max(until - time.monotonic(), 0)):
                if is_late:
                    self.close()
                    raise TurnError(f"took more than {seconds:.0f} seconds and was killed")
                self._process.terminate()
                until, is_late = time.monotonic() + GRACE, True
                continue
            try:
                message = self._pipe.recv()
            except (EOFError, ConnectionResetError) as error:
                self.close()
                how = f"took more than {seconds:.0f} seconds" if is_late else "its process died"
                raise TurnError(f"{how} (exit code {self._process.exitcode})") from error
            if message is END:
                return
            if isinstance(message, TurnError):
                raise message
            yield message

    def close(self) -> None:
        """End it, and all that it started."""
        self._pipe.close()
        self._process.join(1)
        if self._leads:
            with suppress(ProcessLookupError):  # none of them is left
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()


def _take_turns(pipe: Connection, turns: tuple[Turn, ...], leads: bool) -> None:
    if leads:
        os.setpgid(0, 0)
    if torch.cuda.is_available():
        prepare_process()
    else:
        torch.set_num_threads(1)  # the others were not copied
    for turn in turns:
        try:
            pipe.recv()
        except EOFError:
            return
        try:
            for value in turn():
                pipe.send(value)
            pipe.send(END)
        except Exception as error:
            failure = TurnError(f"{type(error).__name__}: {error}")
            failure.add_note(traceback.format_exc())
            pipe.send(failure)
            # After an error of the device all that follows in this process fails too.
            if isinstance(error, torch.AcceleratorError):
                os._exit(1)
