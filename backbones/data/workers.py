"""Processes that read images for the main one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import cv2
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from backbones.common.errors import UserError
from backbones.common.signals import ignore_stop_signals
from backbones.data.handover import sendable


class WorkerLoader(DataLoader):
    """A `DataLoader` whose workers leave stop signals to the main process, and end with it, and
    whose batches come whatever room there is for them in shared memory.

    torch ends workers when their iterator is no longer used, which after an error it still is, in
    the traceback. multiprocessing then asks them to stop, by a signal that they ignore, and waits.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"worker_init_fn": start_worker}))
        self.collate_fn = sendable(self.collate_fn)

    def __iter__(self) -> _BaseDataLoaderIter:
        iterator = super().__iter__()
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            # With a priority it is called before multiprocessing waits.
            Finalize(iterator, _kill, (iterator._workers,), exitpriority=0)
        return iterator


@contextmanager
def lost_workers_are_errors() -> Iterator[None]:
    """Turn what torch raises, at any place of the main process, when a loader's worker was killed
    into a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        # Where it is found out later, torch names those that are gone.
        if not (text.startswith("DataLoader worker") and ("killed" in text or "exited" in text)):
            raise
        raise UserError(
            f"a process that reads images was ended ({text.partition(chr(10))[0]}), as it happens "
            "where memory runs out: lower workers; a training run goes on with --resume"
        ) from error


def start_worker(worker: int) -> None:
    """To be called first in a loader's worker: one process for one core, stopped by its parent."""
    ignore_stop_signals(worker)
    cv2.setNumThreads(0)


def _kill(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()
