import copy
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers.untrained_detector import save_untrained
from hypothesis import given
from hypothesis import strategies as st

from backbones.common.errors import ImageError, UserError
from backbones.common.images import write_image
from detect.checkpoint import load_detector
from detect.data import make_digits
from detect.data.open import DatasetConfig, build_dataset
from detect.detector import Detector
from detect.inference.score import detect_dataset
from detect.streaming import batch_size, busy_seconds, in_threads, work_through, worker_count

CPU = torch.device("cpu")


@pytest.fixture
def four_threads(threads_of_torch):
    torch.set_num_threads(4)


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Detector:
    path = tmp_path_factory.mktemp("detector") / "x.safetensors"
    detector = load_detector(save_untrained(path, 10), "cpu")
    detector.metadata["metrics"] = {"score_thresh": 0.0}
    return detector


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def wait_briefly(item):
    time.sleep(random.uniform(0, 0.01))
    return item


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_results_come_in_order(workers, count):
    assert list(in_threads(wait_briefly, range(count), workers)) == list(range(count))


def threads_of_torch(_=None):
    torch.ones(100, 100) @ torch.ones(100, 100)
    return torch.get_num_threads()


def in_another_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.mark.parametrize(("workers", "each"), [(1, 4), (2, 2), (3, 1), (4, 1), (7, 1)])
def test_threads_of_torch_are_divided_and_elsewhere_as_before(four_threads, workers, each):
    results = in_threads(threads_of_torch, range(10), workers)
    seen = [next(results)]
    assert (threads_of_torch(), in_another_thread(threads_of_torch)) == (4, 4)
    assert seen + list(results) == [each] * 10
    assert (threads_of_torch(), in_another_thread(threads_of_torch)) == (4, 4)


def test_a_caller_with_fewer_threads_leaves_the_others_theirs(four_threads):
    def nested(_):
        return list(in_threads(threads_of_torch, range(3), 1))

    assert list(in_threads(nested, range(4), 2)) == [[2] * 3] * 4
    assert in_another_thread(threads_of_torch) == 4


@pytest.mark.parametrize("error", [RuntimeError("no thread"), KeyboardInterrupt()])
def test_threads_that_cannot_begin_are_no_endless_wait(monkeypatch, error):
    def fail(threads):
        raise error

    monkeypatch.setattr("detect.streaming._limit_torch", fail)
    with pytest.raises(RuntimeError):  # of the barrier or of the pool, whichever is first
        next(in_threads(wait_briefly, range(3), 2))


def test_no_more_is_taken_than_has_a_place():
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    results = in_threads(lambda item: item, items(), 3)
    assert next(results) == 0
    assert len(taken) == 6
    results.close()


def test_an_error_of_the_source_comes_after_the_results_before_it():
    def items():
        yield from range(3)
        raise UserError("broken")

    seen = []
    with pytest.raises(UserError, match="broken"):
        seen.extend(in_threads(wait_briefly, items(), 2))
    assert seen == [0, 1, 2]


def test_an_error_of_the_work_comes_in_its_place():
    def work(item):
        if item == 2:
            raise UserError("broken")
        return wait_briefly(item)

    seen = []
    with pytest.raises(UserError, match="broken"):
        seen.extend(in_threads(work, range(100), 2))
    assert seen == [0, 1]


def test_what_waits_when_the_caller_leaves_is_never_begun():
    begun, go = [], threading.Event()

    def work(item):
        begun.append(item)
        if item > 0:
            go.wait(timeout=10)

    before = set(threading.enumerate())
    results = in_threads(work, range(100), 1)
    next(results)  # now 1 is being worked on, and 2 waits
    wait_until(lambda: len(begun) == 2)
    threading.Timer(1.0, go.set).start()
    results.close()
    assert begun == [0, 1]
    assert set(threading.enumerate()) <= before


def test_a_thread_for_each_of_torch_but_no_more_than_images(four_threads):
    assert worker_count(CPU) == worker_count(CPU, 5) == 4
    assert [worker_count(CPU, count) for count in (0, 1, 3)] == [1, 1, 3]
    assert worker_count(torch.device("cuda")) == 1


@pytest.mark.parametrize(
    ("workers", "count", "size"),
    [(1, 1, 1), (1, 100, 8), (2, 8, 4), (2, 72, 6), (4, 9, 3), (4, 40, 5), (4, 200, 5), (8, 9, 2)],
)
def test_images_are_shared_evenly(workers, count, size):
    assert batch_size(workers, count) == size


