"""A second detector's crop network looks again at the crops that the first one is unsure of."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from backbones.errors import UserError
from backbones.inception import InceptionV3
from detect.detector import Detector, load_detector
from detect.rcnn import RCNN


@dataclass(frozen=True)
class EnsembleConfig:
    """A second crop network for what the first one is unsure of."""

    weights: str | None = None
    """Detector checkpoint whose crop network, of any variant and crop size, looks again; boxes stay
    those of the first, and its settings are those of its training."""
    below: float = 0.9
    """Probability of the most probable class below which a crop is looked at again."""

    def __post_init__(self) -> None:
        if not 0 <= self.below <= 1:
            raise UserError(f"ensemble.below must be in [0, 1], got {self.below}")
        if self.weights is None and self.below != type(self).below:
            raise UserError("ensemble.below is for ensemble.weights: remove it, or name these")


@dataclass
class SecondLook:
    """What `RCNN.second_look` calls.

    Attributes:
        model: whose crop network looks again.
        below: crops whose most probable class, background included, has a lower probability.
        looked_at: crops of each call; a list, to which several threads can add.
    """

    model: RCNN
    below: float
    looked_at: list[int] = field(default_factory=list)

    @property
    def crops(self) -> int:
        """How many it has looked at so far."""
        return sum(self.looked_at)

    def __call__(
        self, images: Sequence[Tensor], boxes: Sequence[Tensor], probabilities: Tensor
    ) -> Tensor:
        """The class probabilities `[R, K + 1]`, of unsure crops the mean with the second network's.

        Args:
            images: B tensors `uint8 [3, H_i, W_i]`.
            boxes: B tensors `[R_i, 4]` on them.
            probabilities: of the first network, image by image.
        """
        unsure = probabilities.max(dim=1).values < self.below
        parts = unsure.split([len(image_boxes) for image_boxes in boxes])
        chosen = [image_boxes[part] for image_boxes, part in zip(boxes, parts, strict=True)]
        again, _ = self.model.look(images, chosen)
        self.looked_at.append(len(again))
        mean = probabilities.clone()
        mean[unsure] = (probabilities[unsure] + again) / 2
        return mean


def load_ensemble(detector: Detector, config: EnsembleConfig) -> None:
    """`add_ensemble` of the checkpoint that a config names, if any; raises as `load_detector`."""
    if config.weights is not None:
        second = load_detector(config.weights, str(detector.device))
        add_ensemble(detector, second, config.below)


def add_ensemble(detector: Detector, second: Detector, below: float = EnsembleConfig.below) -> None:
    """Let `detector` take the mean of two networks' class probabilities where it is unsure.

    Boxes stay those of the first network. The second one may be of any variant and crop size, such
    as 299 pixels for a first look at 79; its proposer is not used. `deploy_detector`, which comes
    after this, deploys both alike.

    Args:
        detector: which to change, in place.
        second: a detector of the same classes, on the same device.
        below: see `SecondLook`.

    Raises:
        UserError: other classes.
        ValueError: the second one is the first, has a second of its own, or is on another device;
            one is deployed, or has a second already; or `below` is not in [0, 1].
    """
    if second.class_names != detector.class_names:
        raise UserError(
            "the detectors of an ensemble must have the same classes in the same order, got "
            f"{', '.join(detector.class_names)} and {', '.join(second.class_names)}"
        )
    if not 0 <= below <= 1:
        raise ValueError(f"below must be in [0, 1], got {below}")
    if second.model is detector.model or second.model.second_look is not None:
        raise ValueError("the second detector must be another one, without a second of its own")
    if detector.model.second_look is not None:
        raise ValueError("this detector has a second one already")
    if not all(isinstance(one.model.backbone, InceptionV3) for one in (detector, second)):
        raise ValueError("a detector is deployed already: add the second one before deploying")
    if second.device != detector.device:
        raise ValueError(f"detectors on {detector.device} and {second.device}: move one of them")
    detector.model.second_look = SecondLook(second.model, below)
