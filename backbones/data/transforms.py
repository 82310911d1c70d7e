"""What happens to an image on its way to the network: random crops, or the central one."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from backbones.common.images import EncodedImage, Pixels
from backbones.common.ranges import check_ranges

_ENLARGEMENT = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_LUMA = np.array([0.299, 0.587, 0.114])
"""Shares of red, green and blue in grey, ITU-R BT.601, as in Pillow and torchvision."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training images, as Szegedy et al., Going Deeper with Convolutions (CVPR
    2015), section 6 describes them."""

    min_area: float = 0.08
    """Smallest part of the image's area that a random crop covers; the largest is all of it."""
    max_ratio: float = 4 / 3
    """Largest aspect ratio of a random crop; the smallest is its inverse."""
    flip: bool = True
    """Mirror half of the training images."""
    color_jitter: float = 0.5
    """Brightness, contrast and saturation of training images each change by a factor in 1 ± this,
    in random order (A. Howard, arXiv:1312.5402); 0 changes nothing."""

    def __post_init__(self) -> None:
        ranges = {"(0, 1]": "min_area", "[1, inf)": "max_ratio", "[0, 1]": "color_jitter"}
        check_ranges(self, "data.augment.", ranges)


def train_transform(
    image: EncodedImage,
    size: int,
    config: AugmentConfig,
    seed: int,
    interpolation: str = "bilinear",
) -> Tensor:
    """A random crop of random aspect, resized, perhaps mirrored, with other colours.

    A JPEG is decoded at the largest reduction at which the crop has `size` pixels. The crop's
    edges go to the nearest pixels of the reduced image, so by less than a pixel of the result.

    Where a crop is smaller than `size` it is enlarged by `interpolation`, `bilinear` or `bicubic`;
    a larger one is averaged over the area of each pixel. The seed decides all draws.

    Returns:
        `uint8 [3, size, size]`, its channels last in memory; raises as `EncodedImage.decode`.
    """
    random = np.random.default_rng(seed)
    top, left, height, width = _random_crop(image.height, image.width, config, random)
    reduction = image.reduction(height, width, size)
    rows, columns = _reduced(top, height, reduction), _reduced(left, width, reduction)
    pixels = _resize(image.decode(reduction)[rows, columns], size, interpolation)
    if config.flip and random.random() < 0.5:
        pixels = cv2.flip(pixels, 1)
    if config.color_jitter:
        adjustments = (_adjust_brightness, _adjust_contrast, _adjust_saturation)
        for which in random.permutation(len(adjustments)):
            factor = random.uniform(1 - config.color_jitter, 1 + config.color_jitter)
            pixels = adjustments[which](pixels, factor)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def eval_transform(
    image: EncodedImage, size: int, crop_fraction: float = 0.875, interpolation: str = "bilinear"
) -> Tensor:
    """The central square `uint8 [3, size, size]` of an image whose shorter side is resized to
    size / crop_fraction.

    Resizing is antialiased, as in torchvision and timm; a JPEG is decoded at the largest reduction
    that leaves its shorter side as long. Raises as `EncodedImage.decode`.
    """
    shorter = round(size / crop_fraction)
    resized = resize_shorter(decode_at_least(image, shorter), shorter, interpolation)
    return transforms.center_crop(resized, [size, size])


def decode_at_least(image: EncodedImage, shorter: int) -> Tensor:
    """Decode an image, its shorter side not below `shorter` by reduction: `uint8 [3, H, W]`."""
    pixels = image.decode(image.reduction(image.height, image.width, shorter))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def resize_shorter(image: Tensor, shorter: int, interpolation: str = "bilinear") -> Tensor:
    """Resize the shorter side of `uint8 [3, H, W]` to `shorter` pixels, antialiased."""
    mode = InterpolationMode(interpolation)
    return transforms.resize(image, [shorter], interpolation=mode, antialias=True)


def _random_crop(
    height: int, width: int, config: AugmentConfig, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height, width: area uniform, logarithm of the aspect ratio uniform."""
    limit = math.log(config.max_ratio)
    for _ in range(10):
        area = height * width * random.uniform(config.min_area, 1.0)
        ratio = math.exp(random.uniform(-limit, limit))
        crop_width, crop_height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(random.integers(height - crop_height + 1))
            left = int(random.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    # A very long image has no such crop at most sizes: take its central square.
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def _reduced(start: int, length: int, reduction: int) -> slice:
    return slice(round(start / reduction), max(round((start + length) / reduction), 1))


def _resize(pixels: Pixels, size: int, interpolation: str) -> Pixels:
    shrinks = min(pixels.shape[:2]) > size
    method = cv2.INTER_AREA if shrinks else _ENLARGEMENT[interpolation]
    return cv2.resize(pixels, (size, size), interpolation=method)


def _adjust_brightness(pixels: Pixels, factor: float) -> Pixels:
    return cv2.addWeighted(pixels, factor, pixels, 0, 0)


def _adjust_contrast(pixels: Pixels, factor: float) -> Pixels:
    """Away from the image's mean grey, or towards it."""
    grey = float(np.dot(_LUMA, cv2.mean(pixels)[:3]))
    return cv2.addWeighted(pixels, factor, pixels, 0, (1 - factor) * grey)


def _adjust_saturation(pixels: Pixels, factor: float) -> Pixels:
    """Away from each pixel's own grey, or towards it."""
    return cv2.transform(pixels, factor * np.eye(3) + (1 - factor) * _LUMA)
