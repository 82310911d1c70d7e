import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from backbones.common.errors import UserError
from detect.data import VOC_CLASSES, boxes_from_voc, boxes_to_voc, load_voc
from detect.data.open import DatasetConfig, build_dataset
from detect.data.voc import load_voc_pairs

BCCD = (
    Path(os.environ.get("LOWRES_DATA", Path(__file__).parents[4] / "shared" / "data"))
    / "bccd"
    / "BCCD"
)


def annotation(*objects: tuple, size: tuple[int, int] = (40, 30)) -> str:
    """XML with objects (name, xmin, ymin, xmax, ymax[, difficult])."""
    text = f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
    for name, x1, y1, x2, y2, *difficult in objects:
        text += f"<object><name>{name}</name>"
        if difficult:
            text += f"<difficult>{difficult[0]}</difficult>"
        text += (
            f"<bndbox><xmax>{x2}</xmax><xmin>{x1}</xmin><ymin>{y1}</ymin><ymax>{y2}</ymax></bndbox>"
            "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        )
    return text + "</annotation>"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    pages = {
        "b": annotation(("dog", 1, 1, 40, 30), ("cat", 5, 6, 6, 7, 1)),
        "a": annotation(),
        "c": annotation(("person", 2, 3, 10, 20, 0), ("dog", 7.5, 8, 9, 10)),
        "d": annotation(("dog", 2, 3, 10, 20)),
    }
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    for name, page in pages.items():
        (tmp_path / "Annotations" / f"{name}.xml").write_text(page)
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(
            tmp_path / "JPEGImages" / f"{name}.jpg"
        )
    (tmp_path / "ImageSets/Main/train.txt").write_text("c\nb\n\na\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("d  1\n")
    return tmp_path


def test_samples(root: Path) -> None:
    dataset = load_voc(root, "train")
    assert dataset.class_names == list(VOC_CLASSES)
    assert dataset.category_ids == list(range(1, 21))
    first, second, third = dataset
    assert first.boxes.tolist() == [[1, 2, 10, 20], [6.5, 7, 9, 10]]
    assert first.labels.tolist() == [15, 12]
    assert first.area.tolist() == [9 * 18, 2.5 * 3]
    assert second.boxes.tolist() == [[0, 0, 40, 30], [4, 5, 6, 7]]
    assert second.difficult.tolist() == [False, True]
    assert not second.crowd.any()
    assert third.boxes.shape == (0, 4)
    assert (first.width, first.height, first.path) == (40, 30, str(root / "JPEGImages" / "c.jpg"))
    assert dataset.load_image(0).shape == (3, 30, 40)
    # Ids are of the folder, not of the split.
    assert dataset.image_ids == [3, 2, 1]
    assert load_voc(root, "val").image_ids == [4]


def test_classes(root: Path) -> None:
    assert load_voc(root, "train", ["dog", "person", "cat"]).sample(0).labels.tolist() == [2, 1]
    (root / "Annotations/d.xml").write_text(annotation(("zebra", 2, 3, 10, 20)))
    # The names of all splits, so that every split has the same labels.
    assert load_voc(root, "train").class_names == ["cat", "dog", "person", "zebra"]
    with pytest.raises(UserError) as error:
        load_voc(root, "val", VOC_CLASSES[:2])
    assert str(error.value) == (
        f"{root / 'Annotations' / 'd.xml'}: class 'zebra' is not among aeroplane, bicycle"
    )


VOC_2007 = """<annotation>
	<folder>VOC2007</folder>
	<filename>000005.jpg</filename>
	<source><database>The VOC2007 Database</database><flickrid>325991873</flickrid></source>
	<owner><flickrid>archintent louisville</flickrid><name>?</name></owner>
	<size><width>500</width><height>375</height><depth>3</depth></size>
	<segmented>0</segmented>
	<object>
		<name>{name}</name>
		<pose>Rear</pose>
		<truncated>0</truncated>
		<difficult>1</difficult>
		<bndbox><xmin>263</xmin><ymin>211</ymin><xmax>324</xmax><ymax>339</ymax></bndbox>
	</object>
</annotation>
"""
VOC_2012 = """<annotation>
	<filename>2012_004331.jpg</filename>
	<folder>VOC2012</folder>
	<object>
		<name>{name}</name>
		<actions><jumping>1</jumping><other>0</other></actions>
		<bndbox>
			<xmax>208.2</xmax>
			<xmin>102.5</xmin>
			<ymax>230</ymax>
			<ymin>25</ymin>
		</bndbox>
		<difficult>0</difficult>
		<pose>Unspecified</pose>
		<point><x>155</x><y>119</y></point>
		<part>
			<name>head</name>
			<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
		</part>
	</object>
	<segmented>0</segmented>
	<size><depth>3</depth><height>375</height><width>500</width></size>
	<source><annotation>PASCAL VOC2012</annotation><image>flickr</image></source>
</annotation>
"""


@pytest.mark.parametrize(
    ("page", "box", "difficult"),
    [
        (VOC_2007, [262, 210, 324, 339], True),
        (VOC_2012, [101.5, 24, 208.2, 230], False),
    ],
)
def test_the_challenges_own_files_and_classes(page, box, difficult, tmp_path):
    """One image of each of the 20 classes; the head of a person is a part, not an object."""
    root = tmp_path / "VOCdevkit" / "VOC"
    for folder in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    names = [f"{number:06d}" for number in range(20)]
    # In another order than that of the labels.
    for name, kind in zip(names, reversed(VOC_CLASSES), strict=True):
        (root / "Annotations" / f"{name}.xml").write_text(page.format(name=kind))
        (root / "JPEGImages" / f"{name}.jpg").touch()
    (root / "ImageSets/Main/trainval.txt").write_text("\n".join(names) + "\n")
    (root / "ImageSets/Main/dog_trainval.txt").write_text(
        "".join(f"{name} {flag:2d}\n" for name, flag in zip(names, [-1, 0, 1, -1] * 5, strict=True))
    )
    dataset = build_dataset(DatasetConfig(format="voc", root=str(root)), "trainval")
    assert dataset.class_names == list(VOC_CLASSES)
    assert [sample.labels.tolist() for sample in dataset] == [[k] for k in range(20, 0, -1)]
    for sample in dataset:
        torch.testing.assert_close(sample.boxes, torch.tensor([box], dtype=torch.float32))
        assert sample.difficult.tolist() == [difficult]
    # Lists for one class name every image of the split, with a flag.
    assert load_voc(root, "dog_trainval").image_ids == dataset.image_ids


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("#1\nbackground\na:b\ndog\n", ["#1", "background", "a:b", "dog"]),
        (
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\ndog:1,2,3:head,tail:run\n#2:::\n",
            ["dog", "#2"],
        ),
    ],
)
def test_listed_classes_are_those_of_the_file(text, names, root: Path) -> None:
    """As `infer --save voc` writes them, and as CVAT does."""
    (root / "labelmap.txt").write_text(text)
    assert load_voc(root, "train").class_names[: len(names)] == names


