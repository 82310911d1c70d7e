"""Datasets in YOLO's layout: a `data.yaml`, folders `images` and `labels`, a text file an image."""

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backbones.common.config import read_yaml
from backbones.common.errors import ImageError, UserError
from backbones.common.images import IMAGE_SUFFIXES, read_image_size
from backbones.common.listing import files_below, visible_files, with_suffix
from detect.data.cleaning import clean_boxes, one_per_file
from detect.data.paths import (
    is_file_name,
    is_inside,
    name_on_disk,
    refuse_address,
    refuse_paths_outside,
)
from detect.data.sample import DetectionDataset, check_class_name
from detect.data.splits import SPLITS, find_split, usual_split
from detect.data.yolo_labels import (
    label_file,
    lines_of,
    point_values,
    read_labels,
    warn_of_orphans,
    warn_of_other_names,
)

logger = logging.getLogger(__name__)


def load_yolo(root: str | os.PathLike[str], split: str) -> DetectionDataset:
    """Read one split of a dataset with a `data.yaml`, as Ultralytics and exports for it write it.

    Without one the names of the classes stand in `obj.names`, as CVAT writes it beside lists of
    image files `train.txt` and others, or in `classes.txt` beside `images/` and `labels/`, as Label
    Studio does, all of which is the split `train` where no folder in `images/` has the name of a
    split; labelImg has images and labels beside that file.

    A row of a label file is `class x y width height` in fractions of the upright image, centre
    first, or `class x1 y1 x2 y2 x3 y3 ...`, a polygon, of which the box around it is taken. Images
    without a label file, or with an empty one, have no objects. The former, and label files without
    an image, are counted in a line each. Boxes without area or outside their image are dropped and
    those reaching beyond it are clipped, each with one warning that counts them; so are rows that a
    file repeats, which count once.

    `category_ids` are the class numbers of the file, from 0. `image_id` is the place of an image
    among those of all splits, from 1, and so unique across them.

    Args:
        root: the folder of `data.yaml`, or that file, or another with the names of the classes.
        split: `train`, `val` or `test`, a key of it.

    Raises:
        UserError: a file is missing or malformed, an image cannot be read, or a class or coordinate
            is out of range; the message names file and line.
    """
    source = Path(root)
    if os.path.isdir(source) or source.suffix not in (".yaml", ".yml", ".names", ".txt"):
        source = source / "data.yaml"
    document = read_document(source)
    names = _class_names(document.get("names"), source)
    if (count := document.get("nc", len(names))) != len(names):
        raise UserError(
            f"{source}: nc is {count!r}, but names has {len(names)} classes, "
            f"{', '.join(names.values())}: correct one of them"
        )
    if document.get(split) is None:
        there = ", ".join(key for key in SPLITS if document.get(key) is not None)
        raise UserError(f"{source}: no split {split}; there are: {there or 'none'}")
    images_of = {
        key: list(_images(document, key, source))
        for key in SPLITS
        if key == split or (document.get(key) is not None and is_there(document, key, source))
    }
    images = images_of[split]
    if not images:
        raise UserError(f"{source}: no image files in the split {split}: {document[split]}")
    first = 1 + sum(
        len(images_of[key]) for key in SPLITS[: SPLITS.index(split)] if key in images_of
    )

    labels_of = {name: label for label, name in enumerate(names, start=1)}
    points = point_values(document.get("kpt_shape"), source)
    kept, _ = one_per_file([str(path) for path in images], str(source))
    listed = [images[k] for k in kept]
    images, numbers, sizes = _with_sizes(listed, source)
    rows: list[tuple[int, int, float, float, float, float]] = []
    places: list[str] = []
    label_paths = [label_file(path) for path in images]
    for folder, files in itertools.groupby(label_paths, lambda path: path.parent):
        refuse_paths_outside(folder, [file.name for file in files], lambda _: str(source))
    for index, labels_path in enumerate(label_paths):
        rows_of_file = read_labels(labels_path, labels_of, points, source)
        for line, (number, x1, y1, x2, y2) in rows_of_file:
            rows.append((index, labels_of[number], x1, y1, x2, y2))
            places.append(f"{labels_path}, line {line}")
    taken = {place for key, place in places_of(document, source) if key == split}
    of_labels = {label_file(place / "x").parent for place in taken} - taken
    warn_of_orphans(listed, filter(os.path.isdir, of_labels))
    warn_of_other_names(list(names.values()), source, {path.parent for path in label_paths})
    table = np.array(rows, np.float64).reshape(-1, 6)
    keys = table[:, :2].astype(np.int64)
    pixels = table[:, 2:] * np.tile(sizes[keys[:, 0]], 2)
    boxes, keep = clean_boxes(pixels, sizes, keys, str(source), lambda m: places[m])
    return DetectionDataset(
        class_names=list(names.values()),
        category_ids=list(names),
        image_ids=[first + number for number in numbers],
        paths=[str(path) for path in images],
        sizes=sizes,
        image_index=keys[keep, 0],
        boxes=boxes[keep],
        labels=keys[keep, 1],
    )


