"""Windows of an image, resized to crops: by OpenCV on the CPU, by `roi_align` on other devices.

Both read a small pyramid of the image, whose levels are halved in width and height independently:
each window from the level where it is less than twice as wide and high as its crop, or from the
last one. Along each axis, a pixel of the crop is the mean of as many bilinear samples as it covers
pixels. Outside of the image everything has one colour.

Glossary: R windows, S side of a crop, H and W of the image; a level (x, y) is halved x times in
width and y times in height.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

Level = tuple[int, int]
Pixels = TypeVar("Pixels")

TOP_LEVEL = 2
"""Times that an axis is halved at most: bilinear samples blur more the coarser the pixels are."""


def resample_windows(image: Tensor, windows: Tensor, size: int, fill: Sequence[int]) -> Tensor:
    """Cut windows out of an image, each resized to a square.

    Args:
        image: `uint8 [3, H, W]`.
        windows: `float32 [R, 4]` xyxy in pixels, of positive area; they may reach outside.
        size: S.
        fill: the colour outside of the image, 0..255.

    Returns:
        `uint8 [R, 3, S, S]`, in the memory format `channels_last`.
    """
    levels = levels_for(windows, size)
    windows = windows * 0.5 ** levels.repeat(1, 2)
    resample = resample_by_opencv if image.device.type == "cpu" else resample_by_roi_align
    return resample(image, windows, levels, size, fill)


def levels_for(windows: Tensor, size: int) -> Tensor:
    """The level that each of R windows is read from, `int64 [R, 2]`."""
    sides = windows[:, 2:] - windows[:, :2]
    return (sides / size).log2().floor().clamp(0, TOP_LEVEL).to(torch.int64)


def resample_by_opencv(
    image: Tensor, windows: Tensor, levels: Tensor, size: int, fill: Sequence[int]
) -> Tensor:
    """As `resample_windows`.

    Args:
        image: as there, on the CPU.
        windows: in pixels of their levels.
        levels: `int64 [R, 2]`, the level of each.
        size: S.
        fill: as there.
    """
    whole = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    colour = [int(value) for value in fill]

    def halve(pixels: np.ndarray, axis: int) -> np.ndarray:
        height, width, _ = pixels.shape
        odd = (height % 2, 0) if axis == 0 else (0, width % 2)
        if any(odd):
            pixels = cv2.copyMakeBorder(
                *(pixels, 0, odd[0], 0, odd[1], cv2.BORDER_CONSTANT), value=colour
            )
            height, width, _ = pixels.shape
        halved = (width, height // 2) if axis == 0 else (width // 2, height)
        return cv2.resize(pixels, halved, interpolation=cv2.INTER_AREA)

    pyramid: dict[Level, np.ndarray] = {(0, 0): whole}
    crops = np.empty((len(windows), size, size, 3), np.uint8)
    steps = (windows[:, 2:] - windows[:, :2]) / size
    rows = zip(windows.tolist(), steps.tolist(), levels.tolist(), strict=True)
    for crop, ((left, top, right, bottom), step, (x, y)) in zip(crops, rows, strict=True):
        level = _level(pyramid, (x, y), halve)
        # A part that is surely large enough: OpenCV counts pixels in 16 bits.
        row, column = (max(0, int(edge) - 2) for edge in (top, left))
        part = level[row : max(0, int(bottom) + 3), column : max(0, int(right) + 3)]
        if not part.size:
            crop[:] = colour
            continue
        across, down = (math.ceil(pace) for pace in step)
        pace_x, pace_y = step[0] / across, step[1] / down
        # From the centre of a sample to its place in the part, where centres are whole numbers.
        affine = np.array(
            [
                [pace_x, 0, left - column + pace_x / 2 - 0.5],
                [0, pace_y, top - row + pace_y / 2 - 0.5],
            ]
        )
        samples = cv2.warpAffine(
            *(part, affine, (size * across, size * down)),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=colour,
        )
        # Where there is one sample for each pixel it copies them.
        cv2.resize(samples, (size, size), dst=crop, interpolation=cv2.INTER_AREA)
    return torch.from_numpy(crops).permute(0, 3, 1, 2)


def resample_by_roi_align(
    image: Tensor, windows: Tensor, levels: Tensor, size: int, fill: Sequence[int]
) -> Tensor:
    """As `resample_by_opencv`, in few calls on any device."""
    # Zero is the colour outside, which padding and halving then leave alone.
    shift = torch.tensor(list(fill), dtype=torch.float32, device=image.device).view(3, 1, 1)

    def halve(pixels: Tensor, axis: int) -> Tensor:
        odd = pixels.shape[1 + axis] % 2
        even = F.pad(pixels, (0, odd, 0, 0) if axis == 1 else (0, 0, 0, odd))
        return F.avg_pool2d(even, (1, 2) if axis == 1 else (2, 1))

    pyramid: dict[Level, Tensor] = {(0, 0): image - shift}
    crops = shift.new_empty(len(windows), 3, size, size)
    for x, y in levels.unique(dim=0).tolist():
        chosen = (levels == levels.new_tensor([x, y])).all(dim=1).nonzero().flatten()
        # roi_align repeats the edge for samples up to a pixel outside of its input.
        level = F.pad(_level(pyramid, (x, y), halve), (1, 1, 1, 1))
        crops[chosen] = roi_align(level[None], [windows[chosen] + 1], size, aligned=True)
    crops = (crops + shift).round_().clamp_(0, 255).to(torch.uint8)
    return crops.contiguous(memory_format=torch.channels_last)


def _level(
    pyramid: dict[Level, Pixels], level: Level, halve: Callable[[Pixels, int], Pixels]
) -> Pixels:
    """A level of the pyramid, made where it is not there; `halve` takes axis 0 for the height."""
    if level not in pyramid:
        x, y = level
        below, axis = ((x - 1, y), 1) if x else ((x, y - 1), 0)
        pyramid[level] = halve(_level(pyramid, below, halve), axis)
    return pyramid[level]
