"""Datasets in Pascal VOC's layout: one XML file an image, splits as lists of names."""

import logging
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backbones.common.errors import UserError
from backbones.common.images import IMAGE_SUFFIXES, read_image_size
from backbones.common.regular_files import read_file
from detect.data.cleaning import clean_boxes, order_corners
from detect.data.labelmap import VOC_CLASS_FILE, listed_classes
from detect.data.paths import refuse_paths_outside
from detect.data.sample import DetectionDataset, check_class_name
from detect.data.voc_files import by_name, find_images, find_pages, read_split

logger = logging.getLogger(__name__)

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
"""The 20 classes of the VOC challenges, 2007 to 2012, in their usual order."""

_DIFFICULT = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_DIFFICULT |= {"no": False, "yes": True, "unspecified": False}
"""Spellings of `<difficult>`, in lower case."""


def load_voc(
    root: str | os.PathLike[str], split: str, class_names: Sequence[str] | None = None
) -> DetectionDataset:
    """Read one split of a folder with `Annotations`, `ImageSets/Main` and `JPEGImages`.

    VOC's boxes, which count pixels from 1 and include the last, become half-open from 0. Boxes
    without area (`xmax = xmin` or `ymax = ymin`) or outside their image are dropped, those
    reaching beyond it are clipped and swapped corners put right, each with one warning that counts
    them. `image_id` is the place of an image's annotation among all of the folder, from 1, and so
    unique across splits. Files may lie in folders below, in both places alike (`cam1/a`).

    Args:
        root: the folder, `VOCdevkit/VOC2007` for one.
        split: `train`, `val`, `trainval`, `test`: a list in `ImageSets/Main`.
        class_names: of labels `1..K`; None takes those of `labelmap.txt`, and behind them the other
            names in the annotations, those of all splits, sorted. Without that file it takes
            `VOC_CLASSES` if the annotations hold no others.

    Raises:
        UserError: a file is missing or malformed, or a class is not in `class_names`.
    """
    root = Path(root)
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        if not os.path.isdir(root / folder):
            raise UserError(f"{root / folder}: no such folder, expected in Pascal VOC's layout")
    pages_of = find_pages(root / "Annotations")
    split_file = root / "ImageSets" / "Main" / f"{split}.txt"
    names = read_split(split_file, pages_of)
    all_names = sorted(pages_of)
    to_read = all_names if class_names is None else names
    pages = {name: _read_annotation(pages_of[name]) for name in to_read}
    files = by_name(root / "JPEGImages")
    paths = find_images(names, files, _file_names(pages), root / "JPEGImages")
    if class_names is None:
        class_names = _classes_of(pages.values(), root)
        if set(class_names) <= {*VOC_CLASSES} and not os.path.isfile(root / VOC_CLASS_FILE):
            class_names = VOC_CLASSES
    _refuse_outside(root / "JPEGImages", paths, split_file)
    ids = {name: number for number, name in enumerate(all_names, start=1)}
    return _dataset(str(root), {name: ids[name] for name in names}, pages, paths, class_names)


def load_voc_pairs(
    pages: Path, images: Path, below: str = "", class_names: Sequence[str] | None = None
) -> DetectionDataset:
    """Read all images of a folder, each with the annotation of its name if it has one.

    As `load_voc`, but without lists of splits, as labelImg and exports of Roboflow have it. Images
    without an annotation have no objects; these, and annotations without an image, are counted in a
    line each.

    Args:
        pages: folder of the XML files; files may lie deeper, in both folders alike.
        images: folder of the images, which may be the same.
        below: beginning of the names that are taken, `train/` for one.
        class_names: of labels `1..K`; None takes those of `labelmap.txt` in the folder of the data,
            and behind them the other names in all annotations, sorted.

    Raises:
        UserError: a file is malformed, there is no image, or a class is not in `class_names`.
    """
    pages_of = find_pages(pages)
    files = by_name(images, IMAGE_SUFFIXES)
    all_names = sorted(files)
    ids = {name: number for number, name in enumerate(all_names, start=1) if name.startswith(below)}
    if not ids:
        raise UserError(f"{images / below}: there is no image file")
    if pages_of and files.keys().isdisjoint(pages_of):
        raise UserError(
            f"{pages}: no annotation has the name of an image, such as {min(files)}: expected "
            f"{min(files)}.xml there, got {min(pages_of)}.xml"
        )
    for names, what in (
        (ids.keys() - pages_of.keys(), "images without an annotation, taken as without objects"),
        ({n for n in pages_of if n.startswith(below)} - files.keys(), "annotations without image"),
    ):
        if names:
            logger.warning("%s: %s: %d, first %s", images, what, len(names), min(names))
    to_read = all_names if class_names is None else list(ids)
    read = {name: _read_annotation(pages_of[name]) for name in to_read if name in pages_of}
    if class_names is None:
        class_names = _classes_of(read.values(), pages if pages == images else pages.parent)
    paths = find_images(ids, files, _file_names(read), images)
    for name, path in paths.items():
        if name not in read:
            read[name] = replace(_NOTHING, size=read_image_size(path))
    _refuse_outside(images, paths, images)
    return _dataset(str(pages), ids, read, paths, class_names)


def _file_names(pages: "Mapping[str, _Annotation]") -> dict[str, str]:
    return {name: page.file_name for name, page in pages.items()}


def _refuse_outside(folder: Path, paths: Mapping[str, Path], source: Path) -> None:
    names = [os.path.relpath(path, folder) for path in paths.values()]
    refuse_paths_outside(folder, names, lambda _: str(source))


