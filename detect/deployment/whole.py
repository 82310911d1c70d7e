"""A detector as one function of one image, in operations that `torch.export` can follow.

What `RCNN.detect` does, for an image of any size: views and crops are resized by `interpolate` and
`roi_align`, suppression is one operation, and how many boxes are left may depend on the image.

Glossary: P proposals, K foreground classes, S crop size, D detections. Boxes are xyxy in pixels.
"""

from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image, roi_align

from backbones.common.errors import UserError
from backbones.deployment.folding import fold_batch_norm
from backbones.networks.inception import InceptionV3
from backbones.networks.normalization import Normalization
from detect.boxes.coding import decode_boxes
from detect.boxes.suppression import hard_nms, soft_nms
from detect.proposals import LearnedProposer
from detect.rcnn.crops import crop_windows
from detect.rcnn.model import RCNN
from detect.rcnn.resampling import TOP_LEVEL, halve_level, levels_for


@torch.library.custom_op("lowres_rcnn::hard_nms", mutates_args=())
def hard_nms_op(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_thresh: float, limit: int
) -> Tensor:
    """See `hard_nms`; one operation of an exported graph."""
    return hard_nms(boxes, scores, labels, iou_thresh, limit=limit)


@hard_nms_op.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou_thresh: float, limit: int) -> Tensor:
    return labels.new_empty(torch.library.get_ctx().new_dynamic_size(min=0, max=limit))


@torch.library.custom_op("lowres_rcnn::soft_nms", mutates_args=())
def soft_nms_op(
    boxes: Tensor, scores: Tensor, labels: Tensor, sigma: float, score_thresh: float, limit: int
) -> tuple[Tensor, Tensor]:
    """See `soft_nms`; one operation of an exported graph."""
    return soft_nms(boxes, scores, labels, sigma=sigma, score_thresh=score_thresh, limit=limit)


@soft_nms_op.register_fake
def _(
    boxes: Tensor, scores: Tensor, labels: Tensor, sigma: float, score_thresh: float, limit: int
) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size(min=0, max=limit)
    return labels.new_empty(count), scores.new_empty(count)


