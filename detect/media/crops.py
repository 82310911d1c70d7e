"""What is in the boxes of an image, cut out."""

from collections.abc import Iterator

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


def folder_of(class_name: str) -> str:
    """The name of a folder for the crops of a class, which file systems have room for."""
    name = printable(class_name).replace("/", "_").lstrip(".").encode()[:LONGEST_NAME]
    return name.decode("utf-8", "ignore") or "_"


def printable(name: str) -> str:
    """A name for files and lines of text: without line ends and what else is no character."""
    return "".join(letter if letter.isprintable() else "_" for letter in name).strip()
