"""A region proposal network over a fully convolutional Inception trunk.

The pyramid has three levels, after the A, B and C blocks: strides 8, 16 and 32 in pixels of the
picture that the trunk sees.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, clip_boxes_to_image

from backbones.common import distributed
from backbones.common.device import constant
from backbones.common.errors import UserError
from backbones.common.ranges import check_ranges
from backbones.networks.finetuning import Frozen, freeze_blocks, keep_frozen
from backbones.networks.inception import InceptionV3, check_setting
from backbones.networks.specs import SPECS, BackboneSpec
from backbones.networks.stems import stage_geometry
from backbones.networks.warm_start import start_backbone
from detect.auto import Auto, number
from detect.proposals.base import Proposals, Proposer
from detect.proposals.rpn import ProposalHead, ProposalNetwork, TrunkAnchors
from detect.proposals.views import (
    View,
    area_in_tiles,
    draw_view,
    in_image,
    join_views,
    plan_views,
    whole_view,
)

TRUNK = SPECS["inception_v3"]

PIXELS_PER_BATCH = 2**22
"""Of views that go through the trunk at once in use; bounds memory."""


AnchorSizes = tuple[tuple[float, ...], ...]
"""Sides in pixels of the anchors of each level."""


MAX_ANCHORS = 200
"""At a place of a map; six are usual."""


@dataclass(frozen=True)
class LearnedConfig:
    """A region proposal network (Ren et al. 2015) over an Inception trunk and feature pyramid."""

    width: float = 0.25
    """Width multiplier of the proposer's trunk: 0.25, 0.5, 0.75 or 1.0."""
    weights: str | None = None
    """Weights that the proposer's trunk starts from, as of `model.weights`, and for images
    normalised alike; null starts at random."""
    freeze: Frozen = "none"
    """Parts of the proposer's trunk that keep the weights and statistics they start from, as of
    `model.freeze`."""
    scale: float | Auto | None = None
    """Pixels that the proposer sees for a pixel of the image. What is then larger than a tile is
    looked at in overlapping tiles, and smaller as a whole. Null looks at each image once as a
    whole, its longer side resized to that of a tile. Crops are always cut from the full image.
    `auto`: by the sizes of objects and images in the training data."""
    tile_size: int | Auto = 512
    """Longest side, in pixels, of what the proposer sees at once; `auto`: by the training data."""
    channels: int = 64
    """Channels of the proposer's feature pyramid and head."""
    anchor_sizes: AnchorSizes | Auto = ((16.0, 24.0), (32.0, 48.0), (64.0, 128.0))
    """Sides of the anchors in pixels that the proposer sees, one list for each of the strides 8,
    16, 32; `auto`: by the sizes of objects in the training data."""
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
    """Proposed boxes kept on each level of the pyramid before non-maximum suppression; unless it is
    set, training raises it to twice as many as model.proposals_per_image."""
    nms_thresh: float = 0.7
    """IoU above which the worse one of two proposals is suppressed, within and across levels."""

    def __post_init__(self) -> None:
        check_setting("model.learned.", self.width)
        levels = ((1.0,),) * 3 if self.anchor_sizes == "auto" else self.anchor_sizes
        if len(levels) != 3 or not all(levels):
            raise UserError(
                "model.learned.anchor_sizes must be auto or three lists of sizes (strides 8, 16, "
                f"32), got {[list(sizes) for sizes in levels]}"
            )
        ranges = {
            "(0, 8]": "scale",
            "[64, 8192]": "tile_size",
            "[1, inf)": "channels images_per_step pre_nms_top_n",
            "(0, inf)": "anchor_ratios",
            "[0, 1]": "positive_iou negative_iou",
            "(0, 1]": "nms_thresh",
        }
        check_ranges(self, "model.learned.", ranges)
        if self.negative_iou > self.positive_iou:
            raise UserError(
                f"model.learned.negative_iou {self.negative_iou} must not exceed "
                f"model.learned.positive_iou {self.positive_iou}"
            )
        if not all(size > 0 for level in levels for size in level):
            raise UserError("model.learned.anchor_sizes must be more than 0")
        # All of them are made for every pixel of a map, the first time before any tensor is seen.
        if (count := max(map(len, levels)) * len(self.anchor_ratios)) > MAX_ANCHORS:
            raise UserError(
                "model.learned.anchor_sizes and model.learned.anchor_ratios must make at most "
                f"{MAX_ANCHORS} anchors at a place, got {count}"
            )


