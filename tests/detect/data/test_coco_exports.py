"""COCO files as label tools export them."""

import json
from pathlib import Path
from typing import Any

import pytest

from backbones.common.errors import UserError
from detect.data import DetectionDataset, load_coco

BOX = {"image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 5]}


def load(folder: Path, annotations: list[dict[str, Any]], categories: Any) -> DetectionDataset:
    document = {
        "images": [{"id": 1.0, "file_name": "a.png", "width": 64, "height": 48.0}],
        "annotations": [{"id": number} | row for number, row in enumerate(annotations)],
        "categories": [
            {"id": key, "name": name, "supercategory": above} for key, name, above in categories
        ],
    }
    (folder / "a.json").write_text(json.dumps(document))
    return load_coco(folder / "a.json", folder)


@pytest.mark.parametrize("root", ["cat", "animals"])
def test_a_category_above_the_others_is_no_class(root: str, tmp_path: Path, caplog) -> None:
    categories = [(0, root, "none"), (1, "cat", root), (2, "dog", root)]
    dataset = load(tmp_path, [BOX], categories)
    assert (dataset.class_names, dataset.category_ids) == (["cat", "dog"], [1, 2])
    assert caplog.messages == [
        f"{tmp_path / 'a.json'}: category 0 {root} is left out: it has no objects and stands above "
        "the others"
    ]


@pytest.mark.parametrize(
    ("categories", "row"),
    [
        ([(0, "animal", "none"), (1, "cat", "animal")], BOX | {"category_id": 0}),
        ([(0, "animal", "none"), (1, "cat", "pet")], BOX),
        ([(0, "person", "person"), (1, "cat", "person")], BOX),
        ([(1, "person", "none")], BOX | {"category_id": 1}),
    ],
)
def test_other_categories_without_objects_stay_classes(categories, row, tmp_path, caplog) -> None:
    assert len(load(tmp_path, [row], categories).class_names) == len(categories)
    assert caplog.messages == []


def test_a_name_that_two_categories_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json: categories: name 'cat' is used twice"):
        load(tmp_path, [BOX], [(1, "cat", "a"), (2, "cat", "a")])


def test_crowds_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    crowd = BOX | {"iscrowd": 1, "segmentation": {"counts": [1], "size": [1, 1]}}
    other = crowd | {"bbox": [0, 0, 30, 5]}
    dataset = load(tmp_path, [BOX, crowd, other], [(1, "cat", "")])
    assert dataset.objects_by_class() == {"cat": 1}
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'a.json'}: 2 of 3 annotations are iscrowd: ")


def test_corners_in_another_order_are_put_right(tmp_path: Path, caplog) -> None:
    swapped = BOX | {"bbox": [40, 26, -30, -5]}
    dataset = load(tmp_path, [BOX, swapped], [(1, "cat", "")])
    assert dataset.sample(0).boxes.tolist() == [[10, 20, 40, 25], [10, 21, 40, 26]]
    assert dataset.sample(0).area.tolist() == [150, 150]
    assert "boxes put right for having their corners swapped: 1, first annotation 1" in caplog.text


def test_fractions_are_no_pixels(tmp_path: Path) -> None:
    row = BOX | {"bbox": [0.1, 0.2, 0.5, 0.5]}
    with pytest.raises(UserError, match=r"a\.json: expected boxes in pixels, .* are these fractio"):
        load(tmp_path, [row, row], [(1, "cat", "")])


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\ud800"])
def test_names_that_cannot_be_printed_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has characters that cannot be printed|cannot be written"):
        load(tmp_path, [BOX], [(1, name, "")])


def test_a_name_that_no_line_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"a\.json: .*name 'x{40}'\.\.\. has 201 characters, expect"
    ):
        load(tmp_path, [BOX], [(1, "x" * 201, "")])


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"a\.json: cannot read annotations: is a pipe or a device"):
        load_coco(tmp_path / "a.json", tmp_path)
