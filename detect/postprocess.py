"""From the scores and refined boxes of one image's proposals to its detections.

Glossary: P proposals, K foreground classes, N boxes of any class that are left to choose from, D
detections. All boxes are `float32 [N, 4]` xyxy in pixels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detect.rcnn_config import RCNNConfig
from detect.suppression import hard_nms, soft_nms


def select_detections(boxes: Tensor, scores: Tensor, config: RCNNConfig) -> dict[str, Tensor]:
    """Drop weak boxes, suppress those that another one of their class covers, keep the best.

    Args:
        boxes: `[P, K, 4]`, inside the image; those without area are dropped.
        scores: `float32 [P, K]` in `[0, 1]`.
        config: thresholds, and which way to suppress.

    Returns:
        `boxes [D, 4]`, `labels int64 [D]` in `1..K`, `scores [D]`, best first.
    """
    labels = torch.arange(1, scores.shape[1] + 1, device=boxes.device).expand_as(scores)
    has_area = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    keep = (scores >= config.score_thresh) & has_area
    boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    if config.soft_nms_sigma is None:
        chosen = hard_nms(
            *(boxes, scores, labels), config.nms_thresh, limit=config.detections_per_image
        )
        chosen_scores = scores[chosen]
    else:
        chosen, chosen_scores = soft_nms(
            *(boxes, scores, labels),
            sigma=config.soft_nms_sigma,
            score_thresh=config.score_thresh,
            limit=config.detections_per_image,
        )
    chosen_boxes = boxes[chosen]
    if config.box_voting_iou is not None:
        chosen_boxes = vote_boxes(boxes, scores, labels, chosen, config.box_voting_iou)
    return {"boxes": chosen_boxes, "labels": labels[chosen], "scores": chosen_scores}


def above_score(detections: Mapping[str, Tensor], score_thresh: float) -> dict[str, Tensor]:
    """The detections of an image, as `select_detections` gives them, with this score or more."""
    keep = detections["scores"] >= score_thresh
    return {key: value[keep] for key, value in detections.items()}


def vote_boxes(
    boxes: Tensor, scores: Tensor, labels: Tensor, chosen: Tensor, iou_thresh: float
) -> Tensor:
    """Box voting (Gidaris & Komodakis 2015): a detection's box is the mean of all that agree.

    Args:
        boxes: `[N, 4]`, of which `chosen` survived suppression.
        scores: `[N]` in `[0, 1]` before suppression, the weights of the mean.
        labels: `int64 [N]`; only boxes of the same label vote.
        chosen: indices `int64 [D]`.
        iou_thresh: boxes vote from this IoU on; 0.5 in the paper.

    Returns:
        `[D, 4]`.
    """
    votes = (box_iou(boxes[chosen], boxes) >= iou_thresh) & (labels[chosen, None] == labels)
    # A score of 0 would leave nothing to divide by.
    weights = votes * scores.clamp(min=1e-12)
    return weights @ boxes / weights.sum(dim=1, keepdim=True)
