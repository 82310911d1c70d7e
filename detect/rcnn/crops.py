"""Boxes on images -> one batch of fixed-size crops: the input of the low-resolution network.

Glossary: B images, R_i boxes on image i, R their sum, S the crop size (79 for `inception_v3_79`).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from detect.rcnn.resampling import resample_windows

CropMode = Literal["warp", "square"]

ORIGINAL_CONTEXT = 16 / 227
"""R-CNN's padding: 16 of a crop's 227 pixels on each side (Girshick et al. 2014, appendix A)."""


def crop_windows(boxes: Tensor, mode: CropMode, context: float) -> Tensor:
    """The image region that each crop shows, before it is resized.

    Args:
        boxes: `float32 [R, 4]` xyxy in pixels.
        mode: `warp` keeps the box's own shape (the crop distorts it), `square` takes the tightest
            centred square around it.
        context: padding on each side as a fraction of the *crop*, in `[0, 0.5)`. The window is
            `1 / (1 - 2 * context)` times as large as the box: 1.164 for the original 16/227 at
            whatever crop size.

    Returns:
        `float32 [R, 4]` xyxy; windows may reach outside the image.
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
        boxes: B tensors `float32 [R_i, 4]` xyxy in pixels, possibly empty.
        size: S, the side of a crop in pixels.
        fill: RGB colour of what lies outside the image, 0..255; the mean colour of the crop network
            is zero to it.
        mode: see `crop_windows`.
        context: see `crop_windows`.

    Returns:
        `uint8 [R, 3, S, S]`, image by image, in the memory format `channels_last`.

    Raises:
        ValueError: a box is not finite or has no area; the message names image and box.
    """
    check_boxes(boxes)
    crops = []
    for image, image_boxes in zip(images, boxes, strict=True):
        windows = crop_windows(image_boxes.detach().to(torch.float32), mode, context)
        crops.append(resample_windows(image, windows, size, fill))
    return _joined(crops)


def split_evenly(parts: Iterable[Tensor], total: int, limit: int) -> Iterator[Tensor]:
    """Join crops and cut them into as few batches as the limit allows, all about equally large.

    A few crops at the end would cost as much as more of them.

    Args:
        parts: crops `[R_i, 3, S, S]`, taken one after the other as they are needed.
        total: R, the sum of all R_i, at least 1.
        limit: crops of a batch at most.

    Yields:
        Crops `[up to limit, 3, S, S]` in order, `channels_last`.
    """
    size = math.ceil(total / math.ceil(total / limit))
    waiting: list[Tensor] = []
    room = size
    for part in parts:
        while len(part) >= room:
            yield _joined([*waiting, part[:room]])
            part, waiting, room = part[room:], [], size
        if len(part):
            waiting.append(part)
            room -= len(part)
    if waiting:
        yield _joined(waiting)


def _joined(crops: Sequence[Tensor]) -> Tensor:
    """One batch, `channels_last` also where a part is empty."""
    return torch.cat(list(crops)).contiguous(memory_format=torch.channels_last)


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
