"""What a proposer looks at: an image as a whole, or in tiles where it is larger than one.

Small objects must not be shrunk away, and a network over a whole large image would need memory
without bound. So the image is looked at at a chosen scale in overlapping tiles of one shape, and
again, smaller, for what no tile shows whole: at a quarter of the scale while that is still much
larger than a tile, and at last as a whole. Every tile is surrounded by the pixels that surround it
in the image.

Glossary: pixels "of the view" are those that the network sees, after resizing. Boxes are
`float32 [N, 4]` xyxy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from detect.boxes.suppression import hard_nms
from detect.proposals.base import Proposals

OVERLAP = 0.25
"""Of neighbouring tiles, as a fraction of a tile: what is smaller is whole in one of them. As few
tiles as may be are spread over an image, no larger than they need to be for that."""

WHOLE = 0.5
"""Longest side of the view of a whole image, as a fraction of a tile, where there are tiles: large
objects alone are looked for in it."""

SEAM_MARGIN = 4.0
"""Pixels of the view between an inner border and a box that is taken for cut by it: half the stride
of the finest anchors, as the edge of a cut object is not found to the pixel."""

LARGEST_STEP = 6.0
"""Tiles that may lie along an image, without overlap, for the next view to be that of the whole; a
quarter of a tile then is some 21 pixels of 1,024 in it."""


@dataclass(frozen=True)
class View:
    """A part of an image at a scale.

    Attributes:
        source: x1, y1, x2, y2 in pixels of the image that are read, surroundings included.
        size: height and width of `source` in pixels of the view.
        shape: height and width of the part itself in pixels of the view.
        before: rows and columns of the view, above and left of the part, that `source` begins with.
        inner: whether the left, upper, right and lower border lies inside the image.
    """

    source: tuple[int, int, int, int]
    size: tuple[int, int]
    shape: tuple[int, int]
    before: tuple[int, int]
    inner: tuple[bool, bool, bool, bool]

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the view per pixel of the image, along x and y."""
        x1, y1, x2, y2 = self.source
        return self.size[1] / (x2 - x1), self.size[0] / (y2 - y1)

    def to_view(self, boxes: Tensor) -> Tensor:
        """Boxes of the image as boxes of the part, not cut off at its borders."""
        scale, shift = self._affine(boxes)
        return boxes * scale + shift

    def to_image(self, boxes: Tensor) -> Tensor:
        """Undoes `to_view`."""
        scale, shift = self._affine(boxes)
        return (boxes - shift) / scale

    def _affine(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.scale
        top, left = self.before
        scale = boxes.new_tensor([x, y, x, y])
        shift = boxes.new_tensor([-left - self.source[0] * x, -top - self.source[1] * y] * 2)
        return scale, shift


def plan_views(
    height: int, width: int, *, scale: float | None, tile: int, border: int
) -> list[View]:
    """The views of an image, those at full scale first.

    Args:
        height, width: of the image in pixels.
        scale: pixels of the view per pixel of the image; None looks at the whole image once, its
            longer side being as long as a tile.
        tile: longest side of a view in its pixels.
        border: pixels of the view around a part that show what is there in the image.
    """
    if scale is None or max(height, width) * scale <= tile:
        return [whole_view(height, width, scale=scale, tile=tile)]
    whole = whole_view(height, width, scale=WHOLE * tile / max(height, width), tile=tile)
    views: list[View] = []
    longer = max(height, width) * scale
    while longer > tile:
        views += _tiles(height, width, scale, tile, border)
        scale, longer = (scale / 4, longer / 4) if longer > LARGEST_STEP * tile else (scale, 0)
    return [*views, whole]


def whole_view(height: int, width: int, *, scale: float | None, tile: int) -> View:
    """The whole image at a scale; at that which makes its longer side a tile's where it is None."""
    scale = tile / max(height, width) if scale is None else scale
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return View((0, 0, width, height), size, size, (0, 0), (False,) * 4)


def _tiles(height: int, width: int, scale: float, tile: int, border: int) -> list[View]:
    rows, columns = (_spans(length, scale, tile, border) for length in (height, width))
    return [
        View(
            source=(column.start, row.start, column.stop, row.stop),
            size=(row.size, column.size),
            shape=(row.part, column.part),
            before=(row.before, column.before),
            inner=(column.inner[0], row.inner[0], column.inner[1], row.inner[1]),
        )
        for row in rows
        for column in columns
    ]


@dataclass(frozen=True)
class _Span:
    """A view along one axis; see `View`."""

    start: int
    stop: int
    size: int
    part: int
    before: int
    inner: tuple[bool, bool]


def _spans(length: int, scale: float, tile: int, border: int) -> list[_Span]:
    """Where tiles lie along an axis of so many pixels: as few as may be, of one length."""
    longest = tile / scale
    count = math.ceil(max(0, length - longest) / (longest * (1 - OVERLAP))) + 1
    side = min(length, math.ceil(length / (count - OVERLAP * (count - 1))))
    part = min(tile, max(1, round(side * scale)))
    spans = []
    for number in range(count):
        begin = round(number * (length - side) / max(1, count - 1))
        start = max(0, begin - math.ceil(border / scale))
        stop = min(length, begin + side + math.ceil(border / scale))
        size = max(1, round((stop - start) * scale))
        before = round((begin - start) * size / (stop - start))
        spans.append(_Span(start, stop, size, part, before, (number > 0, number < count - 1)))
    return spans


def draw_view(image: Tensor, view: View, canvas: Tensor, border: int) -> None:
    """Put a view into the middle of a canvas, with what surrounds it there as far as it reaches.

    The canvas is `uint8 [3, h + 2 border, w + 2 border]` or larger, `h` and `w` of `view.shape`; it
    keeps its own colour where the image ends, and what it has beyond is left alone.
    """
    x1, y1, x2, y2 = view.source
    pixels = image[:, y1:y2, x1:x2]
    if pixels.shape[1:] != view.size:
        pixels = resize(pixels, list(view.size), antialias=True)
    top, left = border - view.before[0], border - view.before[1]
    height, width = (length + 2 * border for length in view.shape)
    pixels = pixels[:, max(0, -top) : height - top, max(0, -left) : width - left]
    top, left = max(0, top), max(0, left)
    canvas[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels


def whole_in_view(boxes: Tensor, view: View) -> Tensor:
    """`bool [N]`: boxes of the part, in its pixels, that no inner border cuts."""
    height, width = view.shape
    ends = boxes.new_tensor([width, height])
    is_cut = torch.cat([boxes[:, :2] <= SEAM_MARGIN, boxes[:, 2:] >= ends - SEAM_MARGIN], dim=1)
    return ~(is_cut & torch.tensor(view.inner, device=boxes.device)).any(dim=1)


def join_views(
    found: Sequence[Proposals],
    views: Sequence[View],
    size: tuple[int, int],
    *,
    nms_thresh: float,
    limit: int,
) -> Proposals:
    """The proposals of all views of an image as those of the image, best first.

    What an inner border cuts is dropped: the overlap shows it whole in another tile, or if it is
    larger, a view at a smaller scale does. Given are those of each view, in its pixels, best first,
    and (height, width) of the image.
    """
    if len(views) == 1:
        best = Proposals(found[0].boxes[:limit], found[0].scores[:limit])
        return in_image(best, views[0], size)
    kept = [
        (view.to_image(own.boxes[keep]), own.scores[keep])
        for own, view in zip(found, views, strict=True)
        for keep in [whole_in_view(own.boxes, view)]
    ]
    boxes, scores = (torch.cat(parts) for parts in zip(*kept, strict=True))
    chosen = hard_nms(boxes, scores, None, nms_thresh, limit=limit)
    return Proposals(_inside(boxes[chosen], size), scores[chosen])


def in_image(found: Proposals, view: View, size: tuple[int, int]) -> Proposals:
    """What was found in a view, in its pixels, as proposals of the image of (height, width)."""
    return Proposals(_inside(view.to_image(found.boxes), size), found.scores)


def _inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    # Scales are rational: a box may end a rounding error outside.
    height, width = size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def area_in_tiles(height: int, width: int, *, scale: float | None, tile: int) -> float:
    """How many times an image has the area of a tile at this scale, 1 at least."""
    return 1.0 if scale is None else max(1.0, height * width * scale**2 / tile**2)
