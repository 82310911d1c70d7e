"""ImageNet-style examples: random crops for training, central crops for evaluation, any size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from backbones.errors import ImageError, UserError
from backbones.files import decode_image
from backbones.image_sources import ImageSource
from backbones.order import derive_seed


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training images, as Szegedy et al., Going Deeper with Convolutions (CVPR
    2015), section 6 describes them."""

    min_area: float = 0.08
    """Smallest part of the image's area that a crop covers; the largest is all of it."""
    max_ratio: float = 4 / 3
    """Largest aspect ratio of a crop; the smallest is its inverse."""
    flip: bool = True
    """Mirror half of the images."""
    color_jitter: float = 0.5
    """Brightness, contrast and saturation each change by a factor in 1 ± this, in random order
    (A. Howard, arXiv:1312.5402); 0 changes nothing."""

    def __post_init__(self) -> None:
        if not 0 < self.min_area <= 1:
            raise UserError(f"augment.min_area must be in (0, 1], got {self.min_area}")
        if self.max_ratio < 1:
            raise UserError(f"augment.max_ratio must be at least 1, got {self.max_ratio}")
        if not 0 <= self.color_jitter <= 1:
            raise UserError(f"augment.color_jitter must be in [0, 1], got {self.color_jitter}")


def train_transform(
    image: Tensor, size: int, config: AugmentConfig, seed: int, interpolation: str = "bilinear"
) -> Tensor:
    """A random crop of random aspect, resized, perhaps mirrored, with other colours.

    Args:
        image: `uint8 [3, H, W]`.
        size: side of the result, pixels.
        config: the distributions.
        seed: decides all draws.
        interpolation: `bilinear` or `bicubic`, antialiased.

    Returns:
        `uint8 [3, size, size]`.
    """
    random = np.random.default_rng(seed)
    top, left, height, width = _random_crop(image.shape[1], image.shape[2], config, random)
    mode = InterpolationMode(interpolation)
    image = transforms.resized_crop(
        image, top, left, height, width, [size, size], interpolation=mode, antialias=True
    )
    if config.flip and random.random() < 0.5:
        image = transforms.horizontal_flip(image)
    if config.color_jitter:
        adjustments = (
            transforms.adjust_brightness,
            transforms.adjust_contrast,
            transforms.adjust_saturation,
        )
        for which in random.permutation(len(adjustments)):
            factor = random.uniform(1 - config.color_jitter, 1 + config.color_jitter)
            image = adjustments[which](image, factor)
    return image


def eval_transform(
    image: Tensor, size: int, crop_fraction: float = 0.875, interpolation: str = "bilinear"
) -> Tensor:
    """Resize the shorter side to size / crop_fraction and cut out the central square.

    Takes `uint8 [3, H, W]`, gives `uint8 [3, size, size]`.
    """
    shorter = round(size / crop_fraction)
    mode = InterpolationMode(interpolation)
    image = transforms.resize(image, [shorter], interpolation=mode, antialias=True)
    return transforms.center_crop(image, [size, size])


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`uint8 [N, 3, H, W]` as `float32`: scaled to [0, 1], less the mean, over the deviation."""
    scale = torch.tensor([1 / (255 * value) for value in std], device=images.device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device)
    return images.float() * scale[:, None, None] + shift[:, None, None]


def _random_crop(
    height: int, width: int, config: AugmentConfig, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height, width: area uniform, logarithm of the aspect ratio uniform."""
    limit = np.log(config.max_ratio)
    for _ in range(10):
        area = height * width * random.uniform(config.min_area, 1.0)
        ratio = np.exp(random.uniform(-limit, limit))
        crop_width, crop_height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(random.integers(height - crop_height + 1))
            left = int(random.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    # A very long image has no such crop at most sizes: take its central square.
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


class Example(NamedTuple):
    """One image, or none where it could not be read.

    Attributes:
        image: `uint8 [3, S, S]`, None in evaluation where the file is unreadable.
        label: 0..K-1.
        name: the file.
        skipped: error messages of unreadable files: those this one stands in for, or its own.
    """

    image: Tensor | None
    label: int
    name: str
    skipped: list[str]


class ImageBatch(NamedTuple):
    """Images `uint8 [N, 3, S, S]`, labels `int64 [N]`, their files, and errors of skipped ones."""

    images: Tensor
    labels: Tensor
    names: list[str]
    skipped: list[str]

    def split(self, parts: int) -> "list[ImageBatch]":
        """The examples in order, in so many batches of one size."""
        size = len(self.names) // parts
        return [
            ImageBatch(
                self.images[start : start + size],
                self.labels[start : start + size],
                self.names[start : start + size],
                self.skipped if start == 0 else [],
            )
            for start in range(0, len(self.names), size)
        ]


def collate(examples: Sequence[Example]) -> ImageBatch:
    """Put examples into a batch, leaving out those without an image."""
    whole = [example for example in examples if example.image is not None]
    images = [example.image for example in whole if example.image is not None]
    return ImageBatch(
        torch.stack(images) if images else torch.empty(0, 3, 1, 1, dtype=torch.uint8),
        torch.tensor([example.label for example in whole], dtype=torch.int64),
        [example.name for example in whole],
        [message for example in examples for message in example.skipped],
    )


class TrainingImages(Dataset):
    """Augmented images, indexed by `(epoch, index)`; the same key gives the same pixels.

    An image that cannot be read is replaced by the next and reported in `Example.skipped`.
    """

    def __init__(
        self,
        source: ImageSource,
        size: int,
        config: AugmentConfig,
        seed: int,
        interpolation: str = "bilinear",
    ) -> None:
        self.source, self.size, self.config = source, size, config
        self.seed, self.interpolation = seed, interpolation

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        epoch, index = key
        skipped: list[str] = []
        for offset in range(len(self)):
            try:
                data, label, name = self.source.read((index + offset) % len(self))
                image = decode_image(data, name)
            except ImageError as error:
                skipped.append(str(error))
                continue
            seed = derive_seed(self.seed, epoch, index)
            image = train_transform(image, self.size, self.config, seed, self.interpolation)
            return Example(image, label, name, skipped)
        raise UserError(f"none of the {len(self)} training images can be read: {skipped[0]}")


class EvaluationImages(Dataset):
    """Central crops, indexed by number; an unreadable image is an `Example` without one."""

    def __init__(
        self, source: ImageSource, size: int, crop_fraction: float, interpolation: str = "bilinear"
    ) -> None:
        self.source, self.size = source, size
        self.crop_fraction, self.interpolation = crop_fraction, interpolation

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        try:
            data, label, name = self.source.read(index)
            image = decode_image(data, name)
        except ImageError as error:
            return Example(None, 0, "", [str(error)])
        image = eval_transform(image, self.size, self.crop_fraction, self.interpolation)
        return Example(image, label, name, [])
