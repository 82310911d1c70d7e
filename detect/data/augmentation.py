"""Random changes to training images and their boxes, and resizing.

The only module that knows albumentations: another library would be a change to this file alone.
Images are `uint8` RGB `[3, H, W]`, boxes `float32 [N, 4]` xyxy in pixels, labels `int64 [N]`.
"""

import os
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from backbones.common.errors import UserError
from backbones.common.ranges import check_ranges
from detect.data.window import boxes_in_window, cut_window, draw_window

# Without this the import asks a server for the newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A

MIN_VISIBILITY = 0.3
"""Objects of which a window shows less than this fraction are left out."""

MIN_SIDE = 0.1
"""Boxes with a shorter side, in pixels of the example, are left out: rounding ends their area."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training examples; all zero and `scale` (1, 1) for none."""

    flip: float = 0.5
    """Probability that a training image is flipped left to right."""
    vertical_flip: float = 0.0
    """Probability that a training image is flipped upside down, for images without a natural up."""
    scale: tuple[float, float] = (0.8, 1.25)
    """Range of the factor by which objects are larger in training than in their picture: an example
    above 1 shows a part of the picture, enlarged, and below 1 more of it than fits otherwise, or
    the picture with grey around it."""
    window: int = 512
    """Longest side of a training example, in pixels that a learned proposer sees, where it looks
    at images at a scale: larger ones are shown in windows of that size. It is as good on larger
    tiles in use, which see less twice."""
    colour: float = 0.2
    """Strength of the random change of colours: brightness, contrast and saturation change by up to
    this fraction, the hue by up to a tenth of it."""

    def __post_init__(self) -> None:
        ranges = {"[0, 1]": "flip vertical_flip colour", "[64, inf)": "window"}
        check_ranges(self, "augment.", ranges | {"(0, inf)": "scale"})
        low, high = self.scale
        if low > high:
            raise UserError(
                f"augment.scale must be (low, high) with 0 < low <= high, got {low, high}"
            )


def augment(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    config: AugmentConfig,
    seed: int,
    canvas: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A training example of an image: a random window, changed at random.

    Args:
        image: `uint8 [3, H, W]`.
        boxes: `float32 [N, 4]` xyxy in pixels; what lies outside the image is cut off.
        labels: `int64 [N]`: positive for objects, negative for other boxes, which move along.
        config: what to change and how much.
        seed: 0 or more; decides everything.
        canvas: longest side of an example in pixels, None for that of the image; see
            `detect.data.window`.

    Returns:
        The example, of the image's size where the canvas is no smaller, and the boxes and labels of
        what it shows, in their order: cut off at its borders, without those of which less than
        `MIN_VISIBILITY` is left or with a side below `MIN_SIDE`.
    """
    height, width = image.shape[1:]
    boxes = boxes.clamp(min=boxes.new_zeros(4), max=boxes.new_tensor([width, height] * 2))
    pipeline = _pipeline(config)
    # Compose.set_random_seed gives all transforms one seed, and with it the same first draw:
    # both flips would always happen together. So each gets its own.
    own_seed, *seeds = np.random.SeedSequence(seed).generate_state(1 + len(pipeline.transforms))
    rng = np.random.default_rng(own_seed)
    for transform, transform_seed in zip(pipeline.transforms, seeds, strict=True):
        transform.set_random_seed(int(transform_seed))
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    window = draw_window(
        *(rng, (height, width), canvas, config.scale), boxes[has_area & (labels > 0)]
    )
    image = cut_window(image, window)
    boxes, visible = boxes_in_window(boxes, window)
    has_area = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(dim=1)
    kept = (has_area & (visible >= MIN_VISIBILITY)).nonzero().flatten()
    # Labels go around the library, which turns integers into floats; it carries indices of boxes.
    result = pipeline(
        image=image.permute(1, 2, 0).numpy(), bboxes=boxes[kept].numpy(), index=kept.numpy()
    )
    index = torch.as_tensor(np.asarray(result["index"], dtype=np.int64))
    new_boxes = np.asarray(result["bboxes"], dtype=np.float32).reshape(-1, 4)
    new_image = torch.from_numpy(np.ascontiguousarray(result["image"])).permute(2, 0, 1)
    return new_image, torch.from_numpy(new_boxes), labels[index]


@lru_cache(maxsize=8)
def _pipeline(config: AugmentConfig) -> A.Compose:
    strength = config.colour
    factors = (1 - strength, 1 + strength)
    transforms = [
        A.HorizontalFlip(p=config.flip),
        A.VerticalFlip(p=config.vertical_flip),
        A.ColorJitter(
            brightness=factors,
            contrast=factors,
            saturation=factors,
            hue=(-strength / 10, strength / 10),
            p=1.0 if strength > 0 else 0.0,
        ),
    ]
    # `clip` is for rounding in the library's boxes, which are fractions of the image.
    boxes = A.BboxParams(format="pascal_voc", label_fields=["index"], clip=True)
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
