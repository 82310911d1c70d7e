"""The images with the most faults: what is found, wrong and missed in them, as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from backbones.common.errors import ImageError
from detect.blocks import PartsOfTensor
from detect.data import DetectionDataset, Sample
from detect.evaluation.errors import Verdicts, judge_image
from detect.evaluation.page import data_url
from detect.media.drawing import caption_font
from detect.rcnn.postprocess import above_score

WORST_IMAGES = 8
"""Pictures in the report."""

WIDTH, HEIGHT = 960, 640
"""Pixels of a picture, at most."""

READABLE = 28.0
"""Pixels that the sides of half of the faults have in a picture, where the image has them."""

MOST_ZOOM = 2.0
"""Pixels of a picture for one of its image, at most."""

COLORS = {"right": "#56b4e9", "wrong": "#d55e00", "missed": "#f0e442"}
"""Of Okabe and Ito, who chose them to be told apart by the colour-blind."""

DASH = 6
"""Pixels of a dash, and of the gap behind it."""


def worst_images(
    dataset: DetectionDataset, detections: Sequence[Mapping[str, Tensor]], score_thresh: float
) -> list[dict[str, Any]]:
    """The images with the most wrong detections and missed objects, from a score on.

    Returns:
        For each `name`, the counts `right`, `wrong` and `missed`, `picture` (a data URL, None where
        the image cannot be read, with a `problem` that says why), and `part`, what a caption says
        of a picture that shows only a part of the image.
    """
    rows = []
    for index, found in enumerate(detections):
        kept = {key: value.cpu() for key, value in above_score(found, score_thresh).items()}
        verdicts = judge_image(kept, dataset.sample(index))
        right, wrong, missed = (int(of.sum()) for of in verdicts)
        if wrong + missed:
            counts = {"right": right, "wrong": wrong, "missed": missed}
            rows.append((wrong + missed, index, kept, verdicts, counts))
    rows.sort(key=lambda row: (-row[0], row[1]))
    shown: list[dict[str, Any]] = []
    for total, index, kept, verdicts, counts in rows[:WORST_IMAGES]:
        sample = dataset.sample(index)
        entry = {"name": Path(sample.path).name, **counts, "part": ""}
        try:
            image = dataset.load_image(index)
        except ImageError as error:
            shown.append(entry | {"picture": None, "problem": str(error)})
            continue
        marks = _marks(kept, sample, verdicts, dataset.class_names)
        faults = np.array([mark.box for mark in marks if mark.kind != "right"])
        height, width = image.shape[1:]
        part = region_of_faults(faults, width, height)
        if part != (0, 0, width, height):
            inside = int(_centred_in(faults, part).sum())
            entry["part"] = (
                f"; shown are {part[2] - part[0]}x{part[3] - part[1]} of {width}x{height} pixels"
                + (f" with {inside} of these {total} faults" if inside < total else "")
            )
        shown.append(entry | {"picture": data_url(_drawn(image, part, marks), WIDTH, HEIGHT)})
    return shown


class _Mark(NamedTuple):
    """A box xyxy in pixels, a key of `COLORS`, and what is written at it."""

    kind: str
    box: list[float]
    text: str


def _marks(
    found: Mapping[str, Tensor], sample: Sample, verdicts: Verdicts, names: Sequence[str]
) -> list[_Mark]:
    """What is drawn in an image, the later on top."""
    right, wrong, missed = verdicts
    objects = zip(sample.boxes[missed].tolist(), sample.labels[missed].tolist(), strict=True)
    columns = (found[key][wrong].tolist() for key in ("boxes", "labels", "scores"))
    return [
        *(_Mark("right", box, "") for box in found["boxes"][right].tolist()),
        *(_Mark("missed", box, names[label - 1]) for box, label in objects),
        *(
            _Mark("wrong", box, f"{names[label - 1]} {score:.2f}")
            for box, label, score in zip(*columns, strict=True)
        ),
    ]


def region_of_faults(faults: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """The part of an image to show, x1, y1, x2, y2: all of it where it is no larger than a picture.

    Otherwise where most faults, boxes `[F, 4]` with F > 0, lie together in a part small enough that
    they can be seen, with a margin around them.
    """
    frame = np.array([WIDTH, HEIGHT])
    image = np.array([width, height])
    if (image <= frame).all():
        return 0, 0, width, height
    side = float(np.median(np.sqrt(np.prod(faults[:, 2:] - faults[:, :2], axis=1))))
    largest = frame / np.clip(READABLE / max(side, 1.0), (frame / image).min(), MOST_ZOOM)
    centers = (faults[:, :2] + faults[:, 2:]) / 2
    counts = [(np.abs(centers - center) < largest / 2).all(axis=1).sum() for center in centers]
    middle = centers[int(np.argmax(counts))]
    held = faults[(np.abs(centers - middle) < largest / 2).all(axis=1)]
    low, high = held[:, :2].min(axis=0), held[:, 2:].max(axis=0)
    size = np.clip(high - low + 2 * side, frame / MOST_ZOOM, None)
    size = np.minimum(frame * (size / frame).max(), image).round()
    corner = np.clip(((low + high - size) / 2).round(), 0, image - size)
    x1, y1, x2, y2 = np.concatenate([corner, corner + size]).astype(int).tolist()
    return x1, y1, x2, y2


def _centred_in(boxes: np.ndarray, part: tuple[int, int, int, int]) -> np.ndarray:
    """Whether the middle of boxes `[N, 4]` lies in a part: `bool [N]`."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centers >= part[:2]) & (centers < part[2:])).all(axis=1)