@given(st.integers(1, 40), st.integers(1, 2000))
def test_no_batch_size_gives_the_busiest_thread_fewer_images(workers, count):
    def of_busiest(size):
        shares = [0] * workers
        for i, start in enumerate(range(0, count, size)):
            shares[i % workers] += min(size, count - start)
        return max(shares)

    size = batch_size(workers, count)
    assert 1 <= size <= 8
    assert of_busiest(size) == min(map(of_busiest, range(1, 9)))


def test_of_unknown_many_images_batches_are_full():
    assert batch_size(4) == 8


def named(count: int):
    return ((i, torch.zeros(3, 2, 2, dtype=torch.uint8)) for i in range(count))


def test_batches_are_worked_on_at_once(four_threads):
    """One after the other, none would ever meet the other three."""
    meeting = threading.Barrier(4)

    def work(batch):
        meeting.wait(timeout=10)
        return [key for key, _ in batch]

    batches = list(work_through(named(40), work, CPU, 40))
    assert batches == [list(range(start, start + 5)) for start in range(0, 40, 5)]


def test_few_images_are_in_memory(four_threads):
    taken = []

    def images():
        for key, image in named(1000):
            taken.append(key)
            yield key, image

    results = work_through(images(), len, CPU)
    assert next(results) == 8
    time.sleep(0.2)
    # One batch is here, seven are worked on or done, three read: in queue, hand, and making.
    assert 64 <= len(taken) <= 88
    results.close()


def test_an_error_that_is_kept_does_not_keep_the_reading_thread():
    before = set(threading.enumerate())

    def work(batch):
        raise UserError("broken")

    with pytest.raises(UserError, match="broken") as kept:
        list(work_through(named(1000), work, CPU))
    assert set(threading.enumerate()) <= before
    assert kept.value is not None


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], 0.0),
        ([(1, 3)], 2.0),
        ([(4, 6), (1, 3)], 4.0),
        ([(1, 5), (2, 3), (4, 7)], 6.0),
    ],
)
def test_busy_seconds(spans, expected):
    assert busy_seconds(spans) == expected


def test_a_dataset_in_threads_has_the_same_detections(four_threads, tmp_path, detector):
    digits = make_digits(tmp_path / "digits", train=1, val=11, image_size=128)
    dataset = build_dataset(DatasetConfig(format="coco", root=str(digits)), "val")
    alone = [detector(dataset.load_image(index)) for index in range(len(dataset))]
    together = detect_dataset(detector, dataset)
    for found, expected in zip(together.detections, alone, strict=True):
        assert len(found["boxes"]) > 0
        torch.testing.assert_close(found["boxes"], expected["boxes"])
        torch.testing.assert_close(found["scores"], expected["scores"])
    assert together.cost.crops_per_image == 5


@pytest.fixture
def pixels() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (40, 50, 3), np.uint8) for _ in range(20)]


def scores(found) -> list[torch.Tensor]:
    return [detections["scores"] for detections in found]


def test_a_stream_of_files_arrays_and_tensors(four_threads, tmp_path, detector, pixels):
    images = list(pixels)
    images[1] = detector.as_tensor(pixels[1])
    images[2] = tmp_path / "2.png"
    write_image(images[2], detector.as_tensor(pixels[2]))
    expected = scores(map(detector, pixels))
    assert not torch.equal(expected[0], expected[1])
    for given_ in (images, iter(images)):
        torch.testing.assert_close(scores(detector.stream(given_)), expected)


def test_a_stream_up_to_an_image_that_is_none(four_threads, tmp_path, detector, pixels):
    expected = scores(map(detector, pixels[:10]))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for bad, error, words in (
        (tmp_path / "broken.png", ImageError, r"broken\.png"),
        (torch.zeros(3, 5, 5), ValueError, r"images\[10\] must be uint8"),
    ):
        found = []
        with pytest.raises(error, match=words):
            found.extend(detector.stream([*pixels[:10], bad, *pixels[11:]]))
        torch.testing.assert_close(scores(found), expected)


def test_a_stream_of_one_array_filled_again_and_again(four_threads, detector, pixels):
    def frames():
        buffer = np.empty_like(pixels[0])
        for image in pixels:
            buffer[:] = image
            yield buffer

    torch.testing.assert_close(scores(detector.stream(frames())), scores(map(detector, pixels)))


def test_what_is_no_stream_is_named_at_once(detector):
    for one in ("photo.jpg", torch.zeros(3, 5, 5, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="call the detector itself"):
            detector.stream(one)
    blind = copy.deepcopy(detector)
    blind.model.proposer = None
    with pytest.raises(ValueError, match="no proposer"):
        blind.stream([])
