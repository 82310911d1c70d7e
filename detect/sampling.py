"""Matching proposals to ground truth, choosing the crops of a step, and box regression targets.

Glossary: P proposals and G ground-truth boxes of one image, K foreground classes; label 0 is
background. All boxes are `float32 [N, 4]` xyxy in pixels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou, clip_boxes_to_image

MAX_LOG_SCALE = math.log(1000 / 16)
"""Decoded boxes grow at most 62.5 times, so a wild delta cannot overflow (as in torchvision)."""


def match_proposals(
    proposals: Tensor, gt_boxes: Tensor, gt_labels: Tensor, positive_iou: float, negative_iou: float
) -> tuple[Tensor, Tensor]:
    """Give every proposal the ground truth it overlaps most, as R-CNN's fine-tuning does.

    Args:
        proposals: `[P, 4]`.
        gt_boxes: `[G, 4]`, G may be 0.
        gt_labels: `int64 [G]` in `1..K`.
        positive_iou: from this IoU on a proposal takes the label of its best box.
        negative_iou: below this IoU it is background; in between it is ignored.

    Returns:
        `matched_idxs` `int64 [P]`, index of the best box (0 where G is 0), and `labels`
        `int64 [P]`: `1..K`, 0 for background, -1 for ignored.
    """
    if negative_iou > positive_iou:
        raise ValueError(f"negative_iou {negative_iou} must not exceed positive_iou {positive_iou}")
    if len(gt_boxes) == 0:
        zeros = torch.zeros(len(proposals), dtype=torch.int64, device=proposals.device)
        return zeros, zeros.clone()
    iou, matched_idxs = box_iou(proposals, gt_boxes).max(dim=1)
    labels = gt_labels[matched_idxs].clone()
    labels[iou < positive_iou] = -1
    labels[iou < negative_iou] = 0
    return matched_idxs, labels


def sample_minibatch(
    labels: Tensor,
    batch_size: int,
    positive_fraction: float,
    *,
    scores: Tensor | None = None,
    hard_share: float = 0.0,
    balance_classes: bool = False,
) -> Tensor:
    """Choose at most `batch_size` proposals, at most `positive_fraction` of them positive.

    Missing positives are made up for by background, not the reverse (R-CNN: 32 + 96 of 128).
    Drawn from torch's global generator, which the training loop seeds at every step.

    Args:
        labels: `int64 [P]` from `match_proposals`.
        batch_size: wanted number of proposals.
        positive_fraction: in `(0, 1]`.
        scores: `float32 [P]`, needed where `hard_share` is not 0.
        hard_share: of the background, this share in `[0, 1]` is what has the highest scores; the
            rest is drawn.
        balance_classes: draw positives so that each class in the image, not each of its proposals,
            has the same chance.

    Returns:
        `int64` indices into `labels`, positives first.
    """
    positive = (labels > 0).nonzero().flatten()
    negative = (labels == 0).nonzero().flatten()
    num_positive = min(len(positive), int(batch_size * positive_fraction))
    num_negative = min(len(negative), batch_size - num_positive)
    if balance_classes and num_positive:
        weights = 1 / labels[positive].bincount()[labels[positive]]
        positive = positive[torch.multinomial(weights, num_positive)]
    else:
        positive = positive[torch.randperm(len(positive), device=labels.device)[:num_positive]]
    negative = negative[torch.randperm(len(negative), device=labels.device)]
    if hard_share:
        assert scores is not None
        num_hard = round(num_negative * hard_share)
        # Stable, so that of equal scores those drawn first come first.
        hard = scores[negative].argsort(descending=True, stable=True)[:num_hard]
        is_hard = torch.zeros_like(negative, dtype=torch.bool).index_fill(0, hard, True)
        negative = torch.cat([negative[hard], negative[~is_hard]])
    return torch.cat([positive, negative[:num_negative]])


def jitter_boxes(boxes: Tensor, copies: int, strength: float, size: tuple[int, int]) -> Tensor:
    """Random boxes around the ground truth: positives and near misses before any proposer is good.

    Centres move by up to `strength` of the box's side, sides change by up to a factor
    `exp(strength)`; the result is clipped to the image and boxes left without area are dropped.

    Args:
        boxes: `[G, 4]`.
        copies: random boxes per ground-truth box.
        strength: 0 repeats the boxes; 0.4 gives IoUs from about 0.3 to 1.
        size: `(height, width)` of the image.

    Returns:
        `[<= G * copies, 4]`.
    """
    repeated = boxes.repeat_interleave(copies, dim=0)
    noise = (torch.rand(len(repeated), 4, device=boxes.device) * 2 - 1) * strength
    sides = repeated[:, 2:] - repeated[:, :2]
    centres = (repeated[:, :2] + repeated[:, 2:]) / 2 + noise[:, :2] * sides
    half = sides * noise[:, 2:].exp() / 2
    jittered = clip_boxes_to_image(torch.cat([centres - half, centres + half], dim=1), size)
    return jittered[(jittered[:, 2:] - jittered[:, :2] >= 1).all(dim=1)]


def encode_boxes(proposals: Tensor, gt_boxes: Tensor, delta_std: Sequence[float]) -> Tensor:
    """Regression targets that turn proposals into ground truth (R-CNN appendix C, eq. 6-9).

    `(dx, dy)` are centre offsets over the proposal's width and height, `(dw, dh)` log size ratios;
    each is divided by its entry of `delta_std`, so that targets have about unit variance.

    Args:
        proposals: `[N, 4]`, of positive area.
        gt_boxes: `[N, 4]`, of positive area.
        delta_std: four positive numbers.

    Returns:
        `[N, 4]` deltas.
    """
    sides = proposals[:, 2:] - proposals[:, :2]
    gt_sides = gt_boxes[:, 2:] - gt_boxes[:, :2]
    shift = (gt_boxes[:, :2] + gt_boxes[:, 2:] - proposals[:, :2] - proposals[:, 2:]) / 2 / sides
    deltas = torch.cat([shift, (gt_sides / sides).log()], dim=1)
    return deltas / deltas.new_tensor(delta_std)


def decode_boxes(proposals: Tensor, deltas: Tensor, delta_std: Sequence[float]) -> Tensor:
    """Inverse of `encode_boxes`.

    Args:
        proposals: `[N, 4]`.
        deltas: `[N, 4]` or, class-specific, `[N, K, 4]`.
        delta_std: as in `encode_boxes`.

    Returns:
        Boxes in the shape of `deltas`.
    """
    deltas = deltas * deltas.new_tensor(delta_std)
    if deltas.ndim == 3:
        proposals = proposals[:, None, :]
    sides = proposals[..., 2:] - proposals[..., :2]
    centres = (proposals[..., :2] + proposals[..., 2:]) / 2 + deltas[..., :2] * sides
    half = sides * deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() / 2
    return torch.cat([centres - half, centres + half], dim=-1)


def of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """Deltas `[N, 4]` of `labels` `[N]` in `1..K`, out of `[N, K, 4]` or, shared, `[N, 1, 4]`."""
    column = (labels - 1).clamp(max=deltas.shape[1] - 1)
    return deltas[torch.arange(len(deltas), device=deltas.device), column]


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of `a[i]` with `b[i]`, `[N]`, for boxes of positive area."""
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    intersection = overlap.prod(dim=1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(dim=1), (b[:, 2:] - b[:, :2]).prod(dim=1)
    return intersection / (area_a + area_b - intersection)
