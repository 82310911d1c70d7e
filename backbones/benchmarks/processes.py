"""Functions in processes of their own, which may die or take too long."""

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch


class OwnProcess:
    """A function that runs in a new process from now on.

    Args:
        function: found by its name in its module.
        arguments: for it, that pickle takes.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        # Without a GPU a copy of this process will do, which begins at once.
        context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
        self._receiver, sender = context.Pipe(duplex=False)
        self._name = function.__name__
        self._process = context.Process(target=_call, args=(sender, function, arguments))
        self._process.start()
        sender.close()

    def result(self, seconds: float) -> Any:
        """What it returned; it is asked to end after so many seconds, and killed 10 later.

        Raises:
            RuntimeError: it raised something, died, or took too long; has its traceback.
        """
        try:
            late = not self._receiver.poll(max(seconds, 0))
            if late:
                self._process.terminate()
                if not self._receiver.poll(10):
                    raise RuntimeError(f"{self._name} took more than {seconds:.0f} seconds")
            failure, value = self._receiver.recv()
        except EOFError as error:
            how = "was stopped" if late else "died"
            raise RuntimeError(f"{self._name}: its process {how}") from error
        finally:
            self._process.join(10)
            if self._process.is_alive():
                self._process.kill()
        if failure is not None:
            raise RuntimeError(failure)
        return value


def _call(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # the others were not copied
    try:
        sender.send((None, function(*arguments)))
    except BaseException as error:
        sender.send((f"{type(error).__name__}: {error}\n{traceback.format_exc()}", None))
        if not isinstance(error, Exception):
            raise
