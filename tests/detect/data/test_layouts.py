"""Exports as tools write them are recognised, with the right boxes and classes."""

import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbones.common.errors import UserError
from detect.data import DetectionDataset
from detect.data.open import (
    DatasetConfig,
    build_dataset,
    build_datasets,
    keep_out_of_data,
    resolve_data,
    split_names,
)
from detect.media.sources import find_inputs

BOX = [5.0, 4.0, 15.0, 16.0]
"""Of the only object of each picture with one: xyxy in pixels, of 40x20."""


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).integers(0, 255, (20, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def xml(path: Path, name: str = "cup") -> None:
    x1, y1, x2, y2 = BOX
    write(
        path,
        f"<annotation><folder>x</folder><filename>{path.stem}.png</filename><path>C:\\x</path>"
        "<size><width>40</width><height>20</height><depth>3</depth></size><object>"
        f"<name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0"
        f"</difficult><bndbox><xmin>{x1 + 1:g}</xmin><ymin>{y1 + 1:g}</ymin><xmax>{x2:g}</xmax>"
        f"<ymax>{y2:g}</ymax></bndbox></object></annotation>",
    )


def coco(*files: str, categories: list[dict] | None = None) -> dict:
    """The second category is that of the objects."""
    categories = categories or [{"id": 0, "name": "mug"}, {"id": 1, "name": "cup"}]
    x1, y1, x2, y2 = BOX
    return {
        "images": [
            {"id": i, "file_name": file, "width": 40, "height": 20} for i, file in enumerate(files)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for i in range(len(files))
        ],
        "categories": categories,
    }


YOLO_ROW = "1 0.25 0.5 0.25 0.6\n"
YOLO_POLYGON = "1 0.125 0.2 0.375 0.2 0.375 0.8 0.125 0.5\n"


def voc_challenge(root: Path) -> None:
    for name in "abc":
        xml(root / f"Annotations/{name}.xml")
        picture(root / f"JPEGImages/{name}.png")
    for split, names in (("train", "a\nb\n"), ("val", "c\n"), ("trainval", "a\nb\nc\n")):
        write(root / f"ImageSets/Main/{split}.txt", names)
        write(root / f"ImageSets/Main/cup_{split}.txt", names.replace("\n", "  1\n"))
        write(root / f"ImageSets/Segmentation/{split}.txt", names)
    picture(root / "SegmentationClass/a.png")


def voc_cvat(root: Path) -> None:
    for name in "ab":
        xml(root / f"Annotations/{name}.xml")
        picture(root / f"JPEGImages/{name}.png")
    write(root / "ImageSets/Main/default.txt", "a\nb\n")
    write(root / "ImageSets/Main/cup_default.txt", "a  1\nb  1\n")
    write(
        root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncup:1,2,3::\n"
    )


def voc_label_img(root: Path) -> None:
    for name in "abc":
        picture(root / f"{name}.png")
        xml(root / f"{name}.xml")


def voc_roboflow(root: Path) -> None:
    for split, names in (("train", "ab"), ("valid", "c"), ("test", "d")):
        for name in names:
            picture(root / split / f"{name}.png")
            xml(root / split / f"{name}.xml", "mug" if name == "d" else "cup")
    write(root / "README.roboflow.txt", "by Roboflow")


def voc_label_studio(root: Path) -> None:
    for name in "ab":
        picture(root / f"images/{name}.png")
        xml(root / f"Annotations/{name}.xml")
    (root / "images/test").mkdir()


def coco_challenge(root: Path) -> None:
    for split, names in (("train2017", "ab"), ("val2017", "c")):
        files = [f"{name}.png" for name in names]
        write(root / f"annotations/instances_{split}.json", coco(*files))
        write(root / f"annotations/captions_{split}.json", {"images": [], "annotations": []})
        write(root / f"annotations/person_keypoints_{split}.json", coco(*files))
        for file in files:
            picture(root / split / file)


def coco_two_files(root: Path) -> None:
    """As FiftyOne and scripts write them, with images in folders of another name."""
    for split, folder, names in (("train", "training", "ab"), ("val", "val", "c")):
        write(root / f"annotations/{split}.json", coco(*(f"{name}.png" for name in names)))
        for name in names:
            picture(root / f"images/{folder}/{name}.png")
    picture(root / "images/a.png", shade=5)


def coco_fiftyone(root: Path) -> None:
    write(root / "labels.json", coco("a.png", "b.png"))
    for name in "ab":
        picture(root / f"data/{name}.png")


def voc_fiftyone(root: Path) -> None:
    for name in "ab":
        picture(root / f"data/{name}.png")
        xml(root / f"labels/{name}.xml")


def coco_at_the_root(root: Path) -> None:
    coco_two_files(root)
    for split in ("train", "val"):
        (root / f"annotations/{split}.json").rename(root / f"{split}.json")


def coco_roboflow(root: Path) -> None:
    above = [
        {"id": 0, "name": "crockery", "supercategory": "none"},
        {"id": 1, "name": "cup", "supercategory": "crockery"},
    ]
    for split, names in (("train", "ab"), ("valid", "c")):
        files = [f"{name}_png.rf.0a1b2c.png" for name in names]
        write(root / split / "_annotations.coco.json", coco(*files, categories=above))
        for file in files:
            picture(root / split / file)


def coco_label_studio(root: Path) -> None:
    write(root / "result.json", coco("images/1a2b3c4d-a.png", "images/2a2b3c4d-b.png"))
    picture(root / "images/1a2b3c4d-a.png")
    picture(root / "images/2a2b3c4d-b.png")


def coco_cvat(root: Path) -> None:
    write(root / "annotations/instances_default.json", coco("a.png", "deep/b.png"))
    picture(root / "images/a.png")
    picture(root / "images/deep/b.png")


def yolo_ultralytics(root: Path) -> None:
    write(
        root / "cups.yaml",
        "path: ../datasets/cups\ntrain: images/train\nval: images/val\ntest:\n"
        "names:\n  0: mug\n  1: cup\n",
    )
    for place, row in (("train/a", YOLO_ROW), ("train/b", YOLO_POLYGON), ("val/c", YOLO_ROW)):
        picture(root / f"images/{place}.png")
        write(root / f"labels/{place}.txt", row)


def yolo_roboflow(root: Path) -> None:
    """It names a split `test` that was not exported."""
    write(
        root / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\n"
        "names: ['mug', 'cup']\n",
    )
    for place, row in (
        ("train {} a", YOLO_ROW),
        ("train {} b", YOLO_ROW),
        ("valid {} c", YOLO_ROW),
    ):
        write(root / "README.roboflow.txt", "by Roboflow")
        picture(root / (place.format("images").replace(" ", "/") + ".png"))
        write(root / (place.format("labels").replace(" ", "/") + ".txt"), row)


def yolo_lists(root: Path) -> None:
    yolo_ultralytics(root)
    write(root / "cups.yaml", "train: train.txt\nval: val.txt\nnames: [mug, cup]\n")
    write(root / "train.txt", "./images/train/a.png\nimages/train/b.png\n")
    write(root / "val.txt", "images/val/c.png\n")


def yolo_cvat(root: Path) -> None:
    write(root / "obj.names", "mug\ncup\n")
    write(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    write(root / "train.txt", "data/obj_train_data/a.png\ndata/obj_train_data/b.png\n")
    for name in "ab":
        picture(root / f"obj_train_data/{name}.png")
        write(root / f"obj_train_data/{name}.txt", YOLO_ROW)


def yolo_label_studio(root: Path) -> None:
    write(root / "classes.txt", "mug\ncup\n")
    write(root / "notes.json", {"categories": [{"id": 0, "name": "mug"}], "info": {}})
    for name in "ab":
        picture(root / f"images/{name}.png")
        write(root / f"labels/{name}.txt", YOLO_ROW)
    (root / "images/test").mkdir()


def yolo_label_img(root: Path) -> None:
    write(root / "classes.txt", "mug\ncup\n")
    for name in "ab":
        picture(root / f"{name}.png")
        write(root / f"{name}.txt", YOLO_ROW)


@pytest.mark.parametrize("folder", ["data", "images/of 2024"])
@pytest.mark.parametrize(
    ("make", "format", "splits", "classes"),
    [
        (voc_challenge, "voc", {"train": 2, "val": 1}, ["cup"]),
        (voc_cvat, "voc", {"train": 2}, ["cup"]),
        (voc_label_img, "voc", {"train": 3}, ["cup"]),
        (voc_roboflow, "voc", {"train": 2, "val": 1, "test": 1}, ["cup", "mug"]),
        (voc_label_studio, "voc", {"train": 2}, ["cup"]),
        (coco_challenge, "coco", {"train": 2, "val": 1}, ["mug", "cup"]),
        (coco_two_files, "coco", {"train": 2, "val": 1}, ["mug", "cup"]),
        (coco_fiftyone, "coco", {"train": 2}, ["mug", "cup"]),
        (voc_fiftyone, "voc", {"train": 2}, ["cup"]),
        (coco_at_the_root, "coco", {"train": 2, "val": 1}, ["mug", "cup"]),
        (coco_roboflow, "coco", {"train": 2, "val": 1}, ["cup"]),
        (coco_label_studio, "coco", {"train": 2}, ["mug", "cup"]),
        (coco_cvat, "coco", {"train": 2}, ["mug", "cup"]),
        (yolo_ultralytics, "yolo", {"train": 2, "val": 1}, ["mug", "cup"]),
        (yolo_roboflow, "yolo", {"train": 2, "val": 1}, ["mug", "cup"]),
        (yolo_lists, "yolo", {"train": 2, "val": 1}, ["mug", "cup"]),
        (yolo_cvat, "yolo", {"train": 2}, ["mug", "cup"]),
        (yolo_label_studio, "yolo", {"train": 2}, ["mug", "cup"]),
        (yolo_label_img, "yolo", {"train": 2}, ["mug", "cup"]),
    ],
)
def test_exports_are_recognised(make, format, splits, classes, folder, tmp_path, caplog):
    root = tmp_path / folder
    make(root)
    caplog.set_level("INFO")
    config = resolve_data(DatasetConfig(root=str(root), val_share=0))
    assert (config.format, config.root) == (format, str(root))
    first, *others = [record.message for record in caplog.records]
    assert first.startswith(f"{root}: ")
    # It names a split that it has not.
    missing = f"{root}/data.yaml: test: ../test/images: not found, there is no split test"
    assert others == ([missing] if make is yolo_roboflow else [])
    found = dict(zip(splits, build_datasets(config, list(splits)), strict=True))
    assert {split: len(dataset) for split, dataset in found.items()} == splits
    ids = [image_id for dataset in found.values() for image_id in dataset.image_ids]
    assert len(set(ids)) == len(ids) or format == "coco"
    for split, dataset in found.items():
        # Of the challenge's classes there are 20 where the names are among them.
        assert dataset.class_names == classes
        for index, sample in enumerate(dataset):
            name = dataset.class_names[sample.labels.item() - 1]
            assert name == ("mug" if format == "voc" and split == "test" else "cup")
            assert np.allclose(sample.boxes.numpy(), [BOX], atol=1e-4)
            assert dataset.load_image(index).shape == (3, 20, 40)


def keys_of_other_names(root: Path) -> None:
    yolo_ultralytics(root)
    text = "train: images/train\nvalidation: images/val\nTest: images/test\nnames: [mug, cup]\n"
    write(root / "cups.yaml", text)


def classes_beside_folders(root: Path) -> None:
    yolo_ultralytics(root)
    (root / "cups.yaml").unlink()
    write(root / "classes.txt", "mug\ncup\n")


def lists_of_two_names(root: Path) -> None:
    yolo_lists(root)
    (root / "cups.yaml").unlink()
    write(root / "obj.names", "mug\ncup\n")
    for split, other in (("train", "trainval"), ("val", "validation")):
        write(root / f"{other}.txt", (root / f"{split}.txt").read_text() + "images/test/d.png\n")


def voc_folders(root: Path) -> None:
    for place in ("train/a", "train/b", "val/c", "test/d"):
        picture(root / f"images/{place}.png")
        xml(root / f"annotations/{place}.xml")


@pytest.mark.parametrize(
    ("make", "splits"),
    [
        (keys_of_other_names, {"train": "ab", "val": "c", "test": "d"}),
        (classes_beside_folders, {"train": "ab", "val": "c", "test": "d"}),
        (lists_of_two_names, {"train": "ab", "val": "c"}),
        (voc_folders, {"train": "ab", "val": "c", "test": "d"}),
    ],
)
def test_val_and_test_stay_apart(make, splits, tmp_path):
    make(tmp_path)
    picture(tmp_path / "images/test/d.png")
    config = DatasetConfig(root=str(tmp_path))
    assert split_names(config) == list(splits)
    for split, dataset in zip(splits, build_datasets(config, list(splits)), strict=True):
        assert "".join(Path(path).stem for path in dataset.paths) == splits[split]


def again(place: str, other: str) -> Callable[[Path], None]:
    return lambda root: write(root / other, (root / place).read_text())


def moved(place: str, other: str) -> Callable[[Path], None]:
    return lambda root: (root / place).replace(root / other)


def voc_holdout(root: Path) -> None:
    voc_roboflow(root)
    (root / "valid").rename(root / "holdout")
    (root / "test/d.xml").unlink()


def yolo_half_copied(root: Path) -> None:
    write(root / "classes.txt", "mug\ncup\n")
    for split in ("train", "val"):
        write(root / f"labels/{split}/a.txt", YOLO_ROW)
    picture(root / "images/train/a.png")


def yolo_beside_folder(root: Path) -> None:
    yolo_label_studio(root)
    picture(root / "images/test/d.png")
    picture(root / "images/unlabelled.png")


def yolo_more(root: Path) -> None:
    yolo_ultralytics(root)
    for place in ("images/test", "images/night"):
        picture(root / place / "d.png")
    write(root / "labels/night/d.txt", YOLO_ROW)
    for number in range(4):
        write(root / f"autosplit_val{number}.txt", "images/test/d.png")


@pytest.mark.parametrize(
    ("make", "names"),
    [
        ([coco_challenge, moved("annotations/instances_val2017.json", "annotations/val.json")],
         "val2017/, annotations/val.json"),
        ([coco_two_files, lambda root: (root / "annotations/val.json").unlink()], "images/val/"),
        ([yolo_half_copied], "labels/val/"),
        ([coco_challenge, again("annotations/instances_val2017.json",
         "annotations/instances_valid.json")], "annotations/instances_val2017.json"),
        ([coco_roboflow, again("valid/_annotations.coco.json", "batch2.json")], "batch2.json"),
        ([coco_roboflow, moved("valid/_annotations.coco.json", "valid/_annotations.coco (1).json")],
         "valid/"),
        ([voc_challenge, moved("ImageSets/Main/val.txt", "ImageSets/Main/val.TXT")],
         "ImageSets/Main/trainval.txt, ImageSets/Main/val.TXT"),
        ([voc_challenge, lambda root: shutil.move(root / "ImageSets/Main", root / "ImageSets/x")],
         "ImageSets/"),
        ([voc_holdout], "holdout/, test/"),
        ([yolo_more], "autosplit_val0.txt, autosplit_val1.txt, autosplit_val2.txt and 3 more"),
        ([yolo_beside_folder], "images/a.png, images/b.png"),
        ([yolo_cvat, again("train.txt", "subset_valid.txt")], "subset_valid.txt"),
        ([yolo_cvat, again("train.txt", "trainval.txt")], "trainval.txt"),
    ],
)  # fmt: skip
def test_what_looks_like_more_data_is_named_where_it_is_not_read(make, names, tmp_path, caplog):
    for one in make:
        one(tmp_path)
    resolve_data(DatasetConfig(root=str(tmp_path)))
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"{tmp_path}: not read, though it looks like splits or annotations: {names}"
    ]


def coco_2017(root: Path) -> None:
    coco_challenge(root)
    picture(root / "test2017/d.png")


def voc_2012(root: Path) -> None:
    voc_challenge(root)
    for name in ("d", "e"):
        xml(root / f"Annotations/{name}.xml")
    write(root / "ImageSets/Action/jumping_train.txt", "d\t1\n")
    write(root / "ImageSets/Segmentation/all.txt", "e\n")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (coco_2017, "."),
        (coco_2017, "annotations/instances_train2017.json"),
        (coco_label_studio, "result.json"),
        (coco_at_the_root, "train.json"),
        (voc_2012, "."),
        (yolo_ultralytics, "cups.yaml"),
    ],
)
def test_of_ordinary_data_nothing_is_said(make, name, tmp_path, caplog):
    make(tmp_path)
    # Of another dataset, beside the file that is named.
    picture(tmp_path / "my_train_set/images/a.png")
    write(tmp_path / "my_train_set/labels/a.txt", YOLO_ROW)
    resolve_data(DatasetConfig(root=str(tmp_path / name)))
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [line for line in said if "my_train_set" not in line or name != "."] == []


