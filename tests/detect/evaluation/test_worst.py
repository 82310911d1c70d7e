"""Pictures of the worst images."""

import base64
import io

import numpy as np
import pytest
from helpers.scenes import make_detections
from PIL import Image, ImageColor

from detect.data import DetectionDataset
from detect.evaluation.worst import (
    COLORS,
    HEIGHT,
    MOST_ZOOM,
    READABLE,
    WIDTH,
    region_of_faults,
    worst_images,
)


def dataset_of(path, size, objects, names=("cat", "dog")):
    Image.new("RGB", size, "#808080").save(path)
    return DetectionDataset(
        class_names=list(names),
        category_ids=list(range(1, len(names) + 1)),
        image_ids=[1],
        paths=[str(path)],
        sizes=[size],
        image_index=np.zeros(len(objects), int),
        boxes=np.array([row[:4] for row in objects], float),
        labels=np.array([row[4] for row in objects], int),
        difficult=np.zeros(len(objects), bool),
        crowd=np.zeros(len(objects), bool),
    )


def shown(entry):
    data = base64.b64decode(entry["picture"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def share(pixels, kind, box):
    """Of the outermost pixels of a box, how many have the colour of a kind."""
    x1, y1, x2, y2 = box
    near = (np.abs(pixels - ImageColor.getrgb(COLORS[kind])) < 60).all(axis=2)
    top = near[y1 - 5 : y1 + 5, x1:x2].any(axis=0)
    left = near[y1:y2, x1 - 5 : x1 + 5].any(axis=1)
    return np.concatenate([top, left]).mean()


def test_each_kind_has_its_colour_and_what_is_missed_is_dashed(tmp_path):
    objects = [(50, 50, 150, 150, 1), (250, 50, 350, 150, 1), (50, 200, 150, 300, 2)]
    dataset = dataset_of(tmp_path / "a.png", (480, 320), objects)
    found = [
        (50, 50, 150, 150, 1, 0.9),
        (250, 50, 350, 150, 2, 0.8),  # of the wrong class
        (300, 200, 400, 300, 1, 0.7),
        (0, 0, 20, 20, 1, 0.1),  # below the threshold
    ]
    (entry,) = worst_images(dataset, make_detections([found]), 0.5)
    assert [entry[key] for key in ("name", "right", "missed", "wrong")] == ["a.png", 1, 2, 2]
    assert entry["part"] == ""
    pixels = shown(entry)
    assert pixels.shape == (640, 960, 3)
    places = {"right": (50, 50, 150, 150), "wrong": (300, 200, 400, 300)}
    places["missed"] = (50, 200, 150, 300)
    for kind, box in places.items():
        for other in COLORS:
            drawn = share(pixels, other, [2 * value for value in box])
            low, high = (0.0, 0.1) if other != kind else (0.3, 0.8)
            if other == kind != "missed":
                low, high = 0.9, 1.0
            assert low <= drawn <= high, (kind, other, drawn)
    both = [500, 100, 700, 300]  # the object and the wrong box in its place are both seen
    assert share(pixels, "wrong", both) > 0.8
    assert 0.3 < share(pixels, "missed", both) < 0.8
    assert share(pixels, "wrong", [0, 0, 40, 40]) == 0


@pytest.mark.parametrize("size", [(960, 640), (100, 30), (1, 1)])
def test_an_image_no_larger_than_a_picture_is_shown_whole(size, tmp_path):
    assert region_of_faults(np.array([[0.0, 0, 1, 1]]), *size) == (0, 0, *size)
    dataset = dataset_of(tmp_path / "a.png", size, [(0, 0, 1, 1, 1)])
    (entry,) = worst_images(dataset, make_detections([[]]), 0.5)
    height, width = shown(entry).shape[:2]
    assert (width, height) == tuple(int(min(MOST_ZOOM, 960 / size[0]) * side) for side in size)


def test_of_a_large_image_the_part_with_most_faults_is_shown(tmp_path):
    near = [(3000 + 60 * i, 1500, 3020 + 60 * i, 1520, 1) for i in range(5)]
    dataset = dataset_of(tmp_path / "a.png", (4000, 2250), [*near, (10, 10, 30, 30, 1)])
    (entry,) = worst_images(dataset, make_detections([[]]), 0.5)
    assert entry["part"] == "; shown are 480x320 of 4000x2250 pixels with 5 of these 6 faults"
    dataset = dataset_of(tmp_path / "b.png", (4000, 2250), near)
    (entry,) = worst_images(dataset, make_detections([[]]), 0.5)
    assert entry["part"] == "; shown are 480x320 of 4000x2250 pixels"


@pytest.mark.parametrize("seed", range(20))
def test_the_part_lies_in_the_image_and_its_faults_can_be_seen(seed):
    rng = np.random.default_rng(seed)
    width, height = rng.integers(200, 5000, 2).tolist()
    corner = rng.uniform(0, 0.9, (30, 2)) * (width, height)
    faults = np.hstack([corner, corner + rng.uniform(5, 100)])
    faults = np.minimum(faults, [width, height] * 2)
    x1, y1, x2, y2 = region_of_faults(faults, width, height)
    assert 0 <= x1 < x2 <= width
    assert 0 <= y1 < y2 <= height
    side = np.median(np.sqrt(np.prod(faults[:, 2:] - faults[:, :2], axis=1)))
    scale = min(WIDTH / (x2 - x1), HEIGHT / (y2 - y1))
    # A margin is added to the part that was chosen.
    assert scale * side > min(READABLE, MOST_ZOOM * side) / 1.5 or scale > 1


def test_an_unreadable_image_is_named(tmp_path):
    dataset = dataset_of(tmp_path / "a.png", (100, 100), [(0, 0, 20, 20, 1)])
    (tmp_path / "a.png").write_bytes(b"no image")
    (entry,) = worst_images(dataset, make_detections([[]]), 0.5)
    assert entry["picture"] is None
    assert "a.png" in entry["problem"]