class LearnedProposer(Proposer):
    """Trunk, feature pyramid and RPN; trained together with the detector.

    Args:
        config: see `LearnedConfig`.
        top_n: boxes an image in use, after non-maximum suppression.
        top_n_train: the same in training.
        score_thresh: objectness in `[0, 1]` below which a box is not proposed in use, so that easy
            images cost few crops; in training every box counts.
        mean, std: what the trunk normalises RGB values in `[0, 1]` by.
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
        self.scale = number(config.scale, "model.learned.scale")
        self.tile_size = number(config.tile_size, "model.learned.tile_size")
        self.anchor_sizes = number(config.anchor_sizes, "model.learned.anchor_sizes")
        self.trunk = _start_trunk(config, replace(TRUNK, mean=mean, std=std))
        freeze_blocks(self.trunk, config.freeze)
        strides, offsets = zip(*stage_geometry(self.trunk.spec), strict=True)
        # The stem's convolutions have no padding: without a border, the first cell of the last
        # level would look at pixel 37 and objects at the edge would have no anchor.
        self.border = math.ceil(offsets[-1] - strides[-1] / 2)
        channels = [info["num_chs"] for info in self.trunk.feature_info[-3:]]
        self.pyramid = FeaturePyramidNetwork(
            channels, config.channels, norm_layer=partial(nn.BatchNorm2d, eps=1e-3)
        )
        anchors = TrunkAnchors(
            self.anchor_sizes,
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
        """See `Proposer`. Views of one shape, of one or many images, go through the trunk together,
        and no others, so that what is found does not depend on how far a view is padded."""
        config = self.config
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        plans = [
            plan_views(*size, scale=self.scale, tile=self.tile_size, border=self.border)
            for size in sizes
        ]
        looks = [(image, view) for image, plan in zip(images, plans, strict=True) for view in plan]
        limits = [math.ceil(self.rpn.top_n * self.area_in_tiles(*size)) for size in sizes]
        in_views: list[Proposals] = []
        for shape, group in groupby(looks, key=lambda look: look[1].shape):
            for batch in _batches(list(group), shape):
                # As many of a view as of its image: all of a crowd may be in one.
                in_views += self._look(batch, None, max(limits))[0]
        rest = iter(in_views)
        found = []
        for size, plan, limit in zip(sizes, plans, limits, strict=True):
            own = list(islice(rest, len(plan)))
            found.append(join_views(own, plan, size, nms_thresh=config.nms_thresh, limit=limit))
        return found

    def train(self, mode: bool = True) -> "LearnedProposer":
        """Training or eval mode; frozen parts of the trunk stay in eval mode."""
        super().train(mode)
        if mode:
            keep_frozen(self.trunk)
        return self

    def seen_scale(self, height: int, width: int) -> float:
        """Pixels that are seen for one of an image, where it is seen largest."""
        return self.tile_size / max(height, width) if self.scale is None else self.scale

    def area_in_tiles(self, height: int, width: int) -> float:
        """See `Proposer`."""
        return area_in_tiles(height, width, scale=self.scale, tile=self.tile_size)

    def forward_train(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
        """Proposals and the losses `loss_objectness` and `loss_rpn_box_reg`.

        Each image is seen as a whole, at the scale of use: an example is no larger than a tile.
        """
        seen = len(images)
        if self.config.images_per_step is not None:
            of_all = range(self.config.images_per_step)
            seen = max(1, len(of_all[distributed.rank() :: distributed.world_size()]))
        looks = []
        for image in images:
            _, height, width = image.shape
            view = whole_view(height, width, scale=self.scale, tile=self.tile_size)
            looks.append((image, view))
        in_view = [
            {"boxes": view.to_view(target["boxes"])}
            for (_, view), target in zip(looks[:seen], targets[:seen], strict=True)
        ]
        found, losses = self._look(looks[:seen], in_view)
        proposals = [
            in_image(own, view, (image.shape[1], image.shape[2]))
            for own, (image, view) in zip(found, looks[:seen], strict=True)
        ]
        proposals += [self._random_windows(image, view) for image, view in looks[seen:]]
        return proposals, losses

    def _random_windows(self, image: Tensor, view: View) -> Proposals:
        config, count = self.config, self.rpn.top_n_train
        height, width = image.shape[-2:]
        sizes = torch.tensor([size for level in self.anchor_sizes for size in level])
        sizes = sizes / max(view.scale)
        ratios = torch.tensor(config.anchor_ratios)
        size = sizes[torch.randint(len(sizes), (count,))]
        ratio = ratios[torch.randint(len(ratios), (count,))]
        half = torch.stack([size / ratio.sqrt(), size * ratio.sqrt()], dim=1) / 2
        centres = torch.rand(count, 2) * torch.tensor([width, height])
        boxes = clip_boxes_to_image(torch.cat([centres - half, centres + half], 1), (height, width))
        return Proposals(boxes, torch.zeros(count))

    def _look(
        self,
        looks: Sequence[tuple[Tensor, View]],
        targets: list[dict[str, Tensor]] | None,
        limit: int | None = None,
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
        """What is found in views, in their pixels, and with targets in these the losses."""
        batch = self._draw(looks)
        stages = self.trunk.forward_stages(batch)
        features = self.pyramid(OrderedDict((str(i), stage) for i, stage in enumerate(stages)))
        self.rpn.score_thresh = 0.0 if self.training else self.score_thresh
        # The rest stays in fp32 under autocast: bf16 has 8 bits for a coordinate.
        with torch.autocast(batch.device.type, enabled=False):
            shapes = ImageList(batch, [view.shape for _, view in looks])
            return self.rpn(shapes, features, targets, limit)

    def _draw(self, looks: Sequence[tuple[Tensor, View]]) -> Tensor:
        """Views in a batch of one size, with a border of mean colour or of what surrounds them.

        `uint8`, `channels_last`.
        """
        border, spec = self.border, self.trunk.spec
        height, width = (
            max(spec.min_size, max(view.shape[axis] for _, view in looks) + 2 * border)
            for axis in (0, 1)
        )
        device = looks[0][0].device
        colour = constant(tuple(round(255 * value) for value in spec.mean), device).byte()
        # Row by row: to repeat three bytes at a time would take longer than all the resizing.
        rows = colour.repeat(width).expand(len(looks), height, -1).contiguous()
        batch = rows.view(len(looks), height, width, 3).permute(0, 3, 1, 2)
        for canvas, (image, view) in zip(batch, looks, strict=True):
            draw_view(image, view, canvas, border)
        return batch


def _start_trunk(config: LearnedConfig, spec: BackboneSpec) -> InceptionV3:
    if config.weights is None:
        return InceptionV3(spec, num_classes=0, width=config.width)
    trunk = start_backbone(
        spec.name, config.weights, num_classes=0, width=config.width, role="proposer's trunk"
    )
    if (trunk.spec.mean, trunk.spec.std) != (spec.mean, spec.std):
        raise UserError(
            f"model.learned.weights {config.weights}: for images normalised by mean "
            f"{trunk.spec.mean} and std {trunk.spec.std}, where the crop network has {spec.mean} "
            f"and {spec.std}: start both from weights that are for the same"
        )
    return trunk


def _batches(
    looks: list[tuple[Tensor, View]], shape: tuple[int, int]
) -> Iterator[list[tuple[Tensor, View]]]:
    """Looks at views of one shape, so many at a time that memory is bounded."""
    count = max(1, PIXELS_PER_BATCH // (shape[0] * shape[1]))
    for start in range(0, len(looks), count):
        yield looks[start : start + count]