def test_a_list_that_is_no_text_and_not_used_ends_nothing(tmp_path, caplog):
    voc_challenge(tmp_path)
    (tmp_path / "ImageSets/Main/old.txt").write_bytes(b"\xff\xfe")
    yolo_ultralytics(tmp_path / "yolo")
    (tmp_path / "yolo/labels/train/classes.txt").write_bytes(b"B\xe4r\n")
    resolve_data(DatasetConfig(root=str(tmp_path)))
    for root in (tmp_path, tmp_path / "yolo"):
        assert len(build_dataset(DatasetConfig(root=str(root)), "train")) == 2
    assert "classes.txt: cannot read this text file" in caplog.text


def test_a_root_that_is_called_like_a_split_takes_runs(tmp_path):
    coco_challenge(tmp_path / "train")
    config = DatasetConfig(root=str(tmp_path / "train"))
    keep_out_of_data(str(tmp_path / "train/runs/mine"), config)
    with pytest.raises(UserError, match="all of whose pictures are images"):
        keep_out_of_data(str(tmp_path / "train/train2017/run"), config)


def test_annotations_of_voc_in_no_list_are_counted(tmp_path, caplog):
    voc_challenge(tmp_path)
    for name in ("d", "deep/e"):
        xml(tmp_path / f"Annotations/{name}.xml")
    resolve_data(DatasetConfig(root=str(tmp_path)))
    pages = tmp_path / "Annotations"
    assert f"{pages}: in no list of ImageSets, not read: 2, first d.xml" in caplog.text


