"""A second detector's crop network looks again at the crops that the first one is unsure of."""

from backbones.errors import UserError
from detect.detector import Detector


def add_ensemble(detector: Detector, second: Detector, below: float = 0.9) -> None:
    """Let `detector` take the mean of two networks' class probabilities where it is unsure.

    Boxes stay those of the first network. The second one may be of any variant and crop size, such
    as 299 pixels for a first look at 79; its proposer is not used. To be called after
    `deploy_detector`, which takes each of the two by itself.

    Args:
        detector: which to change, in place.
        second: a detector of the same classes, on the same device.
        below: crops whose most probable class, background included, has a lower probability are
            looked at again.

    Raises:
        UserError: other classes, or `below` is not in [0, 1].
    """
    if second.class_names != detector.class_names:
        raise UserError(
            "the detectors of an ensemble must have the same classes in the same order, got "
            f"{', '.join(detector.class_names)} and {', '.join(second.class_names)}"
        )
    if not 0 <= below <= 1:
        raise UserError(f"ensemble_below must be in [0, 1], got {below}")
    detector.model.second, detector.model.second_below = second.model, below
