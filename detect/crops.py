"""Boxes on images -> one batch of fixed-size crops: the input of the low-resolution network.

Glossary: B images, R_i boxes on image i, R their sum, S the crop size (79 for `inception_v3_79`).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import roi_align

CropMode = Literal["warp", "square"]

ORIGINAL_CONTEXT = 16 / 227
"""R-CNN's padding: 16 of a crop's 227 pixels on each side (Girshick et al. 2014, appendix A)."""

TOP_LEVEL = 2
"""Of the pyramid that large windows are cut from: a quarter of the resolution."""


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
    mean: Sequence[float],
    std: Sequence[float],
    mode: CropMode = "warp",
    context: float = ORIGINAL_CONTEXT,
) -> Tensor:
    """Cut every box out of its image, resized to a square and normalised.

    Batched `roi_align`: each output pixel is the mean of enough bilinear samples to cover its
    footprint (anti-aliased when shrinking, bilinear when enlarging). Windows from twice the size of
    a crop on are cut from the image at a half or a quarter of its resolution, each pixel the mean
    of four, which takes a fraction of the samples. What lies outside the image has the mean colour,
    zero after normalisation. A crop depends on its own image and box alone, bit for bit, whatever
    else is in the batch.

    Args:
        images: B tensors `uint8 [3, H_i, W_i]`, all on one device.
        boxes: B tensors `float32 [R_i, 4]` xyxy in pixels, possibly empty.
        size: S, the side of a crop in pixels.
        mean: per-channel mean of the crop network, in `[0, 1]`.
        std: per-channel standard deviation of the crop network.
        mode: see `crop_windows`.
        context: see `crop_windows`.

    Returns:
        `float32 [R, 3, S, S]`, image by image, in the memory format convolutions on CPU prefer
        (`channels_last`).

    Raises:
        ValueError: a box is not finite or has no area; the message names image and box.
    """
    check_boxes(boxes)
    windows = [crop_windows(b.to(torch.float32), mode, context) for b in boxes]
    device = images[0].device if images else torch.device("cpu")
    shift, scale = (
        torch.tensor([255 * value for value in values], device=device).view(3, 1, 1)
        for values in (mean, std)
    )
    # Mean colour on every side, a pixel of it on the smallest level: roi_align repeats the edge for
    # samples up to a pixel outside its input, which would make the result depend on how far the
    # batch is padded.
    border = 2**TOP_LEVEL
    height, width = (
        math.ceil(max((image.shape[dim] for image in images), default=0) / border + 2) * border
        for dim in (1, 2)
    )
    canvas = torch.zeros(len(images), 3, height, width, device=device)
    for i, image in enumerate(images):
        _, h, w = image.shape
        torch.sub(image, shift, out=canvas[i, :, border : border + h, border : border + w])
    index = torch.arange(len(boxes), device=device).repeat_interleave(
        torch.tensor([len(image_boxes) for image_boxes in boxes], device=device)
    )
    rois = torch.cat([torch.cat(windows) + border, index[:, None]], dim=1).roll(1, dims=1)
    crops = _align(canvas, rois, size)
    # Divided here and not before: crops have fewer pixels than images.
    return crops.div_(scale).contiguous(memory_format=torch.channels_last)


def _align(canvas: Tensor, rois: Tensor, size: int) -> Tensor:
    """Each window from the level of an image pyramid at which it is less than twice `size` wide.

    Args:
        canvas: `float32 [B, 3, H, W]`, H and W multiples of `2**TOP_LEVEL`.
        rois: `float32 [R, 5]`, an image's index and xyxy on the canvas.
        size: S.
    """
    side = (rois[:, 3:] - rois[:, 1:3]).min(dim=1).values
    levels = (side / size).log2().floor().clamp(0, TOP_LEVEL).to(torch.int64)
    crops = canvas.new_empty(len(rois), 3, size, size)
    for level in range(TOP_LEVEL + 1):
        chosen = (levels == level).nonzero().flatten()
        if len(chosen):
            scale = 0.5**level
            crops[chosen] = roi_align(canvas, rois[chosen], size, scale, aligned=True)
        if level < TOP_LEVEL and bool((levels > level).any()):
            canvas = _halved(canvas)
    return crops


def _halved(canvas: Tensor) -> Tensor:
    """The mean of each square of four pixels; on a CPU a quarter of the time of `avg_pool2d`."""
    rows = canvas[..., ::2, :] + canvas[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)


def split_evenly(boxes: Sequence[Tensor], limit: int) -> Iterator[list[tuple[int, Tensor]]]:
    """Split the boxes of B images, in their order, into as few batches as the limit allows.

    The batches are about equally large: a few crops at the end would cost as much as more of them.

    Args:
        boxes: B tensors `[R_i, 4]`, B at least 1.
        limit: boxes in a batch at most.

    Yields:
        Pairs of an image's index and some of its boxes. Without any box one empty batch.
    """
    total = sum(len(image_boxes) for image_boxes in boxes)
    if total == 0:
        yield [(0, boxes[0])]
        return
    size = math.ceil(total / math.ceil(total / limit))
    batch: list[tuple[int, Tensor]] = []
    room = size
    for index, rest in enumerate(boxes):
        while len(rest):
            batch.append((index, rest[:room]))
            room -= len(batch[-1][1])
            rest = rest[len(batch[-1][1]) :]
            if room == 0:
                yield batch
                batch, room = [], size
    if batch:
        yield batch


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
