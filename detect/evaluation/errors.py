"""What goes wrong in a detector's results: TIDE (Bolya et al., ECCV 2020, section 2).

Every detection that is no hit is given one kind of error, every object that nothing accounts for is
missed, and each kind weighs what AP50 would gain if it alone were put right. Kinds and costs are
those of the authors' package tidecv, but for two things in which COCO's scores are followed: what
is found in a crowd is no error, and a class without objects has no part in the mean. And all
detections count, where tidecv takes 100 of an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from detect.data import DetectionDataset, Sample
from detect.evaluation.results import check_one_per_image

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
"""In this order everywhere. `both` is a box of the wrong class and in the wrong place."""

FOREGROUND_IOU = 0.5
"""From this IoU on a box is in the right place."""

BACKGROUND_IOU = 0.1
"""Up to this IoU a box has nothing to do with an object."""

HIT, IGNORED = -1, -2
"""What a detection is that is no error."""

_MEANING = [KINDS.index("classification"), KINDS.index("localisation")]
"""Kinds of errors that mean an object: they would hit it, were they put right."""


@dataclass(frozen=True)
class ErrorReport:
    """How many errors of each kind there are and what each costs.

    Attributes:
        ap50: COCO's average precision at IoU 0.5 with all detections, in 0..1; None without
            objects.
        counts: number of errors by kind. Low scores count as much as high ones here.
        cost: by kind, what `ap50` would gain without these errors.
    """

    ap50: float | None
    counts: dict[str, int]
    cost: dict[str, float]


@dataclass
class MarkedDetections:
    """All detections of a dataset, and its objects; images are told apart by the objects' index.

    Attributes:
        labels: `[D]`.
        scores: `[D]`.
        kinds: `[D]`, an index into `KINDS`, or `HIT` or `IGNORED`.
        objects: `[D]`, the object hit or meant, -1 for none.
        object_labels: `[G]`, crowds left out.
    """

    labels: np.ndarray
    scores: np.ndarray
    kinds: np.ndarray
    objects: np.ndarray
    object_labels: np.ndarray


def error_report(dataset: DetectionDataset, detections: Sequence[Mapping[str, Any]]) -> ErrorReport:
    """Sort the errors of detections into kinds and weigh them.

    Args:
        dataset: ground truth; crowd boxes neither need to be found nor count against what finds
            them.
        detections: one dict of `boxes` `[D, 4]` xyxy, `labels` `[D]`, `scores` `[D]` for each image
            in the dataset's order.

    Raises:
        ValueError: there is not one dict for each image.
    """
    marked = mark_detections(dataset, detections)
    counts = {kind: int((marked.kinds == i).sum()) for i, kind in enumerate(KINDS)}
    counts["missed"] = int(_missed(marked).sum())

    classes = np.unique(marked.object_labels).tolist()
    ap50 = _mean_ap(marked, classes)
    cost = {}
    for kind in KINDS:
        better = _mean_ap(_put_right(marked, kind), classes)
        cost[kind] = 0.0 if ap50 is None or better is None else better - ap50
    return ErrorReport(ap50, counts, cost)


def confusion_matrix(
    dataset: DetectionDataset, detections: Sequence[Mapping[str, Tensor]], score_thresh: float
) -> np.ndarray:
    """Which class is taken for which: `int64 [K + 1, K + 1]`, true class by predicted class.

    Detections of at least `score_thresh` take objects of any class by falling score, each the one
    it overlaps most among those left, at IoU 0.5 or more. Row 0 counts detections of nothing,
    column 0 objects that were not found. Crowd boxes are no objects, and what is found in one of
    its class counts nowhere.
    """
    check_one_per_image(dataset, detections)
    size = len(dataset.class_names) + 1
    matrix = np.zeros((size, size), np.int64)
    for sample, found in zip(dataset, detections, strict=True):
        keep = found["scores"] >= score_thresh
        order = found["scores"][keep].argsort(descending=True, stable=True)
        boxes, labels = found["boxes"][keep][order], found["labels"][keep][order]
        ignored = _in_crowd(boxes, labels, sample)
        objects = sample.labels[~sample.crowd].tolist()
        iou = box_iou(boxes, sample.boxes[~sample.crowd])
        for i, label in enumerate(labels.tolist()):
            best = int(iou[i].argmax()) if objects else -1
            if best >= 0 and iou[i, best] >= FOREGROUND_IOU:
                matrix[objects[best], label] += 1
                iou[:, best] = -1
                objects[best] = 0
            elif not ignored[i]:
                matrix[0, label] += 1
        for label in objects:
            if label:
                matrix[label, 0] += 1
    return matrix


class Verdicts(NamedTuple):
    """Of one image, at IoU 0.5 and of the same class; what is found in a crowd is in neither.

    Attributes:
        right: detections that hit an object, `bool [D]` in their own order.
        wrong: those that hit none, `bool [D]`.
        missed: objects that are not hit, `bool [G]`; never a crowd.
    """

    right: Tensor
    wrong: Tensor
    missed: Tensor


def judge_image(found: Mapping[str, Tensor], sample: Sample) -> Verdicts:
    """Which detections of one image are right and which wrong, and which objects are missed."""
    _, _, by_score, objects = _mark_image(sample, found, 0)
    order = found["scores"].argsort(descending=True, stable=True).cpu()
    kinds = torch.from_numpy(by_score)[order.argsort()]
    missed = ~sample.crowd
    missed[missed.nonzero()[objects[by_score == HIT], 0]] = False
    return Verdicts(kinds == HIT, kinds >= 0, missed)


def mark_detections(
    dataset: DetectionDataset, detections: Sequence[Mapping[str, Tensor]]
) -> MarkedDetections:
    """What each detection is at IoU 0.5; see `MarkedDetections`.

    Raises:
        ValueError: there is not one dict for each image.
    """
    check_one_per_image(dataset, detections)
    columns: list[tuple[np.ndarray, ...]] = []
    object_labels: list[np.ndarray] = []
    first = 0
    for sample, found in zip(dataset, detections, strict=True):
        columns.append(_mark_image(sample, found, first))
        object_labels.append(sample.labels[~sample.crowd].numpy())
        first += len(object_labels[-1])
    labels, scores, kinds, objects = (np.concatenate(c) for c in zip(*columns, strict=True))
    return MarkedDetections(labels, scores, kinds, objects, np.concatenate(object_labels))


def _mark_image(
    sample: Sample, found: Mapping[str, Tensor], first: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores, kinds and objects (numbered from `first`) of one image's detections."""
    order = found["scores"].argsort(descending=True, stable=True)
    boxes, labels = found["boxes"][order].cpu(), found["labels"][order].cpu()
    gt_boxes, gt_labels = sample.boxes[~sample.crowd], sample.labels[~sample.crowd]
    iou = box_iou(boxes, gt_boxes).double()
    same = labels[:, None] == gt_labels[None]
    kinds = np.full(len(labels), KINDS.index("both"))
    objects = np.full(len(labels), -1)
    if len(gt_boxes) == 0:
        kinds[:] = KINDS.index("background")
    else:
        free = torch.ones(len(gt_boxes), dtype=torch.bool)
        for i, row in enumerate(torch.where(same, iou, -1.0)):
            best = int(torch.where(free, row, -1.0).argmax())
            if free[best] and row[best] >= FOREGROUND_IOU:
                kinds[i], objects[i] = HIT, first + best
                free[best] = False
        for i in np.flatnonzero(kinds != HIT).tolist():
            kind, meant = _kind(iou[i], same[i])
            kinds[i], objects[i] = KINDS.index(kind), -1 if meant < 0 else first + meant
    kinds[(kinds != HIT) & _in_crowd(boxes, labels, sample).numpy()] = IGNORED
    scores = found["scores"][order].cpu().double().numpy()
    return labels.numpy(), scores, kinds, objects