def _dataset(
    source: str,
    ids: Mapping[str, int],
    pages: "Mapping[str, _Annotation]",
    paths: Mapping[str, Path],
    class_names: Sequence[str],
) -> DetectionDataset:
    """Of the names in `ids`, in their order."""
    names = list(ids)
    label_of = {name: label for label, name in enumerate(class_names, start=1)}
    objects = [(index, item) for index, name in enumerate(names) for item in pages[name].objects]
    for index, item in objects:
        if item.name not in label_of:
            raise UserError(
                f"{pages[names[index]].path}: class {item.name!r} is not among "
                f"{', '.join(class_names)}"
            )
    image_index = np.array([index for index, _ in objects], np.int64)
    sizes = np.array([pages[name].size for name in names])

    def name_of(number: int) -> str:
        index, item = objects[number]
        return f"{item.name} in {names[index]}.xml"

    boxes = np.array([item.box for _, item in objects], np.float64).reshape(-1, 4)
    boxes = order_corners(boxes, source, name_of)
    labels = np.array([label_of[item.name] for _, item in objects], np.int64)
    difficult = np.array([item.difficult for _, item in objects], bool)
    boxes, keep = clean_boxes(
        boxes_from_voc(torch.from_numpy(boxes)).numpy(),
        *(sizes, np.column_stack([image_index, labels, difficult]), source, name_of),
        # Read strictly, xmin = xmax is one pixel; in practice it is a click that was never dragged.
        empty_side=1.0,
    )
    return DetectionDataset(
        class_names=class_names,
        category_ids=range(1, len(class_names) + 1),
        image_ids=list(ids.values()),
        paths=[str(paths[name]) for name in names],
        sizes=sizes,
        image_index=image_index[keep],
        boxes=boxes[keep],
        labels=labels[keep],
        difficult=difficult[keep],
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
    """One XML file: (width, height), the file name of the image if it has one, and objects."""

    size: tuple[int, int]
    file_name: str
    objects: list[_Object]
    path: Path | None = None


_NOTHING = _Annotation((0, 0), "", [])


class _PlainTreeBuilder(ET.TreeBuilder):
    """Refuses document types, and with them entities, which can grow to gigabytes."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Called by the parser before it reads any entity."""
        raise ValueError("a document type (<!DOCTYPE>) is not allowed")


def _read_annotation(path: Path) -> _Annotation:
    try:
        root = ET.fromstring(read_file(path), ET.XMLParser(target=_PlainTreeBuilder()))
    except OSError as error:
        raise UserError(f"{path}: cannot read annotation: {error.strerror}") from error
    except (ET.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{path}: expected a VOC annotation, cannot parse it: {error}") from error
    width, height = (_number(root, f"size/{side}", path) for side in ("width", "height"))
    if min(width, height) < 1 or max(width, height) >= 2**31:
        raise UserError(f"{path}: expected a positive size, got {width:g}x{height:g}")
    _refuse_objects_elsewhere(root, path)
    objects = []
    for number, element in enumerate(root.iterfind("object"), start=1):
        name = _text(element, "name", path)
        check_class_name(name, str(path))
        where = f"{path}: object {number}, {name}"
        box = tuple(
            _number(element, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        objects.append(_Object(name, box, _is_difficult(element, where)))
    file_name = (root.findtext("filename") or "").strip()
    return _Annotation((int(width), int(height)), file_name, objects, path)


def _refuse_objects_elsewhere(root: ET.Element, path: Path) -> None:
    """Such as in `<objects>`, as `<Object>` or in another: these would be none."""
    for child in root:
        own = child.tag == "object"
        for element in child.iter():
            # Parts of an object have boxes too.
            others = ("object",) if own else ("object", "bndbox", "xmin")
            if element.tag.lower() in others and not (own and element is child):
                within = "" if element is child else f" in <{child.tag}>"
                raise UserError(
                    f"{path}: <{element.tag}>{within} is not read: expected each <object>, written "
                    f"so, directly in <{root.tag}>"
                )


def _is_difficult(element: ET.Element, where: str) -> bool:
    text = _text(element, "difficult", where, default="0")
    if text.lower() not in _DIFFICULT:
        known = " ".join(_DIFFICULT)
        raise UserError(f"{where}: expected one of {known} as <difficult>, got {text!r}")
    return _DIFFICULT[text.lower()]


def _text(element: ET.Element, key: str, where: object, default: str = "") -> str:
    found = [(one.text or "").strip() for one in element.iterfind(key)]
    if len(found) > 1:
        raise UserError(f"{where}: expected one <{key}> in <{element.tag}>, got {len(found)}")
    text = "".join(found) or default
    if not text:
        raise UserError(f"{where}: expected <{key}> in <{element.tag}>")
    return text


def _number(element: ET.Element, key: str, where: object) -> float:
    text = _text(element, key, where)
    # float() alone would take "nan" and "1_0".
    if not re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d{1,2})?", text, re.ASCII):
        raise UserError(f"{where}: expected a number as <{key}>, got {text!r}")
    return float(text)


def _classes_of(annotations: Iterable[_Annotation], root: Path) -> tuple[str, ...]:
    """Those of the `labelmap.txt` of a folder, if it has one, then the others, sorted."""
    found = sorted({item.name for page in annotations for item in page.objects})
    if names := tuple(dict.fromkeys([*listed_classes(root / VOC_CLASS_FILE), *found])):
        return names
    raise UserError(f"{root}: no annotation has an object, name the classes by data.class_names")
