"""Which score a detection should have to be shown: precision, recall and F1 by threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from detect.data import DetectionDataset
from detect.evaluation.errors import HIT, IGNORED, mark_detections

THRESHOLDS = np.arange(1, 101) / 100
"""Scores at which the curves are known. Zero is none: it would keep what has no score at all."""


@dataclass(frozen=True)
class ThresholdCurves:
    """Curves over `THRESHOLDS`, a row a class that has objects, `float64 [K, 100]` in 0..1.

    Attributes:
        names: of the classes.
        precision: share of the detections that are right; NaN where there is none.
        recall: share of the objects that are found.
        f1: twice the hits over detections and objects.
    """

    names: list[str]
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def best_point(self) -> dict[str, float | None]:
        """The highest mean `F1` of the classes and its `score_thresh`; None without objects."""
        if not self.names:
            return {"F1": None, "score_thresh": None}
        mean = self.f1.mean(axis=0)
        return {"F1": float(mean.max()), "score_thresh": float(THRESHOLDS[mean.argmax()])}

    def at(self, threshold: float) -> dict[str, dict[str, float | None]]:
        """`precision`, `recall` and `f1` by class at the nearest of `THRESHOLDS`."""
        column = int(np.abs(THRESHOLDS - threshold).argmin())
        curves = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {
            name: {
                key: None if np.isnan(curve[row, column]) else float(curve[row, column])
                for key, curve in curves.items()
            }
            for row, name in enumerate(self.names)
        }


def threshold_curves(
    dataset: DetectionDataset, detections: Sequence[Mapping[str, Tensor]]
) -> ThresholdCurves:
    """Precision, recall and F1 of each class at IoU 0.5 against the score threshold.

    Detections take the objects of their class by falling score, so that a threshold takes nothing
    from those above it. What is found in a crowd is no error.

    Args:
        dataset: ground truth.
        detections: one dict of `boxes` `[D, 4]` xyxy, `labels` `[D]`, `scores` `[D]` for each image
            in the dataset's order.

    Raises:
        ValueError: there is not one dict for each image.
    """
    marked = mark_detections(dataset, detections)
    counts = np.bincount(marked.object_labels, minlength=len(dataset.class_names) + 1)
    rows: list[tuple[np.ndarray, ...]] = []
    labels = [label for label in range(1, len(counts)) if counts[label]]
    for label in labels:
        own = (marked.labels == label) & (marked.kinds != IGNORED)
        found = _at_least(marked.scores[own])
        hits = _at_least(marked.scores[own & (marked.kinds == HIT)])
        precision = np.divide(hits, found, out=np.full(len(found), np.nan), where=found > 0)
        rows.append((precision, hits / counts[label], 2 * hits / (found + counts[label])))
    names = [dataset.class_names[label - 1] for label in labels]
    empty = np.zeros((0, len(THRESHOLDS)))
    curves = [np.stack(column) for column in zip(*rows, strict=True)] or [empty] * 3
    return ThresholdCurves(names, *curves)


def _at_least(scores: np.ndarray) -> np.ndarray:
    """How many scores reach each threshold; those of networks are float32."""
    thresholds = THRESHOLDS.astype(np.float32)
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")
