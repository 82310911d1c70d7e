"""Post-processing: hard and soft suppression against torchvision and plain NumPy."""

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms, nms

from detect.boxes.suppression import hard_nms, soft_nms
from detect.rcnn.config import RCNNConfig
from detect.rcnn.postprocess import select_detections

boxes_of_classes = st.lists(
    st.tuples(
        *(st.integers(0, 20), st.integers(0, 20), st.integers(4, 20), st.integers(4, 20)),
        *(st.integers(1, 100), st.integers(1, 2)),
    ),
    min_size=1,
    max_size=12,
    # Ties are taken in an order that nothing promises.
    unique_by=lambda row: row[4],
)


def columns(rows: list[tuple]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = np.array(rows, np.float64)
    boxes = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], axis=1)
    return boxes, table[:, 4] / 100, table[:, 5].astype(np.int64)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    inter = max(width, 0) * max(height, 0)
    return inter / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter)


def tensors(rows: list[tuple]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    boxes, scores, labels = columns(rows)
    return torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels)


@settings(deadline=None)
@given(rows=boxes_of_classes, sigma=st.sampled_from([0.1, 0.5, 2.0]))
def test_soft_suppression_is_the_papers_loop(rows, sigma):
    boxes, scores, labels = columns(rows)
    left = list(range(len(boxes)))
    want = []
    while left:
        best = max(left, key=lambda i: scores[i])
        if scores[best] < 0.05:
            break
        want.append((best, scores[best]))
        left.remove(best)
        for i in left:
            if labels[i] == labels[best]:
                scores[i] *= np.exp(-(iou(boxes[i], boxes[best]) ** 2) / sigma)
    options = {"sigma": sigma, "score_thresh": 0.05, "limit": 100}
    chosen, found = soft_nms(*tensors(rows), **options)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("detect.boxes.suppression.FEW", 1)  # of more boxes, one after the other
        for one, other in zip(soft_nms(*tensors(rows), **options), (chosen, found), strict=True):
            assert torch.equal(one, other)
    np.testing.assert_allclose(found.numpy(), [score for _, score in want], atol=1e-9)
    # Boxes whose scores come to a tie by the arithmetic may change places.
    if len({round(score, 9) for _, score in want}) == len(want):
        assert chosen.tolist() == [i for i, _ in want]


@pytest.mark.parametrize("limit", [1, 7, 40, 400])
@pytest.mark.parametrize("spread", [0.0, 60.0, 1000.0])
def test_hard_suppression_begins_as_torchvisions(limit, spread):
    """Of boxes all over each other, of which it must look at all to find few, and of others."""
    generator = torch.Generator().manual_seed(limit)
    corners = spread * torch.rand(300, 2, generator=generator)
    boxes = torch.cat([corners, corners + 20 + torch.rand(300, 2, generator=generator)], dim=1)
    scores = torch.randint(1, 40, (300,), generator=generator) / 40  # with ties
    labels = torch.randint(1, 4, (300,), generator=generator)
    alike = hard_nms(boxes, scores, None, 0.5, limit=limit)
    assert torch.equal(alike, nms(boxes, scores, 0.5)[:limit])
    by_class = hard_nms(boxes, scores, labels, 0.5, limit=limit)
    assert torch.equal(by_class, batched_nms(boxes, scores, labels, 0.5)[:limit])


def test_hard_suppression_of_nothing():
    assert hard_nms(torch.zeros(0, 4), torch.zeros(0), None, 0.5, limit=3).tolist() == []


