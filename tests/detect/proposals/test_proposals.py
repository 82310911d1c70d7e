import json
import math

import numpy as np
import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from backbones.common import distributed
from backbones.common.errors import UserError
from detect.data import DetectionDataset
from detect.proposals import (
    GridConfig,
    GridProposer,
    LearnedConfig,
    LearnedProposer,
    Proposals,
    load_proposals,
    save_proposals,
)
from detect.proposals.rpn import assign_objects, proposal_losses
from detect.proposals.views import whole_view


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


def test_windows_of_a_grid_have_its_sizes_ratios_and_step():
    """In an image so large that no window is cut off: sides and distances, by hand."""
    config = GridConfig(sizes=(20.0, 40.0), aspect_ratios=(0.25, 1.0), step=0.5)
    boxes = GridProposer(config)([image(200, 200)])[0].boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    kinds = [tuple(row) for row in sides.round().int().tolist()]
    # A ratio is height over width, a size the root of the area; large ones come first.
    assert list(dict.fromkeys(kinds)) == [(80, 20), (40, 40), (40, 10), (20, 20)]
    for step in (0.5, 1.0):
        config = GridConfig(sizes=(40.0,), aspect_ratios=(1.0,), step=step)
        boxes = GridProposer(config)([image(200, 200)])[0].boxes
        for corner in boxes[:, :2].T:
            starts = corner.unique()
            torch.testing.assert_close(starts.diff(), torch.full((len(starts) - 1,), 40 * step))


@pytest.mark.parametrize(
    ("key", "value"), [("sizes", (0.0,)), ("aspect_ratios", ()), ("step", 0.0)]
)
def test_grid_refuses_nonsense(key, value):
    with pytest.raises(UserError, match=f"grid.{key} must be"):
        GridConfig(**{key: value})


def small_learned(
    top_n: int = 20, top_n_train: int = 40, score_thresh: float = 0.0, **options
) -> LearnedProposer:
    torch.manual_seed(0)
    config = LearnedConfig(**({"tile_size": 128, "channels": 16} | options))
    return LearnedProposer(config, top_n=top_n, top_n_train=top_n_train, score_thresh=score_thresh)


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


def test_what_scores_below_the_threshold_is_not_proposed_in_use():
    picture = image(100, 100)
    target = {"boxes": torch.tensor([[10.0, 10.0, 40.0, 40.0]])}
    with torch.no_grad():
        every = small_learned().eval()([picture])[0]
        threshold = float(every.scores[:11].mean())  # some of the best ones are below it
        proposer = small_learned(score_thresh=threshold)
        found = proposer.eval()([picture])[0]
        proposals, losses = proposer.train().forward_train([picture], [target])
    above = every.scores >= threshold
    assert 0 < above.sum() < 11
    torch.testing.assert_close(found.boxes, every.boxes[above])
    torch.testing.assert_close(found.scores, every.scores[above])
    # In training every box counts.
    assert len(proposals[0].boxes) == 40
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg"}


def test_images_beyond_images_per_step_get_random_windows():
    proposer = small_learned(images_per_step=1).train()
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


@pytest.mark.parametrize(("total", "of_each"), [(4, [2, 2]), (3, [2, 1]), (1, [1, 1])])
def test_processes_share_images_per_step(total, of_each, monkeypatch):
    proposer = small_learned(images_per_step=total).train()
    target = {"boxes": torch.tensor([[10.0, 10.0, 40.0, 40.0]])}
    seen: list[int] = []
    look = proposer._look

    def counted(looks, targets):
        seen.append(len(looks))
        return look(looks, targets)

    monkeypatch.setattr(proposer, "_look", counted)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        proposals, _ = proposer.forward_train([image(64, 64)] * 3, [target] * 3)
        assert len(proposals) == 3
    assert seen == of_each


def test_without_a_scale_the_longer_side_is_a_tiles():
    seen = []
    proposer = small_learned(tile_size=96).eval()
    proposer.trunk.stem.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-2:]))
    with torch.no_grad():
        proposer([image(100, 200), image(400, 300)])
    border = 2 * proposer.border
    assert seen == [(48 + border, 96 + border), (96 + border, 72 + border)]


def test_with_a_scale_larger_images_are_looked_at_in_tiles():
    seen = []
    proposer = small_learned(tile_size=96, scale=0.5, top_n=6).eval()
    proposer.trunk.stem.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    with torch.no_grad():
        small, large = proposer([image(100, 180), image(320, 200)])
    border = 2 * proposer.border
    # 160 by 100 pixels at half the scale: two by two tiles, beside each other, and the whole.
    assert seen == [
        (1, 3, 50 + border, 90 + border),
        (4, 3, 92 + border, 58 + border),
        (1, 3, 48 + border, 31 + border),
    ]
    assert len(small.boxes) == 6
    # The budget of a tile, so many times as the image has the area of one.
    assert len(large.boxes) == math.ceil(6 * 160 * 100 / 96**2) == 11
    assert inside(large.boxes, 320, 200)
    assert (large.scores.diff() <= 0).all()
    assert box_iou(large.boxes, large.boxes).fill_diagonal_(0).max() <= 0.7 + 1e-4