def test_annotations_without_the_name_of_an_image_are_an_error(tmp_path):
    picture(tmp_path / "images/train/a.png")
    xml(tmp_path / "annotations/a.xml")
    with pytest.raises(UserError, match=r"expected train/a\.xml there, got a\.xml"):
        build_dataset(DatasetConfig(root=str(tmp_path), val_share=0), "train")


@pytest.mark.parametrize("place", ["labels/train/classes.txt", "obj.names"])
def test_classes_in_another_order_beside_labels_are_named(place, tmp_path, caplog):
    yolo_ultralytics(tmp_path)
    write(tmp_path / place, "mug\ncup\n\n")
    config = DatasetConfig(root=str(tmp_path), val_share=0)
    build_dataset(config, "train")
    assert "names other classes" not in caplog.text
    write(tmp_path / place, "cup\nmug\n")
    build_dataset(config, "train")
    names = f"{tmp_path / place}: names other classes, or in another order, than cups.yaml, which"
    assert f"{names} is gone by: cup, mug" in caplog.text


@pytest.mark.parametrize("make", [yolo_ultralytics, yolo_cvat, coco_cvat])
@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_umlauts_are_one_character_or_two(make, listed, tmp_path):
    """As lists and labels have them, and as a disk has the names."""
    make(tmp_path)
    there = "NFD" if listed == "NFC" else "NFC"
    for path in sorted(tmp_path.rglob("a.*")):
        form = there if path.suffix == ".png" else listed
        path.rename(path.with_name(unicodedata.normalize(form, f"B\u00e4r{path.suffix}")))
    for path in [*tmp_path.rglob("*.txt"), *tmp_path.rglob("*.json")]:
        text = path.read_text()
        for mark in ("/a.png", '"a.png'):
            name = mark[0] + unicodedata.normalize(listed, "B\u00e4r") + ".png"
            text = text.replace(mark, name)
        path.write_text(text)
    found = build_dataset(DatasetConfig(root=str(tmp_path), val_share=0), "train")
    assert [len(sample.boxes) for sample in found] == [1] * len(found)
    for index in range(len(found)):
        found.load_image(index)


