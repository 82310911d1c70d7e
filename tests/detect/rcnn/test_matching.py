import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from detect.boxes.coding import decode_boxes, encode_boxes, of_class, pairwise_iou
from detect.proposals import Proposals
from detect.rcnn.config import RCNNConfig
from detect.rcnn.matching import jitter_boxes, match_proposals, sample_minibatch
from detect.rcnn.minibatch import add_candidates, sample_crops

STD = (0.1, 0.1, 0.2, 0.2)


def random_boxes(seed: int, count: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 80, (count, 2))
    return torch.tensor(
        np.hstack([corners, corners + rng.uniform(2, 60, (count, 2))]), dtype=torch.float32
    )


def test_encoding_by_hand():
    deltas = encode_boxes(
        torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[5.0, 0.0, 25.0, 10.0]]), (1, 1, 1, 1)
    )
    want = [[(15 - 5) / 10, (5 - 10) / 20, math.log(20 / 10), math.log(10 / 20)]]
    torch.testing.assert_close(deltas, torch.tensor(want))


def test_encoding_is_torchvisions():
    proposals, gt = random_boxes(0, 50), random_boxes(1, 50)
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(
        encode_boxes(proposals, gt, STD), coder.encode_single(gt, proposals), rtol=1e-4, atol=1e-4
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_decoding_inverts_encoding(seed):
    proposals, gt = random_boxes(seed, 8), random_boxes(seed + 1, 8)
    decoded = decode_boxes(proposals, encode_boxes(proposals, gt, STD), STD)
    torch.testing.assert_close(decoded, gt, rtol=1e-4, atol=1e-3)


def test_class_specific_deltas_decode_each_on_their_own():
    proposals, deltas = random_boxes(2, 5), torch.randn(5, 3, 4)
    together = decode_boxes(proposals, deltas, STD)
    for k in range(3):
        torch.testing.assert_close(together[:, k], decode_boxes(proposals, deltas[:, k], STD))


def test_deltas_of_a_class():
    deltas, labels = torch.randn(3, 4, 4), torch.tensor([4, 1, 2])
    want = torch.stack([deltas[0, 3], deltas[1, 0], deltas[2, 1]])
    assert torch.equal(of_class(deltas, labels), want)


def test_wild_deltas_stay_finite():
    assert torch.isfinite(
        decode_boxes(random_boxes(0, 1), torch.full((1, 4), 1e4), (1, 1, 1, 1))
    ).all()


def test_matching_bounds():
    gt = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    # IoUs 1, 0.5 and 0.4 by construction.
    proposals = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 5, 10], [0.0, 0, 4, 10]])
    matched, labels = match_proposals(proposals, gt, torch.tensor([7]), 0.5, 0.45)
    assert labels.tolist() == [7, 7, 0]
    assert matched.tolist() == [0, 0, 0]
    _, labels = match_proposals(proposals, gt, torch.tensor([7]), 0.6, 0.45)
    assert labels.tolist() == [7, -1, 0]
    with pytest.raises(ValueError, match="must not exceed"):
        match_proposals(proposals, gt, torch.tensor([7]), 0.4, 0.5)


def test_without_objects_everything_is_background():
    _, labels = match_proposals(
        random_boxes(0, 3), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 0.5, 0.5
    )
    assert labels.tolist() == [0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-1, 3), max_size=60), st.integers(1, 40), st.sampled_from([0.25, 0.5, 1.0])
)
def test_minibatch_composition(values, size, fraction):
    labels = torch.tensor(values, dtype=torch.int64)
    chosen = sample_minibatch(labels, size, fraction)
    assert len(set(chosen.tolist())) == len(chosen)
    picked = labels[chosen]
    assert (picked >= 0).all()
    positives = int((picked > 0).sum())
    # No more than the fraction, and no whole crop less.
    assert positives <= size * fraction
    assert positives == int((labels > 0).sum()) or positives + 1 > size * fraction
    assert len(picked) - positives == min(int((labels == 0).sum()), size - positives)


def test_jitter_stays_near_and_inside():
    torch.manual_seed(0)
    boxes = torch.tensor([[10.0, 10.0, 30.0, 40.0], [60.0, 60.0, 99.0, 99.0]])
    assert torch.equal(jitter_boxes(boxes, 2, 0.0, (100, 100)), boxes.repeat_interleave(2, dim=0))
    jittered = jitter_boxes(boxes, 200, 0.4, (100, 100))
    assert len(jittered) == 400
    assert jittered.min() >= 0
    assert jittered.max() <= 100
    centres = (jittered[:200, :2] + jittered[:200, 2:]) / 2
    assert ((centres - torch.tensor([20.0, 25.0])).abs() <= torch.tensor([8.0, 12.0])).all()
    assert (centres - torch.tensor([20.0, 25.0])).abs().max() > 6


