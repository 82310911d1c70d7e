"""A region proposal network over a fully convolutional Inception trunk.

The pyramid has three levels, after the A, B and C blocks: strides 8, 16 and 32 in pixels of the
resized image.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, clip_boxes_to_image
from torchvision.transforms.v2.functional import resize

from backbones.common import distributed
from backbones.common.device import constant
from backbones.common.errors import UserError
from backbones.networks.inception import InceptionV3
from backbones.networks.specs import SPECS
from backbones.networks.stems import stage_geometry
from detect.proposals.base import Proposals, Proposer
from detect.proposals.rpn import ProposalHead, ProposalNetwork, TrunkAnchors

TRUNK = SPECS["inception_v3"]


@dataclass(frozen=True)
class LearnedConfig:
    """A region proposal network (Ren et al. 2015) over an Inception trunk and feature pyramid."""

    width: float = 0.25
    """Width multiplier of the proposer's trunk: 0.25, 0.5, 0.75 or 1.0."""
    image_size: int = 512
    """Pixels that the longer side of the image is resized to for the proposer; crops are always cut
    from the full image."""
    channels: int = 64
    """Channels of the proposer's feature pyramid and head."""
    anchor_sizes: tuple[tuple[float, ...], ...] = ((16.0, 24.0), (32.0, 48.0), (64.0, 128.0))
    """Sides of the anchors in pixels of the resized image, one list for each of the strides 8, 16,
    32."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Shapes of the anchors, height over width."""
    positive_iou: float = 0.5
    """IoU with an object from which an anchor is positive in training (as the best ones of each
    object are in any case)."""
    negative_iou: float = 0.4
    """IoU with every object below which an anchor is negative in training."""
    images_per_step: int | None = None
    """Images of a training step that the proposer sees, of all processes together and of each at
    least one; null for all. The proposals of the others are windows of random place, with the
    anchors' sizes: a crop network learns from many images at a time, and the proposer, which needs
    fewer, is what an image costs."""
    pre_nms_top_n: int = 500
    """Proposed boxes kept on each level of the pyramid before non-maximum suppression."""
    nms_thresh: float = 0.7
    """IoU above which the worse one of two proposals is suppressed, within and across levels."""

    def __post_init__(self) -> None:
        if len(self.anchor_sizes) != 3 or not all(self.anchor_sizes):
            raise UserError(
                "learned.anchor_sizes must be three lists of sizes (strides 8, 16, 32), "
                f"got {[list(sizes) for sizes in self.anchor_sizes]}"
            )
        if self.images_per_step is not None and self.images_per_step < 1:
            raise UserError(f"learned.images_per_step must be at least 1: {self.images_per_step}")
        if not 0 <= self.negative_iou <= self.positive_iou <= 1:
            raise UserError(
                "learned.negative_iou and learned.positive_iou must be in [0, 1] and the former "
                f"no larger, got {self.negative_iou} and {self.positive_iou}"
            )
        if not 0 < self.nms_thresh <= 1:
            raise UserError(f"learned.nms_thresh must be in (0, 1], got {self.nms_thresh}")
        if min(self.channels, self.pre_nms_top_n) < 1:
            raise UserError("learned.channels and learned.pre_nms_top_n must be at least 1")
        sizes = [size for level in self.anchor_sizes for size in level]
        if not self.anchor_ratios or min(*self.anchor_ratios, *sizes) <= 0:
            raise UserError("learned.anchor_sizes and learned.anchor_ratios must be positive")
        if self.image_size < 64:
            raise UserError(f"learned.image_size must be at least 64, got {self.image_size}")


