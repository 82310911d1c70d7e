"""R-CNN (Girshick et al. 2014) with a low-resolution Inception network on the crops.

Glossary: B images, P_i proposals of image i, R crops in a batch, K foreground classes, S crop size.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image

from backbones.common.device import upload
from backbones.common.errors import UserError
from backbones.networks.finetuning import keep_frozen
from backbones.networks.inception import InceptionV3, check_standard
from detect.auto import number
from detect.boxes.coding import decode_boxes, encode_boxes, of_class
from detect.proposals.base import Proposals, Proposer
from detect.rcnn.checks import as_pixels, check_images, check_targets
from detect.rcnn.config import RCNNConfig
from detect.rcnn.crops import check_boxes, crop_regions, split_evenly
from detect.rcnn.minibatch import SampledCrops, add_candidates, sample_crops
from detect.rcnn.postprocess import select_detections

CROPS_PER_FORWARD = {"cpu": 64, "cuda": 1024}
"""Crops that go through the network at once in use, by kind of device; bounds memory, changes
results by rounding."""


class RCNN(nn.Module):
    """Propose regions, crop them, classify the crops, refine their boxes.

    torchvision's detection contract: `losses = model(images, targets)` in training mode,
    `detections = model(images)` in eval mode. Unlike torchvision's, images are best given as
    `uint8`, which floats are made, and `num_classes` does not count the background.

    Args:
        backbone: the crop network; its classifier is taken off.
        proposer: where to look, or None if the caller passes proposals to every call.
        num_classes: K, background not counted.
        config: see `RCNNConfig`.

    Attributes:
        crop_size: S, from `config` or the backbone.
        wanted: `bool [K]`, classes that are detected in use; None: all.

    Raises:
        UserError: `config.crop_size` is too small for the backbone, or this is no standard network,
            see `backbones.networks.inception.check_standard`.
    """

    def __init__(
        self,
        backbone: InceptionV3,
        proposer: Proposer | None,
        num_classes: int,
        config: RCNNConfig,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        check_standard(backbone)
        backbone.reset_classifier(0)
        self.backbone = backbone
        self.proposer = proposer
        self.num_classes = num_classes
        self.config = config
        self.wanted: Tensor | None = None
        spec = backbone.spec
        crop_size = number(config.crop_size, "model.rcnn.crop_size")
        self.crop_size = spec.input_size if crop_size is None else crop_size
        self.detections_per_image = number(
            config.detections_per_image, "model.rcnn.detections_per_image"
        )
        if self.crop_size < spec.min_size:
            raise UserError(
                f"model.rcnn.crop_size must be at least {spec.min_size} for {spec.name}, "
                f"got {self.crop_size}"
            )
        self.cls_score = nn.Linear(backbone.num_features, num_classes + 1)
        self.bbox_pred = nn.Linear(backbone.num_features, num_classes * 4)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.cls_score.weight.device

    def train(self, mode: bool = True) -> "RCNN":
        """Training or eval mode; frozen parts of the crop network stay in eval mode."""
        super().train(mode)
        if mode:
            keep_frozen(self.backbone)
        return self

    def describe(self) -> str:
        """In a few words, for a detector's `repr`."""
        proposer = "no proposer" if self.proposer is None else type(self.proposer).__name__
        return (
            f"{self.backbone.spec.name}, crops of {self.crop_size} pixels, {proposer}, scores from "
            f"{self.config.score_thresh}"
        )

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]] | None = None,
        proposals: Sequence[Proposals] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in eval mode.

        Boxes are matched, drawn and suppressed on the CPU, whatever the device: a GPU would be
        waited for at each step to know how many there are. Targets and proposals are best there.

        Args:
            images: B tensors RGB `[3, H_i, W_i]`, on the model's device, `uint8` or float in
                `[0, 1]`.
            targets: in training, B dicts with `boxes` `[G_i, 4]` xyxy in pixels and
                `labels` `int64 [G_i]` in `1..K`; G_i may be 0. What else is in them is not read.
            proposals: use these instead of the proposer's.

        Returns:
            Training: `loss_classifier`, `loss_box_reg`, and the proposer's `loss_*`, scalars.
            Eval: B dicts `boxes [N, 4]`, `labels [N]`, `scores [N]`, best first, on the device of
            the images.

        Raises:
            ValueError: other images, targets missing or malformed (the message names image and
                box), or no proposals from anywhere.
        """
        images = as_pixels(images)
        if self.training:
            if targets is None:
                raise ValueError("targets are needed in training mode; call model.eval() for use")
            targets = [_of_target(target, i) for i, target in enumerate(targets)]
            check_targets(images, targets, self.num_classes)
            return self._losses(images, targets, proposals)
        device = images[0].device
        return [
            {key: value.to(device) for key, value in found.items()}
            for found in self.detect(images, proposals)
        ]

    def detect(
        self, images: Sequence[Tensor], proposals: Sequence[Proposals] | None = None
    ) -> list[dict[str, Tensor]]:
        """Detections as from `forward`, on the CPU, where they come about; the same arguments."""
        check_images(images)
        if proposals is None:
            proposals = self.require_proposer()(images)
        elif (
            not isinstance(proposals, Sequence)
            or len(proposals) != len(images)
            or not all(isinstance(one, tuple) for one in proposals)
        ):
            raise UserError("proposals: expected Proposals(boxes, scores) for each image")
        config = self.config
        proposals = [_on_cpu(proposal) for proposal in proposals]
        boxes = [proposal.boxes for proposal in proposals]
        probabilities, deltas = self.look(images, boxes)
        counts = [len(image_boxes) for image_boxes in boxes]
        detections = []
        for image, proposal, scores, image_deltas in zip(
            *(images, proposals, probabilities.split(counts), deltas.split(counts)), strict=True
        ):
            refined = decode_boxes(proposal.boxes, image_deltas, config.delta_std)
            refined = clip_boxes_to_image(refined, _size(image))
            scores = scores[:, 1:]
            if config.objectness_weight:
                own = proposal.scores[:, None]
                scores = scores ** (1 - config.objectness_weight) * own**config.objectness_weight
            large = 1.0 if self.proposer is None else self.proposer.area_in_tiles(*_size(image))
            limit = math.ceil(self.detections_per_image * large)
            detections.append(select_detections(refined, scores, config, limit, self.wanted))
        return detections

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the crop network alone, as `nn.Module.compile`: the work around it is decided by
        what is in the images, which a compiler cannot follow."""
        self.backbone.compile(*args, **kwargs)

    def propose(self, images: Sequence[Tensor]) -> list[Proposals]:
        """Where this detector looks in each of B images, `uint8` RGB `[3, H_i, W_i]`; on the CPU.

        Raises:
            ValueError: it has no proposer of its own, or images that are not `uint8 [3, H, W]`.
        """
        check_images(images)
        return self.require_proposer()(images)

    def _losses(
        self,
        images: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]],
        proposals: Sequence[Proposals] | None,
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        if proposals is None:
            proposals, losses = self.require_proposer().forward_train(images, targets)
        crops = [
            sample_crops(
                add_candidates(_on_cpu(proposal), target["boxes"], _size(image), self.config),
                target,
                self.config,
            )
            for image, target, proposal in zip(images, targets, proposals, strict=True)
        ]
        cls_logits, deltas = self._heads(self.crop(images, [chosen.boxes for chosen in crops]))
        return losses | self._crop_losses(crops, cls_logits, deltas)

    def _crop_losses(
        self, crops: Sequence[SampledCrops], cls_logits: Tensor, deltas: Tensor
    ) -> dict[str, Tensor]:
        boxes, labels, gt_boxes, regress = (
            torch.cat(column) for column in zip(*crops, strict=True)
        )
        wanted = regress.nonzero().flatten()
        encoded = encode_boxes(boxes[wanted], gt_boxes[wanted], self.config.delta_std)
        all_labels, encoded, wanted = (upload(t, deltas.device) for t in (labels, encoded, wanted))
        predicted = of_class(deltas[wanted], all_labels[wanted])
        # Divided by all crops, not by the positives: an object weighs the same in a crowded image
        # as in an empty one (Fast R-CNN's normalisation).
        box_loss = F.smooth_l1_loss(predicted, encoded, reduction="sum") / len(all_labels)
        return {
            "loss_classifier": F.cross_entropy(cls_logits, all_labels),
            "loss_box_reg": box_loss * self.config.regression_weight,
        }

    def look(self, images: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class probabilities `[R, K + 1]` and box deltas `[R, K, 4]` of every box, in use.

        They are on the CPU. At most `CROPS_PER_FORWARD` crops go through the network at a time,
        which may be those of several images.
        """
        check_boxes(boxes)
        limit = CROPS_PER_FORWARD[images[0].device.type]
        packed = []
        for part in split_evenly(boxes, limit):
            logits, deltas = self._heads(self.crop(images, part))
            packed.append(torch.cat([logits.softmax(dim=1), deltas.flatten(1)], dim=1))
        # One copy from a GPU.
        probabilities, deltas = torch.cat(packed).cpu().tensor_split([self.num_classes + 1], dim=1)
        return probabilities, deltas.unflatten(1, (self.num_classes, 4))

    def _heads(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits `[R, K + 1]` and box deltas `[R, K, 4]`."""
        if len(crops):
            features = self.backbone(crops)
        else:
            features = self.cls_score.weight.new_zeros(0, self.backbone.num_features)
        # The two small layers and all that follows stay in fp32 under autocast.
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            logits, deltas = self.cls_score(features), self.bbox_pred(features)
        return logits, deltas.view(len(deltas), self.num_classes, 4)

    def crop(self, images: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """The network's view of `boxes`: `uint8 [R, 3, S, S]`; the same in training and use."""
        return crop_regions(
            images,
            boxes,
            size=self.crop_size,
            fill=[round(255 * value) for value in self.backbone.spec.mean],
            mode=self.config.crop_mode,
            context=self.config.context,
        )

    def require_proposer(self) -> Proposer:
        """The proposer; raises `ValueError` without one."""
        if self.proposer is None:
            raise ValueError(
                "this detector has no proposer of its own (precomputed proposals): "
                "pass proposals=[Proposals(boxes, scores), ...]"
            )
        return self.proposer


def _of_target(target: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """What is read of a target, on the CPU."""
    found: dict[str, Any] = {key: target[key] for key in ("boxes", "labels") if key in target}
    for key, value in found.items():
        if not isinstance(value, Tensor):
            got = type(value).__name__
            raise ValueError(f"targets[{number}] {key} must be a tensor, got {got}")
        # Anchors would be cut down to whole numbers by boxes of such.
        found[key] = value.cpu().float() if key == "boxes" else value.cpu()
    return found


def _on_cpu(proposals: Proposals) -> Proposals:
    return Proposals(*(tensor.cpu().float() for tensor in proposals))


def _size(image: Tensor) -> tuple[int, int]:
    _, height, width = image.shape
    return height, width
