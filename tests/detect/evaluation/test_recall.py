import contextlib
import io
import math

import pytest
import torch
from helpers.scenes import make_dataset, make_detections, scenes
from hypothesis import given, settings
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detect.evaluation.recall import proposal_recall, recall_by_size


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
    assert [row["recall_50"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert [row["recall_70"] for row in rows] == pytest.approx([0, 1 / 3, 2 / 3])


def test_a_proposal_finds_one_object():
    twins = [(0, 0, 100, 100, 1), (4, 0, 104, 100, 2)]
    dataset = make_dataset([twins])
    first, second = torch.tensor([[1.0, 0, 101, 100], [0, 0, 104, 100]]).split(1)
    assert proposal_recall(dataset, [first])[0]["recall_50"] == 0.5
    both = proposal_recall(dataset, [torch.cat([first, second])])
    assert [row["recall_50"] for row in both] == [0.5, 1.0]


def test_difficult_objects_and_crowds_do_not_count():
    dataset = make_dataset([[(0, 0, 100, 100, 1, 1, 0), (0, 0, 90, 90, 1, 0, 1)]])
    assert proposal_recall(dataset, [torch.tensor([[0.0, 0, 100, 100]])]) == [
        {"count": 1, "recall_50": None, "recall_70": None}
    ]


@settings(max_examples=40, deadline=None)
@given(scenes())
def test_recall_is_cocos_without_classes(scene):
    truth, found = scene
    truth = [[item[:5] for item in items] for items in truth]
    # Equal scores would leave the order to each side.
    found = [[(*hit[:5], 1 - rank / 100) for rank, hit in enumerate(hits)] for hits in found]
    boxes = [image["boxes"] for image in make_detections(found)]
    for row in proposal_recall(make_dataset(truth), boxes):
        want = coco_recall(truth, found, row["count"])
        assert (row["recall_50"], row["recall_70"]) == (
            (None, None) if want is None else pytest.approx(want)
        )


def coco_recall(truth, found, count):
    """pycocotools' recall at 0.5 and 0.7 of the first proposals; None without objects."""
    if not any(truth):
        return None
    if not any(found) or count == 0:
        return 0.0, 0.0

    def entries(images):
        rows = [(number, row) for number, rows in enumerate(images) for row in rows]
        return [
            {
                "id": index + 1,
                "image_id": number,
                "category_id": 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "score": rest[1] if len(rest) > 1 else 1.0,
            }
            for index, (number, (x1, y1, x2, y2, *rest)) in enumerate(rows)
        ]

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": number} for number in range(len(truth))],
            "annotations": entries(truth),
            "categories": [{"id": 1}],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(entries(found)), "bbox")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [count]
        evaluation.params.iouThrs = [0.5, 0.7]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return tuple(evaluation.eval["recall"][:, 0, 0, 0].tolist())


def test_recall_by_size_counts_objects_of_their_own():
    """Two objects of 20 pixels with one proposal between them, one of 50, one difficult."""
    dataset = make_dataset(
        [
            [(0, 0, 20, 20, 1), (2, 0, 22, 20, 2), (100, 100, 150, 150, 3)],
            [(0, 0, 20, 20, 1, 1), (50, 50, 70, 70, 1)],
        ]
    )
    boxes = [
        torch.tensor([[1.0, 0, 21, 20], [100, 100, 150, 140]]),
        torch.tensor([[0.0, 0, 20, 20]]),
    ]
    sides = (0.0, 16.0, 32.0, 64.0, math.inf)
    assert recall_by_size(dataset, boxes, sides) == [None, pytest.approx(1 / 3), 1.0, None]
    # Seen at half the size in the first image and at twice it in the second.
    seen = recall_by_size(dataset, boxes, sides, factors=[0.5, 2.0])
    assert seen == [0.5, 1.0, 0.0, None]
