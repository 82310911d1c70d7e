"""What there is to choose about an R-CNN besides its networks."""

from dataclasses import dataclass

from backbones.common.errors import UserError
from backbones.common.ranges import check_ranges
from backbones.networks.specs import MAX_INPUT_SIZE
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
    model.rcnn.positive_iou are not used."""
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
    """Soft suppression instead of that by model.rcnn.nms_thresh: what overlaps a better box of its
    class by IoU keeps exp(-IoU² / this) of its score (Bodla et al. 2017, 0.5 there); null for
    none."""
    agnostic_nms: bool = False
    """Suppression among detections of all classes, where an object can be of one alone."""
    detections_per_image: int | Auto = 100
    """Most detections of an image that are kept, the best ones; of one that the proposer looks at
    in tiles, so many for the area of each. `auto`: by the most objects in the training data."""

    def __post_init__(self) -> None:
        ranges = {
            f"[1, {MAX_INPUT_SIZE}]": "crop_size",
            "[1, inf)": "crops_per_image detections_per_image",
            "[0, 0.5)": "context",
            "[0, 1]": "positive_iou negative_iou regression_iou score_thresh nms_thresh",
            "(0, 1]": "positive_fraction",
            "[0, inf)": "jitter_copies jitter_strength regression_weight",
            "(0, inf)": "delta_std soft_nms_sigma",
            "[0, 1)": "objectness_weight",  # at 1 no class has a say
        }
        check_ranges(self, "model.rcnn.", ranges)
        if self.negative_iou > self.positive_iou:
            raise UserError(
                f"model.rcnn.negative_iou {self.negative_iou} must not exceed "
                f"model.rcnn.positive_iou {self.positive_iou}"
            )
        if self.regression_iou < self.positive_iou:
            raise UserError(
                f"model.rcnn.regression_iou {self.regression_iou} must be at least "
                f"model.rcnn.positive_iou {self.positive_iou}"
            )
        if int(self.crops_per_image * self.positive_fraction) < 1:
            raise UserError(
                f"model.rcnn.positive_fraction {self.positive_fraction} of "
                f"model.rcnn.crops_per_image {self.crops_per_image} leaves no positive crop: "
                "raise one of them"
            )
        if self.soft_nms_sigma is not None and self.nms_thresh != type(self).nms_thresh:
            raise UserError(
                "model.rcnn.nms_thresh is not used where model.rcnn.soft_nms_sigma is set: set one "
                "of them (model.rcnn.soft_nms_sigma null where training set it)"
            )