def test_proposals_are_not_mixed_up_with_their_scores():
    """Objects and boxes around them are added with the score 0, and what has no area is gone."""
    proposals = Proposals(
        torch.tensor([[0.0, 0, 9, 9], [5, 5, 5, 9], [50, 50, 60, 60]]),
        torch.tensor([0.9, 0.8, 0.7]),
    )
    objects = torch.tensor([[20.0, 20, 40, 40]])
    found = add_candidates(proposals, objects, (80, 80), RCNNConfig(jitter_copies=2))
    assert found.boxes[:3].tolist() == [[0, 0, 9, 9], [50, 50, 60, 60], [20, 20, 40, 40]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0, 0, 0])
    config = RCNNConfig(crops_per_image=2, positive_fraction=0.5)
    target = {"boxes": objects, "labels": torch.tensor([2])}
    crops = sample_crops(found, target, config)
    assert crops.labels.tolist() == [2, 0]
    assert crops.boxes[1].tolist() in ([0, 0, 9, 9], [50, 50, 60, 60])
    assert crops.regress.tolist() == [True, False]


def of_ious(*ious: float) -> Proposals:
    """Boxes of such IoUs with the object [0, 0, 100, 100], and one away from it."""
    boxes = torch.tensor([[0.0, 0, 100 * iou, 100] for iou in ious] + [[200.0, 0, 300, 100]])
    return Proposals(boxes, torch.zeros(len(boxes)))


def chosen(candidates: Proposals, **options) -> dict[float, tuple[int, bool]]:
    """Label and whether it trains the regression, by the IoU of what is chosen of `candidates`."""
    target = {"boxes": torch.tensor([[0.0, 0, 100, 100]]), "labels": torch.tensor([3])}
    crops = sample_crops(candidates, target, RCNNConfig(**options))
    ious = (crops.boxes[:, 2] / 100 * (crops.boxes[:, 0] == 0)).tolist()
    rows = zip(ious, crops.labels.tolist(), crops.regress.tolist(), strict=True)
    return {round(iou, 2): (label, regress) for iou, label, regress in rows}


def test_ious_say_what_is_positive_background_and_trains_the_regression():
    candidates = of_ious(0.9, 0.7, 0.5, 0.45, 0.3)
    all_of_them = {"crops_per_image": 20, "positive_fraction": 0.5}
    assert chosen(candidates, positive_iou=0.5, negative_iou=0.5, **all_of_them) == {
        0.9: (3, True),
        0.7: (3, True),
        0.5: (3, True),
        0.45: (0, False),
        0.3: (0, False),
        0.0: (0, False),
    }
    found = chosen(
        candidates, positive_iou=0.6, negative_iou=0.4, regression_iou=0.8, **all_of_them
    )
    # 0.5 and 0.45 are neither; 0.7 trains the classifier alone.
    assert found == {0.9: (3, True), 0.7: (3, False), 0.3: (0, False), 0.0: (0, False)}


def test_crops_of_an_image_and_the_share_of_positives():
    candidates = of_ious(*[0.9] * 30, *[0.1] * 30)
    target = {"boxes": torch.tensor([[0.0, 0, 100, 100]]), "labels": torch.tensor([3])}
    for crops_per_image, positive_fraction, positives in ((8, 0.25, 2), (12, 0.75, 9)):
        config = RCNNConfig(crops_per_image=crops_per_image, positive_fraction=positive_fraction)
        labels = sample_crops(candidates, target, config).labels
        assert len(labels) == crops_per_image
        assert (labels > 0).sum() == positives


def test_boxes_around_the_objects_are_so_many_and_so_far():
    objects, none = torch.tensor([[40.0, 40, 60, 60]]), Proposals(torch.zeros(0, 4), torch.zeros(0))
    for jitter_copies, jitter_strength in ((0, 0.3), (50, 0.1), (70, 0.3)):
        config = RCNNConfig(jitter_copies=jitter_copies, jitter_strength=jitter_strength)
        boxes = add_candidates(none, objects, (100, 100), config).boxes
        assert len(boxes) == 1 + jitter_copies
        if jitter_copies:
            moved = ((boxes[:, :2] + boxes[:, 2:]) / 2 - 50).abs().max()
            assert 0.8 * 20 * jitter_strength < moved <= 20 * jitter_strength + 1e-3
            grown = (boxes[:, 2:] - boxes[:, :2]).max() / 20
            assert 0.8 * jitter_strength < grown.log() <= jitter_strength + 1e-4


def test_an_image_without_anything_to_look_at_is_looked_at_as_a_whole():
    """A process of several that had no crop would not take part in averaging gradients."""
    nothing = Proposals(torch.zeros(0, 4), torch.zeros(0))
    candidates = add_candidates(nothing, torch.zeros(0, 4), (30, 40), RCNNConfig())
    assert candidates.boxes.tolist() == [[0, 0, 40, 30]]
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert sample_crops(candidates, target, RCNNConfig()).labels.tolist() == [0]


@pytest.mark.parametrize("counts", [(0, 5), (7, 0), (1, 1), (40, 300)])
def test_ious_are_torchvisions_to_the_bit(counts):
    random = torch.Generator().manual_seed(0)
    a, b = (
        torch.cat([corner, corner + 1 + 50 * torch.rand(n, 2, generator=random)], dim=1)
        for n in counts
        for corner in [100 * torch.rand(n, 2, generator=random)]
    )
    assert torch.equal(pairwise_iou(a, b), box_iou(a, b))