def _kind(iou: Tensor, same: Tensor) -> tuple[str, int]:
    """The error of a detection that hit nothing, and the object it meant (-1 for none).

    Args:
        iou: with every object, `[G]`, G > 0.
        same: whether the object is of the detection's class, `[G]`.
    """
    of_class, of_others = torch.where(same, iou, 0.0), torch.where(same, 0.0, iou)
    if BACKGROUND_IOU <= of_class.max() <= FOREGROUND_IOU:
        return "localisation", int(of_class.argmax())
    if of_others.max() >= FOREGROUND_IOU:
        return "classification", int(of_others.argmax())
    if of_class.max() >= FOREGROUND_IOU:
        return "duplicate", -1
    if iou.max() <= BACKGROUND_IOU:
        return "background", -1
    return "both", -1


def _in_crowd(boxes: Tensor, labels: Tensor, sample: Sample) -> Tensor:
    """Whether half of a detection lies in a crowd of its class, which COCO then ignores: `[D]`."""
    crowds, crowd_labels = sample.boxes[sample.crowd], sample.labels[sample.crowd]
    corner = torch.maximum(boxes[:, None, :2], crowds[None, :, :2])
    far = torch.minimum(boxes[:, None, 2:], crowds[None, :, 2:])
    share = (far - corner).clamp(min=0).prod(dim=2) / box_area(boxes)[:, None]
    inside = (share >= FOREGROUND_IOU) & (labels[:, None] == crowd_labels[None])
    return inside.any(dim=1)


