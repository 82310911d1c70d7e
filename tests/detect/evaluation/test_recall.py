import numpy as np
import torch
from helpers.scenes import make_dataset, scenes
from hypothesis import given, settings
from hypothesis import strategies as st

from detect.evaluation.recall import proposal_recall


def test_counts_and_thresholds():
    dataset = make_dataset([[(0, 0, 100, 100, 1), (200, 200, 300, 300, 2)], [(0, 0, 50, 50, 3)]])
    first = torch.tensor(
        [
            [0, 0, 100, 60],  # IoU 0.6 with the first
            [200, 200, 300, 280],  # 0.8 with the second
            [0, 0, 100, 100],
        ]
    ).float()
    rows = proposal_recall(dataset, [first, torch.zeros(0, 4)])
    assert [row["count"] for row in rows] == [1, 2, 3]
    assert [row["recall_50"] for row in rows] == np.float32([1, 2, 2] / np.float32(3)).tolist()
    assert [row["recall_70"] for row in rows] == np.float32([0, 1, 2] / np.float32(3)).tolist()


def test_difficult_objects_and_crowds_do_not_count():
    dataset = make_dataset([[(0, 0, 100, 100, 1, 1, 0), (0, 0, 90, 90, 1, 0, 1)]])
    assert proposal_recall(dataset, [torch.tensor([[0.0, 0, 100, 100]])]) == [
        {"count": 1, "recall_50": None, "recall_70": None}
    ]


@settings(max_examples=30, deadline=None)
@given(scenes(), st.integers(1, 6))
def test_against_counting_one_by_one(scene, count):
    truth, found = scene
    dataset = make_dataset(truth)
    boxes = [torch.tensor([row[:4] for row in rows]).float().reshape(-1, 4) for rows in found]
    rows = {row["count"]: row for row in proposal_recall(dataset, boxes)}
    if count not in rows:
        return
    for threshold, key in ((0.5, "recall_50"), (0.7, "recall_70")):
        hits, objects = 0, 0
        for items, proposals in zip(truth, found, strict=True):
            for x1, y1, x2, y2, _, difficult in items:
                if difficult:
                    continue
                objects += 1
                for px1, py1, px2, py2, *_ in proposals[:count]:
                    width = max(0, min(x2, px2) - max(x1, px1))
                    shared = width * max(0, min(y2, py2) - max(y1, py1))
                    union = (x2 - x1) * (y2 - y1) + (px2 - px1) * (py2 - py1) - shared
                    if shared >= threshold * union:
                        hits += 1
                        break
        if objects:
            assert abs(rows[count][key] - hits / objects) < 1e-6
        else:
            assert rows[count][key] is None
