"""What annotation files get wrong about boxes, put right in one place for all formats."""

import logging
from collections.abc import Callable

import numpy as np

logger = logging.getLogger(__name__)

CLIP_WARNING_PIXELS = 1.0
"""Boxes that reach further out of their image than this are worth a warning; less is rounding."""


def clean_boxes(
    boxes: np.ndarray,
    sizes: np.ndarray,
    source: str,
    name: Callable[[int], str],
    empty_side: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to their images and drop those with nothing left, with one warning for each kind.

    Args:
        boxes: `float64 [M, 4]` xyxy in pixels, finite.
        sizes: `[M, 2]` width and height of the image of each box.
        source: file or folder that warnings name.
        name: what warnings call box `m`.
        empty_side: a box with a side of this many pixels or fewer counts as without area.

    Returns:
        Boxes `float32 [M, 4]`, the dropped ones undefined, and `bool [M]`: which to keep.
    """
    empty = _has_no_area(boxes, empty_side)
    low, high = boxes.min(axis=1, initial=0), (boxes - np.tile(sizes, 2)).max(axis=1, initial=0)
    clipped = boxes.clip(0, np.tile(sizes, 2)).astype(np.float32)
    outside = _has_no_area(clipped, 0) & ~empty
    reaches = np.maximum(-low, high) > CLIP_WARNING_PIXELS

    def warn(which: np.ndarray, what: str) -> None:
        if which.any():
            first = name(int(which.argmax()))
            logger.warning("%s: %s: %d, first %s", source, what, which.sum(), first)

    warn(empty, "boxes dropped for having no area")
    warn(outside, "boxes dropped for lying outside their image")
    warn(reaches & ~empty & ~outside, "boxes clipped for reaching beyond their image")
    return clipped, ~(empty | outside)


def _has_no_area(boxes: np.ndarray, empty_side: float) -> np.ndarray:
    return np.any(boxes[:, 2:] - boxes[:, :2] <= empty_side, axis=1)
