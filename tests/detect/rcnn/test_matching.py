import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder

from detect.boxes.coding import decode_boxes, encode_boxes, of_class
from detect.proposals import Proposals
from detect.rcnn.config import RCNNConfig
from detect.rcnn.matching import jitter_boxes, match_proposals, sample_minibatch
from detect.rcnn.minibatch import add_candidates, choose_crops

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
    crops = choose_crops(found, target, config)
    assert crops.labels.tolist() == [2, 0]
    assert crops.boxes[1].tolist() in ([0, 0, 9, 9], [50, 50, 60, 60])
    assert crops.regress.tolist() == [True, False]