def test_the_path_may_be_relative_and_is_kept_from_the_root(tmp_path, monkeypatch):
    voc_label_img(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    config = resolve_data(DatasetConfig(root="data"))
    monkeypatch.chdir("/")
    assert len(build_dataset(config, "train")) + len(build_dataset(config, "val")) == 3


def yolo_without_names(root: Path) -> None:
    picture(root / "images/train/a.png")
    write(root / "labels/train/a.txt", "0 0.5 0.5 0.5 0.5\n")


def test_a_split_that_is_named_and_missing_is_a_warning(tmp_path, caplog):
    yolo_without_names(tmp_path)
    write(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [a]\n")
    resolve_data(DatasetConfig(root=str(tmp_path)))
    assert "data.yaml: val: images/val: not found, there is no split val" in caplog.text
    assert caplog.text.count("not found") == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ([], ["not recognised", "Pascal VOC", "COCO", "YOLO", "data.yaml", "there is nothing"]),
        ([voc_label_img, yolo_label_studio], ["voc, yolo by --data.format"]),
        ([yolo_ultralytics, lambda root: write(root / "b.yaml", "train: x\nnames: [a]\n")],
         ["b.yaml, cups.yaml: name the file"]),
        ([lambda root: picture(root / "a.png")], ["not recognised", "there is a.png"]),
        ([yolo_without_names], ["name their classes: write",
         "data.yaml with the lines `train: images/train` and `names: [car, van]`"]),
    ],
)  # fmt: skip
def test_what_is_not_recognised_is_said_in_one_line(make, words, tmp_path):
    for one in make:
        one(tmp_path)
    with pytest.raises(UserError) as error:
        resolve_data(DatasetConfig(root=str(tmp_path)))
    assert str(error.value).startswith(f"{tmp_path}: ")
    assert all(word in str(error.value) for word in words), error.value


