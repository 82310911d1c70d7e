"""From the scores and refined boxes of one image's proposals to its detections.

Glossary: P proposals, K foreground classes, N boxes of any class that are left to choose from, D
detections. All boxes are `float32 [N, 4]` xyxy in pixels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from backbones.common.errors import UserError
from detect.boxes.suppression import hard_nms, soft_nms
from detect.rcnn.config import RCNNConfig


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    config: RCNNConfig,
    limit: int,
    wanted: Tensor | None = None,
) -> dict[str, Tensor]:
    """Drop weak boxes, suppress those that another one of their class (`agnostic_nms`: of any)
    covers, keep the best, `limit` at most.

    Boxes `[P, K, 4]` are inside the image, and dropped without area; scores `float32 [P, K]` are in
    `[0, 1]`. Classes that are not `wanted`, `bool [K]`, suppress nothing either.

    Returns:
        `boxes [D, 4]`, `labels int64 [D]` in `1..K`, `scores [D]`, best first.
    """
    labels = torch.arange(1, scores.shape[1] + 1, device=boxes.device).expand_as(scores)
    has_area = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    keep = (scores >= config.score_thresh) & has_area
    if wanted is not None:
        keep &= wanted
    boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    group = torch.zeros_like(labels) if config.agnostic_nms else labels
    if config.soft_nms_sigma is None:
        chosen = hard_nms(*(boxes, scores, group), config.nms_thresh, limit=limit)
        chosen_scores = scores[chosen]
    else:
        chosen, chosen_scores = soft_nms(
            *(boxes, scores, group),
            sigma=config.soft_nms_sigma,
            score_thresh=config.score_thresh,
            limit=limit,
        )
    return {"boxes": boxes[chosen], "labels": labels[chosen], "scores": chosen_scores}


def above_score(detections: Mapping[str, Tensor], score_thresh: float) -> dict[str, Tensor]:
    """The detections of an image, as `select_detections` gives them, with this score or more;
    raises as `check_score`."""
    check_score("score_thresh", score_thresh)
    keep = detections["scores"] >= score_thresh
    return {key: value[keep] for key, value in detections.items()}


def check_score(key: str, value: Any) -> None:
    """Raise `UserError` unless a value is a number in [0, 1]."""
    try:
        is_score = not isinstance(value, str | bool) and 0 <= float(value) <= 1
    except (TypeError, ValueError, RuntimeError, OverflowError):
        is_score = False
    if not is_score:
        raise UserError(f"{key} must be in [0, 1], got {value!r}")
