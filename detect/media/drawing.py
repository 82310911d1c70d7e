"""Boxes and labels on pictures, and galleries of pictures."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import supervision as sv
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.functional import resize

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


def _contrast(color: sv.Color) -> sv.Color:
    """Black on bright colours and white on dark ones (luma of ITU-R BT.601)."""
    luma = 0.299 * color.r + 0.587 * color.g + 0.114 * color.b
    return sv.Color.BLACK if luma > 128 else sv.Color.WHITE


CAPTION_SIZE = 13
"""Pixels of the letters below a picture."""

CONTRASTS = sv.ColorPalette([_contrast(color) for color in COLORS.colors])


def draw_detections(
    image: Tensor,
    detections: dict[str, Tensor],
    class_names: Sequence[str],
    *,
    labelled: bool = True,
) -> Tensor:
    """A copy of an image with a labelled box for every detection.

    Where there are many and they are smaller than their labels would be, there is one label for
    each class, with its number.

    Args:
        image: `uint8` RGB `[3, H, W]`.
        detections: `boxes` `[N, 4]` xyxy, `labels` `[N]` in `1..K`, and optionally `scores` `[N]`;
            ground truth has none.
        class_names: of labels `1..K`.
        labelled: False draws the boxes alone, in the colours of `count_classes`.

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
    # As wide as suits the picture, and its objects.
    width = max(1, round(min(min(image.shape[1:]) / 300, side / 20)))
    # One of the two shows, whatever is behind it; the rim is outside, where it hides no object.
    rim = np.array([-1, -1, 1, 1]) * max(1, width // 3)
    around = sv.Detections(xyxy=boxes.xyxy + rim, class_id=boxes.class_id)
    canvas = sv.BoxAnnotator(CONTRASTS, width).annotate(canvas, around)
    canvas = sv.BoxAnnotator(COLORS, width).annotate(canvas, boxes)
    many_small = len(labels) > FEW and side < SMALL
    if many_small:
        boxes, captions = _legend(boxes, class_names, largest)
    # No larger than suits the objects.
    scale = largest if many_small else min(largest, max(SMALLEST_TEXT, side / 100))
    annotator = sv.LabelAnnotator(
        COLORS,
        text_scale=scale,
        text_padding=2,
        text_color=CONTRASTS,
        text_thickness=max(1, round(1.5 * scale)),
        # Labels of a crowd find no place beside each other, and would be moved for minutes.
        smart_position=len(labels) <= CROWD and not many_small,
    )
    if labelled:
        canvas = annotator.annotate(canvas, boxes, labels=captions)
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
    places = range(0, len(images), columns)
    return _joined([_joined(images[place : place + columns], 2, gap) for place in places], 1, gap)


class Caption(NamedTuple):
    """What stands below a picture.

    Attributes:
        title: a line, shortened in its middle where it is too long.
        classes: another, of the name, the number of boxes and the colour (`#rrggbb`) of each class.
    """

    title: str
    classes: Sequence[tuple[str, int, str]]


def count_classes(labels: Tensor, class_names: Sequence[str]) -> list[tuple[str, int, str]]:
    """For a `Caption`, of labels `[N]` in `1..K`, the most frequent class first."""
    numbers, counts = (found.tolist() for found in labels.unique(return_counts=True))
    return [
        (class_names[number - 1], count, COLORS.by_idx(number - 1).as_hex())
        for count, number in sorted(zip(counts, numbers, strict=True), key=lambda pair: -pair[0])
    ]


def sheet(
    images: Sequence[Tensor], width: int, captions: Sequence[Caption] = (), gap: int = 4
) -> Tensor:
    """Pictures `uint8 [3, H_i, W_i]` in full rows of about a width, shrunk to the narrowest row,
    each with a caption if there are any."""
    widths = np.array([image.shape[2] for image in images])
    centers = widths.cumsum() - widths / 2
    count = max(1, round((widths + gap).sum() / width))
    places = (centers * count / widths.sum()).astype(int)
    rows = [np.flatnonzero(places == place).tolist() for place in np.unique(places)]
    least = min(int(widths[row].sum()) + gap * len(row) for row in rows)
    joined = []
    for row in rows:
        scale = (least - gap * len(row)) / widths[row].sum()
        cells = []
        for i in row:
            size = [max(1, round(side * scale)) for side in images[i].shape[1:]]
            cell = [resize(images[i], size)]
            cells.append(
                _joined(cell + [_drawn(one, size[1]) for one in captions[i : i + 1]], 1, 0)
            )
        joined.append(_joined(cells, 2, gap))
    return _joined(joined, 1, gap)


@cache
def caption_font() -> ImageFont.FreeTypeFont:
    """In `CAPTION_SIZE`."""
    # matplotlib brings one that has more than Latin letters.
    path = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    return ImageFont.truetype(path, CAPTION_SIZE)


def _drawn(caption: Caption, width: int) -> Tensor:
    """A caption as a picture of two lines, `uint8 [3, h, width]`, dark on white."""
    row = CAPTION_SIZE + 5
    picture = Image.new("RGB", (width, 2 * row), "white")
    canvas, font = ImageDraw.Draw(picture), caption_font()
    # Pillow's layout of text does not bear what ends lines.
    title = whole = " ".join(caption.title.splitlines())
    kept = len(whole)
    while font.getlength(title) > width - 4 and kept > 1:
        kept -= 1  # names differ at their end more often
        title = f"{whole[: kept // 3]}…{whole[-(kept - kept // 3) :]}"
    canvas.text((2, 1), title, "black", font)
    x = 2.0
    for number, (name, count, color) in enumerate(caption.classes, start=1):
        text, left = f"{name} {count}", len(caption.classes) - number
        more = f"+{left + 1}"
        room = width - 4 - (font.getlength(f"+{left}") + 10 if left else 0)
        if x + CAPTION_SIZE + font.getlength(text) > room:
            canvas.text((x, row), more, "black", font)
            break
        canvas.rectangle((x, row + 4, x + 9, row + 13), color)
        canvas.text((x + CAPTION_SIZE, row), text, "black", font)
        x += CAPTION_SIZE + font.getlength(text) + 10
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _joined(images: Sequence[Tensor], dim: int, gap: int) -> Tensor:
    """Pictures below (`dim` 1) or beside each other (2), on white."""
    across = 3 - dim
    size = max(image.shape[across] for image in images)
    padded = []
    for image in images:
        bottom_right = {dim: gap, across: size - image.shape[across]}
        padded.append(pad(image, (0, bottom_right[2], 0, bottom_right[1]), value=255))
    joined = torch.cat(padded, dim)
    return joined.narrow(dim, 0, joined.shape[dim] - gap)