class LearnedProposer(Proposer):
    """Trunk, feature pyramid and RPN; trained together with the detector.

    Args:
        config: see `LearnedConfig`.
        top_n: boxes an image in use, after non-maximum suppression.
        top_n_train: the same in training.
        score_thresh: objectness in `[0, 1]` below which a box is not proposed in use, so that easy
            images cost few crops; in training every box counts.
        mean: what the trunk normalises RGB values in `[0, 1]` by.
        std: the same.
    """

    def __init__(
        self,
        config: LearnedConfig,
        *,
        top_n: int,
        top_n_train: int,
        score_thresh: float,
        mean: tuple[float, float, float] = TRUNK.mean,
        std: tuple[float, float, float] = TRUNK.std,
    ) -> None:
        super().__init__()
        self.config = config
        spec = replace(TRUNK, mean=mean, std=std)
        self.trunk = InceptionV3(spec, num_classes=0, width=config.width)
        strides, offsets = zip(*stage_geometry(self.trunk.spec), strict=True)
        # The stem's convolutions have no padding: without a border, the first cell of the last
        # level would look at pixel 37 and objects at the edge would have no anchor.
        self.border = math.ceil(offsets[-1] - strides[-1] / 2)
        channels = [info["num_chs"] for info in self.trunk.feature_info[-3:]]
        self.pyramid = FeaturePyramidNetwork(
            channels, config.channels, norm_layer=partial(nn.BatchNorm2d, eps=1e-3)
        )
        anchors = TrunkAnchors(
            config.anchor_sizes,
            config.anchor_ratios,
            strides,
            [offset - self.border for offset in offsets],
        )
        head = ProposalHead(config.channels, anchors.num_anchors_per_location())
        self.rpn = ProposalNetwork(
            anchors,
            head,
            fg_iou_thresh=config.positive_iou,
            bg_iou_thresh=config.negative_iou,
            # Of the parent's loss, which is not used here.
            batch_size_per_image=1,
            positive_fraction=1.0,
            pre_nms_top_n={"training": config.pre_nms_top_n, "testing": config.pre_nms_top_n},
            nms_thresh=config.nms_thresh,
            top_n=top_n,
            top_n_train=top_n_train,
        )
        self.score_thresh = score_thresh

    def forward(self, images: Sequence[Tensor]) -> list[Proposals]:
        """See `Proposer`. Neighbours of one size go through the trunk together, and no others, so
        that what is found in an image does not depend on how far another one is padded."""
        groups = groupby(images, key=lambda image: image.shape)
        return [found for _, group in groups for found in self._propose(list(group), None)[0]]

    def forward_train(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
        """Proposals and the losses `loss_objectness` and `loss_rpn_box_reg`."""
        seen = len(images)
        if self.config.images_per_step is not None:
            of_all = range(self.config.images_per_step)
            seen = max(1, len(of_all[distributed.rank() :: distributed.world_size()]))
        proposals, losses = self._propose(images[:seen], targets[:seen])
        return proposals + [self._random_windows(image) for image in images[seen:]], losses

    def _random_windows(self, image: Tensor) -> Proposals:
        config, count = self.config, self.rpn.top_n_train
        height, width = image.shape[-2:]
        sizes = torch.tensor([size for level in config.anchor_sizes for size in level])
        sizes = sizes * max(height, width) / config.image_size
        ratios = torch.tensor(config.anchor_ratios)
        size = sizes[torch.randint(len(sizes), (count,))]
        ratio = ratios[torch.randint(len(ratios), (count,))]
        half = torch.stack([size / ratio.sqrt(), size * ratio.sqrt()], dim=1) / 2
        centres = torch.rand(count, 2) * torch.tensor([width, height])
        boxes = clip_boxes_to_image(torch.cat([centres - half, centres + half], 1), (height, width))
        return Proposals(boxes, torch.zeros(count))

    def _propose(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
        resized, scales = zip(*(self._resize(image) for image in images), strict=True)
        batch, sizes = self._batch(resized)
        stages = self.trunk.forward_stages(batch)
        features = self.pyramid(OrderedDict((str(i), stage) for i, stage in enumerate(stages)))
        scaled = None
        if targets is not None:
            scaled = [
                {"boxes": target["boxes"] * scale}
                for target, scale in zip(targets, scales, strict=True)
            ]
        self.rpn.score_thresh = 0.0 if self.training else self.score_thresh
        # The rest stays in fp32 under autocast: bf16 has 8 bits for a coordinate.
        with torch.autocast(batch.device.type, enabled=False):
            found, losses = self.rpn(ImageList(batch, sizes), features, scaled)
        proposals = []
        for boxes_scores, image, scale in zip(found, images, scales, strict=True):
            height, width = image.shape[-2:]
            limit = boxes_scores.boxes.new_tensor([width, height, width, height])
            proposals.append(
                Proposals(torch.minimum(boxes_scores.boxes / scale, limit), boxes_scores.scores)
            )
        return proposals, losses

    def _resize(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The image `uint8` with the wanted longer side; its scales `[x, y, x, y]`, on the CPU."""
        _, height, width = image.shape
        factor = self.config.image_size / max(height, width)
        size = [max(1, round(height * factor)), max(1, round(width * factor))]
        scale = torch.tensor([size[1] / width, size[0] / height] * 2)
        return resize(image, size, antialias=True), scale

    def _batch(self, images: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Pad images to one size, with a border of mean colour on every side.

        `uint8`, `channels_last`.
        """
        border, spec = self.border, self.trunk.spec
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        height = max(spec.min_size, max(h for h, _ in sizes) + 2 * border)
        width = max(spec.min_size, max(w for _, w in sizes) + 2 * border)
        colour = constant(tuple(round(255 * value) for value in spec.mean), images[0].device).byte()
        # Row by row: to repeat three bytes at a time would take longer than all the resizing.
        rows = colour.repeat(width).expand(len(images), height, -1).contiguous()
        batch = rows.view(len(images), height, width, 3).permute(0, 3, 1, 2)
        for i, image in enumerate(images):
            _, h, w = image.shape
            batch[i, :, border : border + h, border : border + w] = image
        return batch, sizes
