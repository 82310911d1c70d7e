"""YOLO's layout: what exports for it hold, and what they get wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from backbones.common.errors import ImageError, UserError
from backbones.common.images import read_image, read_image_size
from detect.data import load_yolo
from detect.data.open import DatasetConfig, build_dataset


def picture(path: Path, width: int = 40, height: int = 30, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path, **options)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two splits; `a` has a box and a polygon, `b` an empty label file, `c` none."""
    write(
        tmp_path / "data.yaml",
        "path: .\ntrain: images/train\nval: images/val\nnames: {0: car, 2: truck}\n",
    )
    for name in ("train/a.jpg", "train/b.png", "train/deep/c.jpg", "val/d.jpg"):
        picture(tmp_path / "images" / name)
    write(
        tmp_path / "labels/train/a.txt",
        "0 0.5 0.5 0.25 0.2\r\n\n2 0.1 0.1 0.3 0.1 0.2 0.5\n",
    )
    write(tmp_path / "labels/train/b.txt", "")
    write(tmp_path / "labels/val/d.txt", "\ufeff2 0.25 0.5 0.5 1\n")
    return tmp_path


def test_samples(root: Path) -> None:
    train = load_yolo(root, "train")
    assert (train.class_names, train.category_ids) == (["car", "truck"], [0, 2])
    assert [Path(sample.path).name for sample in train] == ["a.jpg", "b.png", "c.jpg"]
    assert train.image_ids == [1, 2, 3]
    first = train.sample(0)
    assert first.labels.tolist() == [1, 2]
    torch.testing.assert_close(
        first.boxes, torch.tensor([[15.0, 12.0, 25.0, 18.0], [4.0, 3.0, 12.0, 15.0]])
    )
    assert [len(sample.boxes) for sample in train] == [2, 0, 0]
    val = build_dataset(DatasetConfig(format="yolo", root=str(root / "data.yaml")), "val")
    assert val.image_ids == [4]
    assert val.sample(0).boxes.tolist() == [[0, 0, 20, 30]]


def test_images_and_label_files_that_are_no_pairs_are_counted(root: Path, caplog) -> None:
    picture(root / "images/train/a.png")
    write(root / "images/train/b.txt", "0 0.5 0.5 0.1 0.1\n")
    train = load_yolo(root, "train")
    assert [len(sample.boxes) for sample in train] == [2, 2, 0, 0]
    shared = "images that have the label file of another, whose name differs in its ending alone: 1"
    assert f"{shared}, first {root}/images/train/a.png" not in caplog.text
    assert f"{shared}, first {root}/images/train/a.jpg" in caplog.text
    beside = "label files beside their images, not read, as there are others in labels: 1, first "
    assert f"{beside}{root}/images/train/b.txt" in caplog.text


def test_links_to_folders_are_not_followed_in_silence(root: Path, caplog) -> None:
    (root / "images/val/again").symlink_to(root / "images/train")
    assert len(load_yolo(root, "val")) == 1
    link = f"{root}/images/val/again"
    assert f"put the folders themselves there: 1, first {link}" in caplog.text


