"""A dataset that a detector learns in seconds: red and blue rectangles on grey noise."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 96
COLOURS = [(220, 40, 40), (40, 60, 220)]


def make_shapes(folder: Path, count: int, seed: int = 0) -> Path:
    """A split `train` in COCO's layout: `count` images of 96 pixels with two objects each."""
    random = np.random.default_rng(seed)
    (folder / "train").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        pixels = random.integers(90, 120, (SIDE, SIDE, 3)).astype(np.uint8)
        for left in (0, SIDE // 2):
            width, height = (int(side) for side in random.integers(26, 36, 2))
            x = left + int(random.integers(2, SIDE // 2 - width))
            y = int(random.integers(2, SIDE - height))
            kind = int(random.integers(2))
            pixels[y : y + height, x : x + width] = COLOURS[kind]
            box = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
            keys = {"id": len(annotations) + 1, "image_id": number, "category_id": kind + 1}
            annotations.append(keys | box)
        Image.fromarray(pixels).save(folder / "train" / f"{number}.png")
        size = {"width": SIDE, "height": SIDE}
        images.append({"id": number, "file_name": f"{number}.png", **size})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir()
    (folder / "annotations" / "train.json").write_text(json.dumps(document))
    return folder
