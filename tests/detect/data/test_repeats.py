"""What annotations have twice, or name otherwise than the files are called, is counted."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbones.common.errors import UserError
from detect.data import DetectionDataset, load_coco, load_voc, load_yolo
from detect.data.voc import load_voc_pairs

BOXES = [(5, 6, 25, 26), (5, 6, 25, 26), (5, 6, 25, 27)]
AGAIN = "objects left out that the image has already, with the same class and box: 1, first "


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path, format="PNG")


def page(path: Path, boxes: Sequence[tuple[int, ...]], text: str = "") -> None:
    sides = ("xmin", "ymin", "xmax", "ymax")
    for box in boxes:
        corners = "".join(f"<{s}>{value}</{s}>" for s, value in zip(sides, box, strict=True))
        text += f"<object><name>cat</name><bndbox>{corners}</bndbox></object>"
    path.parent.mkdir(parents=True, exist_ok=True)
    size = "<size><width>40</width><height>30</height></size>"
    path.write_text(f"<annotation>{size}{text}</annotation>")


def as_coco(root: Path) -> DetectionDataset:
    rows = [coco_row(number, box) for number, box in enumerate(BOXES)]
    return coco(root, [(1, "a.png")], rows)


def as_voc(root: Path) -> DetectionDataset:
    picture(root / "a.png")
    page(root / "a.xml", [(x1 + 1, y1 + 1, x2, y2) for x1, y1, x2, y2 in BOXES])
    return load_voc_pairs(root, root)


def as_yolo(root: Path) -> DetectionDataset:
    picture(root / "a.png")
    (root / "data.yaml").write_text("names: [cat]\ntrain: [list.txt, .]\n")
    (root / "list.txt").write_text("a.png\n./a.png\n")
    rows = [
        f"0 {(x1 + x2) / 80} {(y1 + y2) / 60} {(x2 - x1) / 40} {(y2 - y1) / 30}\n"
        for x1, y1, x2, y2 in BOXES
    ]
    (root / "a.txt").write_text("".join(rows))
    return load_yolo(root, "train")


def coco_row(number: int, box: tuple[int, ...], image: int = 1, **values: object) -> dict:
    x1, y1, x2, y2 = box
    row = {"id": number, "image_id": image, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
    return row | values


def coco(root: Path, images: Sequence[tuple[int, str]], rows: list[dict]) -> DetectionDataset:
    document = {
        "images": [
            {"id": key, "file_name": name, "width": 40, "height": 30} for key, name in images
        ],
        "annotations": rows,
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "a.json").write_text(json.dumps(document))
    return load_coco(root / "a.json", root)


def test_coco_counts_each_as_pycocotools_does(tmp_path: Path, caplog) -> None:
    (sample,) = as_coco(tmp_path)
    np.testing.assert_allclose(sample.boxes, BOXES)
    assert (
        "objects with the class and box of another (pycocotools counts each): 1, first "
        in caplog.text
    )


@pytest.mark.parametrize("load", [as_voc, as_yolo])
def test_an_object_counts_once_in_any_layout(
    load: Callable[[Path], DetectionDataset], tmp_path: Path, caplog
) -> None:
    (sample,) = load(tmp_path)
    np.testing.assert_allclose(sample.boxes, BOXES[1:], atol=1e-4)
    assert AGAIN in caplog.text
    assert ("images listed again, taken as one" in caplog.text) == (load is as_yolo)


def test_a_crowd_is_no_repeated_object(tmp_path: Path, caplog) -> None:
    rows = [coco_row(1, BOXES[0]), coco_row(2, BOXES[0], iscrowd=1)]
    assert coco(tmp_path, [(1, "a.png")], rows).sample(0).crowd.tolist() == [False, True]
    assert AGAIN not in caplog.text


def test_entries_of_one_file_are_one_image_with_the_objects_of_all(tmp_path: Path, caplog) -> None:
    rows = [coco_row(1, BOXES[0]), coco_row(2, BOXES[0], 9), coco_row(2, BOXES[2], 9)]
    rows.append(coco_row(3, (0, 0, 9, 9), 5))
    first, other = coco(tmp_path, [(1, "a.png"), (9, "./a.png"), (5, "b.png")], rows)
    assert (first.image_id, other.image_id) == (1, 5)
    assert first.boxes.tolist() == [[*BOXES[0]], [*BOXES[2]]]
    assert other.boxes.tolist() == [[0, 0, 9, 9]]
    for words in (
        "images listed again, taken as one with their objects: 1, first ./a.png",
        f"{AGAIN}annotation 2",
        "ids of annotations used again, which pycocotools would mix up: 1, first 2",
    ):
        assert words in caplog.text


@pytest.mark.parametrize("area", [0, -3.5, float("nan"), 1e300])
def test_an_area_that_is_no_size_is_that_of_the_box(area: float, tmp_path: Path, caplog) -> None:
    boxes = [(5, 6, 25, 26), (30, 20, 45, 28), (1, 1, 1, 9)]
    rows = [coco_row(number, box, area=area) for number, box in enumerate(boxes)]
    rows.append(coco_row(3, (0, 0, 9, 9), area=44.5))
    assert coco(tmp_path, [(1, "a.png")], rows).sample(0).area.tolist() == [400, 80, 44.5]
    assert "areas that are no size, that of the box is taken: 2, first annotation 0" in caplog.text


def test_names_of_voc_that_are_not_the_files_are_counted(tmp_path: Path, caplog) -> None:
    for name in ("a.jpg", "a.png", "b.jpg", "c.jpg", "d.jpg"):
        picture(tmp_path / name)
    for stem, named in (("a", "a.jpg"), ("b", "c.jpg"), ("c", "elsewhere.jpg"), ("d", "D.png")):
        page(tmp_path / f"{stem}.xml", BOXES[1:], f"<filename>{named}</filename>")
    paths = [Path(path).name for path in load_voc_pairs(tmp_path, tmp_path).paths]
    assert paths == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert sorted(caplog.messages) == [
        f"{tmp_path}: annotations with another image as <filename>, that of their own name is "
        "taken: 1, first b.xml",
        f"{tmp_path}: images left out beside the one of the same name that the annotation names: "
        "1, first a.png",
    ]
    page(tmp_path / "b.XML", [])
    with pytest.raises(UserError, match=r"b\.(XML|xml): there is b\.(xml|XML) too: remove all but"):
        load_voc_pairs(tmp_path, tmp_path)


def test_no_object_anywhere_is_not_vocs_classes(tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages" / "a.jpg")
    page(tmp_path / "Annotations" / "a.xml", [])
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a")
    with pytest.raises(UserError, match=r": no annotation has an object, name the classes by data"):
        load_voc(tmp_path, "train")
    assert load_voc(tmp_path, "train", ["cat"]).class_names == ["cat"]
