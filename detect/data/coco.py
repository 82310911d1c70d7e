"""Datasets in COCO's layout: one JSON file of annotations and a folder of images."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from backbones.common.errors import UserError
from backbones.common.memory import garbage_collection_paused
from backbones.common.read_json import read_json
from detect.data.cleaning import (
    clean_boxes,
    is_repeated,
    one_per_file,
    order_corners,
    warn_of_boxes,
)
from detect.data.paths import is_file_name, name_on_disk, refuse_paths_outside
from detect.data.sample import DetectionDataset, check_class_name

logger = logging.getLogger(__name__)

# Nine tenths of COCO's files, and not read here. Dropped while parsing, so that they are never
# all in memory at once.
_UNUSED = ("segmentation", "keypoints", "license", "coco_url", "flickr_url", "date_captured")


def load_coco(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> DetectionDataset:
    """Read a COCO annotation file; labels follow the order of the category ids, however sparse.

    Images without boxes are kept. `iscrowd` (default 0), `area` (default that of the box) and an
    annotation's `id` may be missing. Boxes without area or outside their image are dropped and
    those reaching beyond it are clipped, each with one warning that counts them; so are crowds,
    which are no objects. A category that only stands above the others, as exports add one, is no
    class.

    Args:
        annotations: the JSON file.
        images: folder that `file_name` is relative to, or several, of which it is the one with the
            most of some of the files.

    Raises:
        UserError: a file or key is missing, or a value is not what it should be; the message names
            the file and the entry.
    """
    source = str(annotations)
    folders = [images] if isinstance(images, str | os.PathLike) else list(images)
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"{folder}: no such folder, expected the images of {source}")
    with garbage_collection_paused():
        return _load(source, folders)


def _load(source: str, folders: Sequence[str | os.PathLike[str]]) -> DetectionDataset:
    document = _read_json(source)
    rows = _entries(document, "annotations", source)
    category_ids, class_names = _categories(document, rows, source)
    entries = _entries(document, "images", source)
    if not entries:
        raise UserError(f"{source}: the dataset is empty: expected at least one entry in images")
    image_ids, files, sizes = [], [], []
    for number, entry in enumerate(entries):
        where = f"{source}: images[{number}]"
        image_ids.append(_integer(_get(entry, "id", where), "id", where))
        file_name = _get(entry, "file_name", where)
        if not isinstance(file_name, str):
            raise UserError(f"{where}: expected a string as file_name, got {file_name!r}")
        # Written on Windows; Linux would take it for a name.
        files.append(file_name.replace("\\", "/"))
        size = [_integer(_get(entry, key, where), key, where) for key in ("width", "height")]
        if min(size) < 1 or max(size) >= 2**31:
            raise UserError(f"{where}: expected a positive width and height, got {size}")
        sizes.append(size)
    some = [file for file in files[:: len(files) // 20 + 1] if is_file_name(file)]
    images = max(
        folders,
        key=lambda one: sum(
            os.path.exists(os.path.join(one, name_on_disk(one, file))) for file in some
        ),
    )
    refuse_paths_outside(images, files, lambda number: f"{source}: images[{number}]")
    files = [name_on_disk(images, file) for file in files]
    kept, places = one_per_file(files, source)
    place_of = {image_id: number for number, image_id in enumerate(image_ids)}
    if len(place_of) < len(image_ids):
        raise UserError(f"{source}: images: id {_first_repeated(image_ids)} is used twice")
    for number, place in enumerate(places):
        if sizes[number] != (of_first := sizes[kept[place]]):
            raise UserError(
                f"{source}: images[{number}]: {files[number]} is listed with a size of "
                f"{sizes[number]}, and before with {of_first}: correct one of them"
            )
    image_ids, sizes = [image_ids[k] for k in kept], [sizes[k] for k in kept]
    files = [files[k] for k in kept]
    label_of = {category_id: label for label, category_id in enumerate(category_ids, start=1)}

    xywh = np.empty((len(rows), 4))
    listed = np.empty(len(rows), np.int64)
    labels = np.empty(len(rows), np.int64)
    crowd = np.empty(len(rows), bool)
    area = np.empty(len(rows))
    for number, row in enumerate(rows):
        # The plain look-ups are for speed; what they raise is put into words by _explain.
        try:
            listed[number] = place_of[row["image_id"]]
            labels[number] = label_of[row["category_id"]]
            _, _, width, height = xywh[number] = _list(row["bbox"])
            crowd[number] = {0: False, 1: True}[row.get("iscrowd", 0)]
            area[number] = row.get("area", abs(width * height))
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            reason = _explain(row, place_of, label_of)
            raise UserError(f"{source}: {_annotation_name(rows, number)}: {reason}") from error
    image_index = np.array(places)[listed]
    bad = ~np.isfinite(xywh).all(axis=1)
    if bad.any():
        number = int(bad.argmax())
        raise UserError(
            f"{source}: {_annotation_name(rows, number)}: expected finite numbers in bbox, "
            f"got {rows[number]['bbox']}"
        )

    def name(number: int) -> str:
        return _annotation_name(rows, number)

    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    boxes = order_corners(boxes, source, name)
    # Scores are to be pycocotools', which counts each: only what images listed twice share goes.
    again = is_repeated(np.column_stack([listed, labels, crowd, boxes]))
    what = "objects with the class and box of another (pycocotools counts each)"
    warn_of_boxes(again, what, source, name)
    apart = np.where(again, np.arange(1, len(rows) + 1), 0)
    keys = np.column_stack([image_index, labels, crowd, apart])
    boxes, keep = clean_boxes(boxes, np.asarray(sizes), keys, source, name)
    no_area = keep & ~((area > 0) & (area < 2**62))
    warn_of_boxes(no_area, "areas that are no size, that of the box is taken", source, name)
    area[no_area] = (boxes[no_area, 2:] - boxes[no_area, :2]).prod(axis=1)
    ids = [str(row["id"]) for row in rows if "id" in row]
    if len(set(ids)) < len(ids):
        logger.warning(
            "%s: ids of annotations used again, which pycocotools would mix up: %d, first %s",
            *(source, len(ids) - len(set(ids)), _first_repeated(ids)),
        )
    if crowd.any():
        logger.warning(
            "%s: %d of %d annotations are iscrowd: these are neither trained on nor to be found "
            "(CVAT marks every mask so)",
            *(source, crowd.sum(), len(rows)),
        )
    return DetectionDataset(
        class_names=class_names,
        category_ids=category_ids,
        image_ids=image_ids,
        paths=[os.path.join(images, file) for file in files],
        sizes=sizes,
        image_index=image_index[keep],
        boxes=boxes[keep],
        labels=labels[keep],
        crowd=crowd[keep],
        area=area[keep],
    )


def _read_json(source: str) -> dict[str, Any]:
    def drop_unused(entry: dict[str, Any]) -> dict[str, Any]:
        for key in _UNUSED:
            entry.pop(key, None)
        return entry

    document = read_json(source, "annotations", drop_unused)
    if not isinstance(document, dict):
        got = type(document).__name__
        raise UserError(
            f"{source}: expected a JSON object with images, annotations and categories, got a {got}"
        )
    return document


def _entries(document: dict[str, Any], key: str, source: str) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        raise UserError(f"{source}: expected a list under the key {key!r}")
    return value


def _categories(
    document: dict[str, Any], rows: list[Any], source: str
) -> tuple[list[int], list[str]]:
    """Ids in rising order, and their names, without those that stand above others alone."""
    names: dict[int, str] = {}
    above: dict[int, str] = {}
    for number, entry in enumerate(_entries(document, "categories", source)):
        where = f"{source}: categories[{number}]"
        category_id = _integer(_get(entry, "id", where), "id", where)
        if category_id in names:
            raise UserError(f"{where}: id {category_id} is used twice")
        names[category_id] = str(_get(entry, "name", where))
        check_class_name(names[category_id], where)
        above[category_id] = str(entry.get("supercategory"))
    # Roboflow's exports begin with one that has no objects, and often the name of a class.
    given = (row.get("category_id") for row in rows if isinstance(row, dict))
    used = {key for key in given if isinstance(key, int | float)}
    for root in [key for key in names if above[key] in ("none", "None") and key not in used]:
        if len(names) > 1 and all(above[key] == names[root] for key in names if key != root):
            logger.warning(
                "%s: category %d %s is left out: it has no objects and stands above the others",
                *(source, root, names.pop(root)),
            )
    if not names:
        raise UserError(f"{source}: expected at least one entry in categories")
    if len(set(names.values())) < len(names):
        twice = _first_repeated(list(names.values()))
        raise UserError(f"{source}: categories: name {twice!r} is used twice")
    category_ids = sorted(names)
    return category_ids, [names[category_id] for category_id in category_ids]


def _get(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise UserError(f"{where}: expected the key {key!r}")
    return entry[key]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _integer(value: Any, key: str, where: str) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{where}: expected an integer as {key}, got {value!r}")
    return value


def _first_repeated(values: list[Any]) -> Any:
    return next(value for value, count in Counter(values).items() if count > 1)


def _annotation_name(rows: list[Any], number: int) -> str:
    row = rows[number]
    if isinstance(row, dict) and "id" in row:
        return f"annotation {row['id']}"
    return f"annotations[{number}]"


def _explain(row: Any, place_of: dict[int, int], label_of: dict[int, int]) -> str:
    """What is wrong with an annotation that could not be read."""
    if not isinstance(row, dict):
        return f"expected an object, got {row!r}"
    for key in ("image_id", "category_id", "bbox"):
        if key not in row:
            return f"expected the key {key!r}"
    if not _is_key(row["image_id"], place_of):
        return f"image_id {row['image_id']!r} is not among the images"
    if not _is_key(row["category_id"], label_of):
        return f"category_id {row['category_id']!r} is not among the categories"
    if row.get("iscrowd", 0) not in (0, 1):
        return f"expected iscrowd 0 or 1, got {row['iscrowd']!r}"
    try:
        float(row.get("area", 0))
    except (TypeError, ValueError, OverflowError):
        return f"expected a number as area, got {row['area']!r}"
    return f"expected bbox as four numbers [x, y, width, height], got {row['bbox']!r}"


def _is_key(value: Any, mapping: dict[int, int]) -> bool:
    return isinstance(value, int) and value in mapping