def test_a_format_looks_for_that_alone(tmp_path):
    voc_label_img(tmp_path)
    yolo_label_studio(tmp_path)
    found = build_dataset(DatasetConfig(format="yolo", root=str(tmp_path), val_share=0), "train")
    assert found.class_names == ["mug", "cup"]
    with pytest.raises(UserError, match=r"not recognised, looked for COCO \("):
        resolve_data(DatasetConfig(format="coco", root=str(tmp_path)))


def test_images_without_annotation_are_negatives_and_counted(tmp_path, caplog):
    voc_label_img(tmp_path / "voc")
    yolo_label_img(tmp_path / "yolo")

    def load(name: str) -> DetectionDataset:
        return build_dataset(DatasetConfig(root=str(tmp_path / name), val_share=0), "train")

    for name, what in (("voc", "annotation"), ("yolo", "label file")):
        picture(tmp_path / name / "without.png")
        dataset = load(name)
        counts = {Path(sample.path).stem: len(sample.labels) for sample in dataset}
        assert counts["without"] == 0
        assert sum(counts.values()) == len(dataset) - 1
        assert f"images without {'an' if name == 'voc' else 'a'} {what}" in caplog.text
        assert "taken as without objects: 1, first" in caplog.text
    xml(tmp_path / "voc/orphan.xml")
    assert len(load("voc")) == 4
    assert "annotations without image: 1, first orphan" in caplog.text


def test_names_longer_than_a_file_may_have_are_not_found(tmp_path):
    """`Path.exists` raises for them."""
    name = "x" * 300
    with pytest.raises(UserError, match="not found: expected the folder"):
        resolve_data(DatasetConfig(root=str(tmp_path / name)))
    with pytest.raises(UserError, match="no such file or folder"):
        find_inputs([name])
    write(tmp_path / "data.yaml", f"train: {name}\nnames: [a]\n")
    with pytest.raises(UserError, match="x: not found"):
        build_dataset(DatasetConfig(root=str(tmp_path)), "train")


@pytest.mark.parametrize("name", ["data.yaml", "x.json"])
def test_a_pipe_is_named_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    for root in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=rf"{name}: .*is a pipe or a device"):
            build_dataset(DatasetConfig(root=str(root)), "train")