def test_boxes_are_fractions_of_the_upright_image(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(root / "images/val/d.jpg", 40, 30, exif=exif)
    val = load_yolo(root, "val")
    assert val.load_image(0).shape == (3, 40, 30)
    assert val.sample(0).boxes.tolist() == [[0, 0, 15, 40]]


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_the_size_is_that_of_the_decoded_image(orientation: int, suffix: str, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    picture(path, 20, 10, exif=exif)
    width, height = read_image_size(path)
    assert read_image(path).shape == (3, height, width)


def test_an_image_without_a_head_is_left_out_and_named(root: Path, caplog) -> None:
    whole = load_yolo(root, "train")
    first, broken, *rest = map(Path, whole.paths)
    broken.write_bytes(b"nothing")
    dataset = load_yolo(root, "train")
    assert list(map(Path, dataset.paths)) == [first, *rest]
    assert dataset.image_ids == [whole.image_ids[0], *whole.image_ids[2:]], "as before"
    assert f"left out: 1, first {broken}: not an image" in caplog.text
    for path in (first, *rest):
        path.write_bytes(b"nothing")
    with pytest.raises(ImageError, match="not an image"):
        load_yolo(root, "train")


@pytest.mark.parametrize(
    ("entry", "files"),
    [
        ("train: ../images/train", ["a.jpg", "b.png", "c.jpg"]),  # one folder too deep
        ("train: [images/val, images/train/deep]", ["d.jpg", "c.jpg"]),
        ("train: list.txt", ["d.jpg", "a.jpg"]),
    ],
)
def test_a_split_is_folders_or_a_list(entry: str, files: list[str], root: Path) -> None:
    write(root / "list.txt", "./images/val/d.jpg\n\nimages/train/a.jpg\n")
    write(root / "data.yaml", f"{entry}\nnames: [car, van, truck]\n")
    assert [Path(sample.path).name for sample in load_yolo(root, "train")] == files


def test_labels_stand_beside_images_without_a_folder_of_that_name(tmp_path: Path) -> None:
    write(tmp_path / "data.yaml", "train: pictures\nnames: [car]\n")
    picture(tmp_path / "pictures/a.jpg")
    write(tmp_path / "pictures/a.txt", "0 0.5 0.5 1 1\n")
    assert load_yolo(tmp_path, "train").sample(0).boxes.tolist() == [[0, 0, 40, 30]]


def test_what_is_left_out_is_counted(root: Path, caplog) -> None:
    write(root / "labels/train/lost.txt", "0 0.5 0.5 1 1\n")
    write(root / "labels/train/of_no_folder/x.txt", "0 0.5 0.5 1 1\n")
    write(root / "labels/train/classes.txt", "car\n")
    write(root / "images/train/readme.md", "")
    write(root / "labels/train/a.txt", "0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0 0.2\n")
    assert len(load_yolo(root, "train").sample(0).boxes) == 1
    for words in (
        "label files without an image: 1, first",
        "lost.txt",
        "left out for their suffix: 1 (.md)",
        "objects left out that the image has already, with the same class and box: 1, first",
        "a.txt, line 2",
        "boxes dropped for having no area: 1, first",
        "a.txt, line 3",
    ):
        assert words in caplog.text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0 120 80 20 10", r"a\.txt, line 1: expected fractions .* got 120 \(are these pixels\?\)"),
        ("0 0.5 0.5 nan 0.1", "expected fractions of the image from 0 to 1, got nan"),
        ("0 0.5 0.5 1.2 0.1", "expected fractions of the image from 0 to 1, got 1.2$"),
        ("1 0.5 0.5 0.1 0.1", r"class 1 is not among the classes of data\.yaml, 0, 2"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is not among"),
        ("0 0.5 0.5 0.1", "got 4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "got 6 numbers"),
        ("car 0.5 0.5 0.1 0.1", "expected numbers, got 'car 0.5"),
        ("0_1 0.5 0.5 0.1 0.1", "expected numbers, got '0_1 0.5"),
    ],
)
def test_a_wrong_row_is_named(row: str, words: str, root: Path) -> None:
    write(root / "labels/train/a.txt", row)
    with pytest.raises(UserError, match=words):
        load_yolo(root, "train")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("train: images/train\n", "expected the names of the classes under the key names"),
        ("train: images/train\nnames: {car: 0}\n", "names: expected `number: name`, got 'car': 0"),
        ("train: images/train\nnames: [car, car]\n", "a name stands twice"),
        ("train: images/train\nnames: [yes, off]\n", "got 0: True: put a name that YAML reads as"),
        ("train: images/train\nnames: [1.10]\n", "got 0: 1.1: put a name that YAML reads as"),
        ("train: images/train\nnames: [car]\nkpt_shape: 17\n", r"expected \[points, 2 or 3\]"),
        ("train: images/train\nnames: [car, ' ']\n", "data.yaml: names: 1: expected the name of a"),
        ('train: images/train\nnames: {4: "a\\a"}\n', "data.yaml: names: 4: class name"),
        ('train: images/train\nnames: {4: "a\u2029a"}\n', "data.yaml: names: 4: class name"),
        ("train: images/nowhere\nnames: [car]\n", "images/nowhere: not found"),
        ('train: images/train\nval: ""\nnames: [car]\n', "yaml: val: expected a folder or a list"),
        ("train: images/train\nval: []\nnames: [car]\n", "yaml: val: expected a folder or a list"),
        ("val: a\nTest: b\nvalid: c\nnames: [car]\n", "val and valid mean the same split"),
        ("val: images/val\nnames: [car]\n", "no split train; there are: val"),
        ("train: labels/train\nnames: [car]\n", "no image files in the split train"),
    ],
)
def test_a_wrong_document_is_named(document: str, words: str, root: Path) -> None:
    write(root / "data.yaml", document)
    with pytest.raises(UserError, match=words):
        load_yolo(root, "train")


