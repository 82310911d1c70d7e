"""Seams between blocks, with a detector that finds every bright rectangle that it is shown."""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from detect.blocks import BLOCK, MARGIN, Block, detect_in_blocks, plan_blocks


class Canvas:
    """Bright rectangles on black, drawn where they are read."""

    def __init__(self, height: int, width: int, boxes: list[tuple[int, int, int, int]]) -> None:
        self.height, self.width, self.boxes = height, width, boxes
        self.pixels_read = 0
        self.largest = 0

    def read(self, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
        left, top, right, bottom = box
        part = np.zeros((bottom - top, right - left), np.uint8)
        for x1, y1, x2, y2 in self.boxes:
            part[max(0, y1 - top) : max(0, y2 - top), max(0, x1 - left) : max(0, x2 - left)] = 255
        pixels = torch.from_numpy(part).expand(3, -1, -1)
        self.pixels_read += size[0] * size[1]
        self.largest = max(self.largest, size[0] * size[1])
        return pixels if pixels.shape[1:] == size else resize(pixels, list(size), antialias=True)


def find_rectangles(
    parts: Iterable[tuple[Block, Tensor]],
) -> Iterator[tuple[Block, Tensor, dict[str, Tensor]]]:
    """Also what a border cuts, as a detector does."""
    for block, image in parts:
        _, _, rows, _ = cv2.connectedComponentsWithStats((image[0].numpy() > 127).astype(np.uint8))
        x, y, width, height = torch.from_numpy(rows[1:, :4]).float().unbind(1)
        boxes = torch.stack([x, y, x + width, y + height], dim=1)
        # Whole ones are not found with the best scores, as if by a network.
        scores = 0.5 + 0.4 * torch.rand(len(boxes))
        found = {"boxes": boxes, "labels": torch.ones(len(boxes)).long(), "scores": scores}
        yield block, image, found


def assert_found_once(canvas: Canvas, scale: float) -> None:
    found = detect_in_blocks(canvas, find_rectangles, scale)
    assert (found["scores"].diff() <= 0).all()
    assert len(found["boxes"]) == len(canvas.boxes), found["boxes"].tolist()
    order = sorted(found["boxes"].tolist())
    for box, expected in zip(order, sorted(map(list, canvas.boxes)), strict=True):
        # An object that is read at a smaller size is found to a pixel of that.
        longer = max(box[2] - box[0], box[3] - box[1]) * scale / MARGIN
        allowed = 1 if longer < 1.5 else 4 if longer < 6 else 16
        assert box == pytest.approx(expected, abs=allowed)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_an_object_anywhere_across_a_seam_is_found_once(data):
    height, width = 3000, 5000
    edges = sorted(
        {edge for b in plan_blocks(height, width, 1.0) if b.shrink == 1 for edge in b.core}
    )
    side = data.draw(st.integers(12, 2 * MARGIN - 40))
    around = data.draw(st.sampled_from(edges))
    x = int(np.clip(around - data.draw(st.integers(-20, side + 20)), 0, width - side))
    y = int(np.clip(data.draw(st.integers(0, height - side)), 0, height - side))
    assert_found_once(Canvas(height, width, [(x, y, x + side, y + side)]), 1.0)


@pytest.mark.parametrize("side", range(366, 396, 3))
def test_an_object_about_as_large_as_a_smaller_image_takes_is_found_once(side):
    """There its box is rounded to four pixels, and may be the larger."""
    assert_found_once(Canvas(2200, 2200, [(0, 1, side, 1 + side)]), 1.0)


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
def test_objects_of_all_sizes_are_found_once(scale):
    """From 10 pixels that the proposer sees to most of the image."""
    sides = [10, 40, 150, 300, 420, 600, 1500]
    boxes, x = [], 30
    for side in sides:
        pixels = round(side / scale)
        boxes.append((x, 100, x + pixels, 100 + pixels))
        x += pixels + round(60 / scale)
    boxes.append((50, 4000, 7000, 6000))
    assert_found_once(Canvas(6500, 8000, boxes), scale)


def test_a_crowd_of_objects_is_found_once_each():
    boxes = [(x, y, x + 30, y + 30) for x in range(5, 4900, 47) for y in range(5, 4900, 47)]
    assert_found_once(Canvas(5000, 5000, boxes), 1.0)


def test_memory_and_work_are_bounded_by_the_area():
    read = []
    for side in (4096, 8192, 16384):
        canvas = Canvas(side, side, [(100, 100, 140, 140)])
        assert_found_once(canvas, 1.0)
        assert canvas.largest <= (BLOCK + 2 * MARGIN) ** 2
        read.append(canvas.pixels_read / side**2)
    # Margins are 1.25² and smaller sizes 1/15 more.
    assert max(read) < 1.7


def test_blocks_of_a_small_image_are_itself():
    (block,) = plan_blocks(480, 640, 1.0)
    assert block == Block((0, 0, 640, 480), (0, 0, 640, 480), 1, 0.0)
    assert block.size == (480, 640)
