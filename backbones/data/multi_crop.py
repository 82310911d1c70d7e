"""Several crops of an image, whose predictions are averaged, as in the papers' tables.

Szegedy et al., Going Deeper with Convolutions (CVPR 2015), section 7: four scales, three squares of
each, six crops of each square, and their mirror images are 144. The tables of Rethinking the
Inception Architecture (CVPR 2016) name 12 crops without saying which; here they are those of the
smallest scale's central square.
"""

from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from backbones.common.images import EncodedImage
from backbones.data.transforms import decode_at_least, resize_shorter

CropCount = Literal[1, 12, 144]

SCALES = (256 / 224, 288 / 224, 320 / 224, 352 / 224)
"""Shorter side of the resized image over the side of a crop."""


def multi_crop(
    image: EncodedImage, size: int, count: Literal[12, 144], interpolation: str = "bilinear"
) -> Tensor:
    """Crops of an image at 144 or 12 places.

    144: the shorter side is resized to each of `SCALES` times `size`; of each, the left, central
    and right square (of an upright image the upper, central and lower); of each square, its four
    corners and its centre at `size`, and the whole square resized to it; and all mirrored.

    Returns:
        `uint8 [count, 3, size, size]`; crop i + count / 2 is the mirror image of crop i.

    Raises:
        ImageError: the image is corrupt or truncated.
    """
    scales = SCALES if count == 144 else SCALES[:1]
    sides = [round(size * scale) for scale in scales]
    pixels = decode_at_least(image, max(sides))
    crops = []
    for side in sides:
        resized = resize_shorter(pixels, side, interpolation)
        squares = _squares(resized)
        for square in squares if count == 144 else squares[1:2]:
            crops += _crops_of_square(square, size, interpolation)
    stacked = torch.stack(crops)
    return torch.cat([stacked, stacked.flip(-1)])


def _squares(image: Tensor) -> list[Tensor]:
    """The first, central and last square along the longer side of `[3, H, W]`."""
    height, width = image.shape[1:]
    side, slack = min(height, width), abs(height - width)
    dim = 2 if width > height else 1
    return [image.narrow(dim, start, side) for start in (0, slack // 2, slack)]


def _crops_of_square(square: Tensor, size: int, interpolation: str) -> list[Tensor]:
    """Upper left, upper right, lower left, lower right, centre, and the whole at `size`."""
    last = square.shape[1] - size
    places = [(0, 0), (0, last), (last, 0), (last, last), (last // 2, last // 2)]
    crops = [square[:, top : top + size, left : left + size] for top, left in places]
    mode = InterpolationMode(interpolation)
    whole = transforms.resize(square, [size, size], interpolation=mode, antialias=True)
    return [*crops, whole]
