"""The account of a dataset names what was dropped and the usual mistakes."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbones.common.errors import UserError
from detect.data.account import Account, held_notes, log_account, take_account
from detect.data.open import DatasetConfig, build_datasets
from detect.data.voc import load_voc_pairs


def save(path: Path, seed: int, **options: object) -> None:
    """A smooth picture of 60x40, another one by another seed."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize((60, 40), Image.Resampling.BICUBIC).save(path, **options)


def coco(
    root: Path, split: str, boxes: list[list], names: tuple[str, ...] = ("cup", "mug")
) -> None:
    """An image for each row of `class, x, y, width, height`; a sixth number is `iscrowd`."""
    rows = [
        {"image_id": i, "category_id": row[0], "bbox": row[1:5], "iscrowd": (*row, 0)[5]}
        for i, row in enumerate(boxes)
        if row
    ]
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": 60, "height": 40} for i in range(len(boxes))
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    path = root / "annotations" / f"{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    for i in range(len(boxes)):
        save(root / split / f"{i}.jpg", seed=100 * len(split) + i, quality=95)


def account_of(root: Path) -> Account:
    with held_notes() as notes:
        datasets = build_datasets(DatasetConfig(root=str(root)), ["train", "val"])
    return take_account(dict(zip(("train", "val"), datasets, strict=True)), notes)


def test_counts_by_split_class_and_size(tmp_path, caplog):
    coco(tmp_path, "train", [[0, 0, 0, 40, 30], [0, 5, 5, 10, 10], []])
    coco(tmp_path, "val", [[1, 0, 0, 20, 20]])
    account = account_of(tmp_path)
    train, val = account.splits.values()
    assert (train.images, train.without, train.boxes, train.classes) == (
        *(3, 1, 2),
        {"cup": 2, "mug": 0},
    )
    assert train.sizes == {"small": 1, "medium": 1, "large": 0}
    assert train.sides["cup"][1] == pytest.approx((1200**0.5 + 10) / 2)
    assert val.sides == {"cup": None, "mug": [20, 20, 20]}
    assert account.mistakes == [
        "classes without an object in val: cup",
        "classes without an object in train: mug",
    ]
    caplog.set_level(logging.INFO)
    log_account(account)
    assert caplog.messages[0] == (
        "train: 3 images, 1 without objects, 2 boxes (small 1, medium 1, large 0): cup 2, mug 0"
    )
    assert set(account.mistakes) <= set(caplog.messages)


GOOD = [0, 5, 5, 30, 20]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ([0, 0.1, 0.2, 0.5, 0.6], "boxes dropped for lying in the first pixel (fractions"),
        ([0, 40, 30, -20, -10], "boxes put right for having their corners swapped: 1"),
        ([0, 65, 50, 10, 9], "boxes dropped for lying outside their image: 1"),
        ([0, 5, 45, 30, 10], "of these would fit if x and y changed: 1"),
        ([0, 40, 30, 55, 38], "of these would fit as corners, not width and height: 1"),
        ([0, 50, 5, 20, 10], "boxes clipped for reaching beyond their image: 1"),
        ([0, 5, 5, 0, 10], "boxes dropped for having no area: 1"),
        ([0, 5, 5, 10, 10, 1], "1 of 2 annotations are iscrowd"),
    ],
)
def test_each_mistake_about_boxes_is_named(row, sentence, tmp_path):
    coco(tmp_path, "train", [GOOD, row], names=("cup",))
    coco(tmp_path, "val", [GOOD], names=("cup",))
    account = account_of(tmp_path)
    assert any(sentence in note for note in account.notes), account.notes
    # What is right is not suspected.
    assert sum("would fit" in note for note in account.notes) == ("would fit" in sentence)
    assert account.mistakes == []


