import itertools
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detect.streaming import image_batches, prefetch


def test_items_come_in_order_from_another_thread():
    threads = set()

    def items():
        for i in range(50):
            threads.add(threading.get_ident())
            yield i

    assert list(prefetch(items(), 3)) == list(range(50))
    assert threading.get_ident() not in threads


def test_work_overlaps():
    """Each side waits for the other to be at work: one after the other they would never meet."""
    meeting = threading.Barrier(2)

    def items():
        for i in range(3):
            yield i
            meeting.wait(timeout=10)

    for _ in prefetch(items(), 1):
        meeting.wait(timeout=10)


def test_no_more_is_taken_than_can_wait():
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    stream = prefetch(items(), 2)
    assert next(stream) == 0
    time.sleep(0.3)
    # One is used, two wait, one is in the hand of the thread.
    assert len(taken) == 4
    stream.close()


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_an_exception_comes_after_the_items_before_it(error):
    def items():
        yield 1
        yield 2
        raise error

    seen = []
    with pytest.raises(type(error)):
        seen.extend(prefetch(items(), 1))
    assert seen == [1, 2]


def test_leaving_early_ends_the_thread_and_what_it_takes_from():
    closed = threading.Event()

    def items():
        try:
            yield from range(1000)
        finally:
            closed.set()

    before = threading.active_count()
    for item in prefetch(prefetch(items(), 1), 1):
        if item == 3:
            break
    assert closed.wait(timeout=5)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def empty(height: int, width: int) -> torch.Tensor:
    return torch.empty(3, height, width, dtype=torch.uint8)


def padded(batch) -> int:
    """Pixels of the images when all are as high and as wide as any."""
    heights, widths = zip(*(image.shape[1:] for _, image in batch), strict=True)
    return len(batch) * max(heights) * max(widths)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9))),
    st.integers(1, 5),
    st.integers(1, 100),
)
def test_batches_hold_all_images_in_order_and_no_more_than_allowed(sizes, max_images, max_pixels):
    named = [(i, empty(*size)) for i, size in enumerate(sizes)]
    batches = list(image_batches(named, max_images, max_pixels))
    assert [key for batch in batches for key, _ in batch] == list(range(len(sizes)))
    for batch in batches:
        assert 1 <= len(batch) <= max_images
        assert padded(batch) <= max_pixels or len(batch) == 1
    # As large as they may be: the next image would not have fitted.
    for batch, after in itertools.pairwise(batches):
        assert len(batch) == max_images or padded([*batch, after[0]]) > max_pixels


def test_images_before_an_error_are_not_lost():
    def images():
        yield "a", empty(2, 2)
        raise ValueError("broken")

    batches = image_batches(images(), 8, 1000)
    assert [key for key, _ in next(batches)] == ["a"]
    with pytest.raises(ValueError, match="broken"):
        next(batches)