def test_what_is_found_in_an_image_does_not_depend_on_others_in_its_batch():
    proposer = small_learned(tile_size=96, scale=1.0).eval()
    images = [image(150, 150), image(90, 60), image(150, 150)]
    with torch.no_grad():
        together = proposer(images)
        for one, found in zip(images, together, strict=True):
            (alone,) = proposer([one])
            torch.testing.assert_close(found.boxes, alone.boxes, atol=1e-2, rtol=0)
            torch.testing.assert_close(found.scores, alone.scores, atol=1e-4, rtol=0)


def test_training_sees_images_at_the_scale_of_use():
    seen = []
    proposer = small_learned(tile_size=96, scale=0.5).train()
    proposer.trunk.stem.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-2:]))
    target = {"boxes": torch.tensor([[10.0, 10.0, 60.0, 50.0]])}
    proposals, losses = proposer.forward_train([image(120, 160)], [target])
    border = 2 * proposer.border
    assert seen == [(60 + border, 80 + border)]
    assert inside(proposals[0].boxes, 120, 160)
    assert all(loss > 0 for loss in losses.values())


def test_width_and_channels_are_the_networks():
    widths = [small_learned(width=width).trunk.num_features for width in (0.25, 0.5)]
    assert widths == [512, 1024]
    proposer = small_learned(channels=24)
    assert proposer.rpn.head.conv.weight.shape == (24, 24, 3, 3)
    maps = proposer.pyramid.layer_blocks
    assert [block[0].out_channels for block in maps] == [24, 24, 24]


def test_anchors_have_the_sizes_and_ratios_of_their_level():
    sizes = ((10.0, 20.0), (30.0, 40.0), (50.0, 60.0))
    proposer = small_learned(anchor_sizes=sizes, anchor_ratios=(0.25, 1.0))
    for anchors, level in zip(proposer.rpn.anchor_generator.cell_anchors, sizes, strict=True):
        width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
        # A ratio is height over width, a size the root of the area.
        torch.testing.assert_close(height / width, torch.tensor([0.25, 0.25, 1.0, 1.0]))
        torch.testing.assert_close((height * width).sqrt(), torch.tensor(level).repeat(2))


def test_anchors_are_positive_and_negative_by_their_iou():
    target = {"boxes": torch.tensor([[0.0, 0, 100, 100]])}
    # IoUs 0.7, 0.5, 0.3 and 0.1; of the best ones one is positive in any case.
    anchors = torch.tensor([[0.0, 0, 70, 100], [0, 0, 50, 100], [0, 0, 30, 100], [0, 0, 10, 100]])
    for positive, negative, want in (
        (0.4, 0.4, [1, 1, 0, 0]),
        (0.6, 0.2, [1, -1, -1, 0]),
        (0.9, 0.6, [1, 0, 0, 0]),
    ):
        rpn = small_learned(positive_iou=positive, negative_iou=negative).rpn
        limits = rpn.proposal_matcher.high_threshold, rpn.proposal_matcher.low_threshold
        labels, _ = assign_objects(anchors, [target["boxes"]], *limits)
        theirs, _ = rpn.assign_targets_to_anchors([anchors], [target])
        assert labels[0].tolist() == theirs[0].tolist() == want


@pytest.mark.parametrize("pairs", [1, 700, 2**24])
def test_objects_of_a_crowd_are_assigned_in_parts_as_torchvision_does(pairs, monkeypatch):
    monkeypatch.setattr("detect.proposals.rpn.MOST_PAIRS", pairs)
    random = torch.Generator().manual_seed(0)

    def boxes(count):
        corners = 80 * torch.rand(count, 2, generator=random)
        return torch.cat([corners, corners + 5 + 30 * torch.rand(count, 2, generator=random)], 1)

    anchors, targets = boxes(300), [{"boxes": boxes(count)} for count in (23, 0, 7)]
    rpn = small_learned(positive_iou=0.5, negative_iou=0.4).rpn
    labels, matched = assign_objects(anchors, [target["boxes"] for target in targets], 0.5, 0.4)
    expected, objects = rpn.assign_targets_to_anchors([anchors] * 3, targets)
    for own, own_matched, want, wanted in zip(labels, matched, expected, objects, strict=True):
        assert torch.equal(own, want)
        assert torch.equal(own_matched[own == 1], wanted[own == 1])