class WholeDetector(nn.Module):
    """An `RCNN`, in evaluation mode on the CPU, from the pixels of an image to its detections, in
    fp32. It stays as it is.

    Raises:
        UserError: it has another proposer than a learned one, or looks at images in tiles.
    """

    def __init__(self, model: RCNN) -> None:
        super().__init__()
        proposer = model.proposer
        if not isinstance(proposer, LearnedProposer):
            raise UserError(
                "only a detector with proposals of its own network can be exported: train one "
                "with model.proposer learned"
            )
        if proposer.scale is not None:
            raise UserError(
                f"this detector looks at images in tiles (model.learned.scale {proposer.scale:g}), "
                "which are as many as the image is large, and cannot be exported: take --precision "
                "int8 of infer to be fast, or --model.learned.scale null to look at images as a "
                "whole"
            )
        self.config, self.num_classes = model.config, model.num_classes
        self.crop_size, self.limit = model.crop_size, model.detections_per_image
        self.tile_size, self.border = proposer.tile_size, proposer.border
        self.objectness_thresh, self.proposed = proposer.score_thresh, proposer.rpn.top_n
        self.of_proposer, self.min_side = proposer.config, proposer.rpn.min_size
        self.trunk = fold_batch_norm(proposer.trunk)
        self.pyramid, self.head = proposer.pyramid, proposer.rpn.head
        self.anchors = proposer.rpn.anchor_generator
        self.anchors.set_cell_anchors(torch.float32, torch.device("cpu"))
        self.backbone: nn.Module = fold_batch_norm(model.backbone)
        self.cls_score, self.bbox_pred = model.cls_score, model.bbox_pred
        self.of_view, self.of_crop = (_Pixels(net) for net in (proposer.trunk, model.backbone))
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes `float32 [D, 4]`, labels `int64 [D]` in 1..K and scores `[D]`, best first.

        Args:
            image: `uint8` RGB `[H, W, 3]`.
        """
        height, width = image.shape[:2]
        pixels = image.permute(2, 0, 1)[None].float()
        boxes, objectness, crops = self._crop(pixels, *self._propose(pixels))
        features = self.backbone(crops)
        deltas = self.bbox_pred(features).unflatten(1, (-1, 4))
        config, weight = self.config, self.config.objectness_weight
        boxes = decode_boxes(boxes, deltas, config.delta_std)
        boxes = clip_boxes_to_image(boxes, (height, width))
        scores = self.cls_score(features).softmax(dim=1)[:, 1:]
        if weight:
            scores = scores ** (1 - weight) * objectness[:, None] ** weight
        labels = torch.arange(1, self.num_classes + 1).expand_as(scores)
        keep = (scores >= config.score_thresh) & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        group = torch.zeros_like(labels) if config.agnostic_nms else labels
        if config.soft_nms_sigma is None:
            chosen = hard_nms_op(boxes, scores, group, config.nms_thresh, self.limit)
            found = scores[chosen]
        else:
            soft = (config.soft_nms_sigma, config.score_thresh, self.limit)
            chosen, found = soft_nms_op(boxes, scores, group, *soft)
        return boxes[chosen], labels[chosen], found

    def _propose(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes `[P, 4]` in an image `float32 [1, 3, H, W]` of 0..255, and their objectness."""
        height, width = pixels.shape[-2:]
        size = [_seen_side(side, max(height, width), self.tile_size) for side in (height, width)]
        view = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        least, border = self.trunk.spec.min_size, self.border
        bottom, right = (torch.sym_max(border, least - side - border) for side in size)
        view = F.pad(self.of_view.rounded(view), (border, right, border, bottom))
        stages = self.trunk.forward_stages(self.of_view(view))
        features = self.pyramid(OrderedDict((str(i), stage) for i, stage in enumerate(stages)))
        levels = list(features.values())
        strides = [[stride] * 2 for stride in cast(list[int], self.anchors.strides)]
        anchors = self.anchors.grid_anchors([list(level.shape[-2:]) for level in levels], strides)
        found = []
        for logits, deltas, own in zip(*self.head(levels), anchors, strict=True):
            # Cell by cell, of each its anchors, as torchvision orders them.
            flat = logits[0].permute(1, 2, 0).flatten()
            best, places = flat.topk(torch.sym_min(self.of_proposer.pre_nms_top_n, flat.shape[0]))
            deltas = deltas[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).flatten(0, 2)
            found.append((decode_boxes(own[places], deltas[places], (1.0,) * 4), best.sigmoid()))
        boxes, scores = (torch.cat(column) for column in zip(*found, strict=True))
        boxes = clip_boxes_to_image(boxes, (size[0], size[1]))
        keep = (boxes[:, 2:] - boxes[:, :2] >= self.min_side).all(dim=1)
        keep &= scores >= self.objectness_thresh
        boxes, scores = boxes[keep], scores[keep]
        labels = torch.zeros_like(scores, dtype=torch.int64)
        chosen = hard_nms_op(boxes, scores, labels, self.of_proposer.nms_thresh, self.proposed)
        boxes = boxes[chosen] / torch.tensor([size[1] / width, size[0] / height] * 2)
        return clip_boxes_to_image(boxes, (height, width)), scores[chosen]

    def _crop(
        self, pixels: Tensor, boxes: Tensor, objectness: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes and objectness in another order, and in this normalised crops `[P, 3, S, S]`."""
        windows = crop_windows(boxes, self.config.crop_mode, self.config.context)
        levels = levels_for(windows, self.crop_size)
        level = pixels - self.of_crop.colour
        crops, order = [], []
        for halvings in range(TOP_LEVEL + 1):
            if halvings:
                level = halve_level(level)
            # Windows of more than 2^14 pixels are halved no more often here, nor need they be.
            own = (levels.clamp(max=TOP_LEVEL) == halvings).nonzero().flatten()
            # roi_align repeats the edge for samples up to a pixel outside of its input.
            rois = windows[own] * 0.5**halvings + 1
            rois = torch.cat([torch.zeros_like(rois[:, :1]), rois], dim=1)
            padded = F.pad(level, (1, 1, 1, 1))
            crops.append(roi_align(padded, rois, self.crop_size, aligned=True))
            order.append(own)
        places = torch.cat(order)
        rounded = self.of_crop.rounded(torch.cat(crops) + self.of_crop.colour)
        return boxes[places], objectness[places], self.of_crop(rounded)


class _Pixels(nn.Module):
    """Pixels 0..255 as a network takes them, less its colour of what is outside of an image."""

    colour: Tensor

    def __init__(self, network: InceptionV3) -> None:
        super().__init__()
        spec = network.spec
        colour = torch.tensor([float(round(255 * value)) for value in spec.mean])
        self.register_buffer("colour", colour[:, None, None], persistent=False)
        self.normalization = Normalization(spec.mean, spec.std)

    def rounded(self, pixels: Tensor) -> Tensor:
        """As bytes would hold them, less the colour."""
        return pixels.round().clamp(0, 255) - self.colour

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised, from pixels less the colour."""
        return cast(Tensor, self.normalization(pixels + self.colour))


def _seen_side(side: int, longest: int, tile: int) -> int:
    """`views.whole_view`'s side in whole numbers, which may be symbols: rounded half up."""
    return torch.sym_max(1, (2 * side * tile + longest) // (2 * longest))
