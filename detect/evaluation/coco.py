"""COCO's average precision, by pycocotools."""

import contextlib
import io
import itertools
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from backbones.common.errors import UserError
from backbones.common.memory import garbage_collection_paused
from detect.data import DetectionDataset
from detect.evaluation.results import to_coco_results

logger = logging.getLogger(__name__)

# pycocotools' axes of precision: IoU threshold, recall, class, area range, detection limit.
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
_IOU50, _IOU75 = 0, 5

COCO_SIZES = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
"""Areas in square pixels of all, small, medium and large objects."""

ALL_DETECTIONS = 10**6
"""Of an image and class: more than any detector keeps."""

FINE_SIZES = (0.0, 8.0, 16.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, math.inf)
"""Sides in pixels between which `evaluate_by_size` tells objects apart."""


def evaluate_coco(
    dataset: DetectionDataset, detections: Sequence[Mapping[str, Any]], max_dets: int = 100
) -> dict[str, Any]:
    """Score detections as COCO does, over IoU thresholds 0.5 to 0.95.

    The ground truth is the dataset as loaded: boxes that loading dropped or clipped (with a
    warning) count as such. Crowd boxes are treated COCO's way; `difficult` is not looked at.

    Args:
        dataset: ground truth.
        detections: one dict of `boxes`, `labels`, `scores` for each image in the dataset's order;
            or entries in COCO's results format, in any order.
        max_dets: at most this many of an image's detections of each class count, best first.

    Returns:
        `AP`, `AP50`, `AP75`, `APs`, `APm`, `APl` (objects below 32², to 96², and above), `AR100`
        (named for `max_dets`), each in 0..1, `per_class` and `per_class_50`: `AP` and `AP50` by
        class name. A score that
        does not exist, because no object of that kind is in the ground truth, is None
        (pycocotools' -1). Where an image has more than `max_dets` objects or detections of a class,
        which cannot all count, also `crowded`: `images` of that kind, and `AP`, `AP50`, `AP75`,
        `AR` and `per_class` with all detections counted; a warning says so. None where there is no
        such image.

    Raises:
        ValueError: there is not one dict for each image.
        UserError: a result is for an image or a category that the dataset has not.
    """
    if max_dets < 1:
        raise ValueError(f"max_dets must be at least 1, got {max_dets}")
    results = _as_results(dataset, detections)
    crowded = _crowded_images(dataset, results, max_dets)
    limits = [max_dets, *([ALL_DETECTIONS] if crowded else [])]
    evaluation = _evaluate(dataset, results, limits, COCO_SIZES)
    precision = evaluation.eval["precision"][..., 0]
    recall = evaluation.eval["recall"][..., _ALL, 0]
    unlimited = None
    if crowded:
        every = evaluation.eval["precision"][..., _ALL, 1]
        unlimited = {
            "images": crowded,
            "AP": _mean(every),
            "AP50": _mean(every[_IOU50]),
            "AP75": _mean(every[_IOU75]),
            "AR": _mean(evaluation.eval["recall"][..., _ALL, 1]),
            "per_class": _by_class(dataset, evaluation, every),
        }
        # Of a weak detector's guesses alone there is nothing to say at each score.
        tell = logger.warning if _crowded_images(dataset, [], max_dets) else logger.debug
        tell(
            "AP counts the best %d detections of a class in an image, and images with more objects "
            "or detections: %d; with all detections %s",
            *(max_dets, crowded, listed(unlimited, ("AP", "AP50", "AP75"))),
        )
    return {
        "AP": _mean(precision[..., _ALL]),
        "AP50": _mean(precision[_IOU50, ..., _ALL]),
        "AP75": _mean(precision[_IOU75, ..., _ALL]),
        "APs": _mean(precision[..., _SMALL]),
        "APm": _mean(precision[..., _MEDIUM]),
        "APl": _mean(precision[..., _LARGE]),
        f"AR{max_dets}": _mean(recall),
        "crowded": unlimited,
        "per_class": _by_class(dataset, evaluation, precision[..., _ALL]),
        "per_class_50": _by_class(dataset, evaluation, precision[_IOU50, ..., _ALL]),
    }


def listed(scores: Mapping[str, Any], names: Sequence[str]) -> str:
    """Scores in a line, `AP 0.123, AP50 -`: of what is not there, there is no score."""
    values = {name: scores[name] for name in names}
    return ", ".join(f"{k} -" if v is None else f"{k} {v:.3f}" for k, v in values.items())


def _by_class(
    dataset: DetectionDataset, evaluation: COCOeval, precision: np.ndarray
) -> dict[str, float | None]:
    """AP by class name, of precision by IoU threshold, recall and class."""
    # pycocotools sorts category ids; labels need not be in that order.
    places = [evaluation.params.catIds.index(category_id) for category_id in dataset.category_ids]
    return {
        name: _mean(precision[..., place])
        for name, place in zip(dataset.class_names, places, strict=True)
    }


def _crowded_images(
    dataset: DetectionDataset, results: Sequence[Mapping[str, Any]], max_dets: int
) -> int:
    """How many images have more than `max_dets` objects, without crowds, or results of a class."""
    crowded = {
        sample.image_id
        for sample in dataset
        if (sample.labels[~sample.crowd].bincount() > max_dets).any()
    }
    counts = Counter((entry["image_id"], entry["category_id"]) for entry in results)
    return len(crowded | {image_id for (image_id, _), count in counts.items() if count > max_dets})