def test_pictures_in_two_splits_are_named(tmp_path):
    coco(tmp_path, "train", [GOOD] * 4, names=("cup",))
    coco(tmp_path, "val", [GOOD] * 3, names=("cup",))
    assert account_of(tmp_path).mistakes == []
    (tmp_path / "val/0.jpg").write_bytes((tmp_path / "train/2.jpg").read_bytes())
    (tmp_path / "train/3.jpg").write_bytes((tmp_path / "train/1.jpg").read_bytes())
    # As another program would save it, a little brighter.
    image = np.asarray(Image.open(tmp_path / "train/0.jpg")).astype(int)
    brighter = Image.fromarray((image * 0.9 + 20).astype(np.uint8))
    brighter.save(tmp_path / "val/1.jpg", quality=50)
    assert account_of(tmp_path).mistakes == [
        "the same picture in several splits, so that scores are too good: 1, first 2.jpg (train) "
        "and 0.jpg (val)",
        "the same picture twice in a split: 1, first 1.jpg (train) and 3.jpg (train)",
        "nearly the same picture in train and val: 1 of 3 looked at, first 0.jpg and 1.jpg",
    ]


def test_files_that_are_not_as_annotated_are_named(tmp_path):
    coco(tmp_path, "train", [GOOD] * 3, names=("cup",))
    coco(tmp_path, "val", [GOOD], names=("cup",))
    Image.new("RGB", (40, 60)).save(tmp_path / "train/1.jpg")
    (tmp_path / "train/2.jpg").write_bytes(b"\xff\xd8 cut off")
    (tmp_path / "val/0.jpg").unlink()
    unreadable, resized, missing = account_of(tmp_path).mistakes
    assert unreadable.startswith("train: 1 of 3 images cannot be read, first ")
    assert "1 of 3 images have another size than annotated, first " in resized
    assert resized.endswith("1.jpg: 40x60, annotated 60x40")
    assert missing.startswith("val: 1 of 1 images cannot be read")


def test_flat_pictures_are_not_like_each_other(tmp_path):
    for split in ("train", "val"):
        coco(tmp_path, split, [GOOD], names=("cup",))
    for split, shade in (("train", 10), ("val", 11)):
        Image.new("RGB", (60, 40), (shade,) * 3).save(tmp_path / split / "0.jpg")
    assert account_of(tmp_path).mistakes == []


def test_objects_that_voc_calls_difficult_are_counted_apart(tmp_path):
    for name, marks in (("a", (0, 1, 1)), ("b", (0,))):
        save(tmp_path / f"{name}.png", seed=ord(name))
        objects = "".join(
            f"<object><name>cup</name><difficult>{mark}</difficult><bndbox><xmin>5</xmin>"
            f"<ymin>5</ymin><xmax>{30 + n}</xmax><ymax>30</ymax></bndbox></object>"
            for n, mark in enumerate(marks)
        )
        size = "<size><width>60</width><height>40</height></size>"
        (tmp_path / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    dataset = load_voc_pairs(tmp_path, tmp_path)
    first, second = dataset.subset(np.array([0])), dataset.subset(np.array([1]))
    account = take_account({"train": first, "val": second}, ["a note"])
    assert account.splits["train"].boxes == 3
    marked = "boxes marked difficult, which VOC's mAP leaves out: train 2, val 0"
    assert account.notes == ["a note", marked]
    assert take_account({"val": second}, []).notes == []


def test_what_was_said_before_an_error_is_said(tmp_path, caplog):
    coco(tmp_path, "train", [GOOD, [0, 5, 5, 0, 10]], names=("cup",))
    coco(tmp_path, "val", [[9, 0, 0, 1, 1]], names=("cup",))
    with pytest.raises(UserError, match="category_id 9"):
        account_of(tmp_path)
    assert "boxes dropped for having no area: 1" in caplog.text


def test_a_marked_shift_of_size_is_named(tmp_path):
    coco(tmp_path, "train", [[0, 0, 0, 10, 10]])
    coco(tmp_path, "val", [[0, 0, 0, 30, 30]])
    said = "val: objects are 3 times as large as in train"
    assert any(sentence.startswith(said) for sentence in account_of(tmp_path).mistakes)
    coco(tmp_path, "val", [[0, 0, 0, 15, 15]])
    assert "times as large" not in " ".join(account_of(tmp_path).mistakes)
