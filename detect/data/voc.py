"""Datasets in Pascal VOC's layout: one XML file an image, splits as lists of names."""

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backbones.common.errors import UserError
from backbones.common.images import IMAGE_SUFFIXES
from detect.data.cleaning import clean_boxes
from detect.data.sample import DetectionDataset

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
"""The 20 classes of the VOC challenges, 2007 to 2012, in their usual order."""


def load_voc(
    root: str | os.PathLike[str], split: str, class_names: Sequence[str] | None = None
) -> DetectionDataset:
    """Read one split of a folder with `Annotations`, `ImageSets/Main` and `JPEGImages`.

    VOC's boxes, which count pixels from 1 and include the last, become half-open from 0. Boxes
    without area (`xmax <= xmin` or `ymax <= ymin`) or outside their image are dropped and those
    reaching beyond it are clipped, each with one warning that counts them. `image_id` is the place
    of an image's annotation among all of the folder, from 1, and so unique across splits.

    Args:
        root: the folder, `VOCdevkit/VOC2007` for one.
        split: `train`, `val`, `trainval`, `test`: a list in `ImageSets/Main`.
        class_names: of labels `1..K`; None takes `VOC_CLASSES` if the annotations, those of all
            splits, hold no others, else the names in them, sorted.

    Raises:
        UserError: a file is missing or malformed, or a class is not in `class_names`.
    """
    root = Path(root)
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        if not (root / folder).is_dir():
            raise UserError(f"{root / folder}: no such folder, expected in Pascal VOC's layout")
    names = _read_split(root / "ImageSets" / "Main" / f"{split}.txt")
    all_names = sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
    ids = {name: number for number, name in enumerate(all_names, start=1)}
    files = {
        path.stem: path
        for path in sorted((root / "JPEGImages").iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    }
    for name in names:
        if name not in ids:
            raise UserError(
                f"{root / 'Annotations' / name}.xml: no such file, split {split} has it"
            )
        if name not in files:
            raise UserError(f"{root / 'JPEGImages' / name}.jpg: no such file, split {split} has it")

    to_read = all_names if class_names is None else names
    pages = {name: _read_annotation(root / "Annotations" / f"{name}.xml") for name in to_read}
    if class_names is None:
        class_names = _classes_of(pages.values())
    label_of = {name: label for label, name in enumerate(class_names, start=1)}

    objects = [(index, item) for index, name in enumerate(names) for item in pages[name].objects]
    for index, item in objects:
        if item.name not in label_of:
            raise UserError(
                f"{root / 'Annotations' / names[index]}.xml: class {item.name!r} is not among "
                f"{', '.join(class_names)}"
            )
    image_index = np.array([index for index, _ in objects], np.int64)
    sizes = np.array([pages[name].size for name in names])
    boxes = np.array([item.box for _, item in objects], np.float64).reshape(-1, 4)
    boxes, keep = clean_boxes(
        boxes_from_voc(torch.from_numpy(boxes)).numpy(),
        sizes[image_index],
        str(root),
        lambda m: f"{objects[m][1].name} in {names[objects[m][0]]}.xml",
        # Read strictly, xmin = xmax is one pixel; in practice it is a click that was never dragged.
        empty_side=1.0,
    )
    return DetectionDataset(
        class_names=class_names,
        category_ids=range(1, len(class_names) + 1),
        image_ids=[ids[name] for name in names],
        paths=[str(files[name]) for name in names],
        sizes=sizes,
        image_index=image_index[keep],
        boxes=boxes[keep],
        labels=np.array([label_of[item.name] for _, item in objects], np.int64)[keep],
        difficult=np.array([item.difficult for _, item in objects], bool)[keep],
    )


def boxes_from_voc(boxes: Tensor) -> Tensor:
    """1-based inclusive boxes `[N, 4]` (xmin, ymin, xmax, ymax) as half-open xyxy from 0."""
    return boxes - boxes.new_tensor([1, 1, 0, 0])


def boxes_to_voc(boxes: Tensor) -> Tensor:
    """Half-open xyxy boxes `[N, 4]` as VOC's 1-based inclusive ones; undoes `boxes_from_voc`."""
    return boxes + boxes.new_tensor([1, 1, 0, 0])


@dataclass(frozen=True)
class _Object:
    """One object as written: class, (xmin, ymin, xmax, ymax) 1-based inclusive, difficult."""

    name: str
    box: tuple[float, ...]
    difficult: bool


@dataclass(frozen=True)
class _Annotation:
    """One XML file: (width, height) and objects."""

    size: tuple[int, int]
    objects: list[_Object]


class _PlainTreeBuilder(ET.TreeBuilder):
    """Refuses document types, and with them entities, which can grow to gigabytes."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Called by the parser before it reads any entity."""
        raise ValueError("a document type (<!DOCTYPE>) is not allowed")


def _read_annotation(path: Path) -> _Annotation:
    try:
        root = ET.fromstring(path.read_bytes(), ET.XMLParser(target=_PlainTreeBuilder()))
    except OSError as error:
        raise UserError(f"{path}: cannot read annotation: {error.strerror}") from error
    except (ET.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{path}: expected a VOC annotation, cannot parse it: {error}") from error
    width, height = (_number(root, f"size/{side}", path) for side in ("width", "height"))
    if min(width, height) < 1:
        raise UserError(f"{path}: expected a positive size, got {width:g}x{height:g}")
    objects = []
    for element in root.iterfind("object"):
        box = tuple(
            _number(element, f"bndbox/{side}", path) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = element.findtext("difficult", "0").strip() == "1"
        objects.append(_Object(_text(element, "name", path), box, difficult))
    return _Annotation((int(width), int(height)), objects)


def _text(element: ET.Element, key: str, path: Path) -> str:
    text = (element.findtext(key) or "").strip()
    if not text:
        raise UserError(f"{path}: expected <{key}> in <{element.tag}>")
    return text


def _number(element: ET.Element, key: str, path: Path) -> float:
    text = _text(element, key, path)
    # float() alone would take "nan" and "1_0".
    if not re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d{1,2})?", text, re.ASCII):
        raise UserError(f"{path}: expected a number as <{key}>, got {text!r}")
    return float(text)


def _read_split(path: Path) -> list[str]:
    """Names in the first column; lists for one class have a second one, of flags."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        there = ", ".join(sorted(entry.stem for entry in path.parent.glob("*.txt"))) or "none"
        raise UserError(f"{path}: cannot read this split; there are: {there}") from error
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise UserError(f"{path}: the split is empty: expected image names, one a line")
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise UserError(f"{path}: {twice} is listed twice")
    return names


def _classes_of(annotations: Iterable[_Annotation]) -> tuple[str, ...]:
    found = {item.name for annotation in annotations for item in annotation.objects}
    return VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))
