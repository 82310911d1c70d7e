import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_dtype

from backbones import create_backbone
from backbones.common.errors import UserError
from backbones.networks.inception import InceptionV3
from detect.build import build_detector
from detect.config import ModelConfig
from detect.proposals import GridConfig, GridProposer, LearnedConfig, LearnedProposer, Proposals
from detect.rcnn.config import RCNNConfig
from detect.rcnn.model import RCNN


def image(height: int = 90, width: int = 120, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def target(*boxes: list[float], labels: list[int] | None = None) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [1] * len(boxes), dtype=torch.int64),
    }


def detector(proposer=None, num_classes=3, **options) -> RCNN:
    torch.manual_seed(0)
    return RCNN(
        create_backbone("inception_v3_79_naive", num_classes=0, width=0.25),
        proposer,
        num_classes,
        RCNNConfig(**{"crops_per_image": 6, **options}),
    )


def some_proposals(*boxes: list[float]) -> Proposals:
    return Proposals(torch.tensor(boxes).reshape(-1, 4), torch.ones(len(boxes)))


def test_crop_size_is_the_variants_or_the_configs():
    box = [torch.tensor([[3.0, 4.0, 50.0, 60.0]])]
    assert detector().crop([image()], box).shape == (1, 3, 79, 79)
    for mode in (True, False):
        model = detector(crop_size=96).train(mode)
        assert model.crop([image()], box).shape == (1, 3, 96, 96)
    with pytest.raises(UserError, match=r"at least 75 for inception_v3_79_naive, got 60"):
        detector(crop_size=60)


def test_crops_are_cut_with_the_configurations_context_and_mode():
    """A quarter of the crop on each side is a box twice as wide; a square one is the box's."""
    box, picture = torch.tensor([[40.0, 30, 60, 50]]), image()
    twice = torch.tensor([[30.0, 20, 70, 60]])
    wide = detector(context=0.25).crop([picture], [box])
    assert torch.equal(wide, detector(context=0.0).crop([picture], [twice]))
    assert not torch.equal(wide, detector().crop([picture], [box]))
    flat, square = torch.tensor([[40.0, 30, 60, 40]]), torch.tensor([[40.0, 25, 60, 45]])
    for mode, same in (("warp", flat), ("square", square)):
        found = detector(crop_mode=mode, context=0.0).crop([picture], [flat])
        assert torch.equal(found, detector(context=0.0).crop([picture], [same]))


@pytest.mark.parametrize(
    ("variant", "size"),
    [
        ("inception_v3", 299),
        ("inception_v3_151", 151),
        ("inception_v3_79_naive", 79),
        ("inception_v3_79_table1", 79),
        ("inception_v2", 299),
    ],
)
def test_any_variant_is_a_crop_network(variant, size):
    model = build_detector(ModelConfig(variant=variant, proposer="grid"), 3)
    assert model.crop_size == size
    seen: list[torch.Size] = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    proposals = [some_proposals([20.0, 20, 60, 50], [0.0, 0, 9, 9])]
    losses = model.train()([image()], [target([22.0, 20, 60, 50])], proposals)
    assert all(torch.isfinite(loss) for loss in losses.values())
    with torch.no_grad():
        model.eval()([image()], proposals=proposals)
    assert all(shape[1:] == (3, size, size) for shape in seen)
    assert len(seen) == 2


def test_training_contract():
    proposer = LearnedProposer(
        LearnedConfig(tile_size=96, channels=16), top_n=10, top_n_train=20, score_thresh=0.0
    )
    model = detector(proposer).train()
    images = [image(), image(60, 80)]
    losses = model(images, [target([10.0, 10, 40, 50], labels=[2]), target()])
    assert set(losses) == {
        "loss_classifier",
        "loss_box_reg",
        "loss_objectness",
        "loss_rpn_box_reg",
    }
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_floats_and_targets_of_torchvisions_datasets():
    proposals = [some_proposals([5.0, 5, 40, 40], [20, 20, 70, 80])]
    pixels, wanted = image(), target([10.0, 10, 40, 50], labels=[2])
    floats = to_dtype(pixels, torch.float32, scale=True)
    model = detector(score_thresh=0.0)
    results = []
    for one, more in ((pixels, {}), (floats, {"image_id": 7, "masks": None})):
        torch.manual_seed(0)
        losses = model.train()([one], [{**wanted, **more}], proposals)
        with torch.no_grad():
            results.append({**losses, **model.eval()([one], proposals=proposals)[0]})
        model = detector(score_thresh=0.0)
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key
    for wrong, said in ((2 * floats - 1, "from -1 to 1"), (255 * floats, "from 0 to 255")):
        with pytest.raises(ValueError, match=rf"images\[1\] must be uint8, or float .* {said}"):
            model.eval()([pixels, wrong], proposals=2 * proposals)
    with pytest.raises(ValueError, match="from nan to nan"):
        model.eval()([torch.full((3, 9, 9), math.nan)], proposals=proposals)


