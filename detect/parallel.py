"""Images through a detector, on the CPU several batches at a time.

The convolutions of a network use all cores, what is between them one: crops, suppression, the
arithmetic of boxes. A batch for each core, all of whose work is done there, leaves none idle.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from detect.pipeline import IMAGES_PER_BATCH, PIXELS_PER_BATCH, image_batches, prefetch

Item = TypeVar("Item")
Key = TypeVar("Key")
Result = TypeVar("Result")


def work_through(
    images: Iterable[tuple[Key, Tensor]],
    work: Callable[[list[tuple[Key, Tensor]]], Result],
    device: torch.device,
    count: int | None = None,
) -> Generator[Result, None, None]:
    """What is made of images, batch by batch in their order, while the next ones are read.

    An exception comes out in its place, after the results of the batches before it.

    Args:
        images: `uint8 [3, H, W]`, each with something that names it; taken in one thread.
        work: of a batch; called in several threads.
        device: where it computes. A GPU gets one batch at a time.
        count: how many images there are, where it is known; few are then shared evenly.
    """
    workers = worker_count(device, count)
    batches = image_batches(images, batch_size(workers, count), PIXELS_PER_BATCH)
    return in_threads(work, prefetch(batches, depth=workers), workers)


def worker_count(device: torch.device, count: int | None = None) -> int:
    """Threads to detect in: as many as torch computes in on a CPU, but no more than images."""
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    return cores if count is None else max(1, min(cores, count))


def batch_size(workers: int, count: int | None = None) -> int:
    """Images of a batch, fewer where there would not be one for each thread."""
    if count is None:
        return IMAGES_PER_BATCH
    return max(1, min(IMAGES_PER_BATCH, math.ceil(count / workers)))


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Results in the order of the items, worked on in several threads.

    torch's threads are divided among them. An exception comes out in its place; when the caller is
    done early, the items that are being worked on are the last.

    Args:
        work: what to do with an item.
        items: taken by the caller's thread, a few ahead of their use, which bounds memory.
        workers: how many threads.
    """
    waiting: deque[Future[Result]] = deque()
    error: Exception | None = None
    source = iter(items)
    with _torch_pool(workers) as pool:
        try:
            while error is None:
                try:
                    waiting.append(pool.submit(work, next(source)))
                except StopIteration:
                    break
                except Exception as of_source:
                    error = of_source
                # One at work and one in reserve for each.
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
            if error is not None:
                raise error
        finally:
            for future in waiting:
                future.cancel()


def _torch_pool(workers: int) -> ThreadPoolExecutor:
    """A pool of threads among which torch's are divided; in all others torch has as many as before.

    torch has a number for each thread that has asked for it, and one that the others begin with.
    """
    threads = torch.get_num_threads()
    each = max(1, threads // workers)

    def begin() -> None:
        torch.get_num_threads()
        torch.set_num_threads(each)

    pool = ThreadPoolExecutor(workers, "detect", begin)
    # None of them is free before all have begun.
    begun = Barrier(workers + 1)
    for _ in range(workers):
        pool.submit(begun.wait)
    begun.wait()
    torch.set_num_threads(threads)
    return pool
