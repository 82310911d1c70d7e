import random
import threading
import time

import pytest
import torch
from untrained_detector import save_untrained

from backbones.errors import ImageError, UserError
from backbones.files import write_image
from detect.build import build_dataset
from detect.config import DatasetConfig
from detect.datasets import make_digits
from detect.detector import load_detector
from detect.parallel import batch_size, in_threads, work_through, worker_count
from detect.scoring import detect_dataset

CPU = torch.device("cpu")


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def wait_briefly(item):
    time.sleep(random.uniform(0, 0.01))
    return item


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_results_come_in_order(workers, count):
    assert list(in_threads(wait_briefly, range(count), workers)) == list(range(count))


def test_items_are_worked_on_at_once():
    """One after the other, no thread would ever meet the other two."""
    meeting = threading.Barrier(3)
    assert len(list(in_threads(lambda _: meeting.wait(timeout=10), range(6), 3))) == 6


def threads_of_torch(_=None):
    torch.ones(100, 100) @ torch.ones(100, 100)
    return torch.get_num_threads()


@pytest.mark.parametrize(("workers", "each"), [(1, 4), (2, 2), (3, 1), (4, 1), (7, 1)])
def test_threads_of_torch_are_divided_and_elsewhere_as_before(four_threads, workers, each):
    results = in_threads(threads_of_torch, range(10), workers)
    seen = [next(results)]
    elsewhere = []
    other = threading.Thread(target=lambda: elsewhere.append(threads_of_torch()))
    other.start()
    other.join()
    assert (threads_of_torch(), elsewhere) == (4, [4])
    assert seen + list(results) == [each] * 10
    assert threads_of_torch() == 4


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


def test_an_error_of_the_work_comes_in_its_place_and_ends_it():
    begun = []

    def work(item):
        begun.append(item)
        if item == 2:
            raise UserError("broken")
        return wait_briefly(item)

    seen = []
    with pytest.raises(UserError, match="broken"):
        seen.extend(in_threads(work, range(100), 2))
    assert seen == [0, 1]
    assert len(begun) <= 6


def test_leaving_early_begins_nothing_more_and_ends_the_threads():
    begun = []
    before = threading.active_count()

    def work(item):
        begun.append(item)
        time.sleep(0.05)

    results = in_threads(work, range(100), 2)
    next(results)
    results.close()
    count = len(begun)
    assert count <= 4
    assert threading.active_count() == before
    time.sleep(0.2)
    assert len(begun) == count


def test_a_thread_for_each_of_torch_but_no_more_than_images(four_threads):
    assert worker_count(CPU) == worker_count(CPU, 5) == 4
    assert [worker_count(CPU, count) for count in (0, 1, 3)] == [1, 1, 3]
    assert worker_count(torch.device("cuda")) == 1


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (3, [1, 1, 1]), (9, [3, 3, 3]), (40, [8, 8, 8, 8, 8])]
)
def test_images_are_shared_evenly(four_threads, count, sizes):
    images = ((i, torch.zeros(3, 2, 2, dtype=torch.uint8)) for i in range(count))
    batches = list(work_through(images, lambda batch: [key for key, _ in batch], CPU, count))
    assert [len(batch) for batch in batches] == sizes
    assert [key for batch in batches for key in batch] == list(range(count))


def test_of_unknown_many_images_batches_are_full():
    assert batch_size(4) == batch_size(4, 1000) == 8


def test_a_dataset_in_threads_has_the_same_detections(tmp_path):
    digits = make_digits(tmp_path / "digits", train=1, val=11, image_size=128)
    dataset = build_dataset(DatasetConfig(format="coco", root=str(digits)), "val")
    detector = load_detector(save_untrained(tmp_path / "x.safetensors", 10), "cpu")
    alone = [detector(dataset.load_image(index)) for index in range(len(dataset))]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = detect_dataset(detector, dataset)
    finally:
        torch.set_num_threads(before)
    for found, expected in zip(together.detections, alone, strict=True):
        assert len(found["boxes"]) > 0
        torch.testing.assert_close(found["boxes"], expected["boxes"])
        torch.testing.assert_close(found["scores"], expected["scores"])
    assert together.cost.crops_per_image == 5


def test_a_stream_of_files_and_tensors_up_to_one_that_cannot_be_read(tmp_path):
    detector = load_detector(save_untrained(tmp_path / "x.safetensors", 10), "cpu")
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    generator = torch.Generator().manual_seed(0)
    for path in paths:
        pixels = torch.randint(0, 256, (3, 40, 50), generator=generator, dtype=torch.uint8)
        write_image(path, pixels)
    expected = [detector(path)["scores"] for path in paths]
    assert not torch.equal(expected[0], expected[1])
    images = [paths[0], detector.as_tensor(paths[1]), *paths[2:]]
    for given in (images, iter(images)):
        found = [detections["scores"] for detections in detector.stream(given)]
        torch.testing.assert_close(found, expected)
    paths[10].write_bytes(b"no picture")
    found = []
    with pytest.raises(ImageError, match=r"10\.png"):
        found.extend(detections["scores"] for detections in detector.stream(paths))
    torch.testing.assert_close(found, expected[:10])
