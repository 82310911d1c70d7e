"""From a configuration to a split of a dataset, in each of the layouts."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbones.common.errors import UserError
from detect.data import open as opening
from detect.data.digits import make_digits
from detect.data.open import DatasetConfig, build_dataset


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)


@pytest.mark.parametrize(
    ("annotations", "images"),
    [("annotations/{}.json", "{}"), ("annotations/instances_{}.json", "images/{}")],
)
def test_format_coco_in_both_layouts(annotations, images, tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / images.format(split) / f"{split}.png")
        document = {
            "images": [{"id": 1, "file_name": f"{split}.png", "width": 30, "height": 20}],
            "annotations": [],
            "categories": [{"id": 5, "name": "cup"}],
        }
        path = tmp_path / annotations.format(split)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document))
    for split in ("train", "val"):
        dataset = build_dataset(DatasetConfig(format="coco", root=str(tmp_path)), split)
        assert dataset.sample(0).path == str(tmp_path / images.format(split) / f"{split}.png")
        assert dataset.class_names == ["cup"]
    with pytest.raises(UserError, match=r"no split test; there are: train, val"):
        build_dataset(DatasetConfig(format="coco", root=str(tmp_path)), "test")


def test_format_voc_with_class_names_in_the_order_given(tmp_path):
    picture(tmp_path / "JPEGImages" / "a.jpg")
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    size = "<size><width>30</width><height>20</height></size>"
    things = "".join(f"<object><name>{name}</name>{box}</object>" for name in ("cup", "spoon"))
    for folder, file, text in (
        ("Annotations", "a.xml", f"<annotation>{size}{things}</annotation>"),
        ("ImageSets/Main", "mine.txt", "a\n"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / file).write_text(text)
    for class_names, labels in ((("spoon", "cup"), [2, 1]), (None, [1, 2])):
        config = DatasetConfig(format="voc", root=str(tmp_path), class_names=class_names)
        assert build_dataset(config, "mine").sample(0).labels.tolist() == labels


def test_format_digits_makes_them_where_there_are_none(tmp_path, monkeypatch):
    made = []

    def few(root: Path) -> Path:
        made.append(root)
        return make_digits(root, train=1, val=2, image_size=128)

    monkeypatch.setattr(opening, "make_digits", few)
    config = DatasetConfig(format="digits", root=str(tmp_path / "digits"))
    assert len(build_dataset(config, "val")) == 2
    assert made == [tmp_path / "digits"]