def read_document(source: Path) -> dict[str, Any]:
    """`data.yaml`, or what it would hold where the classes stand in `obj.names` or `classes.txt`;
    its splits have their usual names.

    Raises:
        UserError: it cannot be read, or names a split twice or by nothing.
    """
    if source.suffix in (".yaml", ".yml"):
        return _with_usual_splits(read_yaml(source, is_foreign=True), source)
    names = "\n".join(lines_of(source)).rstrip().split("\n")
    if "" in names[:-1]:
        raise UserError(
            f"{source}, line {names.index('') + 1}: empty: expected the name of a class, as the "
            "place of a line is the number of its class"
        )
    place, is_listed = source.parent, source.suffix == ".names"
    if not is_listed and os.path.isdir(place / "images"):
        place /= "images"
    entries = sorted(place.glob("*.txt") if is_listed else filter(_has_images, place.iterdir()))
    found = {
        path.stem if is_listed else path.name: os.path.relpath(path, source.parent)
        for path in entries
    }
    splits = {key: found[name] for key in SPLITS if (name := find_split(key, found)) is not None}
    if not splits and is_listed and len(found) == 1:
        splits = {"train": next(iter(found.values()))}
    if not splits and not is_listed:
        splits = {"train": os.path.relpath(place, source.parent)}
    return {"names": names} | splits


def _has_images(folder: Path) -> bool:
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in files_below(folder))


def _with_usual_splits(document: dict[str, Any], source: Path) -> dict[str, Any]:
    for split in SPLITS:
        keys = [key for key, value in document.items() if value is not None]
        keys = [key for key in keys if isinstance(key, str) and usual_split(key) == split]
        if len(keys) > 1:
            raise UserError(f"{source}: {' and '.join(keys)} mean the same split: keep one")
        for key in keys:
            value = document[split] = document.pop(key)
            entries = value if isinstance(value, list) else [value]
            if not entries or not all(
                isinstance(entry, str) and entry.strip() for entry in entries
            ):
                raise UserError(
                    f"{source}: {key}: expected a folder or a list of image files, got {value!r}: "
                    "name it, or remove the key"
                )
    return document


def is_there(document: dict[str, Any], split: str, source: Path) -> bool:
    """Whether files of a split exist: exports name `test` whether there is one or not."""
    entries = document.get(split)
    entries = entries if isinstance(entries, list) else [entries]
    return any(_find(str(entry), _roots(document, source)) is not None for entry in entries)


def places_of(document: dict[str, Any], source: Path) -> Iterator[tuple[str, Path]]:
    """Split, and file or folder, of all that is read: lists, folders of images and of labels."""
    for split in SPLITS:
        entries = document.get(split) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            if (place := _find(entry, _roots(document, source))) is None:
                continue
            folders = {place}
            if not os.path.isdir(place):
                folders = {
                    path.parent for path in _images({**document, split: entry}, split, source)
                }
            for folder in folders | {place}:
                yield split, folder
            for folder in folders:
                yield split, label_file(folder / "x").parent