def _drawn(image: Tensor, part: tuple[int, int, int, int], marks: Sequence[_Mark]) -> Tensor:
    """A part of an image, `uint8 [3, H, W]`, with its marks, as a picture of at most `WIDTH` by
    `HEIGHT`."""
    corner = np.array(part[:2] * 2)
    width, height = part[2] - part[0], part[3] - part[1]
    scale = min(WIDTH / width, HEIGHT / height, MOST_ZOOM)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    pixels = PartsOfTensor(image).read(part, size)
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    canvas = ImageDraw.Draw(picture)
    seen = []
    for mark in marks:
        x1, y1, x2, y2 = (scale * (np.array(mark.box) - corner)).round().astype(int).tolist()
        if x2 < 0 or y2 < 0 or x1 > size[1] or y1 > size[0]:
            continue
        out = 3 if mark.kind == "missed" else 0  # not below a wrong box in its place
        box = [x1 - out, y1 - out, x2 + out, y2 + out]
        seen.append(mark._replace(box=box))
        # One of the two shows, whatever is behind it.
        lines, width = _outline(box, DASH * (mark.kind == "missed")), 1 + (mark.kind != "right")
        for more, color in ((1, "black"), (0, COLORS[mark.kind])):
            rim = -1 - more, -1 - more, width - 1 + more, width - 1 + more
            for line in lines:
                canvas.rectangle(tuple(np.add(line, rim).tolist()), color)
    _write(canvas, seen, size)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _outline(box: Sequence[int], dash: int) -> list[tuple[int, int, int, int]]:
    """The sides of a box as lines, dashed unless `dash` is 0."""
    x1, y1, x2, y2 = box
    length = dash or max(1, x2 - x1, y2 - y1)
    across, down = (
        [(a, min(a + length, end)) for a in range(start, max(start + 1, end), length + dash)]
        for start, end in ((x1, x2), (y1, y2))
    )
    return [(a, y, b, y) for y in (y1, y2) for a, b in across] + [
        (x, a, x, b) for x in (x1, x2) for a, b in down
    ]


def _write(canvas: ImageDraw.ImageDraw, marks: Sequence[_Mark], size: tuple[int, int]) -> None:
    """Texts beside their boxes where they hide no other box, or inside large ones; never on each
    other, so that not all find a place."""
    boxes, texts = np.zeros(size, bool), np.zeros(size, bool)
    for mark in marks:
        x1, y1, x2, y2 = np.clip(mark.box, 0, None).tolist()
        boxes[y1 : y2 + 3, x1 : x2 + 3] = True
    for mark in reversed([mark for mark in marks if mark.text]):
        left, top, right, bottom = canvas.textbbox((0, 0), mark.text, caption_font())
        width, height = round(right - left) + 5, round(bottom - top) + 5
        x1, y1, x2, y2 = mark.box
        x = min(max(0, x1 - 2), size[1] - width)
        places = [(x, y1 - height - 2), (x, y2 + 4), (x2 + 4, y1), (x1 - width - 2, y1)]
        hidden = [boxes | texts] * len(places)
        if x2 - x1 > 1.5 * width and y2 - y1 > 4 * height:
            places += [(x1 + 3, y1 + 3), (x1 + 3, y2 - height - 2)]
            hidden += [texts] * 2
        for (x, y), taken in zip(places, hidden, strict=True):
            place = np.s_[max(0, y) : y + height, max(0, x) : x + width]
            if texts[place].shape == (height, width) and not taken[place].any():
                texts[place] = True
                canvas.rectangle((x, y, x + width - 1, y + height - 1), COLORS[mark.kind])
                color = "white" if mark.kind == "wrong" else "black"
                canvas.text((x + 2 - left, y + 2 - top), mark.text, color, caption_font())
                break
