"""Boxes on images -> one batch of fixed-size crops: the input of the low-resolution network.

Glossary: B images, R_i boxes on image i, R their sum, S the crop size (79 for `inception_v3_79`).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from detect.rcnn.resampling import resample_windows

CropMode = Literal["warp", "square"]

ORIGINAL_CONTEXT = 16 / 227
"""R-CNN's padding: 16 of a crop's 227 pixels on each side (Girshick et al. 2014, appendix A)."""


def crop_windows(boxes: Tensor, mode: CropMode, context: float) -> Tensor:
    """The image region `[R, 4]` that each crop shows, before it is resized; it may reach outside.

    Args:
        boxes: `float32 [R, 4]` xyxy in pixels.
        mode: `warp` keeps the box's own shape (the crop distorts it), `square` takes the tightest
            centred square around it.
        context: padding on each side as a fraction of the *crop*, in `[0, 0.5)`. The window is
            `1 / (1 - 2 * context)` times as large as the box: 1.164 for the original 16/227 at
            whatever crop size.
    """
    if not 0 <= context < 0.5:
        raise ValueError(f"context must be in [0, 0.5), got {context}")
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    size = boxes[:, 2:] - boxes[:, :2]
    if mode == "square":
        size = size.max(dim=1, keepdim=True).values.expand(-1, 2)
    elif mode != "warp":
        raise ValueError(f"crop mode must be 'warp' or 'square', got {mode!r}")
    half = size / (1 - 2 * context) / 2
    return torch.cat([centre - half, centre + half], dim=1)


def crop_regions(
    images: Sequence[Tensor],
    boxes: Sequence[Tensor],
    *,
    size: int,
    fill: Sequence[int],
    mode: CropMode = "warp",
    context: float = ORIGINAL_CONTEXT,
) -> Tensor:
    """Cut every box out of its image, resized to a square as `detect.rcnn.resampling` says.

    Shrinking is anti-aliased, enlarging bilinear. A crop depends on its own image and box alone,
    bit for bit, whatever else is in the batch.

    Args:
        images: B tensors `uint8 [3, H_i, W_i]`, all on one device.
        boxes: B tensors `float32 [R_i, 4]` xyxy in pixels, possibly empty; on the CPU, or they
            are copied there.
        size: S, the side of a crop in pixels.
        fill: RGB colour of what lies outside the image, 0..255; the mean colour of the crop network
            is zero to it.
        mode, context: see `crop_windows`.

    Returns:
        `uint8 [R, 3, S, S]`, image by image, in the memory format `channels_last`.

    Raises:
        ValueError: a box is not finite or has no area; the message names image and box.
    """
    check_boxes(boxes)
    windows = [crop_windows(own.detach().float().cpu(), mode, context) for own in boxes]
    return resample_windows(images, windows, size, fill)


def split_evenly(boxes: Sequence[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Cut the boxes of some images into as few parts as the limit allows, all about equally large.

    A few crops at the end would cost as much as more of them. A part has B tensors, of each image
    its boxes in it; without boxes there is one.
    """
    counts = [len(image_boxes) for image_boxes in boxes]
    total = sum(counts)
    size = math.ceil(total / max(1, math.ceil(total / limit)))
    for start in range(0, max(total, 1), max(size, 1)):
        part, before = [], 0
        for image_boxes, count in zip(boxes, counts, strict=True):
            part.append(image_boxes[max(start - before, 0) : max(start + size - before, 0)])
            before += count
        yield part


def check_boxes(boxes: Sequence[Tensor], what: str = "boxes") -> None:
    """Raise `ValueError` naming the first box that is not `[N, 4]`, finite, of positive area."""
    for i, image_boxes in enumerate(boxes):
        if image_boxes.ndim != 2 or image_boxes.shape[1] != 4:
            shape = list(image_boxes.shape)
            raise ValueError(f"{what}[{i}] must have the shape [N, 4] (xyxy), got {shape}")
        good = torch.isfinite(image_boxes).all(dim=1)
        good &= (image_boxes[:, 2:] > image_boxes[:, :2]).all(dim=1)
        if not bool(good.all()):
            j = int((~good).nonzero()[0])
            raise ValueError(
                f"{what}[{i}][{j}] = {image_boxes[j].tolist()} must be finite with x1 < x2, y1 < y2"
            )