def _missed(marked: MarkedDetections) -> np.ndarray:
    """Objects that nothing hits and that no classification or localisation error means: `[G]`."""
    accounted = np.isin(marked.kinds, [HIT, *_MEANING])
    missed = np.ones(len(marked.object_labels), bool)
    missed[marked.objects[accounted]] = False
    return missed


def _owners(marked: MarkedDetections) -> np.ndarray:
    """Which errors become a hit when put right: `bool [D]`.

    Of all that mean one object, of both kinds, that of the highest score; none where the object is
    hit already. The others are in the way however well they are put right.
    """
    taken = np.zeros(len(marked.object_labels), bool)
    taken[marked.objects[marked.kinds == HIT]] = True
    meaning = np.flatnonzero(np.isin(marked.kinds, _MEANING))
    owners = np.zeros(len(marked.kinds), bool)
    for i in meaning[np.argsort(-marked.scores[meaning], kind="stable")]:
        owners[i] = not taken[marked.objects[i]]
        taken[marked.objects[i]] = True
    return owners


def _put_right(marked: MarkedDetections, kind: str) -> MarkedDetections:
    """The same results without the errors of one kind."""
    if kind == "missed":
        # Of the objects only labels are asked for from here on, so their numbers may go stale.
        return replace(marked, object_labels=marked.object_labels[~_missed(marked)])
    wrong = marked.kinds == KINDS.index(kind)
    hits = wrong & _owners(marked)
    kinds = np.where(hits, HIT, np.where(wrong, IGNORED, marked.kinds))
    labels = marked.labels.copy()
    labels[hits] = marked.object_labels[marked.objects[hits]]
    return replace(marked, labels=labels, kinds=kinds)


def _mean_ap(marked: MarkedDetections, classes: Sequence[int]) -> float | None:
    """Of classes that have objects; where a fix takes the last of one away, what is found of it is
    wrong, and its AP 0 as in TIDE. A class of neither does not count."""
    values = []
    for label in classes:
        total = int((marked.object_labels == label).sum())
        rows = (marked.labels == label) & (marked.kinds != IGNORED)
        if total == 0:
            values += [0.0] * bool(rows.any())
            continue
        order = np.argsort(-marked.scores[rows], kind="stable")
        values.append(_average_precision((marked.kinds[rows] == HIT)[order], total))
    return float(np.mean(values)) if values else None


def _average_precision(hits: np.ndarray, total: int) -> float:
    """COCO's: mean over 101 recalls of the best precision at that recall or above."""
    true = hits.cumsum()
    recall, precision = true / total, true / np.arange(1, len(hits) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(recall, np.linspace(0, 1, 101), side="left")].mean())
