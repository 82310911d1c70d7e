"""Detections in COCO's results format."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from backbones.common.errors import UserError
from backbones.common.memory import garbage_collection_paused
from backbones.common.read_json import read_json
from detect.data import DetectionDataset
from detect.data.cleaning import is_repeated, warn_of_boxes, warn_of_reach
from detect.data.results_file import ids_by_name, read_results

SOME, SAME_CLASS = 8, 0.1
"""Least objects that are found, and the least share of them with their class, of a detector whose
categories are the dataset's; by chance alone it would have as much with ten classes."""

logger = logging.getLogger(__name__)


def coco_results(
    detections: Mapping[str, Tensor], image_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """The detections of one image as entries of a COCO results file.

    Args:
        detections: `boxes` `[D, 4]` xyxy in pixels, `labels` `int64 [D]` in 1..K, `scores` `[D]`.
        image_id: of the image.
        category_ids: `category_ids[k - 1]` is written for label `k`.

    Returns:
        One dict for each detection: `image_id`, `category_id`, `bbox` as x, y, width, height,
        `score`.
    """
    boxes = detections["boxes"].detach().cpu().double()
    corner, size = boxes[:, :2].tolist(), (boxes[:, 2:] - boxes[:, :2]).tolist()
    rows = zip(
        corner, size, detections["labels"].tolist(), detections["scores"].tolist(), strict=True
    )
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "bbox": [*xy, *wh],
            "score": score,
        }
        for xy, wh, label, score in rows
    ]


def to_coco_results(
    dataset: DetectionDataset, detections: Sequence[Mapping[str, Tensor]]
) -> list[dict[str, Any]]:
    """The detections of a whole dataset, one dict an image in its order, as COCO results.

    Raises:
        ValueError: there are not as many entries as images.
    """
    check_one_per_image(dataset, detections)
    return [
        result
        for image_id, found in zip(dataset.image_ids, detections, strict=True)
        for result in coco_results(found, image_id, dataset.category_ids)
    ]


def load_results(path: str | Path, dataset: DetectionDataset) -> list[dict[str, Tensor]]:
    """Read a results file of any detector as detections of a dataset, one dict an image.

    Where `images.json` lies beside it, which says whose ids the results have, these must be the
    dataset's. An entry with a `file_name` is of that image, whatever its `image_id`. Entries are
    taken as they are; odd ones are counted, a warning for each kind.

    Raises:
        UserError: a missing or malformed file, or a result for an image or a category that the
            dataset has not, or has under another id; the message names file and entry.
    """
    check_ids(Path(path).parent / "images.json", dataset)
    places = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    label_of = {category_id: k for k, category_id in enumerate(dataset.category_ids, start=1)}
    rows: list[tuple[float, ...]] = []
    wheres: list[str] = []
    with garbage_collection_paused():
        for result in read_results(path, "results", ids_by_name([dataset])):
            category_id = result.entry.get("category_id")
            if isinstance(category_id, float) and category_id.is_integer():
                category_id = int(category_id)  # some exports write 1.0 for 1
            if result.image_id not in places:
                raise UserError(
                    f"{result.where}: image_id {result.image_id} is not in the dataset "
                    "(tools.infer numbers its images by itself: score a detector by --weights)"
                )
            if type(category_id) is not int:
                raise UserError(
                    f"{result.where}: expected a whole number as category_id, got {category_id!r}"
                )
            if category_id not in label_of:
                known = ", ".join(map(str, dataset.category_ids[:20]))
                raise UserError(
                    f"{result.where}: category_id {category_id!r} is not in the dataset: {known} "
                    "(Ultralytics counts classes from 1 in results, and from 0 in its data)"
                )
            place = places[result.image_id]
            rows.append((place, label_of[category_id], result.score, *result.box))
            wheres.append(result.where)
    table = np.array(rows, np.float64).reshape(-1, 7)
    index, score = table[:, 0].astype(np.int64), table[:, 2]

    def name(number: int) -> str:
        return wheres[number].removeprefix(f"{path}: ")

    for which, what in (
        ((score < 0) | (score > 1 + 1e-6), "scores outside 0 to 1, which thresholds go by"),
        (is_repeated(table), "entries that are there already, each an error in the scores"),
    ):
        warn_of_boxes(which, what, str(path), name)
    warn_of_reach(table[:, 3:], np.tile(dataset.sizes[index], 2), str(path), name)
    order = np.argsort(index, kind="stable")
    ends = np.searchsorted(index[order], np.arange(1, len(dataset)))
    detections = [
        {
            "boxes": torch.from_numpy(found[:, 3:]).float(),
            "labels": torch.from_numpy(found[:, 1]).long(),
            "scores": torch.from_numpy(found[:, 2]).float(),
        }
        for found in np.split(table[order], ends)
    ]
    _warn_of_classes(detections, dataset, path)
    return detections