def one_class_each(rows: list[tuple]) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (x1, y1, x2, y2, score of class 1, of class 2) as `select_detections` takes them."""
    table = torch.tensor(rows)
    return table[:, None, :4].expand(-1, 2, -1), table[:, 4:]


def test_suppression_is_per_class_and_detections_are_capped():
    boxes, scores = one_class_each(
        [(0.0, 0, 10, 10, 0.9, 0.8), (1, 0, 10, 10, 0.7, 0.05), (50, 50, 60, 60, 0.3, 0)]
    )
    config = RCNNConfig(nms_thresh=0.5, score_thresh=0.1)
    found = select_detections(boxes, scores, config, 2)
    assert found["labels"].tolist() == [1, 2]
    assert found["scores"].tolist() == pytest.approx([0.9, 0.8])


def test_thresholds_of_scores_and_of_overlap():
    boxes, scores = one_class_each(
        [(0.0, 0, 10, 10, 0.9, 0.0), (4, 0, 14, 10, 0.5, 0.0), (50, 50, 60, 60, 0.2, 0.0)]
    )
    # The first two have the IoU 6 / 14 = 0.43.
    for score_thresh, nms_thresh, want in (
        (0.1, 0.5, [0.9, 0.5, 0.2]),
        (0.1, 0.4, [0.9, 0.2]),
        (0.2, 0.5, [0.9, 0.5, 0.2]),
        (0.3, 0.5, [0.9, 0.5]),
        (0.6, 0.5, [0.9]),
    ):
        config = RCNNConfig(score_thresh=score_thresh, nms_thresh=nms_thresh)
        found = select_detections(boxes, scores, config, 100)
        assert found["scores"].tolist() == pytest.approx(want)


def test_soft_suppression_finds_a_neighbour_that_hard_suppression_drops():
    boxes, scores = one_class_each(
        [(0.0, 0, 10, 10, 0.9, 0.0), (2, 0, 12, 10, 0.8, 0.0), (0, 0, 10, 9, 0.1, 0.0)]
    )
    hard = select_detections(boxes, scores, RCNNConfig(nms_thresh=0.5), 100)
    assert hard["scores"].tolist() == pytest.approx([0.9])
    soft = select_detections(boxes, scores, RCNNConfig(soft_nms_sigma=0.5), 100)
    # IoU 2 / 3; the third box falls below the score threshold of 0.05.
    assert soft["scores"].tolist() == pytest.approx([0.9, 0.8 * np.exp(-((2 / 3) ** 2) / 0.5)])
    assert soft["boxes"].tolist() == [[0, 0, 10, 10], [2, 0, 12, 10]]
    config = RCNNConfig(soft_nms_sigma=0.5)
    assert len(select_detections(boxes, scores, config, 1)["boxes"]) == 1


def crowd(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping boxes `[60, 3, 4]`, those of a row the same for each class, and scores."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(60, 2, generator=random) * 40
    boxes = torch.cat([corners, corners + 5 + 20 * torch.rand(60, 2, generator=random)], dim=1)
    return boxes[:, None].expand(-1, 3, -1), torch.rand(60, 3, generator=random)


@pytest.mark.parametrize("agnostic", [False, True])
def test_suppression_among_all_classes_or_in_each_is_torchvisions(agnostic):
    boxes, scores = crowd(0)
    config = RCNNConfig(nms_thresh=0.4, score_thresh=0.0, agnostic_nms=agnostic)
    found = select_detections(boxes, scores, config, 1000)
    flat, labels = boxes.reshape(-1, 4), torch.arange(1, 4).repeat(60)
    if agnostic:
        kept = torchvision.ops.nms(flat, scores.flatten(), 0.4)
    else:
        kept = torchvision.ops.batched_nms(flat, scores.flatten(), labels, 0.4)
    assert torch.equal(found["boxes"], flat[kept])
    assert torch.equal(found["labels"], labels[kept])
    assert torch.equal(found["scores"], scores.flatten()[kept])
    assert len(kept) < (60 if agnostic else 120)


def test_soft_suppression_among_all_classes():
    boxes, scores = one_class_each([(0.0, 0, 10, 10, 0.9, 0.8)])
    found = select_detections(boxes, scores, RCNNConfig(soft_nms_sigma=0.5, agnostic_nms=True), 9)
    assert found["labels"].tolist() == [1, 2]
    assert found["scores"].tolist() == pytest.approx([0.9, 0.8 * np.exp(-1 / 0.5)])


def test_classes_that_are_not_wanted_neither_suppress_nor_count():
    boxes, scores = crowd(1)
    config = RCNNConfig(nms_thresh=0.4, score_thresh=0.0, agnostic_nms=True)
    found = select_detections(boxes, scores, config, 5, torch.tensor([False, True, False]))
    kept = torchvision.ops.nms(boxes[:, 1], scores[:, 1], 0.4)[:5]
    assert torch.equal(found["boxes"], boxes[kept, 1])
    assert found["labels"].tolist() == [2] * 5


@pytest.mark.parametrize("options", [{}, {"soft_nms_sigma": 0.5}])
def test_nothing_comes_of_nothing(options):
    config = RCNNConfig(**options)
    for boxes, scores in (
        (torch.zeros(0, 2, 4), torch.zeros(0, 2)),
        # Without area, and below the threshold.
        (torch.tensor([[[5.0, 5, 5, 9]] * 2, [[0.0, 0, 9, 9]] * 2]), torch.tensor([[0.9], [0.01]])),
    ):
        found = select_detections(boxes, scores.expand(-1, 2), config, 100)
        assert found["boxes"].shape == (0, 4)
        assert found["labels"].dtype == torch.int64
        assert found["scores"].dtype == torch.float32
