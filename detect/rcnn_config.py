"""What there is to choose about an R-CNN besides its networks."""

from dataclasses import dataclass, replace

from backbones.errors import UserError
from detect.crops import ORIGINAL_CONTEXT, CropMode


@dataclass(frozen=True)
class RCNNConfig:
    """Crops, matching, sampling, post-processing; R-CNN's values where not said otherwise."""

    crop_size: int | None = None
    """Side of the crops in pixels; null is the input size of the crop network's variant. Smaller
    crops cost less, and small objects lose little by them."""
    crop_mode: CropMode = "warp"
    """`warp` distorts the box to the crop, `square` takes the square around it."""
    context: float = ORIGINAL_CONTEXT
    """Padding on each side of the object as a fraction of the crop; R-CNN's is 16/227."""
    positive_iou: float = 0.5
    """Proposals from this IoU on are positives of their best box's class."""
    negative_iou: float = 0.5
    """Proposals below this IoU are background; those in between are not used."""
    crops_per_image: int = 32
    """Crops an image in a training step (R-CNN: 128 in a step of two or more images)."""
    positive_fraction: float = 0.25
    """Largest share of positives among them."""
    balance_classes: bool = False
    """Draw positives so that each class in an image has the same chance, however many proposals its
    objects have: for data where one class outnumbers the others."""
    hard_negatives: float = 0.0
    """Share of an image's background crops that is taken by the highest proposal score instead of
    drawn; 0 draws all."""
    jitter_copies: int = 4
    """Random boxes around each ground-truth box added to the proposals in training."""
    jitter_strength: float = 0.3
    """How far they move and scale, as a fraction of the box's side."""
    regression_iou: float = 0.5
    """Positives from this IoU on train the box regression (R-CNN: 0.6)."""
    delta_std: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    """Scale of the regression targets (dx, dy, dw, dh); R-CNN whitens them, these are the fixed
    values of its successors."""
    regression_weight: float = 1.0
    """Weight of the box loss beside the classification loss."""
    class_agnostic: bool = False
    """One box regression that all classes share, instead of one for each."""
    refine_steps: int = 1
    """Times that a box is cropped, classified and refined (Cascade R-CNN, Cai & Vasconcelos 2018,
    with one network for all steps): each step looks at the boxes that the one before left, and in
    training its IoU thresholds are 0.1 higher. Costs as many times more; 1 is R-CNN's."""
    merge_proposal: float = 0.0
    """Weight of the proposal's own box in a detection's; the rest is the box refined from it. 0 is
    R-CNN's; learned proposals are about as well placed, and the mean of two is better than one."""
    flip_test: bool = False
    """In use, look at each crop's mirror image too and average the two: twice the cost."""
    objectness_weight: float = 0.0
    """Share of the proposal's own score in a detection's: class probability^(1 - this) times
    proposal score^this; 0 is R-CNN's. Learned proposals know how well they are placed."""
    score_thresh: float = 0.05
    """Detections below this score are dropped (R-CNN keeps all its SVM scores)."""
    nms_thresh: float = 0.3
    """Per-class non-maximum suppression threshold."""
    soft_nms_sigma: float | None = None
    """Soft suppression instead: what overlaps a better box of its class by IoU keeps
    exp(-IoU² / this) of its score (Bodla et al. 2017, 0.5 there); null suppresses by nms_thresh."""
    box_voting_iou: float | None = None
    """A detection's box becomes the mean, weighted by score, of all boxes of its class that overlap
    it by this IoU (Gidaris & Komodakis 2015, 0.5 there); null leaves it alone."""
    detections_per_image: int = 100
    """Detections kept an image, best first."""

    @property
    def crops_per_proposal(self) -> int:
        """Crops that go through the network for a proposal in use."""
        return self.refine_steps * (2 if self.flip_test else 1)

    def at_step(self, step: int) -> "RCNNConfig":
        """The configuration with the IoU thresholds of a step of refinement, counted from 0."""
        raised = 0.1 * step
        return replace(
            self,
            positive_iou=self.positive_iou + raised,
            negative_iou=self.negative_iou + raised,
            regression_iou=self.regression_iou + raised,
            refine_steps=1,
        )

    def __post_init__(self) -> None:
        for key in (
            *("positive_iou", "negative_iou", "regression_iou"),
            *("objectness_weight", "score_thresh", "nms_thresh", "merge_proposal"),
            "hard_negatives",
        ):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"rcnn.{key} must be in [0, 1], got {getattr(self, key)}")
        if self.negative_iou > self.positive_iou:
            raise UserError(
                f"rcnn.negative_iou {self.negative_iou} must not exceed "
                f"rcnn.positive_iou {self.positive_iou}"
            )
        highest = self.regression_iou + 0.1 * (self.refine_steps - 1)
        if self.refine_steps < 1 or highest > 1:
            raise UserError(
                f"rcnn.refine_steps must be at least 1 and leave rcnn.regression_iou "
                f"{self.regression_iou} at most 1 with 0.1 for each further step, got "
                f"{self.refine_steps}"
            )
        if self.regression_iou < self.positive_iou:
            raise UserError(
                f"rcnn.regression_iou {self.regression_iou} must be at least "
                f"rcnn.positive_iou {self.positive_iou}"
            )
        if self.crop_size is not None and self.crop_size < 1:
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
        if self.crops_per_image < 1 or self.detections_per_image < 1:
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
        if self.hard_negatives and self.refine_steps > 1:
            raise UserError(
                "rcnn.hard_negatives must be 0 where rcnn.refine_steps is more than 1: refined "
                "boxes have no scores by which background could be hard"
            )
        if self.box_voting_iou is not None and not 0 < self.box_voting_iou <= 1:
            got = self.box_voting_iou
            raise UserError(f"rcnn.box_voting_iou must be in (0, 1] or null, got {got}")
        if min(self.delta_std) <= 0:
            raise UserError(f"rcnn.delta_std must be positive, got {list(self.delta_std)}")
