"""What a detector's file says is what its networks do: images normalised otherwise than usual."""

import copy
import logging
import math
import re
from dataclasses import replace

import pytest
import torch
from helpers.trained_network import fill_statistics, normalised_otherwise, randomise

from backbones import InceptionV3, UserError, load_weights, save_backbone, save_weights
from backbones.common.config import from_dict
from backbones.networks.metadata import package_version
from detect import load_detector, save_detector
from detect.build import build_detector
from detect.config import ModelConfig
from detect.deployment.detector import deploy_detector
from detect.detector import Detector
from detect.proposals import GridConfig

CONFIG = from_dict(
    ModelConfig,
    {
        "learned": {"tile_size": 96, "channels": 16},
        "proposals_per_image": 8,
        "rcnn": {"score_thresh": 0.0, "nms_thresh": 0.9},
    },
)
SPEC = normalised_otherwise("inception_v3_79", input_size=48, grids=(20, 9, 4))
METRICS, TRAINING = {"AP": 0.5, "AP50": 0.75}, {"epochs": 12, "optim": {"lr": 0.003}}


@pytest.fixture(scope="module")
def trained():
    """A detector after training on images normalised otherwise."""
    torch.manual_seed(0)
    model = build_detector(CONFIG, 2, SPEC).eval()
    fill_statistics(model)
    model.cls_score.weight.data *= 30
    return model


@pytest.fixture
def saved(trained, tmp_path):
    path = tmp_path / "detector.safetensors"
    save_detector(path, trained, CONFIG, ["a", "b"], [7, 9], METRICS, TRAINING)
    return path


@pytest.fixture
def image():
    return torch.randint(
        0, 256, (3, 90, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def assert_normalised_otherwise(model):
    assert model.backbone.spec == SPEC
    assert model.crop_size == 48
    assert (model.proposer.trunk.spec.mean, model.proposer.trunk.spec.std) == (SPEC.mean, SPEC.std)


def test_a_warm_start_takes_the_normalisation_of_the_weights(tmp_path, image, caplog):
    backbone = randomise(InceptionV3(SPEC, num_classes=10, width=0.25), seed=0).eval()
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, backbone)
    with caplog.at_level(logging.INFO):
        model = build_detector(replace(CONFIG, weights=str(path)), 2).eval()
    assert "images of 48 pixels, normalised by mean (0.2, 0.5, 0.7)" in caplog.text
    assert_normalised_otherwise(model)
    crops = model.crop([image], [torch.tensor([[5.0, 5, 60, 70], [-20, -20, 30, 30]])])
    # Outside of the image there is the mean colour, which is zero for the network.
    assert crops[1, :, 0, 0].tolist() == [round(255 * value) for value in SPEC.mean]
    backbone.reset_classifier(0)
    torch.testing.assert_close(model.backbone(crops), backbone(crops), rtol=0, atol=0)


@torch.inference_mode()
def test_a_detector_is_loaded_as_it_was_saved(trained, saved, image):
    loaded = load_detector(saved, "cpu")
    assert_normalised_otherwise(loaded.model)
    expected = trained([image])[0]
    assert len(expected["boxes"]) > 4
    for name, values in loaded(image, score_thresh=0.0).items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=0)
    said = {
        "kind": "detector",
        "variant": "inception_v3_79",
        "width": 0.25,
        "input_size": 48,
        "mean": [0.2, 0.5, 0.7],
        "std": [0.3, 0.25, 0.2],
        "class_names": ["a", "b"],
        "category_ids": [7, 9],
        "metrics": METRICS,
        "training": TRAINING,
        "package_version": package_version(),
    }
    assert {key: loaded.metadata[key] for key in said} == said
    # Settings of use change what they name and nothing else.
    settings = {"rcnn": {"score_thresh": 0.1, "crop_size": 40}}
    changed = load_detector(saved, "cpu", settings).model
    assert (changed.backbone.spec, changed.crop_size) == (SPEC, 40)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("names", "ids"), [(["a"], [7]), (["a", "a"], [7, 9]), (["a", "b"], [7, 7]), (["a", "b"], [7])]
)
def test_classes_that_are_not_the_models_are_not_saved(names, ids, trained, tmp_path):
    with pytest.raises(UserError, match="expected 2 different class names and category ids"):
        save_detector(tmp_path / "x.safetensors", trained, CONFIG, names, ids)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 0.5}, r"backbone\..* expected \[32, 16, 3, 3\], found \[16"),
        ({"rcnn": replace(CONFIG.rcnn, context=0.3)}, "context is 0.3, of the model "),
        ({"learned": replace(CONFIG.learned, tile_size=64)}, "tile_size is 64, of the model 96"),
        (
            {"learned": replace(CONFIG.learned, nms_thresh=0.3)},
            "nms_thresh is 0.3, of the mod",
        ),
        (
            {"learned": replace(CONFIG.learned, anchor_ratios=(1.5, 3.0, 6.0))},
            r"anchor_ratios is \(1.5, 3.0, 6.0\), of the model ",
        ),
        ({"proposals_per_image": 9}, "top_n is 9, of the model 8"),
    ],
)
def test_a_configuration_that_is_not_the_models_is_not_saved(changes, words, trained, tmp_path):
    other = replace(CONFIG, **changes)
    with pytest.raises(UserError, match=f"config is not what the model was built from: .*{words}"):
        save_detector(tmp_path / "x.safetensors", trained, other, ["a", "b"], [7, 9])
    assert not list(tmp_path.iterdir())


