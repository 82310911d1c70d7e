"""Annotations cannot make the product read files outside of the data's folder."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbones.common.errors import UserError
from detect.data import DetectionDataset, load_coco, load_voc, load_yolo
from detect.data.open import DatasetConfig, DatasetFormat, build_dataset, resolve_data


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path)


def as_coco(root: Path, name: str) -> DetectionDataset:
    document = {
        "images": [{"id": 1, "file_name": name, "width": 40, "height": 30}],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "a.json").write_text(json.dumps(document))
    return load_coco(root / "a.json", root / "images")


def as_yolo_list(root: Path, name: str) -> DetectionDataset:
    (root / "list.txt").write_bytes(f"images/{name}\n".encode("utf-8", "replace"))
    (root / "data.yaml").write_text("train: list.txt\nnames: [cat]\n")
    return load_yolo(root, "train")


def as_yolo_folder(root: Path, name: str) -> DetectionDataset:
    (root / "data.yaml").write_text("train: images\nnames: [cat]\n")
    return load_yolo(root, "train")


def as_voc(root: Path, name: str) -> DetectionDataset:
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "JPEGImages").symlink_to(root / "images")
    (root / "Annotations" / Path(name).with_suffix(".xml").name).write_text(
        "<annotation><size><width>40</width><height>30</height></size></annotation>"
    )
    (root / "ImageSets/Main/train.txt").write_text(Path(name).stem)
    return load_voc(root, "train", ["cat"])


LOADERS = [as_coco, as_yolo_list, as_yolo_folder, as_voc]
Load = Callable[[Path, str], DetectionDataset]


@pytest.mark.parametrize("load", LOADERS)
def test_a_link_out_of_the_folder_is_refused(load: Load, tmp_path: Path) -> None:
    root = tmp_path / "data"
    picture(tmp_path / "secret.jpg")
    picture(root / "images" / "mine.jpg")
    (root / "images" / "a.jpg").symlink_to(root / "images" / "mine.jpg")
    assert "a.jpg" in {Path(sample.path).name for sample in load(root, "a.jpg")}
    (root / "images" / "b.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "images" / "a.jpg").unlink()
    for folder in ("Annotations", "ImageSets/Main"):
        if (root / folder).exists():
            (root / folder).rename(root / f"{folder}_former")
    (root / "JPEGImages").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"(images|JPEGImages)/b\.jpg leads out of|lies outside"):
        load(root, "b.jpg")


@pytest.mark.parametrize("load", [as_coco, as_voc, as_yolo_folder])
def test_the_folder_itself_may_be_a_link(load: Load, tmp_path: Path) -> None:
    picture(tmp_path / "store" / "a.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "store")
    assert load(tmp_path / "data", "a.jpg").load_image(0).shape == (3, 30, 40)


@pytest.mark.parametrize("load", [as_coco, as_yolo_list])
@pytest.mark.parametrize("name", ["../../secret.jpg", "sub/secret.jpg", "/dev/zero"])
def test_a_name_that_leads_elsewhere_is_refused(load: Load, name: str, tmp_path: Path) -> None:
    picture(tmp_path / "secret.jpg")
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "sub").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"a file inside|leads out of|outside|not found"):
        load(tmp_path / "data", name)


@pytest.mark.parametrize("name", ["/etc/passwd", "a\0.jpg", "\ud800.jpg", ".."])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"expected a file inside of|cannot be written"):
        as_coco(tmp_path, name)


def test_folders_of_yolo_lie_in_the_datas_folder(tmp_path: Path) -> None:
    picture(tmp_path / "secret" / "a.jpg")
    (tmp_path / "data").mkdir()
    for entry in ("../secret", str(tmp_path / "secret")):
        (tmp_path / "data" / "data.yaml").write_text(f"train: {entry}\nnames: [cat]\n")
        with pytest.raises(UserError, match=r"data\.yaml: train: .* lies outside of the data's"):
            load_yolo(tmp_path / "data", "train")
    # It is where the one who writes the file says that it is.
    (tmp_path / "data" / "data.yaml").write_text("path: ..\ntrain: secret\nnames: [cat]\n")
    assert len(load_yolo(tmp_path / "data", "train")) == 1


@pytest.mark.parametrize("load", [as_coco, as_yolo_list])
def test_an_address_is_refused_without_its_secrets(load: Load, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="got the address") as caught:
        load(tmp_path, "https://user:hidden@host/a.jpg?key=hidden")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("format", ["auto", "coco", "voc", "yolo"])
@pytest.mark.parametrize("place", ["root", "path", "train", "voc"])
def test_no_address_in_place_of_a_folder_shows_its_secrets(
    place: str, format: DatasetFormat, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = "https://user:hidden@host/a?key=hidden"
    keys = {"path": ".", "train": "images"} | {place: address}
    (tmp_path / "data.yaml").write_text(
        f"path: {keys['path']}\ntrain: {keys['train']}\nnames: [a]\n"
    )
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "Annotations/a.xml").write_text("<annotation/>")
    picture(tmp_path / "JPEGImages/a.jpg")
    (tmp_path / "ImageSets/Main/train.txt").write_text(f"{address}\n")
    root = address if place == "root" else str(tmp_path)
    with pytest.raises(UserError) as caught:
        build_dataset(resolve_data(DatasetConfig(root=root, format=format)), "train")
    assert "hidden" not in str(caught.value) + caplog.text
    if place == "root" or (place, format) in (("path", "yolo"), ("train", "yolo"), ("voc", "voc")):
        assert "got the address" in str(caught.value)
