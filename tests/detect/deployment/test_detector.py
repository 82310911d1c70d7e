import copy
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.operations import Operations
from helpers.trained_network import fill_statistics
from torchvision.ops import box_iou

from backbones import UserError
from backbones.common.config import from_dict
from backbones.common.images import write_image
from backbones.deployment.onednn import can_fuse
from backbones.deployment.openvino import OpenVINONetwork
from detect.build import build_detector
from detect.config import ModelConfig
from detect.deployment.detector import (
    CALIBRATION_IMAGES,
    calibration_crops,
    deploy_detector,
)
from detect.deployment.proposer import deploy_proposer
from detect.detector import Detector
from detect.proposals import Proposals

SETTINGS = {
    "learned": {"tile_size": 96, "channels": 16},
    "proposals_per_image": 12,
    "rcnn": {"crop_size": 40, "score_thresh": 0.0, "nms_thresh": 0.9, "objectness_weight": 0.5},
}


@pytest.fixture(scope="module")
def detector() -> Detector:
    """One whose normalisation has seen data, so that a wrong fold shows."""
    torch.manual_seed(0)
    model = build_detector(from_dict(ModelConfig, SETTINGS), 3)
    fill_statistics(model)
    model.cls_score.weight.data *= 30
    model.bbox_pred.weight.data *= 10
    head = model.proposer.rpn.head
    # Scores spread, whatever the random numbers of this release are.
    head.cls_logits.weight.data *= 50
    head.bbox_pred.weight.data *= 20
    every = {"metrics": {"score_thresh": 0.0}}
    return Detector(model, ["a", "b", "c"], [1, 2, 3], every)


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes
    ]


def assert_same(found: dict, expected: dict, atol: float) -> None:
    assert len(found["boxes"]) == len(expected["boxes"]) > 5
    assert torch.equal(found["labels"], expected["labels"])
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=atol)
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=0, atol=100 * atol)


@torch.inference_mode()
def test_fp32_finds_the_same(detector):
    deployed = deploy_detector(detector, "fp32")
    for image in images((90, 120), (64, 70)):
        proposals, expected = deployed.propose([image])[0], detector.propose([image])[0]
        assert expected.scores.std() > 0.001
        torch.testing.assert_close(proposals.boxes, expected.boxes, rtol=0, atol=1e-2)
        torch.testing.assert_close(proposals.scores, expected.scores, rtol=0, atol=1e-4)
        assert_same(deployed(image), detector(image), atol=1e-4)


@torch.inference_mode()
def test_bf16_is_as_near_as_its_rounding(detector):
    deployed = deploy_detector(detector, "bf16")
    (image,) = images((90, 120))
    assert deployed.model.backbone.dtype == deployed.model.proposer.trunk.dtype == torch.bfloat16
    given = detector.propose([image])[0]
    for model in (detector.model, deployed.model):
        found = model([image], proposals=[given])[0]
        assert found["scores"].dtype == found["boxes"].dtype == torch.float32
    exact, rounded = (one.model.look([image], [given.boxes])[0] for one in (detector, deployed))
    assert exact.std() > 0.05
    assert 1e-4 < (exact - rounded).abs().max() < 0.1
    # The best proposals are the same, in place too, to within rounding.
    best = box_iou(given.boxes[:6], deployed.propose([image])[0].boxes).max(dim=1).values
    assert best.min() > 0.85


@pytest.mark.parametrize("form", ["autocast", "deployed"])
def test_anchors_are_exact_in_bf16(detector, form):
    """bf16 knows the whole numbers up to 256 alone, and anchors are far from the corner."""
    (image,) = images((700, 960))
    proposer = copy.deepcopy(detector.model.proposer)
    proposer.config = replace(proposer.config, tile_size=960)
    exact = anchors_of(proposer, image)
    if form == "deployed":
        proposer = deploy_proposer(proposer, "bf16")
    with torch.autocast("cpu", torch.bfloat16, enabled=form == "autocast"):
        found = anchors_of(proposer, image)
    assert found.dtype == torch.float32
    assert torch.equal(found, exact)


@torch.inference_mode()
def anchors_of(proposer, image) -> torch.Tensor:
    seen = []
    generator = proposer.rpn.anchor_generator
    with_hook = generator.register_forward_hook(lambda *call: seen.append(call[2][0]))
    proposer([image])
    with_hook.remove()
    return seen[0]


@torch.inference_mode()
def test_many_images_at_once_as_one_by_one(detector):
    several = images((90, 120), (90, 120), (64, 70), (90, 120))
    for one in (detector, deploy_detector(detector, "fp32")):
        for found, image in zip(one.detect(several), several, strict=True):
            assert_same(found, one(image), atol=1e-4)
    assert detector.detect([]) == []


def test_kinds_of_images(detector):
    (image,) = images((90, 120))
    array = image.permute(1, 2, 0).numpy()
    for same in (array, PIL.Image.fromarray(array)):
        torch.testing.assert_close(dict(detector(same)), dict(detector(image)))
    for wrong, words in [
        ({}, "an image must be a file, an array, a tensor or an image of Pillow, got dict"),
        (array.astype(float), r"an array must be uint8 RGB \[H, W, 3\], got float64"),
    ]:
        with pytest.raises(ValueError, match=words):
            detector(wrong)
    for one in ("a.jpg", Path("a.jpg"), image, array, PIL.Image.fromarray(array)):
        with pytest.raises(ValueError, match="detect takes a list of images"):
            detector.detect(one)


