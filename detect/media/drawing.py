"""Boxes and labels on pictures, and galleries of pictures."""

from collections.abc import Sequence

import numpy as np
import supervision as sv
import torch
from torch import Tensor

from detect.blocks import Parts

LONGEST = 4096
"""Pixels of the longer side of a picture that is drawn of a larger image."""

FEW, SMALL = 20, 60.0
"""Up to so many boxes each has a label; more where half of them are longer than so many pixels."""

SMALLEST_TEXT = 0.35
"""Scale of a text that can still be read, as OpenCV counts it."""

CROWD = 200
"""Labels up to which each is moved to where it hides no other."""

COLORS = sv.ColorPalette.LEGACY
"""Of the classes in turn: strong ones first, for a pale box does not show on a pale picture."""


def _text_color(color: sv.Color) -> sv.Color:
    """Black on bright colours and white on dark ones (luma of ITU-R BT.601)."""
    luma = 0.299 * color.r + 0.587 * color.g + 0.114 * color.b
    return sv.Color.BLACK if luma > 128 else sv.Color.WHITE


TEXT_COLORS = sv.ColorPalette([_text_color(color) for color in COLORS.colors])


def draw_detections(
    image: Tensor, detections: dict[str, Tensor], class_names: Sequence[str]
) -> Tensor:
    """A copy of an image with a labelled box for every detection.

    Where there are many and they are smaller than their labels would be, there is one label for
    each class, with its number.

    Args:
        image: `uint8` RGB `[3, H, W]`.
        detections: `boxes` `[N, 4]` xyxy, `labels` `[N]` in `1..K`, and optionally `scores` `[N]`;
            ground truth has none.
        class_names: of labels `1..K`.

    Returns:
        `uint8` RGB `[3, H, W]`.
    """
    labels = detections["labels"].tolist()
    if not labels:
        return image.clone()
    captions = [class_names[label - 1] for label in labels]
    if "scores" in detections:
        scores = detections["scores"].tolist()
        captions = [f"{name}: {score:.2f}" for name, score in zip(captions, scores, strict=True)]
    boxes = sv.Detections(
        xyxy=detections["boxes"].numpy(), class_id=np.asarray(labels, dtype=np.int64) - 1
    )
    # supervision draws on BGR, as OpenCV does.
    canvas = np.ascontiguousarray(image.permute(1, 2, 0).numpy()[..., ::-1])
    largest = max(SMALLEST_TEXT, min(image.shape[1:]) / 1200)
    side = float(np.median((boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).min(axis=1)))
    canvas = sv.BoxAnnotator(COLORS, 1 if largest < 0.5 else 2).annotate(canvas, boxes)
    many_small = len(labels) > FEW and side < SMALL
    if many_small:
        boxes, captions = _legend(boxes, class_names, largest)
    canvas = sv.LabelAnnotator(
        COLORS,
        # No larger than suits the objects.
        text_scale=largest if many_small else min(largest, max(SMALLEST_TEXT, side / 100)),
        text_padding=2,
        text_color=TEXT_COLORS,
        # Labels of a crowd find no place beside each other, and would be moved for minutes.
        smart_position=len(labels) <= CROWD and not many_small,
    ).annotate(canvas, boxes, labels=captions)
    return torch.from_numpy(canvas[..., ::-1].copy()).permute(2, 0, 1)


def _legend(
    boxes: sv.Detections, class_names: Sequence[str], scale: float
) -> tuple[sv.Detections, list[str]]:
    """Instead of a label at each box one for each class, with its number, in the upper left."""
    classes, counts = np.unique(boxes.class_id, return_counts=True)
    row = 40 * scale
    corners = np.array([[1, row * (place + 1)] for place in range(len(classes))])
    places = sv.Detections(xyxy=np.hstack([corners, corners + 1]), class_id=classes)
    captions = [
        f"{class_names[index]}: {count}" for index, count in zip(classes, counts, strict=True)
    ]
    return places, captions


def draw_large(image: Parts, detections: dict[str, Tensor], class_names: Sequence[str]) -> Tensor:
    """As `draw_detections`, on a copy of which no side is longer than `LONGEST` pixels."""
    height, width = image.height, image.width
    shrink = max(1.0, max(height, width) / LONGEST)
    size = max(1, round(height / shrink)), max(1, round(width / shrink))
    copy = image.read((0, 0, width, height), size)
    scale = torch.tensor([size[1] / width, size[0] / height] * 2)
    return draw_detections(copy, detections | {"boxes": detections["boxes"] * scale}, class_names)


def gallery(images: Sequence[Tensor], columns: int, gap: int = 4) -> Tensor:
    """Pictures `uint8 [3, H_i, W_i]` in rows as high as their highest, on white, as one picture."""
    width = max(image.shape[2] for image in images)
    rows = []
    for first in range(0, len(images), columns):
        row = images[first : first + columns]
        height = max(image.shape[1] for image in row)
        canvas = images[0].new_full((3, height + gap, columns * (width + gap)), 255)
        for place, image in enumerate(row):
            left = place * (width + gap)
            canvas[:, : image.shape[1], left : left + image.shape[2]] = image
        rows.append(canvas)
    return torch.cat(rows, dim=1)[:, :-gap, :-gap]