def evaluate_by_size(
    dataset: DetectionDataset,
    detections: Sequence[Mapping[str, Any]],
    sides: Sequence[float] = FINE_SIZES,
    factors: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """AP and recall of objects by size, in finer steps than COCO's three.

    Args:
        dataset: ground truth.
        detections: as in `evaluate_coco`.
        sides: rising borders between sizes in pixels, a size being the root of an object's area.
        factors: of each image, by which sizes are larger than in its pixels, for detections that
            are tensors; None for 1.

    Returns:
        A row for each pair of neighbours: `from` and `to` in pixels (None without end), `objects`
        (without crowds), `AP` (0.50:0.95) and `AR`, None without objects; all detections count.
    """
    if factors is not None:
        dataset, detections = _resized(dataset, detections, factors)
    # pycocotools counts both ends of a range in; an object at a border is the larger size's.
    ranges = [
        (low**2, min(float(np.nextafter(high**2, 0)), 1e10))
        for low, high in itertools.pairwise(sides)
    ]
    evaluation = _evaluate(dataset, detections, [ALL_DETECTIONS], ranges)
    areas = torch.cat([sample.area[~sample.crowd] for sample in dataset])
    return [
        {
            "from": low,
            "to": None if math.isinf(high) else high,  # JSON knows no infinity
            "objects": int(((areas >= low**2) & (areas < high**2)).sum()),
            "AP": _mean(evaluation.eval["precision"][:, :, :, number, 0]),
            "AR": _mean(evaluation.eval["recall"][:, :, number, 0]),
        }
        for number, (low, high) in enumerate(itertools.pairwise(sides))
    ]


def _resized(
    dataset: DetectionDataset, detections: Sequence[Mapping[str, Any]], factors: Sequence[float]
) -> tuple[DetectionDataset, list[dict[str, Any]]]:
    """Objects and detections as they are on images that are so many times as large."""
    samples = list(dataset)
    resized = DetectionDataset(
        class_names=dataset.class_names,
        category_ids=dataset.category_ids,
        image_ids=dataset.image_ids,
        paths=[sample.path for sample in samples],
        sizes=dataset.sizes,
        image_index=np.repeat(np.arange(len(samples)), [len(s.labels) for s in samples]),
        boxes=torch.cat([s.boxes * f for s, f in zip(samples, factors, strict=True)]),
        labels=torch.cat([sample.labels for sample in samples]),
        difficult=torch.cat([sample.difficult for sample in samples]),
        crowd=torch.cat([sample.crowd for sample in samples]),
        area=torch.cat([s.area * f**2 for s, f in zip(samples, factors, strict=True)]),
    )
    found = [
        {**own, "boxes": own["boxes"] * factor}
        for own, factor in zip(detections, factors, strict=True)
    ]
    return resized, found


def precision_curves(
    dataset: DetectionDataset, detections: Sequence[Mapping[str, Any]]
) -> dict[str, list[float] | None]:
    """Precision at IoU 0.5 and recalls 0, 0.01, ..., 1 by class name; None without objects.

    All detections count. Each is the best precision at that recall or above, as pycocotools
    averages it; 0 where the recall is not reached.
    """
    evaluation = _evaluate(dataset, detections, [ALL_DETECTIONS], COCO_SIZES[:1])
    curves = {}
    for name, category_id in zip(dataset.class_names, dataset.category_ids, strict=True):
        place = evaluation.params.catIds.index(category_id)
        curve = evaluation.eval["precision"][_IOU50, :, place, _ALL, 0]
        curves[name] = None if curve.max() < 0 else curve.tolist()
    return curves


def _evaluate(
    dataset: DetectionDataset,
    detections: Sequence[Mapping[str, Any]],
    limits: Sequence[int],
    area_ranges: Sequence[tuple[float, float]],
) -> COCOeval:
    results = _as_results(dataset, detections)
    # pycocotools reports its progress by print().
    with contextlib.redirect_stdout(io.StringIO()), garbage_collection_paused():
        evaluation = COCOeval(*_indexed(dataset.to_coco(), results), iouType="bbox")
        evaluation.params.maxDets = list(limits)
        evaluation.params.areaRng = [list(limits) for limits in area_ranges]
        evaluation.params.areaRngLbl = [str(limits) for limits in area_ranges]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _as_results(
    dataset: DetectionDataset, detections: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Checked detections of either kind in COCO's results format, in new entries."""
    if detections and "boxes" in detections[0]:
        return to_coco_results(dataset, detections)
    results = [dict(entry) for entry in detections]
    _check_results(dataset, results)
    return results


def _mean(values: np.ndarray) -> float | None:
    """Mean without the entries of classes that have no ground truth, which are -1."""
    values = values[values > -1]
    return float(values.mean()) if values.size else None


def _indexed(truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[COCO, COCO]:
    """Ground truth and results as pycocotools wants them."""
    ground_truth = COCO()
    ground_truth.dataset = truth
    ground_truth.createIndex()
    if results:
        return ground_truth, ground_truth.loadRes(results)
    # loadRes fails on an empty list.
    nothing = COCO()
    nothing.dataset = truth | {"annotations": []}
    nothing.createIndex()
    return ground_truth, nothing


def _check_results(dataset: DetectionDataset, results: list[dict[str, Any]]) -> None:
    """pycocotools would stop at the one with a bare assert and pass over the other in silence."""
    for key, known in (
        ("image_id", set(dataset.image_ids)),
        ("category_id", set(dataset.category_ids)),
    ):
        for number, entry in enumerate(results):
            if entry.get(key) not in known:
                raise UserError(
                    f"results[{number}]: {key} {entry.get(key)!r} is not in the dataset"
                )