def test_eval_contract_with_images_of_several_sizes_and_none_proposed():
    model = detector(score_thresh=0.0).eval()
    with torch.no_grad():
        found = model(
            [image(), image(40, 50)],
            proposals=[some_proposals([5.0, 5, 40, 40], [20, 20, 70, 80]), some_proposals()],
        )
    assert len(found[1]["boxes"]) == 0
    first = found[0]
    assert first["boxes"].dtype == torch.float32
    assert first["labels"].dtype == torch.int64
    assert set(first["labels"].tolist()) <= {1, 2, 3}
    assert (first["scores"].diff() <= 0).all()
    assert first["boxes"].min() >= 0
    assert (first["boxes"][:, [0, 2]] <= 120).all()
    assert (first["boxes"][:, [1, 3]] <= 90).all()


@pytest.mark.parametrize("options", [{}, {"soft_nms_sigma": 0.5}])
def test_detection_works_while_gradients_are_recorded(options):
    model = build_detector(
        ModelConfig(
            learned=LearnedConfig(tile_size=96, channels=16),
            proposals_per_image=5,
            rcnn=RCNNConfig(crop_size=40, score_thresh=0.0, **options),
        ),
        3,
    ).eval()
    found = model([image()])
    with torch.no_grad():
        torch.testing.assert_close(found, model([image()]))
    for wrong in (torch.rand(3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"images\[0\]"):
            model.propose([wrong])


def test_training_crops_equal_inference_crops_bit_for_bit(monkeypatch):
    """What reaches the network in training is what reaches it in use, for the same boxes."""
    model = detector(jitter_copies=0, positive_fraction=1.0, score_thresh=0.0)
    seen: list[torch.Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    boxes = [[5.0, 7, 40, 41], [33.3, 12.1, 90.7, 66.6]]
    images = [image(seed=1), image(130, 70, seed=2)]
    # Ground truth equal to the proposals: all are positives, in an order of the sampler's.
    targets = [target(*boxes), target([1.0, 2, 60, 70])]
    empty = [some_proposals(), some_proposals()]
    model.train()(images, targets, empty)
    model.eval()
    with torch.no_grad():
        model(images, proposals=[some_proposals(*boxes), some_proposals([1.0, 2, 60, 70])])
    training, use = seen[0], torch.cat(seen[1:])
    assert training.shape == use.shape == (3, 3, 79, 79)
    for crop in use:
        assert any(torch.equal(crop, other) for other in training)


class SmallNetwork(nn.Module):
    """Stands in for an `InceptionV3`, which takes long to compile."""

    def __init__(self, network: InceptionV3) -> None:
        super().__init__()
        self.num_features, self.spec = network.num_features, network.spec
        self.fc = nn.Linear(3, network.num_features)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return self.fc(crops.float().mean((2, 3)))


def test_compiling_a_detector_compiles_its_crop_network_and_changes_no_loss():
    """For two numbers of crops, by the part of the compiler that needs no other compiler."""
    models = [detector().train(), detector().train()]
    for model in models:
        torch.manual_seed(0)
        model.backbone = SmallNetwork(model.backbone)
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    models[1].compile(backend=backend)
    for boxes in ([[20.0, 20, 60, 50]], [[20.0, 20, 60, 50], [0.0, 0, 30, 40]]):
        images, targets = [image()] * len(boxes), [target(box) for box in boxes]
        losses = []
        for model in models:
            torch.manual_seed(1)
            losses.append(model(images, targets, [some_proposals(box) for box in boxes]))
        assert losses[0] == losses[1]
    assert traced
    # A copy, of which the form for use is made, is not compiled.
    assert copy.deepcopy(models[1]).backbone._compiled_call_impl is None


def test_losses_against_their_formulas():
    options = {"crops_per_image": 4, "positive_fraction": 0.25, "regression_weight": 2.0}
    model = detector(jitter_copies=0, **options).train()
    model.backbone.eval()
    gt = target([10.0, 10, 50, 50], labels=[3])
    proposals = some_proposals([12.0, 10, 50, 50], [60.0, 60, 90, 85])
    logits, deltas = model._heads(model.crop([image()], [proposals.boxes]))
    torch.manual_seed(3)
    losses = model([image()], [gt], [proposals])
    # One of four may be positive: the ground truth itself or the shifted box; one is background.
    background = F.cross_entropy(logits[1:], torch.tensor([0]), reduction="sum")
    candidates = []
    for box in ([10.0, 10, 50, 50], [12.0, 10, 50, 50]):
        one_logits, one_deltas = model._heads(model.crop([image()], [torch.tensor([box])]))
        classified = F.cross_entropy(one_logits, torch.tensor([3]), reduction="sum")
        shift = ((10 + 50) / 2 - (box[0] + box[2]) / 2) / (box[2] - box[0])
        scale = torch.tensor(40 / (box[2] - box[0])).log()
        want = torch.tensor([shift / 0.1, 0.0, scale / 0.2, 0.0])
        box_loss = F.smooth_l1_loss(one_deltas[0, 2], want, reduction="sum") / 2 * 2.0
        candidates.append(((classified + background) / 2, box_loss))
    assert any(
        torch.allclose(losses["loss_classifier"], classifier, atol=1e-5)
        and torch.allclose(losses["loss_box_reg"], box, atol=1e-5)
        for classifier, box in candidates
    )
    assert deltas.shape == (2, 3, 4)


def test_deltas_are_in_units_of_delta_std():
    """A network that always says (1, -1, 1, 0) moves the box by these units, in use."""
    for delta_std in ((0.1, 0.1, 0.2, 0.2), (0.05, 0.2, 0.3, 0.1)):
        model = detector(delta_std=delta_std, score_thresh=0.0, nms_thresh=1.0).eval()
        torch.nn.init.zeros_(model.bbox_pred.weight)
        model.bbox_pred.bias.data = torch.tensor([1.0, -1.0, 1.0, 0.0]).repeat(3)
        with torch.no_grad():
            found = model([image()], proposals=[some_proposals([40.0, 40, 60, 50])])[0]
        x, y = 50 + 20 * delta_std[0], 45 - 10 * delta_std[1]
        width = 20 * math.exp(delta_std[2])
        want = torch.tensor([x - width / 2, y - 5, x + width / 2, y + 5])
        torch.testing.assert_close(found["boxes"], want.expand(3, 4))


def test_the_proposals_score_takes_its_share():
    model = detector(nms_thresh=1.0, score_thresh=0.0, objectness_weight=0.25).eval()
    proposals = Proposals(torch.tensor([[5.0, 5, 40, 40]]), torch.tensor([0.3]))
    with torch.no_grad():
        logits, _ = model._heads(model.crop([image()], [proposals.boxes]))
        found = model([image()], proposals=[proposals])[0]
    want = logits.softmax(dim=1)[0, 1:] ** 0.75 * 0.3**0.25
    torch.testing.assert_close(found["scores"], want[found["labels"] - 1])
    assert sorted(found["labels"].tolist()) == [1, 2, 3]


def test_windows_of_a_grid_have_no_score_to_share():
    with pytest.raises(UserError, match=r"objectness_weight must be 0 when .* is grid"):
        ModelConfig(proposer="grid", rcnn=RCNNConfig(objectness_weight=0.5))


def test_training_needs_targets():
    with pytest.raises(ValueError, match="targets are needed in training mode"):
        detector(GridProposer(GridConfig())).train()([image()])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (target([10.0, 10, 10, 50]), r"target boxes\[0\]\[0\] = .* x1 < x2"),
        (target([10.0, 10, 20, 50], labels=[4]), r"targets\[0\] labels must be in 1..3"),
        (
            {"boxes": torch.zeros(0, 4), "labels": torch.ones(2, dtype=torch.int64)},
            "0 boxes but 2 labels",
        ),
        (
            {"boxes": torch.tensor([[10.0, 10, 20, 50]]), "labels": torch.ones(1)},
            r"targets\[0\] labels must be int64, got torch.float32",
        ),
        ({"boxes": torch.zeros(0, 4)}, r"targets\[0\] has no labels"),
        ({"boxes": [], "labels": torch.zeros(0)}, r"targets\[0\] boxes must be a tensor, got list"),
        (
            target([10.0, 10, 20, 50], [10, 10, 20, 150], labels=[1, 1]),
            r"targets\[0\] boxes\[1\] must be xyxy in pixels of its image of \d+x\d+, got \[10",
        ),
        (target([0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1], labels=[1, 1]), "are these fractions"),
    ],
)
def test_malformed_targets_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        detector(GridProposer(GridConfig())).train()([image()], [bad])


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float64])
def test_boxes_of_whole_numbers_train_alike(dtype):
    proposer = LearnedProposer(LearnedConfig(channels=8), top_n=8, top_n_train=8, score_thresh=0.0)
    model = detector(proposer).train()
    own, losses = target([10, 10, 70, 71], labels=[2]), []
    for one in (own, own | {"boxes": own["boxes"].to(dtype)}):
        torch.manual_seed(0)
        losses.append(copy.deepcopy(model)([image()], [one]))
    assert losses[0].keys() == losses[1].keys()
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss)


