"""Matching proposals to ground truth, choosing the crops of a step, and box regression targets.

Glossary: P proposals and G ground-truth boxes of one image, K foreground classes; label 0 is
background. All boxes are `float32 [N, 4]` xyxy in pixels.
"""

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from detect.boxes.coding import pairwise_iou


def match_proposals(
    proposals: Tensor, gt_boxes: Tensor, gt_labels: Tensor, positive_iou: float, negative_iou: float
) -> tuple[Tensor, Tensor]:
    """Give every proposal the ground truth it overlaps most, as R-CNN's fine-tuning does.

    From `positive_iou` on a proposal takes the label of its best box, below `negative_iou` it is
    background; in between it is ignored. G may be 0.

    Returns:
        `matched_idxs` `int64 [P]`, index of the best box (0 where G is 0), and `labels`
        `int64 [P]`: `1..K`, 0 for background, -1 for ignored.
    """
    if negative_iou > positive_iou:
        raise ValueError(f"negative_iou {negative_iou} must not exceed positive_iou {positive_iou}")
    if len(gt_boxes) == 0:
        zeros = torch.zeros(len(proposals), dtype=torch.int64, device=proposals.device)
        return zeros, zeros.clone()
    iou, matched_idxs = pairwise_iou(proposals, gt_boxes).max(dim=1)
    labels = gt_labels[matched_idxs].clone()
    labels[iou < positive_iou] = -1
    labels[iou < negative_iou] = 0
    return matched_idxs, labels


def sample_minibatch(labels: Tensor, batch_size: int, positive_fraction: float) -> Tensor:
    """Choose at most `batch_size` proposals, at most `positive_fraction` of them positive.

    Missing positives are made up for by background, not the reverse (R-CNN: 32 + 96 of 128).
    Drawn from torch's global generator, which the training loop seeds at every step.

    Returns:
        `int64` indices into the labels from `match_proposals`, positives first.
    """
    positive = (labels > 0).nonzero().flatten()
    negative = (labels == 0).nonzero().flatten()
    num_positive = min(len(positive), int(batch_size * positive_fraction))
    num_negative = min(len(negative), batch_size - num_positive)
    positive = positive[torch.randperm(len(positive), device=labels.device)[:num_positive]]
    negative = negative[torch.randperm(len(negative), device=labels.device)[:num_negative]]
    return torch.cat([positive, negative])


def jitter_boxes(boxes: Tensor, copies: int, strength: float, size: tuple[int, int]) -> Tensor:
    """Random boxes around the ground truth: positives and near misses before any proposer is good.

    Centres move by up to `strength` of the box's side, sides change by up to a factor
    `exp(strength)`: 0.4 gives IoUs from about 0.3 to 1. The result is clipped to the image of
    (height, width), and boxes left without area are dropped.
    """
    repeated = boxes.repeat_interleave(copies, dim=0)
    noise = (torch.rand(len(repeated), 4, device=boxes.device) * 2 - 1) * strength
    sides = repeated[:, 2:] - repeated[:, :2]
    centres = (repeated[:, :2] + repeated[:, 2:]) / 2 + noise[:, :2] * sides
    half = sides * noise[:, 2:].exp() / 2
    jittered = clip_boxes_to_image(torch.cat([centres - half, centres + half], dim=1), size)
    return jittered[(jittered[:, 2:] - jittered[:, :2] >= 1).all(dim=1)]
