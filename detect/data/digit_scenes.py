"""Draws one picture of the digits dataset: handwritten digits in ink on part of a photograph."""

from dataclasses import dataclass, field

import cv2
import numpy as np

DIGIT_COUNT = (3, 10)
"""Fewest and most digits in a picture."""

DIGIT_HEIGHT = (10, 60)
"""Lowest and highest box of a digit in pixels."""

VISIBLE_ALPHA = 0.35
"""Pixels with at least this much ink belong to the digit, and to its box."""

# Digits are drawn large, then reduced: edges stay smooth at any height.
_GLYPH = 100  # pixels a side of an upright scan
_CANVAS = 180  # pixels a side of what it is turned on
_GAP = 2  # pixels at least between boxes
_MIN_CONTRAST = 80.0  # grey levels between ink and the mean of what it is written on
_MAX_CAMOUFLAGE = 0.15  # fraction of the pixels written on that may be about as dark as the ink
_CAMOUFLAGE_CONTRAST = 50.0  # grey levels


@dataclass
class Scene:
    """A picture and what is in it.

    Attributes:
        image: `uint8 [S, S, 3]` RGB.
        boxes: x1, y1, x2, y2 of each digit in whole pixels, half-open, tight on the visible ink.
        scans: index of the scan of each digit.
    """

    image: np.ndarray
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    scans: list[int] = field(default_factory=list)


def draw_scene(
    photograph: np.ndarray,
    scans: np.ndarray,
    allowed: np.ndarray,
    size: int,
    random: np.random.Generator,
) -> Scene:
    """Write random digits onto a random part of a photograph.

    Args:
        photograph: `uint8 [H, W, 3]` RGB.
        scans: `[D, 8, 8]` ink from 0 to 16.
        allowed: indices of the scans to draw from.
        size: width and height of the picture in pixels.
        random: source of everything random.
    """
    scene = Scene(_background(photograph, size, random))
    wanted = int(random.integers(DIGIT_COUNT[0], DIGIT_COUNT[1] + 1))
    # A part without place or contrast is given up after a while, but never an empty picture.
    attempts = 0
    while len(scene.boxes) < wanted and (attempts < 200 or len(scene.boxes) < DIGIT_COUNT[0]):
        attempts += 1
        scan = int(random.choice(allowed))
        alpha = _ink(scans[scan] / 16, random)
        height, width = alpha.shape
        x, y = (int(random.integers(0, size - side + 1)) for side in (width, height))
        box = (x, y, x + width, y + height)
        if any(_touch(box, other) for other in scene.boxes):
            continue
        patch = scene.image[y : y + height, x : x + width]
        colour = _ink_colour(patch, random)
        if colour is None:
            continue
        cover = (alpha * random.uniform(0.85, 1.0))[..., None]
        patch[:] = np.rint(patch * (1 - cover) + colour * cover)
        scene.boxes.append(box)
        scene.scans.append(scan)
    return scene


def _background(photograph: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """A random square of the photograph as `uint8 [size, size, 3]`, with some change of light."""
    limit = min(photograph.shape[:2])
    side = int(random.integers(int(0.6 * limit), limit + 1))
    y, x = (int(random.integers(0, length - side + 1)) for length in photograph.shape[:2])
    part = photograph[y : y + side, x : x + side]
    if random.random() < 0.5:
        part = part[:, ::-1]
    method = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    part = cv2.resize(np.ascontiguousarray(part), (size, size), interpolation=method)
    changed = part * random.uniform(0.8, 1.1) + random.uniform(-15, 15)
    return np.rint(changed).clip(0, 255).astype(np.uint8)


def _ink(scan: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A scan `[8, 8]` in 0..1 in a random pose, as ink `float32 [h, w]` in 0..1, cut to its box."""
    # The scans fill their 8×8 pixels: without the border, strokes would end in straight cuts.
    padded = np.pad(scan.astype(np.float32), 1)
    smooth = cv2.resize(padded, (_GLYPH, _GLYPH), interpolation=cv2.INTER_CUBIC)
    angle = np.deg2rad(random.uniform(-20, 20))
    shear, stretch = random.uniform(-0.15, 0.15), random.uniform(0.85, 1.15)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = rotation @ np.array([[stretch, shear], [0, 1]])
    shift = np.full(2, _CANVAS / 2) - linear @ np.full(2, _GLYPH / 2)
    posed = cv2.warpAffine(smooth, np.column_stack([linear, shift]), (_CANVAS, _CANVAS))
    # More contrast makes strokes of a blurred scan; enough grey stays to tell an 8 by its holes.
    ink = ((posed - 0.25) / 0.5).clip(0, 1)
    visible = ink >= VISIBLE_ALPHA
    rows, columns = (np.flatnonzero(visible.any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    low, high = np.log(DIGIT_HEIGHT[0]), np.log(DIGIT_HEIGHT[1])
    height = round(np.exp(random.uniform(low, high)))
    width = max(1, round(ink.shape[1] * height / ink.shape[0]))
    return cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA)


def _ink_colour(patch: np.ndarray, random: np.random.Generator) -> np.ndarray | None:
    """A dark or light colour `[3]` that can be read on `uint8 [h, w, 3]`; None if neither can."""
    grey = cv2.cvtColor(np.ascontiguousarray(patch), cv2.COLOR_RGB2GRAY).astype(np.float32)
    tint = random.uniform(0, 90, 3)
    candidates = [tint, 255 - tint]
    if random.random() < 0.5:
        candidates.reverse()
    for colour in candidates:
        luminance = colour @ (0.299, 0.587, 0.114)
        camouflage = (np.abs(grey - luminance) < _CAMOUFLAGE_CONTRAST).mean()
        contrast = abs(grey.mean() - luminance)
        if contrast >= _MIN_CONTRAST and camouflage <= _MAX_CAMOUFLAGE:
            return colour
    return None


def _touch(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return (
        box[0] < other[2] + _GAP
        and other[0] < box[2] + _GAP
        and box[1] < other[3] + _GAP
        and other[1] < box[3] + _GAP
    )
