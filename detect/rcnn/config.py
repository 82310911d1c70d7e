"""What there is to choose about an R-CNN besides its networks."""

from dataclasses import dataclass

from backbones.common.errors import UserError
from detect.auto import Auto
from detect.rcnn.crops import ORIGINAL_CONTEXT, CropMode


@dataclass(frozen=True)
class RCNNConfig:
    """Crops, matching, sampling, post-processing; R-CNN's values where not said otherwise."""

    crop_size: int | Auto | None = None
    """Side of the crops in pixels; null is the input size of the crop network's variant. Smaller
    crops cost less, and small objects lose little by them; `auto`: 40 or 48, by the sizes of
    objects in the training data."""
    crop_mode: CropMode = "warp"
    """How a box becomes a square crop: `warp` distorts it, `square` takes the square around it."""
    context: float = ORIGINAL_CONTEXT
    """Padding on each side of an object as a fraction of the crop; R-CNN's is 16/227."""
    positive_iou: float = 0.5
    """IoU from which a proposal is a positive of its best box's class in training."""
    negative_iou: float = 0.5
    """IoU below which a proposal is background in training; those between this and
    rcnn.positive_iou are not used."""
    crops_per_image: int = 8
    """Crops an image in a training step (R-CNN: 128 in a step of two or more images). Few of many
    images teach more than many of few, for those of one image are much alike."""
    positive_fraction: float = 0.5
    """Largest share of positives among the crops of a training step (R-CNN: 0.25)."""
    jitter_copies: int = 4
    """Random boxes around each ground-truth box that are added to the proposals in training."""
    jitter_strength: float = 0.3
    """How far the random boxes around a ground-truth box move and scale, as a fraction of its
    side."""
    regression_iou: float = 0.5
    """IoU from which a positive proposal trains the box regression (R-CNN: 0.6)."""
    delta_std: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    """Scale of the regression targets (dx, dy, dw, dh); R-CNN whitens them, these are the fixed
    values of its successors."""
    regression_weight: float = 1.0
    """Weight of the box loss beside the classification loss."""
    objectness_weight: float = 0.0
    """Share of the proposal's own score in a detection's: class probability^(1 - this) times
    proposal score^this; 0 is R-CNN's. Learned proposals know how well they are placed."""
    score_thresh: float = 0.05
    """Score below which detections are dropped (R-CNN keeps all its SVM scores)."""
    nms_thresh: float = 0.3
    """IoU above which the worse one of two detections of a class is suppressed."""
    soft_nms_sigma: float | None = None
    """Soft suppression instead of that by rcnn.nms_thresh: what overlaps a better box of its class
    by IoU keeps exp(-IoU² / this) of its score (Bodla et al. 2017, 0.5 there); null for none."""
    detections_per_image: int | Auto = 100
    """Most detections of an image that are kept, the best ones; of one that the proposer looks at
    in tiles, so many for the area of each. `auto`: by the most objects in the training data."""

    def __post_init__(self) -> None:
        for key in (
            *("positive_iou", "negative_iou", "regression_iou"),
            *("objectness_weight", "score_thresh", "nms_thresh"),
        ):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"rcnn.{key} must be in [0, 1], got {getattr(self, key)}")
        if self.negative_iou > self.positive_iou:
            raise UserError(
                f"rcnn.negative_iou {self.negative_iou} must not exceed "
                f"rcnn.positive_iou {self.positive_iou}"
            )
        if self.regression_iou < self.positive_iou:
            raise UserError(
                f"rcnn.regression_iou {self.regression_iou} must be at least "
                f"rcnn.positive_iou {self.positive_iou}"
            )
        if isinstance(self.crop_size, int) and self.crop_size < 1:
            raise UserError(f"rcnn.crop_size must be at least 1, got {self.crop_size}")
        if not 0 <= self.context < 0.5:
            raise UserError(f"rcnn.context must be in [0, 0.5), got {self.context}")
        if not 0 < self.positive_fraction <= 1:
            got = self.positive_fraction
            raise UserError(f"rcnn.positive_fraction must be in (0, 1], got {got}")
        if min(self.jitter_copies, self.jitter_strength, self.regression_weight) < 0:
            raise UserError(
                "rcnn.jitter_copies, jitter_strength and regression_weight must be 0 or more"
            )
        detections = 1 if self.detections_per_image == "auto" else self.detections_per_image
        if min(self.crops_per_image, detections) < 1:
            raise UserError("rcnn.crops_per_image and rcnn.detections_per_image must be at least 1")
        if int(self.crops_per_image * self.positive_fraction) < 1:
            raise UserError(
                f"rcnn.positive_fraction {self.positive_fraction} of rcnn.crops_per_image "
                f"{self.crops_per_image} leaves no positive crop: raise one of them"
            )
        if self.soft_nms_sigma is not None:
            if self.soft_nms_sigma <= 0:
                got = self.soft_nms_sigma
                raise UserError(f"rcnn.soft_nms_sigma must be more than 0 or null, got {got}")
            if self.nms_thresh != type(self).nms_thresh:
                raise UserError(
                    "rcnn.nms_thresh is not used where rcnn.soft_nms_sigma is set: set one of them "
                    "(rcnn.soft_nms_sigma null where training set it)"
                )
        if self.objectness_weight == 1:
            raise UserError("rcnn.objectness_weight must be below 1: at 1 no class has a say")
        if min(self.delta_std) <= 0:
            raise UserError(f"rcnn.delta_std must be positive, got {list(self.delta_std)}")
