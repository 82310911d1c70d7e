"""Which image an entry of a VOC split means, as label tools and operating systems write names."""

import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbones.common.errors import UserError
from detect.data import load_voc


def add(
    root: Path, name: str, suffix: str = ".jpg", box: str = "6 7 25 16", text: str = ""
) -> None:
    """An image with one object and its annotation; only the image without a box."""
    image = root / "JPEGImages" / f"{name}{suffix}"
    page = root / "Annotations" / f"{name}.xml"
    for path in (image, page, root / "ImageSets" / "Main" / "x"):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(image, format="PNG")
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=True) if box else ()
    corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    if box:
        page.write_text(
            f"<annotation>{text}<size><width>64</width><height>48</height></size>"
            f"<object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
        )


def names(root: Path, split: bytes | str) -> list[str]:
    data = split.encode() if isinstance(split, str) else split
    (root / "ImageSets" / "Main" / "s.txt").write_bytes(data)
    images = load_voc(root, "s")
    return [str(Path(sample.path).relative_to(root / "JPEGImages")) for sample in images]


def test_names_may_have_spaces_and_lists_flags(tmp_path):
    for name in ("IMG", "IMG 1", "IMG 2"):
        add(tmp_path, name)
    assert names(tmp_path, "IMG 2\n") == ["IMG 2.jpg"]
    assert names(tmp_path, "IMG 1\n IMG 2 \n") == ["IMG 1.jpg", "IMG 2.jpg"]
    assert names(tmp_path, "IMG -1\nIMG 2  1\n") == ["IMG.jpg", "IMG 2.jpg"]
    # Of one list is not known whether these are flags or numbers: never another image.
    with pytest.raises(UserError, match=r"IMG 0\.xml: no such file"):
        names(tmp_path, "IMG 0\nIMG 1\n")
    with pytest.raises(UserError, match=r"IMG 3\.xml: no such file"):
        names(tmp_path, "IMG 3\n")


def test_folders_below_are_part_of_a_name(tmp_path):
    for name in ("cam1/a", "cam2/a"):
        add(tmp_path, name)
    (tmp_path / "Annotations" / "cam1" / "._a.xml").write_bytes(b"\0\5\x16\7")
    assert names(tmp_path, "cam2/a\ncam1/a\n") == ["cam2/a.jpg", "cam1/a.jpg"]
    with pytest.raises(UserError, match=r"Annotations/a\.xml: no such file, split s has it"):
        names(tmp_path, "a\n")


def test_encodings(tmp_path):
    composed, apart = "M\u00fcller", unicodedata.normalize("NFD", "M\u00fcller")
    add(tmp_path, apart)
    assert names(tmp_path, composed) == [f"{apart}.jpg"]
    assert names(tmp_path, b"\xef\xbb\xbf" + apart.encode() + b"\r\n") == [f"{apart}.jpg"]
    with pytest.raises(UserError, match=r"s\.txt: expected text in UTF-8, save it as such"):
        names(tmp_path, composed.encode("utf-16"))


def test_the_image_is_the_one_that_the_annotation_names(tmp_path):
    add(tmp_path, "a", ".jpg", text="<filename>a.jpg</filename>")
    add(tmp_path, "a", ".png", box="")
    assert names(tmp_path, "a") == ["a.jpg"]
    add(tmp_path, "a", ".jpg", text="<filename>b.jpg</filename>")
    with pytest.raises(UserError, match=r"a: there are a\.jpg, a\.png, and <filename> .* none"):
        names(tmp_path, "a")


def test_what_is_missing_is_said_as_it_is(tmp_path):
    add(tmp_path, "a")
    add(tmp_path, "b", box="")
    add(tmp_path, "c", ".heic")
    add(tmp_path, "d", ".jfif")
    with pytest.raises(UserError, match=r"b\.xml: no such file.*: an image without objects has a"):
        names(tmp_path, "a\nb\n")
    with pytest.raises(UserError, match=r"of c there is c\.heic: this suffix is not known"):
        names(tmp_path, "c")
    assert names(tmp_path, "d") == ["d.jfif"]


def test_swapped_corners_are_put_right(tmp_path, caplog):
    add(tmp_path, "a", box="25 16 6 7")
    add(tmp_path, "b", box="6 16 25 7")
    add(tmp_path, "c")
    (tmp_path / "ImageSets/Main/s.txt").write_text("a\nb\nc\n")
    with caplog.at_level(logging.WARNING):
        samples = list(load_voc(tmp_path, "s"))
    assert [sample.boxes.tolist() for sample in samples] == [[[5, 6, 25, 16]]] * 3
    assert caplog.messages == [
        f"{tmp_path}: boxes put right for having their corners swapped: 2, first cat in a.xml"
    ]
