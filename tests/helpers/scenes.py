"""Small datasets and detections for the tests of evaluation."""

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from detect.data import DetectionDataset

SIZE = 300
CATEGORY_IDS = [3, 17, 90]


def make_dataset(
    images: list[list[tuple]], category_ids: list[int] = CATEGORY_IDS
) -> DetectionDataset:
    """Images as lists of objects (x1, y1, x2, y2, label[, difficult[, crowd]])."""
    rows = [(index, (*item, 0, 0)[:7]) for index, items in enumerate(images) for item in items]
    return DetectionDataset(
        class_names=[f"class {category_id}" for category_id in category_ids],
        category_ids=category_ids,
        image_ids=[100 + 7 * index for index in range(len(images))],
        paths=[f"{index}.png" for index in range(len(images))],
        sizes=[(SIZE, SIZE)] * len(images),
        image_index=np.array([index for index, _ in rows], int),
        boxes=np.array([row[:4] for _, row in rows], float).reshape(-1, 4),
        labels=np.array([row[4] for _, row in rows], int),
        difficult=np.array([row[5] for _, row in rows], bool),
        crowd=np.array([row[6] for _, row in rows], bool),
    )


def make_detections(images: list[list[tuple]]) -> list[dict[str, Tensor]]:
    """Images as lists of detections (x1, y1, x2, y2, label, score)."""
    return [
        {
            "boxes": torch.tensor([row[:4] for row in rows]).float().reshape(-1, 4),
            "labels": torch.tensor([row[4] for row in rows], dtype=torch.int64),
            "scores": torch.tensor([row[5] for row in rows], dtype=torch.float32),
        }
        for rows in images
    ]


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[list[tuple]], list[list[tuple]]]:
    """Objects and detections, crowded enough to compete, with tied scores."""
    truth: list[list[tuple]] = []
    found: list[list[tuple]] = []
    place, side = st.integers(0, 6).map(lambda v: v * 8), st.integers(1, 14).map(lambda v: v * 8)
    label = st.integers(1, 3)
    for _ in range(draw(st.integers(1, 4))):
        objects: list[tuple] = []
        for _ in range(draw(st.integers(0, 4))):
            x, y = draw(place), draw(place)
            box = (x, y, x + draw(side), y + draw(side))
            objects.append((*box, draw(label), draw(st.booleans())))
        hits = []
        for _ in range(draw(st.integers(0, 6))):
            near = draw(st.booleans())
            if objects and near:
                x1, y1, x2, y2, kind, _ = draw(st.sampled_from(objects))
                move = draw(st.integers(-3, 3))
                box, kind = (x1 + move, y1, x2 + move, y2), draw(st.sampled_from([kind, 1]))
            else:
                x, y = draw(place), draw(place)
                box, kind = (x, y, x + draw(side), y + draw(side)), draw(label)
            hits.append((*box, kind, draw(st.integers(1, 8)) / 8))
        truth.append(objects)
        found.append(hits)
    return truth, found
