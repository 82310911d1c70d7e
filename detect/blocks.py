"""An image of any size through a detector, block by block: memory does not grow with the area.

A block is a part of the image with a margin around it, which is an image like any other to the
detector: it looks at it in tiles and cuts its crops from it. An object counts in the block where
its centre lies, and is whole there unless it is larger than the margins, so that no network sees a
seam. For what is larger the image is gone through again at a quarter of the size, and again, until
one block holds all of it.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torchvision.ops import batched_nms
from torchvision.transforms.v2.functional import resize

from backbones.common.errors import UserError

BLOCK = 2048
"""Side of a block in pixels that are read, without its margins; longer where these are."""

LONGEST_BLOCK = 2**14
"""Pixels along a block and its margins at most, a gigabyte: scales that need more are refused."""

MARGIN = 256
"""Pixels that the proposer sees around a block: what is no larger than two of them is whole in the
block of its centre."""

SHRINK = 4
"""Times that the image is smaller when it is gone through again."""

SLACK = 8.0
"""Pixels that the proposer sees by which the centre of an object may lie outside of the block that
it counts in, as two blocks do not find it at the very same place."""

LARGE_PIXELS = 2**25
"""Of an image that is not detected in as a whole, but block by block."""

SAME_OBJECT = 0.5
"""IoU from which two boxes of a class, found in different blocks, are one object's."""


class Parts(Protocol):
    """An image that is read part by part.

    Attributes:
        height: in pixels.
        width: in pixels.
    """

    height: int
    width: int

    def read(self, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
        """A part x1, y1, x2, y2 in pixels, as `uint8` RGB `[3, *size]`; antialiased."""


@dataclass(frozen=True)
class Block:
    """A part of an image that is detected in by itself.

    Attributes:
        core: x1, y1, x2, y2 in pixels of the image, where the centres of its objects lie.
        window: the same of what is read, margins included.
        shrink: pixels of the image for a pixel that is read, along each axis.
        least: pixels of the image that the longer side of its objects has at least.
    """

    core: tuple[int, int, int, int]
    window: tuple[int, int, int, int]
    shrink: int
    least: float

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that it is read in."""
        x1, y1, x2, y2 = self.window
        return math.ceil((y2 - y1) / self.shrink), math.ceil((x2 - x1) / self.shrink)


class PartsOfTensor:
    """An image `uint8` RGB `[3, H, W]` in memory as `Parts`."""

    def __init__(self, image: Tensor) -> None:
        _, self.height, self.width = image.shape
        self._image = image

    def read(self, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
        """See `Parts`."""
        x1, y1, x2, y2 = box
        part = self._image[:, y1:y2, x1:x2]
        return part if part.shape[1:] == size else resize(part, list(size), antialias=True)


Found = dict[str, Tensor]
DetectBlocks = Callable[[Iterable[tuple[Block, Tensor]]], Iterable[tuple[Block, Tensor, Found]]]
"""`Detector.detect_named`, or what does the same."""


def plan_blocks(height: int, width: int, scale: float) -> list[Block]:
    """The blocks of an image, row by row, those in its own size first.

    Raises:
        UserError: the scale is so small that a block would be too large for memory.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        scale: pixels that the proposer sees for a pixel of what it is given.
    """
    if 4 * MARGIN / scale > LONGEST_BLOCK:
        raise UserError(
            f"model.learned.scale {scale:g} is too small to go through an image of {width}x"
            f"{height} pixels in blocks: expected {4 * MARGIN / LONGEST_BLOCK:g} or more"
        )
    blocks, shrink, least = [], 1, 0.0
    while True:
        margin = max(1, round(MARGIN * shrink / scale))
        side = max(BLOCK * shrink, 2 * margin)
        rows, columns = (_cores(length, side) for length in (height, width))
        for y1, y2 in rows:
            for x1, x2 in columns:
                window = (
                    *(max(0, x1 - margin), max(0, y1 - margin)),
                    *(min(width, x2 + margin), min(height, y2 + margin)),
                )
                blocks.append(Block((x1, y1, x2, y2), window, shrink, least))
        if len(rows) * len(columns) == 1:
            return blocks
        # A little less than the margins hold, as boxes are not found to the pixel.
        shrink, least = shrink * SHRINK, 1.5 * margin


def _cores(length: int, side: int) -> list[tuple[int, int]]:
    """Parts of an axis that lie side by side, about equally long, none longer than `side`."""
    count = math.ceil(length / side)
    edges = [round(number * length / count) for number in range(count + 1)]
    return list(pairwise(edges))


def detect_in_blocks(
    image: Parts, detect: DetectBlocks, scale: float, *, agnostic_nms: bool = False
) -> Found:
    """Detections of an image, as of one that is detected in as a whole.

    Args:
        image: read part by part, and no part twice but for margins.
        detect: the detections of some images, in their order.
        scale: pixels that its proposer sees for a pixel of what it is given.
        agnostic_nms: boxes of different classes may be one object's.

    Returns:
        `boxes` `float32 [N, 4]` xyxy in pixels, `labels` `int64 [N]`, `scores` `float32 [N]`, best
        first, on the CPU.
    """
    blocks = plan_blocks(image.height, image.width, scale)

    def parts() -> Iterator[tuple[Block, Tensor]]:
        for block in blocks:
            yield block, image.read(block.window, block.size)

    found = [_of_image(own, block, image, scale) for block, _, own in detect(parts())]
    columns = [torch.cat([own[key] for own in found]) for key in ("boxes", "labels", "scores")]
    boxes, labels, scores = columns
    several = torch.cat([own["several"] for own in found])
    kept = ~several
    again = several.nonzero().flatten()
    group = torch.zeros_like(labels) if agnostic_nms else labels
    kept[again[batched_nms(boxes[again], scores[again], group[again], SAME_OBJECT)]] = True
    order = scores.where(kept, -1.0).argsort(descending=True, stable=True)[: int(kept.sum())]
    return {"boxes": boxes[order], "labels": labels[order], "scores": scores[order]}


def _of_image(found: Found, block: Block, image: Parts, scale: float) -> Found:
    """What counts of a block, in pixels of the image, and whether others may have found it too."""
    height, width = block.size
    x1, y1, x2, y2 = block.window
    per_pixel = found["boxes"].new_tensor([(x2 - x1) / width, (y2 - y1) / height] * 2)
    boxes = found["boxes"] * per_pixel + per_pixel.new_tensor([x1, y1] * 2)
    slack = SLACK * block.shrink / scale
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    low, high = centres.new_tensor(block.core[:2]), centres.new_tensor(block.core[2:])
    longer = sides.max(dim=1).values
    counts = (centres >= low - slack).all(dim=1) & (centres < high + slack).all(dim=1)
    counts &= longer >= block.least
    # What the border of a window cuts is not whole.
    ends = boxes.new_tensor([x1, y1, x2, y2])
    inner = torch.tensor([x1 > 0, y1 > 0, x2 < image.width, y2 < image.height])
    counts &= ~(((boxes - ends).abs() <= slack / 2) & inner).any(dim=1)
    at_seam = ((centres - low).abs() <= slack).any(dim=1) | ((centres - high).abs() <= slack).any(1)
    # With slack: smaller, an object is found to some pixels of this size.
    in_two_sizes = longer >= (1.5 * MARGIN - SLACK * SHRINK) / scale
    several = at_seam | in_two_sizes
    return {key: found[key][counts] for key in ("labels", "scores")} | {
        "boxes": boxes[counts],
        "several": several[counts],
    }
