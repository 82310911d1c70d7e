"""Selective search: what it finds, that it repeats itself, its cache, and its absence."""

import ctypes
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch
from helpers.contrib import needs_contrib
from torchvision.ops import box_iou

from backbones.common.errors import MissingPackageError, UserError
from detect.build import build_detector
from detect.checkpoint import load_detector, save_detector
from detect.config import ModelConfig
from detect.data import load_coco, make_digits
from detect.data.augmentation import AugmentConfig
from detect.proposals import SelectiveSearchConfig, SelectiveSearchProposer, selective_search
from detect.training.training_set import TrainingSet

OBJECTS = torch.tensor([[10.0, 12, 40, 44], [70, 20, 110, 50], [30, 60, 50, 84]])


@pytest.fixture
def contrib():
    needs_contrib()


def scene() -> torch.Tensor:
    """Three coloured rectangles on noise, `[3, 96, 128]`."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(90, 130, (3, 96, 128), generator=generator, dtype=torch.uint8)
    for (x1, y1, x2, y2), colour in zip(OBJECTS.int().tolist(), (20, 200, 250), strict=True):
        image[colour % 3, y1:y2, x1:x2] = colour
    return image


def propose(image: torch.Tensor, **options):
    return SelectiveSearchProposer(SelectiveSearchConfig(**options))([image])[0]


@pytest.mark.usefixtures("contrib")
@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_it_finds_objects_and_ranks_are_scores(mode):
    found = propose(scene(), mode=mode)
    assert (box_iou(OBJECTS, found.boxes).max(dim=1).values > 0.8).all()
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert found.boxes.min() >= 0
    assert (found.boxes[:, 2:] <= torch.tensor([128, 96])).all()
    assert found.scores[0] == 1
    assert found.scores[-1] == pytest.approx(1 / len(found.scores))
    assert (found.scores.diff() < 0).all()
    few = propose(scene(), mode=mode, top_n=5)
    assert torch.equal(few.boxes, found.boxes[:5])
    assert torch.equal(few.scores, found.scores[:5])


@pytest.mark.usefixtures("contrib")
def test_the_order_repeats_whatever_was_drawn_before():
    first = propose(scene())
    if sys.platform == "linux":
        ctypes.CDLL(None).srand(77)
    propose(scene().flip(2))
    assert torch.equal(propose(scene()).boxes, first.boxes)


@pytest.mark.usefixtures("contrib")
def test_threads_do_not_draw_from_each_others_series():
    images = [scene().roll(shift, dims=2) for shift in range(0, 60, 10)]
    expected = [propose(image).boxes for image in images]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda image: propose(image).boxes, images))
    assert all(map(torch.equal, found, expected))


@pytest.mark.usefixtures("contrib")
def test_where_nothing_can_be_seeded_the_largest_come_first(monkeypatch):
    seeded = propose(scene())
    monkeypatch.setattr(selective_search, "_can_seed", lambda: False)
    found = propose(scene())
    areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(dim=1)
    assert (areas.diff() <= 0).all()
    assert torch.equal(propose(scene()).boxes, found.boxes)
    assert set(map(tuple, found.boxes.tolist())) == set(map(tuple, seeded.boxes.tolist()))


@pytest.mark.usefixtures("contrib")
def test_the_smallest_image_is_one_region():
    found = propose(torch.zeros(3, 1, 1, dtype=torch.uint8))
    assert found.boxes.tolist() == [[0, 0, 1, 1]]
    assert found.scores.tolist() == [1]


@pytest.fixture
def searches(monkeypatch) -> list[str]:
    """The modes of all searches that are really made."""
    made: list[str] = []
    search = selective_search.search
    monkeypatch.setattr(
        selective_search, "search", lambda pixels, mode: made.append(mode) or search(pixels, mode)
    )
    return made


@pytest.mark.usefixtures("contrib")
def test_the_cache_saves_the_search(tmp_path, searches):
    cache = str(tmp_path / "cache")
    first = propose(scene(), cache=cache)
    again = propose(scene(), cache=cache, top_n=7)
    assert searches == ["fast"]
    assert torch.equal(again.boxes, first.boxes[:7])
    changed = scene()
    changed[0, 0, 0] += 1
    propose(changed, cache=cache)
    # The same bytes in another shape are another image.
    propose(scene().reshape(3, 128, 96), cache=cache)
    propose(scene(), cache=cache, mode="quality")
    assert searches == ["fast", "fast", "fast", "quality"]
    assert len(list((tmp_path / "cache").iterdir())) == 4


@pytest.mark.usefixtures("contrib")
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "pickle", "boxes of another image"])
def test_a_damaged_cache_file_is_searched_again(damage, tmp_path, searches, caplog):
    cache = str(tmp_path)
    want = propose(scene(), cache=cache)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    if damage == "boxes of another image":
        propose(torch.zeros(3, 200, 200, dtype=torch.uint8), cache=cache)
        (other,) = (path for path in tmp_path.iterdir() if path != file)
        broken = other.read_bytes()
    else:
        pickled = b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtin\x94."
        broken = {"empty": b"", "cut": whole[:-9], "text": b"[]", "pickle": pickled}[damage]
    file.write_bytes(broken)
    searches.clear()
    with caplog.at_level(logging.WARNING):
        found = propose(scene(), cache=cache)
    assert torch.equal(found.boxes, want.boxes)
    assert searches == ["fast"]
    assert f"{file}: damaged, searching again" in caplog.text
    assert file.read_bytes() == whole


@pytest.mark.usefixtures("contrib")
def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/.*npy: cannot be written: "):
        propose(scene(), cache=str(tmp_path / "file"))


@pytest.mark.usefixtures("contrib")
def test_regions_are_searched_in_the_image_as_it_is_read(tmp_path, searches):
    folder = make_digits(tmp_path / "digits", train=1, val=1, image_size=128)
    dataset = load_coco(folder / "annotations" / "train.json", folder / "train")
    proposer = SelectiveSearchProposer(SelectiveSearchConfig(cache=str(tmp_path / "cache")))
    augment = AugmentConfig(flip=1.0, scale=(1.0, 1.0), colour=0.3)
    training = TrainingSet(dataset, augment, seed=0, proposer=proposer)
    x1, y1, x2, y2 = proposer([dataset.load_image(0)])[0].boxes.T
    for epoch in range(2):
        example = training[(epoch, 0)]
        mirrored = torch.stack([128 - x2, y1, 128 - x1, y2], dim=1)
        torch.testing.assert_close(example.proposals.boxes, mirrored, atol=1e-3, rtol=0)
    assert searches == ["fast"]


def absent(monkeypatch) -> None:
    # What a mix of OpenCV packages leaves: the name, and nothing behind it.
    monkeypatch.setattr(selective_search.cv2, "ximgproc", SimpleNamespace(), raising=False)


def test_the_missing_package_is_named_with_its_version(monkeypatch):
    absent(monkeypatch)
    monkeypatch.setattr(selective_search, "version", lambda name: "5.0.0.93")
    line = "pip install --no-deps --force-reinstall opencv-contrib-python-headless==5.0.0.93$"
    with pytest.raises(MissingPackageError, match=f"selective search needs .*: {line}"):
        build_detector(ModelConfig(proposer="selective_search"), 3)

    def unknown(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(selective_search, "version", unknown)
    with pytest.raises(MissingPackageError, match=r"reinstall opencv-contrib-python-headless$"):
        selective_search.check_installed()


@pytest.mark.usefixtures("contrib")
def test_a_checkpoint_that_needs_it_says_so_where_it_is_missing(tmp_path, monkeypatch):
    config = ModelConfig(variant="inception_v3_79_naive", proposer="selective_search")
    path = tmp_path / "d.safetensors"
    save_detector(path, build_detector(config, 1), config, ["a"], [1], {})
    assert isinstance(load_detector(path).model.proposer, SelectiveSearchProposer)
    absent(monkeypatch)
    with pytest.raises(MissingPackageError, match=r"^selective search needs"):
        load_detector(path)


def test_at_least_one_region():
    with pytest.raises(UserError, match=r"selective_search.top_n must be at least 1, got 0"):
        SelectiveSearchConfig(top_n=0)
    with pytest.raises(UserError, match=r"model.selective_search is set but model.proposer is"):
        ModelConfig(selective_search=SelectiveSearchConfig(top_n=9))
