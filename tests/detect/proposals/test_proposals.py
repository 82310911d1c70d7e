import json

import numpy as np
import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from backbones.common.errors import UserError
from detect.proposals import (
    GridConfig,
    GridProposer,
    LearnedConfig,
    LearnedProposer,
    Proposals,
    load_proposals,
    save_proposals,
)
from detect.proposals.rpn import proposal_losses


def image(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def inside(boxes: torch.Tensor, height: int, width: int) -> bool:
    limits = torch.tensor([width, height, width, height])
    has_area = (boxes[:, 2:] > boxes[:, :2]).all()
    return bool((boxes >= 0).all() and (boxes <= limits).all() and has_area)


def test_grid_finds_every_object_of_its_sizes():
    found = GridProposer(GridConfig(sizes=(16.0, 32.0), aspect_ratios=(1.0,), step=0.25))(
        [image(90, 70)]
    )[0]
    assert inside(found.boxes, 90, 70)
    objects = torch.tensor([[3.0, 5.0, 19.0, 21.0], [30.0, 40.0, 62.0, 72.0], [54.0, 74, 70, 90]])
    assert (box_iou(objects, found.boxes).max(dim=1).values > 0.6).all()


@pytest.mark.parametrize(
    ("key", "value"), [("sizes", (0.0,)), ("aspect_ratios", ()), ("step", 0.0)]
)
def test_grid_refuses_nonsense(key, value):
    with pytest.raises(UserError, match=f"grid.{key} must be"):
        GridConfig(**{key: value})


def small_learned(**options) -> LearnedProposer:
    torch.manual_seed(0)
    config = LearnedConfig(image_size=128, channels=16)
    return LearnedProposer(
        config, **({"top_n": 20, "top_n_train": 40, "score_thresh": 0.0} | options)
    )


def test_learned_proposals_are_sorted_inside_and_few():
    proposer = small_learned().eval()
    with torch.no_grad():
        found = proposer([image(100, 160), image(64, 64)])
    for proposals, size in zip(found, [(100, 160), (64, 64)], strict=True):
        assert 0 < len(proposals.boxes) <= 20
        assert inside(proposals.boxes, *size)
        assert (proposals.scores.diff() <= 0).all()
        assert proposals.scores.min() >= 0
        assert proposals.scores.max() <= 1
        overlaps = box_iou(proposals.boxes, proposals.boxes).fill_diagonal_(0)
        assert overlaps.max() <= proposer.config.nms_thresh + 1e-4


def test_score_threshold_cuts_the_budget_in_use_only():
    proposer = small_learned(score_thresh=0.999)
    target = {"boxes": torch.tensor([[10.0, 10.0, 40.0, 40.0]])}
    with torch.no_grad():
        assert len(proposer.eval()([image(100, 100)])[0].boxes) == 0
        proposals, losses = proposer.train().forward_train([image(100, 100)], [target])
    assert len(proposals[0].boxes) == 40
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg"}


def test_images_beyond_images_per_step_get_random_windows():
    config = LearnedConfig(image_size=128, channels=16, images_per_step=1)
    proposer = LearnedProposer(config, top_n=20, top_n_train=40, score_thresh=0.0).train()
    images = [image(100, 160), image(256, 90), image(64, 64)]
    target = {"boxes": torch.tensor([[10.0, 10.0, 40.0, 40.0]])}
    broken = {"boxes": torch.full((1, 4), torch.nan)}
    proposals, losses = proposer.forward_train(images, [target, broken, broken])
    assert all(loss.isfinite() for loss in losses.values())
    assert proposals[0].scores.unique().numel() > 1
    for found, size in zip(proposals[1:], [(256, 90), (64, 64)], strict=True):
        assert found.boxes.shape == (40, 4)
        assert inside(found.boxes, *size)
        # The anchors' sides, from 16 / sqrt(2) to 128 * sqrt(2) in an image of 128 pixels.
        sides = (found.boxes[:, 2:] - found.boxes[:, :2]) * 128 / max(size)
        assert sides.max() <= 128 * 2**0.5 + 1e-3
        assert sides.min(dim=1).values.median() > 8
        assert found.boxes.unique(dim=0).shape[0] > 30
    with torch.no_grad():
        assert all(found.scores.max() > 0 for found in proposer.eval()(images))


def test_anchors_are_centred_where_their_cells_look():
    proposer = small_learned().eval()
    batch, sizes = proposer._batch([torch.zeros(3, 200, 160)])
    stages = proposer.trunk.forward_stages(batch)
    boxes = proposer.rpn.anchor_generator(ImageList(batch, sizes), stages)[0]
    centres = ((boxes[:, :2] + boxes[:, 2:]) / 2).split(
        [stage.shape[-2] * stage.shape[-1] * 6 for stage in stages]
    )
    # The receptive fields' centres, which the tests of the stems check with gradients.
    for level, (stride, offset) in enumerate([(8, 13.5), (16, 21.5), (32, 37.5)]):
        height, width = stages[level].shape[-2:]
        grid = centres[level].view(height, width, 6, 2)
        want_x = offset - proposer.border + stride * torch.arange(width)
        want_y = offset - proposer.border + stride * torch.arange(height)
        torch.testing.assert_close(grid[..., 0], want_x[None, :, None].expand(height, width, 6))
        torch.testing.assert_close(grid[..., 1], want_y[:, None, None].expand(height, width, 6))
        # Every pixel of the image is within a cell of some centre.
        assert want_x[0] <= stride
        assert want_x[-1] >= 160 - stride


def test_proposal_losses_are_the_formulas():
    """Quality focal loss (Li et al. 2020, eq. 4) and generalised IoU, written out in NumPy."""
    random = np.random.default_rng(0)
    corner, side = random.uniform(0, 40, (2, 5, 2)), random.uniform(5, 30, (2, 5, 2))
    boxes = np.concatenate([corner, corner + side], axis=2)
    gt_boxes = boxes + random.uniform(-4, 4, boxes.shape)
    logits = random.normal(size=(2, 5))
    labels = np.array([[1, 0, -1, 1, 0], [0, 0, 1, -1, 0]])
    objectness, box_reg, positives = 0.0, 0.0, 0
    for b in range(2):
        for a in range(5):
            p = 1 / (1 + np.exp(-logits[b, a]))
            q = 0.0
            if labels[b, a] == 1:
                one, other = boxes[b, a], gt_boxes[b, a]
                overlap = np.minimum(one, other)[2:] - np.maximum(one, other)[:2]
                intersection = overlap.clip(0).prod()
                union = (one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - intersection
                hull = (np.maximum(one, other)[2:] - np.minimum(one, other)[:2]).prod()
                q = intersection / union
                box_reg += 1 - (q - (hull - union) / hull)
                positives += 1
            if labels[b, a] >= 0:
                objectness -= (q - p) ** 2 * (q * np.log(p) + (1 - q) * np.log(1 - p))
    losses = proposal_losses(
        *(torch.tensor(values, dtype=torch.float32) for values in (logits, boxes, labels, gt_boxes))
    )
    assert losses["loss_objectness"].item() == pytest.approx(objectness / positives, rel=1e-4)
    assert losses["loss_rpn_box_reg"].item() == pytest.approx(2 * box_reg / positives, rel=1e-4)


def test_an_image_without_objects_teaches_objectness_only():
    proposer = small_learned().train()
    target = {"boxes": torch.zeros(0, 4)}
    _, losses = proposer.forward_train([image(64, 64)], [target])
    assert losses["loss_rpn_box_reg"].item() == 0
    assert losses["loss_objectness"].item() > 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in proposer.parameters())


def test_learned_config_is_checked():
    with pytest.raises(UserError, match="three lists of sizes"):
        LearnedConfig(anchor_sizes=((8.0,), (16.0,)))
    with pytest.raises(UserError, match="equally many sizes"):
        LearnedProposer(
            LearnedConfig(anchor_sizes=((8.0,), (16.0, 24.0), (32.0,))),
            top_n=1,
            top_n_train=1,
            score_thresh=0.0,
        )
    with pytest.raises(UserError, match="at least 64"):
        LearnedConfig(image_size=32)
    for options, message in (
        ({"images_per_step": 0}, "images_per_step must be at least 1"),
        ({"positive_iou": 0.3, "negative_iou": 0.6}, "negative_iou and learned.positive_iou"),
        ({"nms_thresh": 0.0}, r"nms_thresh must be in \(0, 1\]"),
        ({"channels": 0}, "channels and learned.pre_nms_top_n must be at least 1"),
        ({"pre_nms_top_n": 0}, "channels and learned.pre_nms_top_n must be at least 1"),
        ({"anchor_ratios": ()}, "anchor_ratios must be positive"),
        ({"anchor_sizes": ((8.0,), (0.0,), (9.0,))}, "anchor_ratios must be positive"),
    ):
        with pytest.raises(UserError, match=message):
            LearnedConfig(**options)


def test_precomputed_round_trip(tmp_path):
    path = tmp_path / "proposals.json"
    rows = [
        {"image_id": 3, "bbox": [1, 2, 10, 20], "score": 0.2},
        {"image_id": 3, "bbox": [5, 5, 5, 5], "score": 0.9, "category_id": 1},
    ]
    path.write_text(json.dumps(rows))
    found = load_proposals(path)[3]
    assert found.boxes.tolist() == [[5, 5, 10, 10], [1, 2, 11, 22]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "expected a list of COCO results, got dict"),
        ('[{"image_id": 1, "bbox": [1, 2, 3], "score": 1}]', "entry 0 must have image_id, bbox"),
        (
            '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": -0.7}]',
            "entry 0: expected a score from 0 to 1, a probability, got -0.7",
        ),
        (
            '[{"image_id": 1, "bbox": [1, 2, 0, 4], "score": 1}]',
            "entry 0 must have finite numbers and a bbox with area",
        ),
    ],
)
def test_broken_proposal_files_are_named(tmp_path, text, message):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"broken.json: .*{message}"):
        load_proposals(path)


def test_missing_proposal_file():
    with pytest.raises(UserError, match=r"nowhere\.json: cannot read proposals"):
        load_proposals("nowhere.json")


def test_saved_proposals_are_read_back_as_they_were(tmp_path):
    boxes = torch.tensor([[1.25, 2, 30, 44.5], [0, 0, 9, 9]])
    saved = {7: Proposals(boxes, torch.tensor([0.9, 0.2])), 3: Proposals(boxes[1:], torch.ones(1))}
    save_proposals(tmp_path / "p.json", saved)
    read = load_proposals(tmp_path / "p.json")
    assert read.keys() == saved.keys()
    for image_id, proposals in saved.items():
        assert torch.equal(read[image_id].boxes, proposals.boxes)
        assert torch.equal(read[image_id].scores, proposals.scores)
    # Writing changes nothing in memory.
    assert boxes.tolist() == [[1.25, 2, 30, 44.5], [0, 0, 9, 9]]