def test_labels_are_not_read_through_a_link(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("root:x:0:0")
    label = next((root / "labels/train").glob("*.txt"))
    label.unlink()
    label.symlink_to(secret)
    with pytest.raises(UserError, match=r"leads out of .* by a link") as error:
        load_yolo(root, "train")
    assert "root:x" not in str(error.value)


fractions = st.floats(0.01, 0.99)


@given(st.lists(st.tuples(fractions, fractions, fractions, fractions), min_size=1, max_size=5))
def test_boxes_read_as_written(tmp_path_factory, corners) -> None:
    """Random boxes, written as centre and size, come back as they were."""
    folder = tmp_path_factory.mktemp("yolo")
    write(folder / "data.yaml", "train: images\nnames: [thing]\n")
    picture(folder / "images/a.png", 200, 100)
    boxes = {
        (min(x1, x2), min(y1, y2), max(x1, x2) + 1e-3, max(y1, y2) + 1e-3)
        for x1, y1, x2, y2 in corners
    }
    rows = [
        f"0 {(x1 + x2) / 2!r} {(y1 + y2) / 2!r} {x2 - x1!r} {y2 - y1!r}" for x1, y1, x2, y2 in boxes
    ]
    write(folder / "labels/a.txt", "\n".join(rows))
    found = load_yolo(folder, "train").sample(0).boxes
    want = torch.tensor(list(boxes)) * torch.tensor([200.0, 100.0, 200.0, 100.0])
    torch.testing.assert_close(found, want, atol=1e-3, rtol=0)


def test_data_for_poses_are_boxes_with_points_behind_them(tmp_path):
    root = tmp_path / "poses"
    write(root / "data.yaml", "train: images\nnames: [car, 010]\ntime: 12:30\nkpt_shape: [2, 2]\n")
    picture(root / "images/a.png", 100, 50)
    write(root / "labels/a.txt", "0 0.5 0.5 0.2 0.4 0.9 0.9 0.1 0.1\n")
    dataset = load_yolo(root, "train")
    torch.testing.assert_close(next(iter(dataset)).boxes, torch.tensor([[40.0, 15.0, 60.0, 35.0]]))
    assert dataset.class_names == ["car", "010"]
    write(root / "labels/a.txt", "0 0.5 0.5 0.2 0.4 0.9 0.9\n")
    with pytest.raises(UserError, match="and 4 values of points, as kpt_shape says, got 7"):
        load_yolo(root, "train")


def test_numbers_of_classes_may_be_text(root: Path) -> None:
    """As in a file that was made of JSON."""
    path = root / "data.yaml"
    path.write_text(path.read_text().replace("{0: car, 2: truck}", "{'2': truck, '0': car}"))
    train = load_yolo(root, "train")
    assert (train.class_names, train.category_ids) == (["car", "truck"], [0, 2])
    path.write_text(path.read_text().replace("'2'", "'00'"))
    with pytest.raises(UserError, match="names: a number stands twice: 00, 0"):
        load_yolo(root, "train")


def test_the_number_of_classes_must_be_that_of_the_names(root: Path) -> None:
    with (root / "data.yaml").open("a") as file:
        file.write("nc: 3\n")
    with pytest.raises(UserError, match=r"nc is 3, but names has 2 classes, car, truck"):
        load_yolo(root, "train")


def test_the_file_that_names_the_classes_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    write(tmp_path / "labels/a.txt", "2 0.5 0.5 0.1 0.1\n")
    write(tmp_path / "classes.txt", "car\ntruck\n")
    with pytest.raises(UserError, match=r"class 2 is not among the classes of classes\.txt, 0, 1"):
        load_yolo(tmp_path / "classes.txt", "train")


@pytest.mark.parametrize("name", ["classes.txt", "obj.names"])
def test_an_empty_line_would_shift_the_numbers_of_classes(name: str, tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    write(tmp_path / "labels/a.txt", "1 0.5 0.5 0.1 0.1\n")
    write(tmp_path / "train.txt", "images/a.jpg\n")
    for text, line in (("\ncar\ntruck\n", 1), ("car\n \ntruck\n", 2)):
        write(tmp_path / name, text)
        with pytest.raises(UserError, match=rf"{name}, line {line}: empty: expected the name of a"):
            load_yolo(tmp_path / name, "train")
    write(tmp_path / name, "car\ntruck\n\n \n")
    assert load_yolo(tmp_path / name, "train").class_names == ["car", "truck"]
