"""Stages of work that overlap: what one thread reads, another detects in and a third draws."""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

from torch import Tensor

IMAGES_PER_BATCH = 8
PIXELS_PER_BATCH = 2**24
"""Of the images that a detector is given at once; they bound memory."""

Item = TypeVar("Item")
Key = TypeVar("Key")


def prefetch(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """Take items in a thread of its own, ahead of their use.

    An exception among the items comes out in its place, after those before it. When the caller is
    done early, the thread ends after the item that it is at.

    Args:
        items: what to take; touched by that thread alone.
        depth: items that wait at most, which bounds memory.
    """
    waiting: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    done = threading.Event()

    def offer(item: Item | None, error: BaseException | None) -> None:
        while not done.is_set():
            try:
                waiting.put((item, error), timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                offer(item, None)
                if done.is_set():
                    return
        except BaseException as error:  # raised again where the items are used
            offer(None, error)
        else:
            offer(None, StopIteration())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert item is not None
            yield item
    finally:
        done.set()
        thread.join()


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