def test_the_trained_detector_stays_as_it_is(detector):
    before = {name: tensor.clone() for name, tensor in detector.model.state_dict().items()}
    deployed = deploy_detector(detector, "auto")
    after = detector.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert deployed.class_names == detector.class_names
    with pytest.raises(ValueError, match="cannot be trained"):
        deployed.model.train()


def test_other_precisions(detector):
    with pytest.raises(ValueError, match="must be auto, fp32, bf16 or int8"):
        deploy_detector(detector, "fp16")
    with pytest.raises(ValueError, match="must be auto, torch or openvino"):
        deploy_detector(detector, engine="onnx")
    with pytest.raises(ValueError, match="deployed already"):
        deploy_detector(deploy_detector(detector, "fp32"))
    with pytest.raises(UserError, match="int8 runs in OpenVINO alone"):
        deploy_detector(detector, "int8", engine="torch")


@torch.inference_mode()
@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-4), ("bf16", 0.1)])
def test_the_crop_network_in_openvino(detector, precision, atol):
    pytest.importorskip("openvino")
    deployed = deploy_detector(detector, precision, engine="openvino")
    assert isinstance(deployed.model.backbone, OpenVINONetwork)
    assert deployed.metadata["precision"] == precision
    (image,) = images((90, 120))
    given = [detector.propose([image])[0].boxes]
    exact, found = (one.model.look([image], given)[0] for one in (detector, deployed))
    torch.testing.assert_close(found, exact, rtol=0, atol=atol)
    assert deployed(image)["scores"].dtype == torch.float32


@torch.inference_mode()
def test_int8_is_calibrated_on_the_first_images(detector):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    taken = []

    def stream():
        for image in images(*[(90, 120)] * (CALIBRATION_IMAGES + 5)):
            taken.append(image)
            yield image.permute(1, 2, 0).numpy()

    deployed = deploy_detector(detector, "int8", stream())
    assert len(taken) == CALIBRATION_IMAGES
    (image,) = images((90, 120))
    given = [detector.propose([image])[0].boxes]
    exact, quantized = (one.model.look([image], given)[0] for one in (detector, deployed))
    assert 1e-4 < (exact - quantized).abs().max() < 0.2
    assert set(deployed(np.zeros((64, 64, 3), np.uint8)).keys()) == {"boxes", "labels", "scores"}
    assert not deployed.model.eval().training


def test_crops_for_int8_from_a_folder(detector, tmp_path):
    given = list(images((90, 120), (64, 70)))
    for number, image in enumerate(given):
        write_image(tmp_path / f"{number}.png", image)
    found, expected = (calibration_crops(detector, one) for one in (str(tmp_path), given))
    assert [batch.tolist() for batch in found] == [batch.tolist() for batch in expected]
    with pytest.raises(UserError, match=r"expected a list of images or a folder, got 'a\.jpg'"):
        calibration_crops(detector, "a.jpg")


def test_int8_without_images(detector):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    with pytest.raises(UserError, match="int8 needs images"):
        deploy_detector(detector, "int8")


def test_detectors_without_a_learned_proposer():
    settings = {"proposer": "precomputed", "precomputed": "x.json", "rcnn": {"crop_size": 40}}
    detector = Detector(build_detector(from_dict(ModelConfig, settings), 2), ["a", "b"], [1, 2])
    (image,) = images((64, 64))
    given = Proposals(torch.tensor([[3.0, 4.0, 30.0, 50.0]]), torch.ones(1))
    deployed = deploy_detector(detector, "fp32")
    found, expected = (dict(one(image, given)) for one in (deployed, detector))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    with pytest.raises(UserError, match="int8 needs a detector with a proposer of its own"):
        deploy_detector(detector, "int8", [image])


def test_threads_share_a_deployed_detector(detector):
    """Batches of other shapes at the same time do not disturb each other."""
    deployed = deploy_detector(detector, "fp32")
    several = images((90, 120), (64, 70))
    expected = [deployed(image) for image in several]
    found: dict[int, list[dict]] = {0: [], 1: []}

    def work(index: int) -> None:
        for _ in range(5):
            found[index].append(deployed(several[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, results in found.items():
        assert len(results) == 5
        for result in results:
            assert_same(result, expected[index], atol=1e-5)


@torch.no_grad()
def test_operations(detector):
    """What a batch costs, without a clock: as many convolutions as one image."""
    if not can_fuse(torch.float32):
        pytest.skip("this PyTorch has no fused convolution")
    deployed = deploy_detector(detector, "fp32")
    counts = {}
    for count in (1, 4):
        with Operations() as operations:
            deployed.model(images(*[(90, 120)] * count))
        counts[count] = operations.counts
    # Four images of 12 crops are one batch for the trunk (103 with two a pooled branch; 6 of the
    # pyramid, 6 of the head) and one for the crop network: as many operations as for one image.
    assert counts[1]["convolution_pointwise"] == counts[4]["convolution_pointwise"] == 103 * 2 + 12
    assert counts[1]["batch_norm"] == counts[1]["native_batch_norm"] == 0
