"""Scores of detections: COCO's and Pascal VOC's average precision."""

from detect.evaluation.coco import evaluate_coco
from detect.evaluation.results import (
    coco_results,
    load_results,
    to_coco_results,
)
from detect.evaluation.voc import evaluate_voc

__all__ = [
    "coco_results",
    "evaluate_coco",
    "evaluate_voc",
    "load_results",
    "to_coco_results",
]
