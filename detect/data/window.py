"""The part of a picture that a training example shows, and the size at which it shows it.

An example is as large as its picture, or as the largest canvas where the picture is larger. What it
shows is enlarged by a random factor, so that a proposer meets objects in other sizes, whether it
looks at pixels as they are or at the whole example.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

GREY = 128
"""What surrounds a picture that is smaller than its canvas: to the networks nearly nothing, as they
take off the mean colour."""

AROUND_OBJECT = 0.5
"""Share of the windows that hold a random object; the others lie anywhere, empty ones too."""


class Span(NamedTuple):
    """A window along one axis, in whole pixels.

    Attributes:
        start: first pixel of the picture that is shown.
        stop: end of these.
        length: of what is shown, in pixels of the example.
        before: pixels of the example before it.
        canvas: pixels of the example.
    """

    start: int
    stop: int
    length: int
    before: int
    canvas: int


class Window(NamedTuple):
    """A window along x and y."""

    x: Span
    y: Span


def count_windows(height: int, width: int, canvas: int | None) -> int:
    """How many windows an epoch shows of a picture: as many as cover its area, at least 1."""
    if canvas is None:
        return 1
    return max(1, round(height * width / (min(height, canvas) * min(width, canvas))))


def draw_window(
    rng: np.random.Generator,
    size: tuple[int, int],
    canvas: int | None,
    scale: tuple[float, float],
    objects: Tensor,
) -> Window:
    """A random window.

    Args:
        rng: decides.
        size: height and width of the picture.
        canvas: longest side of an example in pixels; None for that of the picture.
        scale: range of the factor between pixels of the picture and of the example; as often in
            the lower as in the upper half of its logarithm.
        objects: `float32 [G, 4]` xyxy in the picture, one of which is shown whole in half of the
            windows, or as much of it as there is room for.
    """
    factor = float(np.exp(rng.uniform(*np.log(scale))))
    chosen = None
    if len(objects) and rng.random() < AROUND_OBJECT:
        chosen = objects[int(rng.integers(len(objects)))].tolist()
    height, width = size
    spans = []
    for axis, length in ((0, width), (1, height)):
        around = None if chosen is None else (chosen[axis], chosen[axis + 2])
        spans.append(_draw_span(rng, length, canvas, factor, around))
    return Window(*spans)


def _draw_span(
    rng: np.random.Generator,
    length: int,
    canvas: int | None,
    factor: float,
    around: tuple[float, float] | None,
) -> Span:
    canvas = length if canvas is None else min(length, canvas)
    if length * factor <= canvas:
        shown = max(1, round(length * factor))
        return Span(0, length, shown, int(rng.integers(canvas - shown + 1)), canvas)
    source = min(length, max(1, round(canvas / factor)))
    first, last = 0, length - source
    if around is not None:
        # Of an object that is longer than the window, some part is shown.
        begin, end = int(np.floor(around[0])), int(np.ceil(around[1]))
        low, high = sorted((end - source, begin))
        first, last = (min(max(0, bound), length - source) for bound in (low, high))
    start = int(rng.integers(first, last + 1))
    return Span(start, start + source, canvas, 0, canvas)


def cut_window(image: Tensor, window: Window) -> Tensor:
    """What a window of an image `uint8 [3, H, W]` shows: `uint8 [3, h, w]`, grey beyond it."""
    x, y = window
    pixels = image[:, y.start : y.stop, x.start : x.stop].permute(1, 2, 0).numpy()
    if pixels.shape[:2] != (y.length, x.length):
        shrinks = x.length * y.length < pixels.shape[0] * pixels.shape[1]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        pixels = cv2.resize(pixels, (x.length, y.length), interpolation=method)
    if (y.canvas, x.canvas) != (y.length, x.length):
        canvas = np.full((y.canvas, x.canvas, 3), GREY, dtype=np.uint8)
        canvas[y.before : y.before + y.length, x.before : x.before + x.length] = pixels
        pixels = canvas
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def boxes_in_window(boxes: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Boxes of the picture, `float32 [N, 4]` xyxy, as what a window shows of them.

    Returns:
        The boxes in pixels of the example, cut off at its borders, and `float32 [N]`, the fraction
        of each that is shown.
    """
    x, y = window
    start = boxes.new_tensor([x.start, y.start] * 2)
    stop = boxes.new_tensor([x.stop, y.stop] * 2)
    scale = boxes.new_tensor([x.length / (x.stop - x.start), y.length / (y.stop - y.start)] * 2)
    shown = boxes.maximum(start).minimum(stop)
    visible = _area(shown) / _area(boxes).clamp(min=torch.finfo(boxes.dtype).tiny)
    return (shown - start) * scale + boxes.new_tensor([x.before, y.before] * 2), visible


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