def test_another_proposer_without_weights_is_not_saved(tmp_path):
    model = build_detector(ModelConfig(proposer="grid"), 1)
    for other, words in (
        (ModelConfig(proposer="grid", grid=GridConfig(step=0.9)), "proposer's step is 0.9, of"),
        (ModelConfig(proposer="precomputed", precomputed="x.json"), "proposer's type is NoneType"),
    ):
        with pytest.raises(UserError, match=words):
            save_detector(tmp_path / "x.safetensors", model, other, ["a"], [1])


def test_what_could_not_be_read_again_is_not_saved(trained, tmp_path):
    path = tmp_path / "x.safetensors"
    wrapped = torch.nn.DataParallel(trained)
    deployed = deploy_detector(Detector(trained, ["a", "b"], [7, 9]), "fp32").model
    broken = copy.deepcopy(trained)
    broken.cls_score.bias.data[0] = math.nan
    for model, names, ids, words in (
        (wrapped, ["a", "b"], [7, 9], "without a wrapper and not deployed, got DataParallel"),
        (deployed, ["a", "b"], [7, 9], "without a wrapper and not deployed, got RCNN"),
        (trained, ["a", ""], [7, 9], "class_names"),
        (trained, ["a", "b"], ["7", "9"], "category_ids must be a list of whole numbers"),
        (broken, ["a", "b"], [7, 9], "cls_score.bias"),
    ):
        with pytest.raises(UserError, match=words):
            save_detector(path, model, CONFIG, names, ids)
    assert not list(tmp_path.iterdir())


def test_the_deployed_form_normalises_alike(saved, image):
    detector = load_detector(saved, "cpu")
    deployed = deploy_detector(detector, "fp32")
    expected, found = (one(image, score_thresh=0.0) for one in (detector, deployed))
    assert torch.equal(found["labels"], expected["labels"])
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=0, atol=1e-2)


def test_an_image_far_larger_than_those_of_training_is_not_shrunk_in_silence(
    trained, tmp_path, caplog
):
    path = tmp_path / "detector.safetensors"
    save_detector(path, trained, CONFIG, ["a", "b"], [7, 9], largest_image=300)
    detector, at_scale = (
        load_detector(path),
        load_detector(path, settings={"learned": {"scale": 1}}),
    )
    trained_size, large = torch.zeros(3, 200, 300).byte(), torch.zeros(3, 700, 500).byte()
    deployed = deploy_detector(detector, "fp32")
    with caplog.at_level(logging.WARNING):
        for silent in (detector, deployed):
            silent(trained_size)
        at_scale(large)
        assert not caplog.records
        for warns in (detector, deployed):
            warns.detect([trained_size, large, large])
            warns(large)
    expected = (
        "an image of 500x700 pixels is shrunk to 96 for the proposer, which was trained on at most "
        "300: small objects are lost; --model.learned.scale 0.32 looks at it in tiles, at the size "
        "of training"
    )
    assert [record.getMessage() for record in caplog.records] == [expected] * 2


def test_files_need_not_say_what_no_use_asks_for(saved, tmp_path):
    state, metadata = load_weights(saved)
    for key in ("metrics", "training", "width", "package_version"):
        del metadata[key]
    save_weights(tmp_path / "old.safetensors", state, metadata)
    loaded = load_detector(tmp_path / "old.safetensors", "cpu")
    assert_normalised_otherwise(loaded.model)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"variant": "inception_v9"}, "broken metadata: unknown backbone 'inception_v9'"),
        (
            {"variant": "inception_v3"},
            "input_size must be a whole number of at least 75, got 48",
        ),
        (
            {"variant": "inception_v3_151"},
            "variant is inception_v3_151 but config.variant inception_v3_79",
        ),
        ({"mean": [51, 128, 179]}, "mean must be of values scaled"),
        ({"std": None}, "broken metadata"),
        ({"package_version": "99.0"}, "written by lowres-rcnn 99.0, newer than the installed 0.1"),
        ({"kind": "backbone"}, "expected a checkpoint of kind 'detector', found kind 'backbone'"),
    ],
    ids=str,
)
def test_what_cannot_be_obeyed_is_one_line(changed, message, saved, monkeypatch):
    monkeypatch.setattr("backbones.networks.metadata.package_version", lambda: "0.1.0")
    state, metadata = load_weights(saved)
    save_weights(saved, state, metadata | changed)
    with pytest.raises(UserError, match=re.escape(f"{saved}: ") + ".*" + re.escape(message)) as e:
        load_detector(saved, "cpu")
    assert "\n" not in str(e.value)
