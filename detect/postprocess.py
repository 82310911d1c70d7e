"""From the scores and refined boxes of one image's proposals to its detections.

Glossary: P proposals, K foreground classes, N boxes of any class that are left to choose from, D
detections. All boxes are `float32 [N, 4]` xyxy in pixels.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from detect.rcnn_config import RCNNConfig

FEW = 256
"""Boxes up to which soft suppression compares all of a class with each other at once; what is taken
of more is compared with its rivals when it is, as most are never taken."""


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
        chosen = batched_nms(boxes, scores, labels, config.nms_thresh)
        chosen = chosen[: config.detections_per_image]
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


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    sigma: float,
    score_thresh: float,
    limit: int,
) -> tuple[Tensor, Tensor]:
    """Gaussian soft non-maximum suppression (Bodla et al. 2017).

    Takes the best box again and again; the scores of the others of its class are multiplied by
    exp(-IoU² / sigma) instead of being set to zero, so that a neighbour of the same class is found
    with a lower score instead of not at all.

    Args:
        boxes: `[N, 4]`.
        scores: `[N]`.
        labels: `int64 [N]`; boxes of different labels leave each other alone.
        sigma: above 0; 0.5 in the paper.
        score_thresh: ends when no box has this score any more.
        limit: ends after so many boxes.

    Returns:
        Indices `int64 [D]` of the boxes taken and their lowered scores `[D]`, best first.
    """
    # One box after the other: many small steps, each of which costs NumPy a tenth of what it costs
    # PyTorch, and a GPU far more. Those of a class lie together, so that rivals are a slice.
    order = labels.argsort(stable=True).cpu()
    corners = boxes.cpu()[order].numpy().T.copy()
    left = scores.cpu()[order].numpy()
    _, starts = np.unique(labels.cpu()[order].numpy(), return_index=True)
    group = np.searchsorted(starts, np.arange(len(left)), side="right") - 1
    rivals = [slice(*ends) for ends in pairwise([*starts.tolist(), len(left)])]
    low, high = corners[:2], corners[2:]
    area = (high - low).prod(axis=0)

    def decay(of: slice, taken: slice) -> np.ndarray:
        """What the scores of some are multiplied by when one is taken, a row for each of these."""
        sides = np.minimum(high[:, None, of], high[:, taken, None])
        sides -= np.maximum(low[:, None, of], low[:, taken, None])
        np.maximum(sides, 0, out=sides)
        shared = sides[0] * sides[1]
        iou = shared / (area[of] + area[taken, None] - shared)
        # Above zero: what is taken has the score -inf, which zero would make no number.
        return np.maximum(np.exp(iou * iou / -sigma), 1e-30)

    decays: dict[int, np.ndarray] = {}
    chosen: list[int] = []
    found: list[float] = []
    while len(chosen) < min(limit, len(left)):
        best = int(left.argmax())
        if left[best] < score_thresh:
            break
        chosen.append(best)
        found.append(float(left[best]))
        of = rivals[group[best]]
        if len(left) > FEW:
            left[of] *= decay(of, slice(best, best + 1))[0]
        else:
            if of.start not in decays:
                decays[of.start] = decay(of, of)
            left[of] *= decays[of.start][best - of.start]
        left[best] = -np.inf
    return order[chosen].to(scores.device), scores.new_tensor(found)


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