def test_malformed_images_are_named():
    model = detector(GridProposer(GridConfig())).eval()
    with pytest.raises(ValueError, match=r"images\[0\] must be uint8 RGB \[3, H, W\], got"):
        model([torch.zeros(3, 8, 8, dtype=torch.int16)])
    with pytest.raises(ValueError, match=r"images\[0\] must be uint8 RGB .* \[1, 8, 8\]"):
        model([torch.zeros(1, 8, 8)])
    with pytest.raises(ValueError, match="at least one image"):
        model([])
    with pytest.raises(ValueError, match="no proposer of its own"):
        detector().eval()([image()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positive_iou": 1.5}, "rcnn.positive_iou must be in"),
        ({"negative_iou": 0.7}, "rcnn.negative_iou 0.7 must not exceed"),
        ({"regression_iou": 0.3}, "rcnn.regression_iou 0.3 must be at least"),
        ({"context": 0.5}, "rcnn.context must be in"),
        ({"positive_fraction": 0.0}, "rcnn.positive_fraction must be in"),
        ({"crops_per_image": 0}, "rcnn.crops_per_image must be at least 1"),
        ({"crops_per_image": 1}, "leaves no positive crop"),
        ({"jitter_copies": -1}, "rcnn.jitter_copies must be 0 or more"),
        ({"regression_weight": -1.0}, "rcnn.regression_weight must be 0 or more"),
        ({"soft_nms_sigma": 0.0}, "rcnn.soft_nms_sigma must be more than 0"),
        ({"soft_nms_sigma": 0.5, "nms_thresh": 0.5}, "rcnn.nms_thresh is not used where"),
        ({"objectness_weight": 1.0}, "rcnn.objectness_weight must be in .0, 1., got 1"),
        ({"crop_size": 0}, r"rcnn.crop_size must be in \[1, 2048\]"),
        ({"delta_std": (0.1, 0.1, 0.0, 0.2)}, "rcnn.delta_std must be more than 0"),
    ],
)
def test_config_is_checked(options, message):
    with pytest.raises(UserError, match=message):
        RCNNConfig(**options)


def test_what_is_kept_of_an_image_grows_with_its_area_in_tiles():
    config = ModelConfig(
        learned=LearnedConfig(tile_size=96, scale=1.0, channels=16),
        proposals_per_image=9,
        rcnn=RCNNConfig(crop_size=40, score_thresh=0.0, nms_thresh=1.0, detections_per_image=3),
    )
    model = build_detector(config, 3).eval()
    small, large = (torch.randint(0, 256, (3, 96, n), dtype=torch.uint8) for n in (96, 240))
    with torch.no_grad():
        assert [len(found["boxes"]) for found in model([small, large])] == [3, 8]
