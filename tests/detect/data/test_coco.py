import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from backbones.common.errors import ImageError, UserError
from detect.data import DetectionDataset, load_coco


def document() -> dict[str, Any]:
    """Sparse, unsorted category ids; image 7 has no boxes; annotations of images are mixed."""
    return {
        "images": [
            {"id": 40, "file_name": "a.png", "width": 64, "height": 48},
            {"id": 7, "file_name": "b.png", "width": 32, "height": 32},
            {"id": 12, "file_name": "c.png", "width": 100, "height": 50},
        ],
        "annotations": [
            {"id": 1, "image_id": 12, "category_id": 90, "bbox": [10, 5, 20.5, 30], "area": 99.5},
            {"id": 2, "image_id": 40, "category_id": 3, "bbox": [0, 0, 64, 48], "iscrowd": 1},
            {"id": 3, "image_id": 12, "category_id": 17, "bbox": [1, 2, 3, 4], "iscrowd": 0},
        ],
        "categories": [
            {"id": 90, "name": "toothbrush"},
            {"id": 3, "name": "car"},
            {"id": 17, "name": "cat"},
        ],
    }


def load(tmp_path: Path, content: Any) -> DetectionDataset:
    file = tmp_path / "a.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_coco(file, tmp_path)


def test_samples(tmp_path: Path) -> None:
    dataset = load(tmp_path, document())
    assert len(dataset) == 3
    assert dataset.class_names == ["car", "cat", "toothbrush"]
    assert dataset.category_ids == [3, 17, 90]
    crowd, empty, two = dataset
    assert (crowd.image_id, empty.image_id, two.image_id) == (40, 7, 12)
    assert two.path == str(tmp_path / "c.png")
    assert (two.width, two.height) == (100, 50)
    assert two.boxes.tolist() == [[10, 5, 30.5, 35], [1, 2, 4, 6]]
    assert two.labels.tolist() == [3, 2]
    assert two.area.tolist() == [99.5, 12]
    assert two.crowd.tolist() == [False, False]
    assert crowd.crowd.tolist() == [True]
    for sample in (crowd, empty, two):
        number = len(sample.labels)
        assert (sample.boxes.dtype, sample.boxes.shape) == (torch.float32, (number, 4))
        assert (sample.labels.dtype, sample.area.dtype) == (torch.int64, torch.float32)
        assert sample.difficult.dtype == sample.crowd.dtype == torch.bool
        assert not sample.difficult.any()
    assert len(empty.boxes) == 0


def test_samples_are_copies(tmp_path: Path) -> None:
    dataset = load(tmp_path, document())
    dataset.sample(2).boxes[:] = 0
    assert dataset.sample(2).boxes.sum() > 0
    for index in (-1, 3):
        with pytest.raises(IndexError):
            dataset.sample(index)


def test_to_coco_restores_the_file(tmp_path: Path) -> None:
    written = load(tmp_path, document()).to_coco()
    again = load(tmp_path, written).to_coco()
    assert again == written
    assert [image["id"] for image in written["images"]] == [40, 7, 12]
    original = {entry["id"]: entry for entry in document()["annotations"]}
    assert [entry["id"] for entry in written["annotations"]] == [1, 2, 3]
    for entry, old in zip(written["annotations"], (2, 1, 3), strict=True):
        for key in ("image_id", "category_id", "bbox"):
            assert entry[key] == original[old][key]
    assert written["annotations"][0]["iscrowd"] == 1
    names = {entry["id"]: entry["name"] for entry in written["categories"]}
    assert names == {90: "toothbrush", 3: "car", 17: "cat"}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_sparse_ids_round_trip(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    category_ids = data.draw(st.lists(st.integers(0, 999), min_size=1, max_size=8, unique=True))
    image_ids = data.draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=5, unique=True))
    side = st.integers(2, 30)  # boxes within the first pixel alone are refused as fractions
    boxes = st.tuples(st.integers(0, 30), st.integers(0, 30), side, side)
    annotations = [
        {
            "id": number,
            "image_id": data.draw(st.sampled_from(image_ids)),
            "category_id": data.draw(st.sampled_from(category_ids)),
            "bbox": list(box),
        }
        for number, box in enumerate(data.draw(st.lists(boxes, max_size=12, unique=True)))
    ]
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 60, "height": 60} for i in image_ids
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in category_ids],
    }
    written = load(tmp_path_factory.mktemp("coco"), content).to_coco()

    def key(entry: dict[str, Any]) -> tuple:
        return (entry["image_id"], entry["category_id"], *entry["bbox"])

    assert sorted(map(key, written["annotations"])) == sorted(map(key, annotations))


