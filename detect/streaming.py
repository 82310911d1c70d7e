"""Images through a detector, on the CPU several batches at a time.

The convolutions of a network use all cores, what is between them one: crops, suppression, the
arithmetic of boxes. A batch for each core leaves none idle.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from threading import Barrier, Lock, Thread
from typing import TypeVar, cast

import torch
from torch import Tensor

Item = TypeVar("Item")
Key = TypeVar("Key")
Result = TypeVar("Result")

_LIMITING = Lock()


def work_through(
    images: Iterable[tuple[Key, Tensor]],
    work: Callable[[list[tuple[Key, Tensor]]], Result],
    device: torch.device,
    count: int | None = None,
) -> Generator[Result, None, None]:
    """What is made of images, batch by batch in their order, while the next ones are read.

    Some batches for each thread are in memory. An exception comes out in its place, after the
    results of the batches before it.

    Args:
        images: `uint8 [3, H, W]`, each with something that names it; taken in one thread.
        work: of a batch; called in several threads.
        device: where it computes. A GPU gets one batch at a time.
        count: how many images there are, where it is known; they are then shared evenly.
    """
    workers = worker_count(device, count)
    batches = image_batches(images, batch_size(workers, count), PIXELS_PER_BATCH)
    with closing(prefetch(batches, depth=1)) as read:
        yield from in_threads(work, read, workers)


def worker_count(device: torch.device, count: int | None = None) -> int:
    """Threads to detect in: as many as torch computes in on a CPU, but no more than images."""
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    return cores if count is None else max(1, min(cores, count))


def batch_size(workers: int, count: int | None = None) -> int:
    """Images of a batch: as many as may be without giving the busiest thread more of them."""
    if not count:
        return IMAGES_PER_BATCH

    def of_busiest(size: int) -> int:
        before, batches = divmod(math.ceil(count / size) - 1, workers)
        # Of the last round, which begins with the first thread's batch.
        last = count - before * workers * size if batches == 0 else size
        return before * size + last

    most = min(IMAGES_PER_BATCH, math.ceil(count / workers))
    return min(range(most, 0, -1), key=of_busiest)


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


def busy_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """For how long at least one of some things was going on, each from a time to another."""
    total, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


@contextmanager
def _torch_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads among which torch's are divided, all of which have begun.

    In all others torch is as it was.
    """
    each = max(1, torch.get_num_threads() // workers)
    begun = Barrier(workers + 1)

    def begin() -> None:
        try:
            _limit_torch(each)
        except BaseException:
            begun.abort()
            raise

    with ThreadPoolExecutor(workers, "detect", begin) as pool:
        try:
            for _ in range(workers):
                pool.submit(begun.wait)
            begun.wait()
            yield pool
        finally:
            begun.abort()


def _limit_torch(threads: int) -> None:
    """Let torch compute in so many threads when the calling thread asks.

    `torch.set_num_threads` also sets the number that threads begin with which never asked; it is
    set back at once, so that only one that asks first at this very moment gets it.
    """
    with _LIMITING:
        default = _in_new_thread(torch.get_num_threads)
        torch.get_num_threads()  # now it has asked
        torch.set_num_threads(threads)
        _in_new_thread(lambda: torch.set_num_threads(default))


def _in_new_thread(function: Callable[[], Result]) -> Result:
    results: list[Result] = []
    thread = Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


IMAGES_PER_BATCH = 8


PIXELS_PER_BATCH = 2**24
"""Of the images that a detector is given at once; they bound memory."""


def prefetch(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """Take items in a thread of its own, ahead of their use.

    An exception among the items comes out in its place, after those before it. When the caller is
    done early, the thread ends after the item that it is at.

    Args:
        items: what to take; touched by that thread alone.
        depth: items that wait at most, which bounds memory.
    """
    source, end = iter(items), object()
    pool = ThreadPoolExecutor(1, "prefetch")
    # Those that wait, and the one that the thread is at.
    ahead = deque(pool.submit(next, source, end) for _ in range(depth + 1))
    try:
        while (item := ahead.popleft().result()) is not end:
            ahead.append(pool.submit(next, source, end))
            yield cast(Item, item)
    finally:
        pool.shutdown(cancel_futures=True)


def image_batches(
    images: Iterable[tuple[Key, Tensor]], max_images: int, max_pixels: int
) -> Iterator[list[tuple[Key, Tensor]]]:
    """Group images `uint8 [3, H, W]` in their order, each with something that names it.

    An exception among the images comes out after a batch of those before it.

    Args:
        images: what to group.
        max_images: in a batch.
        max_pixels: in a batch of more than one image, all padded to the largest height and width.
    """
    batch: list[tuple[Key, Tensor]] = []
    height, width = 0, 0
    rest = iter(images)
    while True:
        try:
            key, image = next(rest)
        except StopIteration:
            break
        except BaseException:
            if batch:
                yield batch
            raise
        height, width = max(height, image.shape[1]), max(width, image.shape[2])
        is_full = len(batch) == max_images or (len(batch) + 1) * height * width > max_pixels
        if batch and is_full:
            yield batch
            batch = []
            _, height, width = image.shape
        batch.append((key, image))
    if batch:
        yield batch
