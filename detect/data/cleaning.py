"""What annotation files get wrong about boxes, put right in one place for all formats."""

import logging
import os
from collections.abc import Callable, Sequence

import numpy as np

from backbones.common.errors import UserError

logger = logging.getLogger(__name__)

CLIP_WARNING_PIXELS = 1.0
"""Boxes that reach further out of their image than this are worth a warning; less is rounding."""

FAR = 0.1
"""Share of its image's side by which a box reaches beyond it, from which its numbers may stand in
another order."""

SLIVER = 0.01
"""A box with no more pixels than this inside of its image, along either axis, lies outside: less is
rounding too, and nothing after the next change of the image."""


def clean_boxes(
    boxes: np.ndarray,
    sizes: np.ndarray,
    keys: np.ndarray,
    source: str,
    name: Callable[[int], str],
    empty_side: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to their images, drop those with nothing left and those that are there already,
    with one warning for each kind.

    Args:
        boxes: `float64 [M, 4]` xyxy in pixels, finite, corners in order.
        sizes: `[I, 2]` width and height of the images.
        keys: `int64 [M, k]` index of the image of each box, its label, and what else tells it from
            another object with the same box.
        source: file or folder that warnings name.
        name: what warnings call box `m`.
        empty_side: a box with a side of this many pixels or fewer counts as without area.

    Returns:
        Boxes `float32 [M, 4]`, the dropped ones undefined, and `bool [M]`: which to keep.

    Raises:
        UserError: all boxes lie in the first pixel of their images.
    """
    if len(boxes) and boxes.max() <= 1:
        raise UserError(
            f"{source}: expected boxes in pixels, got none beyond the first pixel of its image: "
            "are these fractions of the image's sides?"
        )
    ends = np.tile(sizes[keys[:, 0]], 2)
    empty = _has_no_area(boxes, empty_side)
    fractions = (boxes.max(axis=1, initial=0) <= 1) & ~empty
    reach = np.maximum(-boxes, boxes - ends)
    clipped = boxes.clip(0, ends).astype(np.float32)
    outside = _has_no_area(clipped, SLIVER) & ~empty & ~fractions
    dropped = empty | fractions | outside
    repeated = is_repeated(np.column_stack([keys, boxes])) & ~dropped
    dropped |= repeated
    far = (reach > FAR * ends).any(axis=1) & ~dropped | outside

    for which, what in (
        (empty, "boxes dropped for having no area"),
        (fractions, "boxes dropped for lying in the first pixel (fractions of the image's sides?)"),
        (outside, "boxes dropped for lying outside their image"),
        (repeated, "objects left out that the image has already, with the same class and box"),
        (
            (reach > CLIP_WARNING_PIXELS).any(axis=1) & ~dropped,
            "boxes clipped for reaching beyond their image",
        ),
    ):
        warn_of_boxes(which, what, source, name)
    _warn_of_order(boxes, ends, far, source, name)
    return clipped, ~dropped


def warn_of_reach(
    boxes: np.ndarray, ends: np.ndarray, source: str, name: Callable[[int], str]
) -> None:
    """One warning for each kind of boxes `[M, 4]` that leave their images, which end at `ends`
    `[M, 4]`, by more than a detector would have them."""
    outside = np.any((boxes[:, :2] >= ends[:, :2]) | (boxes[:, 2:] <= 0), axis=1)
    far = (np.maximum(-boxes, boxes - ends) > FAR * ends).any(axis=1)
    warn_of_boxes(outside, "boxes outside their image", source, name)
    warn_of_boxes(far, "boxes that reach far beyond their image", source, name)
    _warn_of_order(boxes, ends, far, source, name)


def _warn_of_order(
    boxes: np.ndarray, ends: np.ndarray, far: np.ndarray, source: str, name: Callable[[int], str]
) -> None:
    as_corners = boxes - np.pad(boxes[:, :2], ((0, 0), (2, 0)))
    for others, what in (
        (boxes[:, [1, 0, 3, 2]], "of these would fit if x and y changed"),
        (as_corners, "of these would fit as corners, not width and height"),
    ):
        warn_of_boxes(far & _is_inside(others, ends), what, source, name)


def one_per_file(paths: Sequence[str], source: str) -> tuple[list[int], list[int]]:
    """Which images to keep, one for each file, and of each image its place among these; one warning
    counts the others."""
    place_of: dict[str, int] = {}
    places = [place_of.setdefault(os.path.normpath(path), len(place_of)) for path in paths]
    again = np.diff(np.maximum.accumulate(places), prepend=-1) == 0
    what = "images listed again, taken as one with their objects"
    warn_of_boxes(again, what, source, lambda number: paths[number])
    return np.flatnonzero(~again).tolist(), places


def order_corners(boxes: np.ndarray, source: str, name: Callable[[int], str]) -> np.ndarray:
    """Boxes `[M, 4]` of two opposite corners each, as xyxy; one warning counts those put right."""
    ordered = np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    swapped = (ordered != boxes).any(axis=1)
    warn_of_boxes(swapped, "boxes put right for having their corners swapped", source, name)
    return ordered


def warn_of_boxes(which: np.ndarray, what: str, source: str, name: Callable[[int], str]) -> None:
    """One warning for the boxes in `which`, `bool [M]`, if there are any; see `clean_boxes`."""
    if which.any():
        first = name(int(which.argmax()))
        logger.warning("%s: %s: %d, first %s", source, what, which.sum(), first)


def is_repeated(rows: np.ndarray) -> np.ndarray:
    """Whether a row, `[M, n]`, equals one before it, `bool [M]`."""
    order = np.lexsort(rows.T)
    repeated = np.zeros(len(rows), bool)
    repeated[order[1:]] = (rows[order[1:]] == rows[order[:-1]]).all(axis=1)
    return repeated


def _is_inside(boxes: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Whether boxes `[M, 4]`, corners in order, lie in images that end at `ends` `[M, 4]`."""
    inside = (boxes >= -CLIP_WARNING_PIXELS) & (boxes <= ends + CLIP_WARNING_PIXELS)
    return inside.all(axis=1) & ~_has_no_area(boxes, 0.0)


def _has_no_area(boxes: np.ndarray, empty_side: float) -> np.ndarray:
    return np.any(boxes[:, 2:] - boxes[:, :2] <= empty_side, axis=1)