def test_separators_of_windows(tmp_path: Path) -> None:
    content = document()
    content["images"][0]["file_name"] = "images\\a.png"
    dataset = load(tmp_path, content)
    assert dataset.paths[0] == str(tmp_path / "images/a.png")


def test_loads_pixels_and_checks_their_size(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.png")
    dataset = load(tmp_path, document())
    assert torch.equal(dataset.load_image(0).permute(1, 2, 0), torch.from_numpy(pixels))
    with pytest.raises(ImageError) as error:
        dataset.load_image(1)
    assert str(error.value) == (
        f"{tmp_path / 'b.png'}: the image has 64x48 pixels, its annotation says 32x32"
    )
    with pytest.raises(ImageError, match=r"c\.png"):
        dataset.load_image(2)


def test_bad_boxes_are_counted_in_one_warning_of_each_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = document()
    for number, box in enumerate(
        [
            [5, 5, 0, 9],
            [5, 5, 4, 0],
            [200, 5, 10, 10],
            [-20, 9, 20.000005, 9],
            [90, 40, 20, 20],
            [99, 49, 1.5, 1.5],
        ],
        start=50,
    ):
        content["annotations"].append({"id": number, "image_id": 12, "category_id": 3, "bbox": box})
    with caplog.at_level(logging.WARNING):
        sample = load(tmp_path, content).sample(2)
    assert sample.boxes[2:].tolist() == [[90, 40, 100, 50], [99, 49, 100, 50]]
    file = tmp_path / "a.json"
    assert caplog.messages == [
        f"{file}: boxes dropped for having no area: 2, first annotation 50",
        f"{file}: boxes dropped for lying outside their image: 2, first annotation 52",
        f"{file}: boxes clipped for reaching beyond their image: 1, first annotation 54",
        f"{file}: 1 of 9 annotations are iscrowd: these are neither trained on nor to be found "
        "(CVAT marks every mask so)",
    ]


def changed(path: tuple, value: Any) -> dict[str, Any]:
    """The document with one entry replaced, or removed where `value` is `...`."""
    content = document()
    place: Any = content
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


ERRORS = [
    (("images",), ..., "expected a list under the key 'images'"),
    (("annotations",), {}, "expected a list under the key 'annotations'"),
    (("categories",), ..., "expected a list under the key 'categories'"),
    (("images",), [], "the dataset is empty: expected at least one entry in images"),
    (("categories",), [], "expected at least one entry in categories"),
    (("images", 1, "id"), ..., "images[1]: expected the key 'id'"),
    (("images", 1, "id"), 40, "images: id 40 is used twice"),
    (("images", 1, "id"), "x", "images[1]: expected an integer as id, got 'x'"),
    (("images", 1), 3, "images[1]: expected the key 'id'"),
    (("images", 0, "file_name"), 5, "images[0]: expected a string as file_name, got 5"),
    (("images", 0, "width"), ..., "images[0]: expected the key 'width'"),
    (("images", 0, "height"), 0, "images[0]: expected a positive width and height, got [64, 0]"),
    (("categories", 1, "id"), 90, "categories[1]: id 90 is used twice"),
    (("categories", 1, "name"), ..., "categories[1]: expected the key 'name'"),
    (("categories", 1, "name"), " ", "categories[1]: expected the name of a class, got ' '"),
    (
        ("annotations", 2, "category_id"),
        4,
        "annotation 3: category_id 4 is not among the categories",
    ),
    (("annotations", 2, "category_id"), ..., "annotation 3: expected the key 'category_id'"),
    (("annotations", 2, "image_id"), 99, "annotation 3: image_id 99 is not among the images"),
    (("annotations", 2, "image_id"), [1], "annotation 3: image_id [1] is not among the images"),
    (("annotations", 2, "bbox"), ..., "annotation 3: expected the key 'bbox'"),
    (
        ("annotations", 2, "bbox"),
        [1, 2, 3],
        "annotation 3: expected bbox as four numbers [x, y, width, height], got [1, 2, 3]",
    ),
    (
        ("annotations", 2, "bbox"),
        [1, 2, 3, "x"],
        "annotation 3: expected bbox as four numbers [x, y, width, height], got [1, 2, 3, 'x']",
    ),
    (
        ("annotations", 2, "bbox"),
        7,
        "annotation 3: expected bbox as four numbers [x, y, width, height], got 7",
    ),
    (
        ("annotations", 2, "bbox"),
        [1, 2, float("nan"), 4],
        "annotation 3: expected finite numbers in bbox, got [1, 2, nan, 4]",
    ),
    (
        ("annotations", 0, "bbox"),
        "1234",
        "annotation 1: expected bbox as four numbers [x, y, width, height], got '1234'",
    ),
    (
        ("annotations", 2, "bbox"),
        [1, 2, 3, 10**400],
        "annotations: expected JSON, cannot parse it: 100000000000000000000000 has more digits "
        "than integers have, 401",
    ),
    (
        ("images", 0, "width"),
        2**40,
        "images[0]: expected a positive width and height, got [1099511627776, 48]",
    ),
    (("annotations", 2, "iscrowd"), 2, "annotation 3: expected iscrowd 0 or 1, got 2"),
    (("annotations", 2, "area"), "big", "annotation 3: expected a number as area, got 'big'"),
    (("annotations", 2), 5, "annotations[2]: expected an object, got 5"),
]


@pytest.mark.parametrize(("path", "value", "message"), ERRORS)
def test_errors(tmp_path: Path, path: tuple, value: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, changed(path, value))
    shown = str(error.value)
    assert shown == f"{tmp_path / 'a.json'}: {message}"
    assert "\n" not in shown


def test_annotation_without_id_is_named_by_its_place(tmp_path: Path) -> None:
    content = changed(("annotations", 2, "category_id"), 4)
    del content["annotations"][2]["id"]
    with pytest.raises(UserError, match=r"annotations\[2\]: category_id 4"):
        load(tmp_path, content)


def test_an_image_listed_with_two_sizes(tmp_path: Path) -> None:
    content = document()
    content["images"].append({"id": 41, "file_name": "a.png", "width": 128, "height": 96})
    message = r"images\[3\]: a.png is listed with a size of \[128, 96\], and before with \[64, 48\]"
    with pytest.raises(UserError, match=message):
        load(tmp_path, content)


def test_file_errors(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    with pytest.raises(UserError) as error:
        load_coco(file, tmp_path)
    assert str(error.value) == f"{file}: cannot read annotations: No such file or directory"
    with pytest.raises(UserError) as error:
        load(tmp_path, "{not json")
    assert str(error.value) == (
        f"{file}: annotations: expected JSON, cannot parse it: "
        "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    )
    with pytest.raises(UserError) as error:
        load(tmp_path, [1])
    assert str(error.value) == (
        f"{file}: expected a JSON object with images, annotations and categories, got a list"
    )
    for text in ("[" * 100_000, "\ud800".encode("utf-16", "surrogatepass").decode("latin1")):
        with pytest.raises(UserError):
            load(tmp_path, text)
    with pytest.raises(UserError) as error:
        load_coco(file, tmp_path / "nowhere")
    assert str(error.value) == (
        f"{tmp_path / 'nowhere'}: no such folder, expected the images of {file}"
    )


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    text = json.dumps(document())
    for wrong, key in (
        (text[:-1] + ', "annotations": []}', "annotations"),
        (text.replace('"name": "cat"', '"name": "cat", "name": "dog"'), "name"),
    ):
        with pytest.raises(UserError, match=rf"a\.json: .*key '{key}' stands twice"):
            load(tmp_path, wrong)
