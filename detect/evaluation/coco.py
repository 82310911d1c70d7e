"""COCO's average precision, by pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from backbones.errors import UserError
from detect.datasets import DetectionDataset
from detect.evaluation.results import to_coco_results

# pycocotools' axes of precision: IoU threshold, recall, class, area range, detection limit.
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
_IOU50, _IOU75 = 0, 5


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
        (named for `max_dets`), each in 0..1, and `per_class`: `AP` by class name. A figure that
        does not exist, because no object of that kind is in the ground truth, is None
        (pycocotools' -1).

    Raises:
        ValueError: there is not one dict for each image.
        UserError: a result is for an image or a category that the dataset has not.
    """
    if max_dets < 1:
        raise ValueError(f"max_dets must be at least 1, got {max_dets}")
    if detections and "boxes" in detections[0]:
        results = to_coco_results(dataset, detections)
    else:
        results = [dict(entry) for entry in detections]
        _check_results(dataset, results)
    # pycocotools reports its progress by print().
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(*_indexed(dataset.to_coco(), results), iouType="bbox")
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0]
    recall = evaluation.eval["recall"][..., _ALL, 0]
    return {
        "AP": _mean(precision[..., _ALL]),
        "AP50": _mean(precision[_IOU50, ..., _ALL]),
        "AP75": _mean(precision[_IOU75, ..., _ALL]),
        "APs": _mean(precision[..., _SMALL]),
        "APm": _mean(precision[..., _MEDIUM]),
        "APl": _mean(precision[..., _LARGE]),
        f"AR{max_dets}": _mean(recall),
        "per_class": {
            # pycocotools sorts category ids; labels need not be in that order.
            name: _mean(precision[:, :, evaluation.params.catIds.index(category_id), _ALL])
            for name, category_id in zip(dataset.class_names, dataset.category_ids, strict=True)
        },
    }


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