def test_all_proposals_of_an_image_may_be_of_one_view(monkeypatch):
    """A crowd in a corner is not cut to what a tile has on average."""
    proposer = small_learned(tile_size=96, scale=1.0, top_n=6, nms_thresh=1.0).eval()
    picture = torch.zeros(3, 192, 192, dtype=torch.uint8)
    asked = []
    select = proposer.rpn._select
    monkeypatch.setattr(proposer.rpn, "_select", lambda *a: asked.append(a[3]) or select(*a))
    with torch.no_grad():
        (found,) = proposer([picture])
    assert set(asked) == {24}
    assert len(found.boxes) == 24


def test_boxes_before_suppression_and_the_overlap_of_what_is_left():
    """Three levels give so many each, of which only those that overlap are dropped."""
    picture = image(128, 128)
    counts = {}
    for nms_thresh in (1.0, 0.7, 0.3):
        proposer = small_learned(1000, pre_nms_top_n=7, nms_thresh=nms_thresh).eval()
        with torch.no_grad():
            boxes = proposer([picture])[0].boxes
        counts[nms_thresh] = len(boxes)
        overlaps = box_iou(boxes, boxes).fill_diagonal_(0)
        assert overlaps.max() <= nms_thresh + 1e-4
    assert counts[1.0] == 3 * 7
    assert counts[1.0] > counts[0.7] > counts[0.3] > 0


def test_anchors_are_centred_where_their_cells_look():
    proposer = small_learned().eval()
    view = whole_view(200, 160, scale=1.0, tile=200)
    batch = proposer._draw([(torch.zeros(3, 200, 160, dtype=torch.uint8), view)])
    stages = proposer.trunk.forward_stages(batch)
    boxes = proposer.rpn.anchor_generator(ImageList(batch, [view.shape]), stages)[0]
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
    with pytest.raises(UserError, match=r"must be in \[64, 8192\]"):
        LearnedConfig(tile_size=32)
    for options, message in (
        ({"images_per_step": 0}, "images_per_step must be at least 1"),
        ({"positive_iou": 0.3, "negative_iou": 0.6}, "negative_iou 0.6 must not exceed"),
        ({"nms_thresh": 0.0}, r"nms_thresh must be in \(0, 1\]"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"pre_nms_top_n": 0}, "pre_nms_top_n must be at least 1"),
        ({"anchor_ratios": ()}, "anchor_ratios must be more than 0"),
        ({"anchor_sizes": ((8.0,), (0.0,), (9.0,))}, "anchor_sizes must be more than 0"),
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
        ("{", "proposals: expected JSON, cannot parse it"),
        ("{}", "expected a list of COCO results, got dict"),
        (
            '[{"image_id": 1, "bbox": [1, 2, 3], "score": 1}]',
            "entry 0 must have a whole number as",
        ),
        (
            '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": -0.7}]',
            "entry 0: expected a score from 0 to 1, a probability, got -0.7",
        ),
        (
            '[{"image_id": 1, "bbox": [1, 2, NaN, 4], "score": 1}]',
            "entry 0 must have finite numbers",
        ),
        *(
            (
                f'[{{"image_id": 1, "bbox": [1, 2, {number}, 4], "score": 1}}]',
                "entry 0 must have finite numbers, got",
            )
            for number in ("NaN", "1e400")
        ),
        (f'[{{"image_id": 1, "bbox": [1, 2, 3, {"9" * 5000}], "score": 1}}]', "has more digits"),
        ("[" * 100_000, "proposals: expected JSON, cannot parse it: it is nested too deeply"),
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


def test_proposals_stay_with_their_images_whose_ids_move(tmp_path):
    """As those of VOC do, where a file is removed; names that two images have tell nothing."""

    def dataset(ids: list[int], names: list[str]) -> DetectionDataset:
        return DetectionDataset(
            class_names=["a"],
            category_ids=[1],
            image_ids=ids,
            paths=[str(tmp_path / name) for name in names],
            sizes=[[100, 100]] * len(ids),
            image_index=[],
            boxes=np.empty((0, 4)),
            labels=[],
        )

    boxes = {key: torch.tensor([[key, 0.0, key + 10, 10]]) for key in (1, 2, 3, 4, 5)}
    found = {key: Proposals(box, torch.ones(1)) for key, box in boxes.items()}
    train, path = dataset([1, 2, 3], ["train/a.png", "train/b.png", "train/c.png"]), tmp_path / "p"
    save_proposals(path, found, [train, dataset([4, 5], ["val/d.png", "val/e.png"])])
    after = [dataset([1, 2], ["train/b.png", "train/c.png"]), dataset([3, 4], ["x.png", "e.png"])]
    read = load_proposals(path, after)
    assert {key: proposals.boxes.tolist() for key, proposals in read.items()} == {
        new: boxes[old].tolist() for new, old in ((1, 2), (2, 3), (4, 5))
    }
    assert load_proposals(path).keys() == found.keys()
    save_proposals(path, found, [train, dataset([4, 5], ["val/c.png", "val/e.png"])])
    assert load_proposals(path, after)[2].boxes.tolist() == boxes[2].tolist()


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