def _warn_of_classes(
    detections: Sequence[Mapping[str, Tensor]], dataset: DetectionDataset, path: str | Path
) -> None:
    """Say where objects are found under other classes, as by categories that count from 1."""
    alike, on_objects = 0, 0
    for found, sample in zip(detections, dataset, strict=True):
        if len(found["boxes"]) and len(sample.boxes):
            # The best of each object: others may name all classes there are at one place.
            fits = box_iou(found["boxes"], sample.boxes) >= 0.5
            best = (fits * (found["scores"][:, None] - found["scores"].min() + 1)).argmax(dim=0)
            is_found = fits.any(dim=0)
            alike += int((found["labels"][best] == sample.labels)[is_found].sum())
            on_objects += int(is_found.sum())
    if on_objects >= SOME and alike < SAME_CLASS * on_objects:
        logger.warning(
            "%s: of %d objects that are found %d have their class: are the category ids those of "
            "the dataset (%s)?",
            *(path, on_objects, alike),
            ", ".join(
                f"{key} {name}"
                for key, name in zip(dataset.category_ids[:3], dataset.class_names, strict=False)
            ),
        )


def check_ids(path: Path, dataset: DetectionDataset) -> None:
    """Raise `UserError` where a file as `evaluate` and `infer` write it, if it is
    there, has other images or categories under the ids of a dataset."""
    if not os.path.exists(path):
        return
    document = read_json(path)
    try:
        files = {entry["id"]: str(entry["file_name"]) for entry in document["images"]}
        names = {entry["id"]: str(entry["name"]) for entry in document["categories"]}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected images and categories that the results beside it refer to, cannot "
            f"read them: {error}"
        ) from error
    own_files = dict(zip(dataset.image_ids, _within_dataset(dataset), strict=True))
    own_names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    for what, theirs, own in (("image", files, own_files), ("category", names, own_names)):
        for key in theirs.keys() & own.keys():
            parts, own_parts = (PurePath(value).parts for value in (theirs[key], own[key]))
            is_same = theirs[key] == own[key] or (
                what == "image" and parts[-len(own_parts) :] == own_parts
            )
            if not is_same:
                raise UserError(
                    f"{path}: {what} {key} is {theirs[key]} there and {own[key]} in the dataset: "
                    "the results are of other ones (tools.infer numbers its images by itself: "
                    "score a detector by --weights)"
                )


def _within_dataset(dataset: DetectionDataset) -> list[str]:
    """Paths of the images, without the folders that all of them are in."""
    paths = [os.path.abspath(path) for path in dataset.paths]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common) for path in paths]


def check_one_per_image(dataset: DetectionDataset, detections: Sequence[Any]) -> None:
    """Raise a ValueError if there is not one entry for each image."""
    if len(detections) != len(dataset):
        raise ValueError(
            f"expected one entry for each of {len(dataset)} images, got {len(detections)}"
        )