def _class_names(value: Any, source: Path) -> dict[int, str]:
    """Names by class number, in the order of the numbers; `names` is a list or a mapping."""
    items = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(items, dict) or not items:
        raise UserError(f"{source}: expected the names of the classes under the key names")
    # Of a mapping in JSON the keys are text.
    numbered = {int(n) if str(n).isdecimal() and str(n).isascii() else n: items[n] for n in items}
    if len(numbered) < len(items):
        raise UserError(f"{source}: names: a number stands twice: {', '.join(map(str, items))}")
    items = numbered
    for number, name in items.items():
        if type(number) is not int or number < 0 or type(name) not in (str, int):
            raise UserError(
                f"{source}: names: expected `number: name`, got {number!r}: {name!r}: put a name "
                "that YAML reads as something else in quotes"
            )
        check_class_name(str(name), f"{source}: names: {number}")
    names = {number: str(items[number]) for number in sorted(items)}
    if len(set(names.values())) < len(names):
        raise UserError(f"{source}: names: a name stands twice: {', '.join(names.values())}")
    return names


def _with_sizes(images: Sequence[Path], source: Path) -> tuple[list[Path], list[int], np.ndarray]:
    """Those images that have a readable head, their places in the list, and sizes `[N, 2]`.

    Raises:
        ImageError: of the first, where none has.
    """
    sizes: dict[int, tuple[int, int]] = {}
    errors: list[ImageError] = []
    for number, path in enumerate(images):
        try:
            sizes[number] = read_image_size(path)
        except ImageError as error:
            errors.append(error)
    if errors and not sizes:
        raise errors[0]
    if errors:
        what = "images that cannot be read, left out"
        logger.warning("%s: %s: %d, first %s", source, what, len(errors), errors[0])
    return [images[number] for number in sizes], list(sizes), np.array(list(sizes.values()))


def _images(document: dict[str, Any], split: str, source: Path) -> Iterator[Path]:
    """Image files of a split, whose entry is a folder, a text file of paths, or a list of these."""
    roots = _roots(document, source)
    entries = document[split]
    where = f"{source}: {split}"
    for entry in entries if isinstance(entries, list) else [entries]:
        place = _existing(str(entry), roots, where)
        # The folder itself may be a link, what it holds may not.
        _check_inside(os.path.abspath(place), map(os.path.abspath, roots), where)
        if os.path.isdir(place):
            files = [path for path in visible_files(place) if path.suffix != ".txt"]
            found = with_suffix(files, IMAGE_SUFFIXES, place)
            names = [os.path.relpath(path, place) for path in found]
            refuse_paths_outside(place, names, lambda _: where)
            yield from found
        else:
            for line in filter(None, lines_of(place)):
                path = _existing(line, (place.parent, roots[0]), str(place))
                _check_inside(os.path.realpath(path), map(os.path.realpath, roots), str(place))
                yield path


def _roots(document: dict[str, Any], source: Path) -> list[Path]:
    """Folders that entries may be relative to."""
    path = str(document.get("path") or "")
    refuse_address(path, f"{source}: path")
    return [source.parent / path, source.parent]


def _existing(name: str, folders: Sequence[Path], where: str) -> Path:
    refuse_address(name, where)
    found = _find(name, folders)
    if found is None:
        raise UserError(f"{where}: {folders[0] / name!s}: not found")
    return found


def _find(name: str, folders: Sequence[Path]) -> Path | None:
    # Exports name `../train/images` from a folder that was meant to lie one deeper, CVAT's `data/`.
    for folder in folders if is_file_name(name) else ():
        for form in (name, name.removeprefix("../"), name.removeprefix("data/")):
            candidate = name_on_disk(folder, form)
            if os.path.exists(folder / candidate):
                return folder / candidate
    return None


def _check_inside(path: str, roots: Iterable[str], where: str) -> None:
    if not any(is_inside(path, root) for root in roots):
        raise UserError(
            f"{where}: {path} lies outside of the data's folder: put the files there, or name a "
            "folder above all of them as path in data.yaml"
        )
