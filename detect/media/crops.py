"""What is in the boxes of an image, cut out."""

import itertools
from collections.abc import Iterator, Sequence

from torch import Tensor

from detect.blocks import Parts

LONGEST_NAME = 200
"""Bytes of a result's name without its suffix: file systems have room for 255."""


def cut_crops(image: Parts, boxes: Tensor) -> Iterator[Tensor]:
    """What is in each box, `uint8` RGB `[3, h, w]`, at least a pixel.

    Args:
        image: read part by part, or in memory.
        boxes: `[N, 4]` xyxy in pixels, inside the image.
    """
    for x1, y1, x2, y2 in boxes.tolist():
        left, top = min(int(x1), image.width - 1), min(int(y1), image.height - 1)
        right, bottom = max(left + 1, round(x2)), max(top + 1, round(y2))
        yield image.read((left, top, right, bottom), (bottom - top, right - left))


def class_folders(class_names: Sequence[str]) -> list[str]:
    """Names of folders for the crops of each class, all different; file systems have room for
    them."""
    folders: list[str] = []
    for name in class_names:
        plain = printable(name).replace("/", "_").lstrip(".").encode()[:LONGEST_NAME]
        first = plain.decode("utf-8", "ignore") or "_"
        numbered = itertools.chain([first], (f"{first}_{k}" for k in itertools.count(2)))
        folders.append(next(folder for folder in numbered if folder not in folders))
    return folders


def printable(name: str) -> str:
    """A name for files and lines of text: without line ends and what else is no character."""
    return "".join(letter if letter.isprintable() else "_" for letter in name).strip()
