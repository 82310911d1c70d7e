"""The crops of a training step: from an image's proposals to the boxes that the network looks at.

Glossary: P candidates and G ground-truth boxes of one image, R crops chosen from it, K foreground
classes; label 0 is background. All boxes are `float32 [N, 4]` xyxy in pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from detect.boxes.coding import paired_iou
from detect.proposals.base import Proposals
from detect.rcnn.config import RCNNConfig
from detect.rcnn.matching import jitter_boxes, match_proposals, sample_minibatch


class SampledCrops(NamedTuple):
    """What the network is shown of one image, and what it should say."""

    boxes: Tensor
    """`[R, 4]`."""
    labels: Tensor
    """`int64 [R]` in `0..K`."""
    gt_boxes: Tensor
    """`[R, 4]`, the object that each box overlaps most; the box itself without objects."""
    regress: Tensor
    """`bool [R]`, whether the box regression learns from it."""


@torch.no_grad()
def add_candidates(
    proposals: Proposals, gt_boxes: Tensor, size: tuple[int, int], config: RCNNConfig
) -> Proposals:
    """Proposals, the objects themselves and boxes around them; the latter two with the score 0.

    There is always one, where nothing else is the whole image of (height, width): each image gives
    the network a crop.
    """
    jittered = jitter_boxes(gt_boxes, config.jitter_copies, config.jitter_strength, size)
    boxes = torch.cat([proposals.boxes, gt_boxes, jittered])
    scores = torch.cat([proposals.scores, boxes.new_zeros(len(boxes) - len(proposals.boxes))])
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    if not has_area.any():
        height, width = size
        return Proposals(boxes.new_tensor([[0, 0, width, height]]), scores.new_zeros(1))
    return Proposals(boxes[has_area], scores[has_area])


@torch.no_grad()
def sample_crops(
    candidates: Proposals, target: dict[str, Tensor], config: RCNNConfig
) -> SampledCrops:
    """Match candidates, of positive area, to the objects and draw the crops of a step.

    The target has `boxes [G, 4]` and `labels int64 [G]` in `1..K`.
    """
    gt_boxes = target["boxes"]
    matched_idxs, labels = match_proposals(
        *(candidates.boxes, gt_boxes, target["labels"]), config.positive_iou, config.negative_iou
    )
    chosen = sample_minibatch(labels, config.crops_per_image, config.positive_fraction)
    boxes, labels = candidates.boxes[chosen], labels[chosen]
    if len(gt_boxes) == 0:
        return SampledCrops(boxes, labels, boxes, torch.zeros_like(labels, dtype=torch.bool))
    matched = gt_boxes[matched_idxs[chosen]]
    regress = (labels > 0) & (paired_iou(boxes, matched) >= config.regression_iou)
    return SampledCrops(boxes, labels, matched, regress)
