"""Random changes to training images and their boxes, and resizing.

The only module that knows albumentations: another library would be a change to this file alone.
Images are `uint8` RGB `[3, H, W]`, boxes `float32 [N, 4]` xyxy in pixels, labels `int64 [N]`.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from backbones.common.errors import UserError

# Without this the import asks a server for the newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A

MIN_VISIBILITY = 0.3
"""Boxes of which a crop leaves less than this fraction are dropped."""

MIN_CROP = 0.5
"""Shortest side of a random crop as a fraction of the image's."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training images; all zero and `scale` (1, 1) for none."""

    flip: float = 0.5
    """Probability that a training image is flipped left to right."""
    vertical_flip: float = 0.0
    """Probability that a training image is flipped upside down, for images without a natural up."""
    scale: tuple[float, float] = (0.8, 1.25)
    """Range of the factor that training images and their boxes are resized by."""
    colour: float = 0.2
    """Strength of the random change of colours: brightness, contrast and saturation change by up to
    this fraction, the hue by up to a tenth of it."""
    crop: float = 0.3
    """Probability that a training image is cropped at random, to 0.5 to 1 of each side, with at
    least one whole box left."""

    def __post_init__(self) -> None:
        for name in ("flip", "vertical_flip", "colour", "crop"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"augment.{name} must be in [0, 1], got {value}")
        low, high = self.scale
        if not 0 < low <= high:
            raise UserError(
                f"augment.scale must be (low, high) with 0 < low <= high, got {low, high}"
            )


def augment(
    image: Tensor, boxes: Tensor, labels: Tensor, config: AugmentConfig, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Change an image and its boxes at random, the same way each time for the same `seed`.

    Args:
        image: `uint8 [3, H, W]`.
        boxes: `float32 [N, 4]` xyxy in pixels; what lies outside the image is cut off.
        labels: `int64 [N]`: positive for objects, negative for other boxes, which move along; a
            random crop keeps an object whole.
        config: what to change and how much.
        seed: 0 or more.

    Returns:
        The image, of another size where it is scaled or cropped, and the boxes and labels of the
        objects still in it, in their order: those of which less than `MIN_VISIBILITY` is left
        after a crop are dropped, and so are those without area.
    """
    height, width = image.shape[1:]
    limits = boxes.new_tensor([width, height, width, height])
    boxes = boxes.clamp(min=boxes.new_zeros(4), max=limits)
    # albumentations raises on boxes without area.
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).nonzero().flatten()
    pipeline = _pipeline(config)
    # Compose.set_random_seed gives all transforms one seed, and with it the same first draw:
    # both flips would always happen together. So each gets its own.
    seeds = np.random.SeedSequence(seed).generate_state(len(pipeline.transforms))
    for transform, own_seed in zip(pipeline.transforms, seeds.tolist(), strict=True):
        transform.set_random_seed(own_seed)
    # Labels go around the library, which turns integers into floats; it carries indices of boxes,
    # below zero where they are of no object.
    index = torch.where(labels[kept] > 0, kept, -1 - kept)
    result = pipeline(
        image=image.permute(1, 2, 0).numpy(), bboxes=boxes[kept].numpy(), index=index.numpy()
    )
    index = torch.as_tensor(np.asarray(result["index"], dtype=np.int64))
    index = torch.where(index < 0, -1 - index, index)
    new_boxes = np.asarray(result["bboxes"], dtype=np.float32).reshape(-1, 4)
    new_image = torch.from_numpy(np.ascontiguousarray(result["image"])).permute(2, 0, 1)
    return new_image, torch.from_numpy(new_boxes), labels[index]


class _ObjectCrop(A.BBoxSafeRandomCrop):
    """Crop to a random window of `MIN_CROP` to 1 of each side that holds one random box whole.

    The library's own version keeps all boxes, which in an image full of objects crops nothing, or
    with a single small box crops to a few pixels.
    """

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, tuple[int, int, int, int]]:
        """Pixel coordinates of the window, from boxes in fractions of the image's sides."""
        anchor = (0.0, 0.0, 0.0, 0.0)
        # The column after the corners is the index, see `augment`.
        objects = [box for box in data["bboxes"] if box[4] >= 0]
        if objects:
            anchor = objects[self.py_random.randrange(len(objects))]
        spans = []
        for axis, size in ((0, params["shape"][1]), (1, params["shape"][0])):
            length = max(1, round(size * self.py_random.uniform(MIN_CROP, 1.0)))
            first, last = 0, size - length
            if objects:
                start = min(int(np.floor(anchor[axis] * size + 1e-3)), size - 1)
                stop = max(int(np.ceil(anchor[axis + 2] * size - 1e-3)), start + 1)
                length = max(length, stop - start)
                first, last = max(0, stop - length), min(start, size - length)
            begin = self.py_random.randint(first, last)
            spans.append((begin, begin + length))
        (x1, x2), (y1, y2) = spans
        return {"crop_coords": (x1, y1, x2, y2)}


class _Scale(A.RandomScale):
    """`RandomScale` that leaves at least one pixel of each side."""

    def apply(self, img: np.ndarray, scale: float, **params: Any) -> np.ndarray:
        """Resize `img`, `uint8 [H, W, 3]`, by the factor `scale`."""
        height, width = (max(1, round(side * scale)) for side in img.shape[:2])
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        return cv2.resize(img, (width, height), interpolation=method)


@lru_cache(maxsize=8)
def _pipeline(config: AugmentConfig) -> A.Compose:
    strength = config.colour
    factors = (1 - strength, 1 + strength)
    transforms = [
        # Cropped first: the others then work on fewer pixels.
        _ObjectCrop(p=config.crop),
        A.HorizontalFlip(p=config.flip),
        A.VerticalFlip(p=config.vertical_flip),
        _Scale(scale_limit=tuple(factor - 1 for factor in config.scale), p=1.0),
        A.ColorJitter(
            brightness=factors,
            contrast=factors,
            saturation=factors,
            hue=(-strength / 10, strength / 10),
            p=1.0 if strength > 0 else 0.0,
        ),
    ]
    # `clip` is for rounding in the library's boxes, which are fractions of the image.
    boxes = A.BboxParams(
        format="pascal_voc", label_fields=["index"], min_visibility=MIN_VISIBILITY, clip=True
    )
    return A.Compose(transforms, bbox_params=boxes)


def resize_image(image: Tensor, min_size: int, max_size: int) -> Tensor:
    """Resize to a shorter side of `min_size`, or less where the longer would exceed `max_size`.

    Args:
        image: `uint8 [3, H, W]`.
        min_size: wanted shorter side in pixels.
        max_size: limit of the longer side in pixels.

    Returns:
        `uint8 [3, H', W']` with the aspect ratio kept to the pixel; antialiased.
    """
    short, long = sorted(image.shape[1:])
    factor = min(min_size / short, max_size / long)
    size = [max(1, round(side * factor)) for side in image.shape[1:]]
    return F.resize(image, size, antialias=True)


def rescale_boxes(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Boxes on an image as boxes on its resized copy; swap the sizes to map detections back.

    Args:
        boxes: `float32 [N, 4]` xyxy in pixels.
        size: (height, width) of the image that `boxes` are on.
        new_size: (height, width) of the other.
    """
    y, x = new_size[0] / size[0], new_size[1] / size[1]
    return boxes * boxes.new_tensor([x, y, x, y])