def test_other_image_formats(root: Path) -> None:
    (root / "JPEGImages/d.jpg").rename(root / "JPEGImages/d.PNG")
    assert load_voc(root, "val").sample(0).path.endswith("d.PNG")


def test_bad_boxes(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    page = annotation(
        ("dog", 5, 6, 5, 9), ("dog", 0, 0, 42, 20), ("dog", 50, 1, 60, 9), ("dog", 9, 9, 9, 19)
    )
    (root / "Annotations/d.xml").write_text(page)
    with caplog.at_level(logging.WARNING):
        sample = load_voc(root, "val").sample(0)
    assert sample.boxes.tolist() == [[0, 0, 40, 20]]
    assert caplog.messages == [
        f"{root}: boxes dropped for having no area: 2, first dog in d.xml",
        f"{root}: boxes dropped for lying outside their image: 1, first dog in d.xml",
        f"{root}: boxes clipped for reaching beyond their image: 1, first dog in d.xml",
    ]


BOMB = (
    '<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa">'
    + "".join(
        f'<!ENTITY {new} "{f"&{old};" * 10}">'
        for old, new in zip("abcdefg", "bcdefgh", strict=True)
    )
    + "]><annotation><filename>&h;</filename></annotation>"
)
FILE_ENTITY = (
    '<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'
)
NO_DOCTYPE = (
    "expected a VOC annotation, cannot parse it: a document type (<!DOCTYPE>) is not allowed"
)
ERRORS = [
    (BOMB, NO_DOCTYPE),
    (FILE_ENTITY, NO_DOCTYPE),
    (
        "<annotation><size>",
        "expected a VOC annotation, cannot parse it: no element found: line 1, column 18",
    ),
    ("", "expected a VOC annotation, cannot parse it: no element found: line 1, column 0"),
    ("<annotation/>", "expected <size/width> in <annotation>"),
    (annotation(size=(0, 30)), "expected a positive size, got 0x30"),
    (annotation(size=(2**40, 30)), "expected a positive size, got 1.09951e+12x30"),
    (annotation(("", 1, 1, 2, 2)), "expected <name> in <object>"),
    (
        annotation(("dog", "nan", 1, 2, 2)),
        "object 1, dog: expected a number as <bndbox/xmin>, got 'nan'",
    ),
    (annotation(("dog", 1, "", 2, 2)), "object 1, dog: expected <bndbox/ymin> in <object>"),
]


@pytest.mark.parametrize(("page", "message"), ERRORS, ids=range(len(ERRORS)))
def test_annotation_errors(root: Path, page: str, message: str) -> None:
    file = root / "Annotations/d.xml"
    file.write_text(page)
    with pytest.raises(UserError) as error:
        load_voc(root, "val")
    assert str(error.value) == f"{file}: {message}"


def test_file_errors(root: Path) -> None:
    main = root / "ImageSets" / "Main"

    def message(split: str) -> str:
        with pytest.raises(UserError) as error:
            load_voc(root, split)
        return str(error.value)

    assert message("test") == f"{main / 'test.txt'}: cannot read this split; there are: train, val"
    (main / "test.txt").write_text("\n \n")
    assert message("test") == (
        f"{main / 'test.txt'}: the split is empty: expected image names, one a line"
    )
    (main / "test.txt").write_text("a\nb\na\n")
    assert message("test") == f"{main / 'test.txt'}: a is listed twice"
    (main / "test.txt").write_text("e\n")
    assert message("test").startswith(
        f"{root / 'Annotations' / 'e.xml'}: no such file, split test has it: an image without "
    )
    (root / "Annotations/e.xml").write_text(annotation())
    assert message("test") == (
        f"{root / 'JPEGImages' / 'e.jpg'}: no such file, and none of another suffix"
    )
    (root / "Annotations/e.xml").unlink()
    os.rename(root / "JPEGImages", root / "images")
    assert message("train") == (
        f"{root / 'JPEGImages'}: no such folder, expected in Pascal VOC's layout"
    )


@given(st.lists(st.tuples(*[st.integers(1, 5000)] * 4), max_size=5))
def test_boxes_convert_both_ways(rows: list[tuple[int, int, int, int]]) -> None:
    voc = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    boxes = boxes_from_voc(voc)
    # The kit's inclusive width is the half-open one.
    assert torch.equal(voc[:, 2] - voc[:, 0] + 1, boxes[:, 2] - boxes[:, 0])
    assert torch.equal(boxes_to_voc(boxes), voc)
    assert boxes_from_voc(torch.tensor([[1.0, 1, 40, 30]])).tolist() == [[0, 0, 40, 30]]


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"the BCCD dataset is not at {BCCD}")
def test_bccd(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        splits = {split: load_voc(BCCD, split) for split in ("train", "val", "trainval", "test")}
    assert {split: len(dataset) for split, dataset in splits.items()} == {
        "train": 205,
        "val": 87,
        "trainval": 292,
        "test": 72,
    }
    labels = torch.cat([s.labels for split in ("trainval", "test") for s in splits[split]])
    assert splits["test"].class_names == ["Platelets", "RBC", "WBC"]
    # 361, 4155 and 372 are in the files; two of the RBC are clicks such as (504, 337, 504, 337).
    assert torch.bincount(labels).tolist() == [0, 361, 4153, 372]
    dropped = [message for message in caplog.messages if "dropped for having no area" in message]
    assert dropped[-1].endswith("area: 2, first RBC in BloodImage_00338.xml")
    for dataset in splits.values():
        for sample in dataset:
            assert (sample.boxes[:, :2] >= 0).all()
            assert (sample.boxes[:, 2:] <= torch.tensor([sample.width, sample.height])).all()
            assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
    assert splits["test"].load_image(0).shape == (3, 480, 640)
    trainval, test = (set(splits[split].image_ids) for split in ("trainval", "test"))
    assert not trainval & test


BOX = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (
            f"<object><name>dog</name>{BOX}{BOX}</object>",
            "object 1, dog: expected one <bndbox",
        ),
        (
            f"<objects><object><name>dog</name>{BOX}</object></objects>",
            "<object> in <objects>",
        ),
        (
            f"<object><name>dog</name>{BOX}<object><name>cat</name>{BOX}</object></object>",
            "<object> in <object>",
        ),
        (f"<Object><name>dog</name>{BOX}</Object>", "<Object> is not read"),
        (
            f"<object><name>dog</name><difficult>2</difficult>{BOX}</object>",
            "as <difficult>, got '2'",
        ),
    ],
)
def test_objects_are_never_dropped_in_silence(objects: str, message: str, root: Path) -> None:
    page = annotation().replace("</annotation>", f"{objects}</annotation>")
    (root / "Annotations/c.xml").write_text(page)
    with pytest.raises(UserError) as caught:
        load_voc(root, "train")
    assert message in str(caught.value)
    assert "c.xml" in str(caught.value)


@pytest.mark.parametrize("text", ["true", "True", "1.0", "1", "yes"])
def test_spellings_of_difficult(text: str, root: Path) -> None:
    (root / "Annotations/c.xml").write_text(annotation(("dog", 2, 3, 10, 20, text)))
    assert load_voc(root, "train").num_difficult() == 2  # and one of b


def test_labelmap_counts_without_lists_too(root: Path) -> None:
    (root / "labelmap.txt").write_text("zebra:1,2,3::\ndog:4,5,6::\n")
    dataset = load_voc_pairs(root / "Annotations", root / "JPEGImages")
    assert dataset.class_names == ["zebra", "dog", "cat", "person"]
