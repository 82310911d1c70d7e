"""Pascal VOC's average precision, as its development kit computes it.

The kit's boxes include their last pixel, so it adds 1 to every width and height. The half-open
boxes used here start one pixel earlier at the same numbers (`boxes_from_voc`), and their plain
intersection over union is exactly the kit's.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detect.data import DetectionDataset
from detect.evaluation.results import check_one_per_image


def evaluate_voc(
    dataset: DetectionDataset,
    detections: Sequence[Mapping[str, Tensor]],
    iou_thresh: float = 0.5,
    method: Literal["all_point", "11_point"] = "all_point",
) -> dict[str, Any]:
    """Score detections as the VOC challenges do.

    Detections of a class are taken by falling score over all images. Each belongs to the object of
    its class that it overlaps most. At `iou_thresh` or more it is a hit, or false if the object was
    hit before; below, it is false. One that belongs to a difficult object counts as neither, and
    such objects need not be found. Crowd boxes, which VOC has not, are treated as difficult.

    Args:
        dataset: ground truth.
        detections: one dict of `boxes` `[D, 4]` xyxy, `labels` `[D]`, `scores` `[D]` for each image
            in the dataset's order.
        iou_thresh: smallest intersection over union of a hit.
        method: `all_point`, area under the precision-recall curve (VOC 2010 and later), or
            `11_point`, mean precision at recalls 0, 0.1, ..., 1 (VOC 2007).

    Returns:
        `mAP` in 0..1 and `per_class`: AP by class name. AP is None for a class without objects to
        find, which does not enter the mean; `mAP` is None if that is so for all.

    Raises:
        ValueError: there is not one dict for each image, or `method` is unknown.
    """
    check_one_per_image(dataset, detections)
    if method not in ("all_point", "11_point"):
        raise ValueError(f"method must be all_point or 11_point, got {method!r}")
    labels = range(1, len(dataset.class_names) + 1)
    num_objects = dict.fromkeys(labels, 0)
    # For each class: scores, hits and false detections of all images.
    marked: dict[int, list[np.ndarray]] = {label: [] for label in labels}
    for sample, found in zip(dataset, detections, strict=True):
        gt_boxes, gt_labels = sample.boxes.double().numpy(), sample.labels.numpy()
        ignored = (sample.difficult | sample.crowd).numpy()
        boxes, found_labels, scores = (
            found[key].detach().cpu().double().numpy() for key in ("boxes", "labels", "scores")
        )
        for label in np.union1d(gt_labels, found_labels).astype(int).tolist():
            of_class, hits = gt_labels == label, found_labels == label
            num_objects[label] += int((of_class & ~ignored).sum())
            marked[label].append(
                _match(boxes[hits], scores[hits], gt_boxes[of_class], ignored[of_class], iou_thresh)
            )
    per_class = {
        name: _average_precision(marked[label], num_objects[label], method)
        for label, name in enumerate(dataset.class_names, start=1)
    }
    known = [value for value in per_class.values() if value is not None]
    return {"mAP": float(np.mean(known)) if known else None, "per_class": per_class}


def _match(
    boxes: np.ndarray,
    scores: np.ndarray,
    gt_boxes: np.ndarray,
    ignored: np.ndarray,
    iou_thresh: float,
) -> np.ndarray:
    """One image and class: `[D, 3]` score, hit, false; both 0 where an ignored object is met."""
    marks = np.zeros((len(boxes), 3))
    order = np.argsort(-scores, kind="stable")
    marks[:, 0] = scores[order]
    marks[:, 2] = 1
    if len(boxes) == 0 or len(gt_boxes) == 0:
        return marks
    # In `float64`, like the development kit's.
    ious = box_iou(torch.from_numpy(boxes[order]), torch.from_numpy(gt_boxes)).numpy()
    best = ious.argmax(axis=1)
    taken = np.zeros(len(gt_boxes), bool)
    for row, (match, iou) in enumerate(zip(best, ious.max(axis=1), strict=True)):
        if iou < iou_thresh:
            continue
        marks[row, 1] = not ignored[match] and not taken[match]
        marks[row, 2] = not ignored[match] and taken[match]
        taken[match] = True
    return marks


def _average_precision(
    marked: list[np.ndarray], num_objects: int, method: Literal["all_point", "11_point"]
) -> float | None:
    if num_objects == 0:
        return None
    marks = np.concatenate([np.zeros((0, 3)), *marked])
    marks = marks[np.argsort(-marks[:, 0], kind="stable")]
    hits, false = marks[:, 1].cumsum(), marks[:, 2].cumsum()
    recall = hits / num_objects
    # 0/0 where only ignored objects were met so far.
    precision = hits / np.maximum(hits + false, 1)
    if method == "11_point":
        at_least = [precision[recall >= point / 10] for point in range(11)]
        return float(np.mean([values.max(initial=0) for values in at_least]))
    # The curve never falls to the left: each precision is the best at its recall or above.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * envelope).sum())
