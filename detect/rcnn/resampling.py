"""Windows of an image, resized to crops: by OpenCV on the CPU, by `roi_align` on other devices.

Both read a small pyramid of the image: each window from the level where its shorter side is less
than twice as long as its crop, or from the last one. Along each axis, a pixel of the crop is the
mean of as many bilinear samples as it covers pixels. Outside of the image all has one colour.

Glossary: B images, R windows, S side of a crop, H and W of the image.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from backbones.common.device import constant, upload

Pixels = TypeVar("Pixels")

TOP_LEVEL = 2
"""Times that an image is halved at most: bilinear samples blur more the coarser the pixels are."""

LONGEST = 2**14
"""Pixels of a window at most, for which the image may be halved more often: OpenCV before version
5 counts pixels in 16 bits."""


def resample_windows(
    images: Sequence[Tensor], windows: Sequence[Tensor], size: int, fill: Sequence[int]
) -> Tensor:
    """Cut windows out of images, each resized to a square.

    Args:
        images: B tensors `uint8 [3, H_i, W_i]`, all on one device.
        windows: B tensors `float32 [R_i, 4]` xyxy in pixels, of positive area, on the CPU; they may
            reach outside.
        size: S.
        fill: the colour outside of the image, 0..255.

    Returns:
        `uint8 [R, 3, S, S]`, image by image, in the memory format `channels_last`.
    """
    levels = [levels_for(own, size) for own in windows]
    scaled = [own * 0.5 ** its[:, None] for own, its in zip(windows, levels, strict=True)]
    if images[0].device.type != "cpu":
        return resample_by_roi_align(images, scaled, levels, size, fill)
    crops = [
        resample_by_opencv(*one, size, fill) for one in zip(images, scaled, levels, strict=True)
    ]
    # Also where a part is empty.
    return torch.cat(crops).contiguous(memory_format=torch.channels_last)


def levels_for(windows: Tensor, size: int) -> Tensor:
    """How often the image is halved that each of R windows is read from, `int64 [R]`."""
    sides = windows[:, 2:] - windows[:, :2]
    levels = (sides.min(dim=1).values / size).log2().floor().clamp(0, TOP_LEVEL)
    least = (sides.max(dim=1).values / LONGEST).log2().ceil()
    return levels.maximum(least).to(torch.int64)


def resample_by_opencv(
    image: Tensor, windows: Tensor, levels: Tensor, size: int, fill: Sequence[int]
) -> Tensor:
    """As `resample_windows`, of one image on the CPU; windows are in pixels of their levels."""
    if not len(windows):
        return torch.zeros(0, 3, size, size, dtype=torch.uint8)
    # With a fourth channel a pixel fills a word, and OpenCV needs half the time.
    whole = cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2RGBA)
    colour = [*fill, 0]

    def halve(pixels: np.ndarray) -> np.ndarray:
        height, width, _ = pixels.shape
        odd = (height % 2, width % 2)
        if any(odd):
            pixels = cv2.copyMakeBorder(
                *(pixels, 0, odd[0], 0, odd[1], cv2.BORDER_CONSTANT), value=colour
            )
        halved = ((width + 1) // 2, (height + 1) // 2)
        return cv2.resize(pixels, halved, interpolation=cv2.INTER_AREA)

    pyramid = [whole]
    edges = windows.numpy().astype(np.float64)
    low, high = edges[:, :2], edges[:, 2:]
    # A part of the level that is surely large enough, see LONGEST.
    begin, end = (
        np.maximum(part, 0).tolist() for part in (low.astype(int) - 2, high.astype(int) + 3)
    )
    steps = (high - low) / size
    # A box a rounding error wide may have come out with none.
    counts = np.maximum(np.ceil(steps), 1).astype(int)
    steps /= counts
    # From the centre of a sample to its place in the part, where centres are whole numbers.
    affine = np.zeros((len(edges), 2, 3))
    affine[:, 0, 0], affine[:, 1, 1] = steps.T
    affine[:, :, 2] = low - begin + steps / 2 - 0.5
    crops = np.empty((len(edges), size, size, 4), np.uint8)
    for i, level in enumerate(levels.tolist()):
        (left, top), (right, bottom) = begin[i], end[i]
        part = _level(pyramid, level, halve)[top:bottom, left:right]
        if not part.size:
            crops[i] = colour
            continue
        samples = cv2.warpAffine(
            *(part, affine[i], (size * counts[i]).tolist()),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=colour,
        )
        # Where there is one sample for each pixel it copies them.
        cv2.resize(samples, (size, size), dst=crops[i], interpolation=cv2.INTER_AREA)
    rgb = cv2.cvtColor(crops.reshape(-1, size, 4), cv2.COLOR_RGBA2RGB)
    return torch.from_numpy(rgb.reshape(-1, size, size, 3)).permute(0, 3, 1, 2)


def resample_by_roi_align(
    images: Sequence[Tensor],
    windows: Sequence[Tensor],
    levels: Sequence[Tensor],
    size: int,
    fill: Sequence[int],
) -> Tensor:
    """As `resample_by_opencv`, of all images together, in few calls on any device.

    All that the processor knows travels in one copy.
    """
    device = images[0].device
    halvings = torch.cat(list(levels))
    order = halvings.argsort(stable=True)
    number = torch.repeat_interleave(torch.tensor([len(own) for own in windows]))
    # A border of one pixel is added below.
    rois = torch.cat([number[:, None], torch.cat(list(windows)) + 1], dim=1)[order]
    rois = upload(torch.cat([rois, order.argsort()[:, None]], dim=1), device)
    pyramid = [_stacked(images, fill)]
    crops = [pyramid[0].new_zeros(0, 3, size, size)]
    counts = torch.bincount(halvings).tolist()
    for level, part in enumerate(rois[:, :5].split(counts)):
        if len(part):
            # roi_align repeats the edge for samples up to a pixel outside of its input.
            padded = F.pad(_level(pyramid, level, halve_level), (1, 1, 1, 1))
            crops.append(roi_align(padded, part, size, aligned=True))
    joined = torch.cat(crops)[rois[:, 5].long()] + _colour(fill, device)
    joined = joined.round_().clamp_(0, 255).to(torch.uint8)
    return joined.contiguous(memory_format=torch.channels_last)


def _stacked(images: Sequence[Tensor], fill: Sequence[int]) -> Tensor:
    """`float32 [B, 3, H, W]`, the colour outside as zero: padding and halving leave it alone."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    if all(image.shape[1:] == (height, width) for image in images):
        return torch.stack(list(images)) - _colour(fill, images[0].device)
    batch = torch.zeros(len(images), 3, height, width, device=images[0].device)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image - _colour(fill, image.device)
    return batch


def _colour(fill: Sequence[int], device: torch.device) -> Tensor:
    return constant(tuple(fill), device)[:, None, None]


def halve_level(pixels: Tensor) -> Tensor:
    """`float32 [B, 3, H, W]` at half the size, rounded up; what is outside counts as zero."""
    height, width = pixels.shape[-2:]
    return F.avg_pool2d(F.pad(pixels, (0, width % 2, 0, height % 2)), 2)


def _level(pyramid: list[Pixels], halvings: int, halve: Callable[[Pixels], Pixels]) -> Pixels:
    """A level of the pyramid, made where it is not there."""
    while len(pyramid) <= halvings:
        pyramid.append(halve(pyramid[-1]))
    return pyramid[halvings]
