"""R-CNN (Girshick et al. 2014) with a low-resolution Inception network on the crops.

Glossary: B images, P_i proposals of image i, R crops in a batch, K foreground classes, S crop size.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image

from backbones.errors import UserError
from backbones.inception import InceptionV3
from backbones.layers import keep_frozen
from detect.checks import check_images, check_targets
from detect.crops import check_boxes, crop_regions, split_evenly
from detect.minibatch import Crops, add_candidates, add_objects, choose_crops
from detect.postprocess import select_detections
from detect.proposals.base import Proposals, Proposer
from detect.rcnn_config import RCNNConfig
from detect.sampling import decode_boxes, encode_boxes, of_class

if TYPE_CHECKING:
    from detect.ensemble import SecondLook

CROPS_PER_FORWARD = 64
"""Crops that go through the network at once in use; bounds memory, changes results by rounding."""


class RCNN(nn.Module):
    """Propose regions, crop them, classify the crops, refine their boxes.

    torchvision's detection contract: `losses = model(images, targets)` in training mode,
    `detections = model(images)` in eval mode. Unlike torchvision's, images are `uint8` and
    `num_classes` does not count the background.

    Args:
        backbone: the crop network; its classifier is taken off.
        proposer: where to look, or None if the caller passes proposals to every call.
        num_classes: K, background not counted.
        config: see `RCNNConfig`.

    Attributes:
        crop_size: S, from `config` or the backbone.
        second_look: changes the class probabilities of crops in use, see `detect.ensemble`.
        train_crop_size: S in training mode; `crop_size` at first. A trainer may begin with
            smaller, cheaper crops, see `DetectorConfig`.

    Raises:
        UserError: `config.crop_size` is too small for the backbone.
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
        backbone.reset_classifier(0)
        self.backbone = backbone
        self.proposer = proposer
        self.num_classes = num_classes
        self.config = config
        spec = backbone.spec
        self.crop_size = spec.input_size if config.crop_size is None else config.crop_size
        if self.crop_size < spec.min_size:
            raise UserError(
                f"rcnn.crop_size must be at least {spec.min_size} for {spec.name}, "
                f"got {self.crop_size}"
            )
        self.train_crop_size = self.crop_size
        self.second_look: SecondLook | None = None
        self.cls_score = nn.Linear(backbone.num_features, num_classes + 1)
        regressions = 1 if config.class_agnostic else num_classes
        self.bbox_pred = nn.Linear(backbone.num_features, regressions * 4)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def train(self, mode: bool = True) -> "RCNN":
        """Training or eval mode; frozen parts of the crop network stay in eval mode."""
        super().train(mode)
        if mode:
            keep_frozen(self.backbone)
        return self

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]] | None = None,
        proposals: Sequence[Proposals] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in eval mode.

        Args:
            images: B tensors `uint8` RGB `[3, H_i, W_i]`.
            targets: in training, B dicts with `boxes` `float32 [G_i, 4]` xyxy in pixels and
                `labels` `int64 [G_i]` in `1..K`; G_i may be 0.
            proposals: use these instead of the proposer's.

        Returns:
            Training: `loss_classifier`, `loss_box_reg`, and the proposer's `loss_*`, scalars.
            Eval: B dicts `boxes [N, 4]`, `labels [N]`, `scores [N]`, best first.

        Raises:
            ValueError: images that are not `uint8 [3, H, W]`, targets missing or malformed (the
                message names image and box), or no proposals from anywhere.
        """
        check_images(images)
        if self.training:
            if targets is None:
                raise ValueError("targets are needed in training mode; call model.eval() for use")
            check_targets(images, targets, self.num_classes)
            return self._losses(images, targets, proposals)
        if proposals is None:
            proposals = self.propose(images)
        return self._detect(images, proposals)

    def propose(self, images: Sequence[Tensor]) -> list[Proposals]:
        """Where this detector looks in each of B images, `uint8` RGB `[3, H_i, W_i]`.

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
        objects = [target["boxes"] for target in targets]
        candidates = [
            add_candidates(proposal, boxes, _size(image), self.config)
            for image, boxes, proposal in zip(images, objects, proposals, strict=True)
        ]
        sums = []
        for step in range(self.config.refine_steps):
            config = self.config.at_step(step)
            crops = [
                choose_crops(image_candidates, target, config)
                for image_candidates, target in zip(candidates, targets, strict=True)
            ]
            cls_logits, deltas = self._heads(self.crop(images, [chosen.boxes for chosen in crops]))
            sums.append(self._step_losses(crops, cls_logits, deltas))
            if step + 1 < self.config.refine_steps:
                refined = self._refine_crops(images, crops, cls_logits, deltas)
                candidates = [
                    add_objects(Proposals(boxes, boxes.new_zeros(len(boxes))), image_objects)
                    for boxes, image_objects in zip(refined, objects, strict=True)
                ]
        classifier, box_reg = torch.stack(sums).mean(dim=0)
        return losses | {"loss_classifier": classifier, "loss_box_reg": box_reg}

    def _step_losses(self, crops: Sequence[Crops], cls_logits: Tensor, deltas: Tensor) -> Tensor:
        """Classification and box loss of some crops, `[2]`."""
        boxes, labels, gt_boxes, regress = (list(column) for column in zip(*crops, strict=True))
        all_labels = torch.cat(labels)
        wanted = torch.cat(regress).nonzero().flatten()
        predicted = of_class(deltas[wanted], all_labels[wanted])
        encoded = encode_boxes(
            torch.cat(boxes)[wanted], torch.cat(gt_boxes)[wanted], self.config.delta_std
        )
        # Divided by all crops, not by the positives: an object weighs the same in a crowded image
        # as in an empty one (Fast R-CNN's normalisation).
        box_loss = F.smooth_l1_loss(predicted, encoded, reduction="sum") / max(1, len(all_labels))
        classifier_loss = (
            F.cross_entropy(cls_logits, all_labels) if len(all_labels) else cls_logits.sum()
        )
        return torch.stack([classifier_loss, box_loss * self.config.regression_weight])

    def _refine_crops(
        self, images: Sequence[Tensor], crops: Sequence[Crops], cls_logits: Tensor, deltas: Tensor
    ) -> list[Tensor]:
        """The boxes of a step's crops, moved by what was learned of them so far."""
        labels = torch.cat([chosen.labels for chosen in crops])
        # Background has no box of its own: it moves as what it is most taken for.
        moved_as = torch.where(labels > 0, labels, cls_logits[:, 1:].argmax(dim=1) + 1)
        return self._refine(images, [chosen.boxes for chosen in crops], deltas.detach(), moved_as)

    def _refine(
        self, images: Sequence[Tensor], boxes: Sequence[Tensor], deltas: Tensor, labels: Tensor
    ) -> list[Tensor]:
        """Boxes moved by the deltas `[R, K, 4]` of a class each; where nothing is left, as before.

        Args:
            images: B images.
            boxes: B tensors `[R_i, 4]`.
            deltas: of all boxes, image by image.
            labels: `int64 [R]` in `1..K`.
        """
        counts = [len(image_boxes) for image_boxes in boxes]
        moved = decode_boxes(
            torch.cat(list(boxes)), of_class(deltas, labels), self.config.delta_std
        )
        refined = []
        for image, old, new in zip(images, boxes, moved.split(counts), strict=True):
            new = clip_boxes_to_image(new, _size(image))
            has_area = (new[:, 2:] > new[:, :2]).all(dim=1, keepdim=True)
            refined.append(torch.where(has_area, new, old))
        return refined

    def _detect(
        self, images: Sequence[Tensor], proposals: Sequence[Proposals]
    ) -> list[dict[str, Tensor]]:
        config = self.config
        boxes = [proposal.boxes for proposal in proposals]
        probabilities, deltas = self.look(images, boxes)
        for _ in range(config.refine_steps - 1):
            best = probabilities[:, 1:].argmax(dim=1) + 1
            boxes = self._refine(images, boxes, deltas, best)
            more, deltas = self.look(images, boxes)
            probabilities = probabilities + more
        probabilities = probabilities / config.refine_steps
        counts = [len(image_boxes) for image_boxes in boxes]
        detections = []
        for image, proposal, image_boxes, scores, image_deltas in zip(
            *(images, proposals, boxes, probabilities.split(counts), deltas.split(counts)),
            strict=True,
        ):
            refined = decode_boxes(image_boxes, image_deltas, config.delta_std)
            merged = refined.lerp(proposal.boxes[:, None], config.merge_proposal)
            merged = clip_boxes_to_image(merged, _size(image))
            scores = scores[:, 1:]
            if config.objectness_weight:
                own = proposal.scores[:, None]
                scores = scores ** (1 - config.objectness_weight) * own**config.objectness_weight
            merged = merged.expand(-1, self.num_classes, -1)
            detections.append(select_detections(merged, scores, config))
        return detections

    def look(self, images: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class probabilities `[R, K + 1]` and box deltas of every box, in use.

        At most `CROPS_PER_FORWARD` crops at a time, which may be those of several images.
        """
        check_boxes(boxes)
        total = sum(len(image_boxes) for image_boxes in boxes)
        pieces = (
            self.crop([image], [piece])
            for image, image_boxes in zip(images, boxes, strict=True)
            for piece in image_boxes.split(CROPS_PER_FORWARD)
        )
        batches = split_evenly(pieces, total, CROPS_PER_FORWARD) if total else pieces
        results = [self._look_at(batch) for batch in batches]
        probabilities, deltas = (torch.cat(parts) for parts in zip(*results, strict=True))
        if self.second_look is not None:
            probabilities = self.second_look(images, boxes, probabilities)
        return probabilities, deltas

    def _look_at(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = self._heads(crops)
        if not self.config.flip_test:
            return logits.softmax(dim=1), deltas
        mirrored_logits, mirrored = self._heads(crops.flip(3))
        # In the mirror the centre moves the other way.
        mirrored = mirrored * mirrored.new_tensor([-1, 1, 1, 1])
        probabilities = (logits.softmax(dim=1) + mirrored_logits.softmax(dim=1)) / 2
        return probabilities, (deltas + mirrored) / 2

    def _heads(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits `[R, K + 1]` and box deltas `[R, K, 4]` (`[R, 1, 4]` if class-agnostic)."""
        if len(crops):
            features = self.backbone(crops)
        else:
            features = self.cls_score.weight.new_zeros(0, self.backbone.num_features)
        # The two small layers and all that follows stay in fp32 under autocast.
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            logits, deltas = self.cls_score(features), self.bbox_pred(features)
        return logits, deltas.view(len(deltas), self.bbox_pred.out_features // 4, 4)

    def crop(self, images: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """The network's view of `boxes`: `uint8 [R, 3, S, S]`; the same in training and use, but
        for `train_crop_size`.
        """
        return crop_regions(
            images,
            boxes,
            size=self.train_crop_size if self.training else self.crop_size,
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


def _size(image: Tensor) -> tuple[int, int]:
    _, height, width = image.shape
    return height, width
