"""The region proposal network on the levels of a feature pyramid: anchors, head, losses, selection.

Glossary: B images, A anchors at a cell (of an image, where losses are concerned).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss
from torchvision.ops.boxes import remove_small_boxes

from backbones.common.device import upload
from backbones.common.errors import UserError
from detect.boxes.coding import decode_boxes, paired_iou, pairwise_iou
from detect.boxes.suppression import hard_nms
from detect.proposals.base import Proposals

PRIOR = 0.01
"""Objectness of every anchor before training."""

BOX_LOSS_WEIGHT = 2.0
"""Of the box loss beside the objectness loss, as in the paper of the quality focal loss."""


MOST_PAIRS = 2**24
"""Pairs of an object and an anchor that are compared at once, which bounds memory."""


class TrunkAnchors(AnchorGenerator):
    """Anchors centred where the trunk's cells really look.

    torchvision derives strides from the ratio of image to feature size, which is wrong for
    convolutions without padding (640 / 18 = 35 where the stride is 32); here they are exact. The
    first cell of each level is centred on its offset, in pixels of the image.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[float, ...]],
        ratios: tuple[float, ...],
        strides: Sequence[int],
        offsets: Sequence[float],
    ) -> None:
        most = max(len(level) for level in sizes)
        if any(len(level) != most for level in sizes):
            raise UserError(
                "model.learned.anchor_sizes must have equally many sizes on every level, "
                f"got {[list(level) for level in sizes]}"
            )
        super().__init__(tuple(tuple(level) for level in sizes), (tuple(ratios),) * len(sizes))
        # torchvision rounds anchors to whole pixels, a third of a 3-pixel anchor's width.
        self.cell_anchors = [
            _cell_anchors(level, ratios, offset)
            for level, offset in zip(sizes, offsets, strict=True)
        ]
        self.strides = list(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """One `float32 [sum of cells * A, 4]` xyxy tensor for each image."""
        grids = [list(feature.shape[-2:]) for feature in feature_maps]
        device = feature_maps[0].device
        # Whatever the maps are: bf16 would place anchors to within 4 pixels at the far side.
        with torch.inference_mode(False):  # they are kept, and may be needed in training
            self.set_cell_anchors(torch.float32, device)
        # Numbers where torchvision says tensors: nothing is copied to the device.
        strides: Any = [[stride] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors for _ in image_list.image_sizes]


def _cell_anchors(sizes: Sequence[float], ratios: Sequence[float], offset: float) -> Tensor:
    shapes = [(s / math.sqrt(r), s * math.sqrt(r)) for r in ratios for s in sizes]
    return torch.tensor(
        [[offset - w / 2, offset - h / 2, offset + w / 2, offset + h / 2] for w, h in shapes]
    )


class ProposalHead(nn.Module):
    """Objectness and box deltas of every anchor, from the levels of a feature pyramid.

    The levels share the convolutions but not their normalisation, as in EfficientDet (Tan et al.
    2020): objects of all sizes teach one filter, while each level keeps statistics of its own. Each
    has as many anchors at a cell.
    """

    def __init__(self, channels: int, num_anchors: Sequence[int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels, eps=1e-3) for _ in num_anchors)
        self.cls_logits = nn.Conv2d(channels, num_anchors[0], 1)
        self.bbox_pred = nn.Conv2d(channels, num_anchors[0] * 4, 1)
        # Few anchors are objects: without the prior the first steps only learn that (RetinaNet).
        prior = -math.log((1 - PRIOR) / PRIOR)
        for layer, bias in ((self.cls_logits, prior), (self.bbox_pred, 0.0)):
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Levels `[B, C, h, w]` -> logits `[B, A, h, w]` and deltas `[B, 4 A, h, w]` of each."""
        hidden = [
            F.relu(norm(self.conv(level.float())), inplace=True)
            for norm, level in zip(self.norms, features, strict=True)
        ]
        return [self.cls_logits(h) for h in hidden], [self.bbox_pred(h) for h in hidden]


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's RPN with scores kept, other losses, and suppression across levels too.

    The losses take all anchors: objectness learns the IoU that the predicted box has with its
    object (quality focal loss, Li et al. 2020), so that the best-placed proposals come first, and
    boxes learn by generalised IoU (Rezatofighi et al. 2019) instead of by their deltas.

    The parent suppresses on each level by itself: the same object seen on two levels would take
    two of the few crops that an image may cost.
    """

    def __init__(self, *args: Any, top_n: int, top_n_train: int, **kwargs: Any) -> None:
        super().__init__(*args, post_nms_top_n={"training": 1, "testing": 1}, **kwargs)  # not used
        self.top_n, self.top_n_train = top_n, top_n_train

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        targets: list[dict[str, Tensor]] | None = None,
        limit: int | None = None,
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
        """Proposals, on the CPU, and the losses where targets, on the CPU too, are given.

        There are `top_n` of an image at most, in training `top_n_train`, or `limit` where it is
        given.
        """
        levels = list(features.values())
        logits, deltas = self.head(levels)
        anchors = self.anchor_generator(images, levels)
        per_level = [level[0].numel() for level in logits]
        logits, deltas = concat_box_prediction_layers(logits, deltas)
        logits, deltas = logits.view(len(anchors), -1), deltas.view(len(anchors), -1, 4)
        best = self._get_top_n_idx(logits.detach(), per_level)
        chosen = torch.arange(len(best), device=best.device)[:, None], best
        losses: dict[str, Tensor] = {}
        if targets is None:
            # Only the losses need the boxes of all anchors.
            anchors = [own[places] for own, places in zip(anchors, best, strict=True)]
            boxes = self._decode(deltas[chosen], anchors)
        else:
            boxes = self._decode(deltas, anchors)
            labels, matched = assign_objects(
                anchors[0],
                [target["boxes"] for target in targets],
                self.proposal_matcher.high_threshold,
                self.proposal_matcher.low_threshold,
            )
            losses = proposal_losses(logits, boxes, labels, matched)
            boxes = boxes[chosen]
        # One copy: how many boxes are left, only the processor can know.
        scores = logits.detach()[chosen].sigmoid()
        packed = torch.cat([boxes.detach(), scores[..., None]], dim=2).cpu()
        most = limit or (self.top_n_train if self.training else self.top_n)
        return self._select(packed[..., :4], packed[..., 4], images.image_sizes, most), losses

    def _decode(self, deltas: Tensor, anchors: list[Tensor]) -> Tensor:
        """Boxes `[B, N, 4]` of deltas `[B, N, 4]` and B times N anchors."""
        flat = deltas.flatten(0, 1)
        return decode_boxes(torch.cat(anchors), flat, (1.0,) * 4).view_as(deltas)

    def _select(
        self, boxes: Tensor, scores: Tensor, sizes: Sequence[tuple[int, int]], limit: int
    ) -> list[Proposals]:
        """The best boxes of each image after suppression across levels, and their scores, out of
        `[B, N, 4]` and objectness `[B, N]` in [0, 1], on the CPU."""
        found = []
        for image_boxes, own, size in zip(boxes, scores, sizes, strict=True):
            clipped = clip_boxes_to_image(image_boxes, size)
            keep = (own >= self.score_thresh).nonzero().flatten()
            keep = keep[remove_small_boxes(clipped[keep], self.min_size)]
            keep = keep[hard_nms(clipped[keep], own[keep], None, self.nms_thresh, limit=limit)]
            found.append(Proposals(clipped[keep], own[keep]))
        return found


def assign_objects(
    anchors: Tensor, gt_boxes: Sequence[Tensor], positive_iou: float, negative_iou: float
) -> tuple[Tensor, Tensor]:
    """As the RPN of torchvision assigns objects to anchors, for all images at once.

    An anchor is positive from `positive_iou` on, and where no other anchor overlaps an object as
    much; below `negative_iou` it is negative, in between ignored.

    Args:
        anchors: `[A, 4]`, on the device of what comes back.
        gt_boxes: `[G_i, 4]` of each of B images, on the CPU.

    Returns:
        Labels `float32 [B, A]` (1, 0 and -1), and `[B, A, 4]`, of each anchor the object that it
        overlaps most, zeros where an image has none.
    """
    most = max(1, *(len(boxes) for boxes in gt_boxes))
    packed = torch.zeros(len(gt_boxes), most, 5)
    for own, boxes in zip(packed, gt_boxes, strict=True):
        own[: len(boxes), :4], own[: len(boxes), 4] = boxes, 1
    packed = upload(packed, anchors.device)
    objects, exists = packed[..., :4], packed[..., 4:] > 0
    # All at once but for crowds, whose table would be gigabytes.
    overlap = anchors.new_full((len(packed), len(anchors)), -1.0)
    matched_idxs = torch.zeros_like(overlap, dtype=torch.int64)
    is_best = torch.zeros_like(overlap, dtype=torch.bool)
    step = max(1, MOST_PAIRS // overlap.numel())
    for start in range(0, most, step):
        some, there = objects[:, start : start + step], exists[:, start : start + step]
        iou = pairwise_iou(some.flatten(0, 1), anchors).view(len(packed), -1, len(anchors))
        iou = iou.where(there, -1.0)
        best, places = iou.max(dim=1)
        matched_idxs = torch.where(best > overlap, start + places, matched_idxs)
        overlap = overlap.maximum(best)
        is_best |= ((iou == iou.amax(dim=2, keepdim=True)) & there).any(dim=1)
    labels = torch.where(overlap >= negative_iou, -1.0, 0.0)
    labels = torch.where((overlap >= positive_iou) | is_best, 1.0, labels)
    images = torch.arange(len(packed), device=anchors.device)[:, None]
    return labels, objects[images, matched_idxs]


def proposal_losses(
    logits: Tensor, boxes: Tensor, labels: Tensor, gt_boxes: Tensor
) -> dict[str, Tensor]:
    """Quality focal loss and generalised IoU loss, both over the number of positive anchors.

    With q the IoU of the predicted box with its object (0 for a negative anchor) and p the
    predicted objectness, an anchor's loss is |q - p|² times their binary cross-entropy.

    Args:
        logits: `float32 [B, A]` objectness before the sigmoid.
        boxes: `float32 [B, A, 4]` predicted, xyxy.
        labels: `float32 [B, A]`: 1 positive, 0 negative, -1 ignored.
        gt_boxes: `float32 [B, A, 4]`, the matched object of each positive anchor.

    Returns:
        `loss_objectness` and `loss_rpn_box_reg`, scalars.
    """
    # Nothing is picked out: a GPU would be waited for to know how much there is.
    positive = labels == 1
    count = positive.sum().clamp(min=1)
    # The others have a loss of zero: with themselves.
    wanted = torch.where(positive[..., None], gt_boxes, boxes.detach()).flatten(0, 1)
    boxes = boxes.flatten(0, 1)
    with torch.no_grad():
        quality = paired_iou(boxes, wanted).view_as(logits) * positive
    cross_entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    objectness = (quality - logits.sigmoid()).square() * cross_entropy
    box_loss = (generalized_box_iou_loss(boxes, wanted) * positive.flatten()).sum()
    return {
        "loss_objectness": (objectness * (labels >= 0)).sum() / count,
        "loss_rpn_box_reg": BOX_LOSS_WEIGHT * box_loss / count,
    }
