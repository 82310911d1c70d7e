"""A second crop network for crops that the first one is unsure of."""

import pytest
import torch
from trained_network import fill_statistics

from backbones import UserError
from backbones.config import from_dict
from backbones.deploy import DeployedInception
from backbones.inception import InceptionV3
from backbones.openvino import OpenVINONetwork
from detect.build import build_detector
from detect.config import ModelConfig
from detect.deploy import deploy_detector
from detect.detector import Detector
from detect.ensemble import add_ensemble
from detect.proposals import Proposals

BOXES = torch.tensor([[2.0, 3, 40, 50], [10, 10, 90, 80], [50, 20, 100, 60], [0, 0, 30, 30]])


def detector(seed: int, crop_size: int, names: tuple[str, ...] = ("a", "b")) -> Detector:
    torch.manual_seed(seed)
    settings = {"proposer": "precomputed", "precomputed": "x.json"}
    settings |= {"rcnn": {"crop_size": crop_size, "score_thresh": 0.0}}
    model = build_detector(from_dict(ModelConfig, settings), len(names))
    fill_statistics(model)
    model.cls_score.weight.data *= 100
    return Detector(model, list(names), [1, 2])


def image(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, 90, 110), generator=generator, dtype=torch.uint8)


@torch.inference_mode()
def test_unsure_crops_get_the_mean_of_both():
    first, second = detector(0, 40), detector(1, 56)
    images, boxes = [image(0), image(1)], [BOXES, BOXES[:2]]
    one, deltas = first.model.look(images, boxes)
    other, _ = second.model.look(images, boxes)
    sure = one.max(dim=1).values
    below = float(sure.sort().values[2:4].mean())  # three of six are unsure
    unsure = sure < below
    assert unsure.sum() == 3
    add_ensemble(first, second, below)
    found, same_deltas = first.model.look(images, boxes)
    want = torch.where(unsure[:, None], (one + other) / 2, one)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
    assert (one - want).abs().max() > 0.01
    assert torch.equal(same_deltas, deltas)


def test_from_image_to_detections():
    proposals = Proposals(BOXES, torch.ones(4))
    alone, together = detector(0, 40), detector(0, 40)
    for below, changed in ((0.0, False), (1.0, True)):
        together.model.second_look = None
        add_ensemble(together, detector(1, 56), below)
        scores = [one(image(), proposals)["scores"] for one in (alone, together)]
        assert torch.equal(*scores) is not changed
    nothing = Proposals(torch.zeros(0, 4), torch.zeros(0))
    assert len(together(image(), nothing)["boxes"]) == 0


@torch.inference_mode()
def test_deployed_alike():
    first, second = detector(0, 40), detector(1, 56)
    add_ensemble(first, second, 1.0)
    deployed = deploy_detector(first, "fp32")
    look = deployed.model.second_look
    assert look is not None
    assert isinstance(look.model.backbone, DeployedInception)
    assert isinstance(second.model.backbone, InceptionV3)
    proposals = Proposals(BOXES, torch.ones(4))
    one, other = first(image(), proposals), deployed(image(), proposals)
    torch.testing.assert_close(one["scores"], other["scores"], rtol=0, atol=1e-3)
    assert look.crops == 4
    assert not any(name.startswith("second") for name in deployed.model.state_dict())


@torch.inference_mode()
def test_int8_sets_the_ranges_of_a_second_without_proposer():
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    torch.manual_seed(0)
    settings = {"learned": {"image_size": 96, "channels": 16}, "rcnn": {"crop_size": 40}}
    first = Detector(build_detector(from_dict(ModelConfig, settings), 2), ["a", "b"], [1, 2])
    add_ensemble(first, detector(1, 56), 1.0)
    deployed = deploy_detector(first, "int8", [image(seed) for seed in range(3)])
    look = deployed.model.second_look
    assert look is not None
    assert isinstance(look.model.backbone, OpenVINONetwork)
    assert look.model.backbone.input_size == 56
    deployed(image())


def test_wrong_use():
    first = detector(0, 40)
    with pytest.raises(UserError, match="same classes in the same order, got a, b and b, a"):
        add_ensemble(first, detector(1, 40, ("b", "a")))
    with pytest.raises(ValueError, match="must be another one"):
        add_ensemble(first, first)
    second = detector(1, 40)
    add_ensemble(second, detector(2, 40))
    with pytest.raises(ValueError, match="without a second of its own"):
        add_ensemble(first, second)
    with pytest.raises(ValueError, match="has a second one already"):
        add_ensemble(second, detector(3, 40))
    with pytest.raises(ValueError, match="before deploying"):
        add_ensemble(first, deploy_detector(detector(1, 40), "fp32"))
    with pytest.raises(ValueError, match=r"below must be in \[0, 1\], got 7"):
        add_ensemble(first, detector(1, 40), 7)
