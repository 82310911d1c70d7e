"""Detectors that start from a trained one: what is kept, what is new, what the log says."""

import json
import logging
import re
from dataclasses import replace

import pytest
import torch
from helpers.fit import given_to_fit
from helpers.shapes import make_shapes
from helpers.trained_network import normalised_otherwise, randomise

from backbones import InceptionV3, UserError, save_backbone
from backbones.networks.weights import load_weights
from backbones.training.recipe import OptimConfig
from detect.build import build_detector
from detect.checkpoint import load_detector, save_detector
from detect.config import (
    LEARNED_FROM_DATA,
    DataConfig,
    DetectorConfig,
    ModelConfig,
    model_from_data,
)
from detect.data.augmentation import AugmentConfig
from detect.proposals import LearnedConfig
from detect.rcnn.config import RCNNConfig
from detect.training.train import train_detector

SPEC = normalised_otherwise("inception_v3_79_naive")
MODEL = ModelConfig(
    variant="inception_v3_79_naive",
    learned=LearnedConfig(tile_size=96, channels=16, anchor_sizes=((9.0,), (21.0,), (33.0,))),
    proposals_per_image=5,
    proposals_per_image_train=10,
    rcnn=RCNNConfig(crop_size=77, crops_per_image=4),
)
AUTO = replace(
    model_from_data(), variant=MODEL.variant, learned=replace(LEARNED_FROM_DATA, channels=16)
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with a detector of classes red, green and blue, and its tensors."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(3)
    model = randomise(build_detector(MODEL, 3, SPEC), seed=0)
    model.cls_score.bias.data.normal_()
    model.bbox_pred.bias.data.normal_()
    names = ["red", "green", "blue"]
    save_detector(folder / "best.safetensors", model, MODEL, names, [1, 2, 3])
    return folder, {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Data of the classes blue, teal and red, in this order."""
    folder = make_shapes(tmp_path_factory.mktemp("data") / "shapes", count=4)
    path = folder / "annotations" / "train.json"
    document = json.loads(path.read_text())
    names = ("blue", "teal", "red")
    document["categories"] = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    path.write_text(json.dumps(document))
    return folder


@pytest.fixture
def run(trained, shapes, tmp_path):
    """Configuration of a run that starts from `trained`."""
    return DetectorConfig(
        run=str(tmp_path / "run"),
        data=DataConfig(format="coco", root=str(shapes), val=None),
        augment=AugmentConfig(flip=0.0, scale=(1.0, 1.0), colour=0.0),
        model=replace(MODEL, init=str(trained[0])),
        optim=OptimConfig(optimizer="muon", lr=0.002, schedule="cosine", ema_decay=0.9),
        **{"epochs": 2, "batch_size": 4, "workers": 0, "device": "cpu", "precision": "fp32"},
    )


def test_what_is_kept_is_kept_bit_for_bit(run, trained, monkeypatch, caplog):
    """Of the detector that `init` names."""
    loop = given_to_fit("detect.training.train", monkeypatch)
    with caplog.at_level(logging.INFO):
        train_detector(run)
    start, given = loop["model"].state_dict(), trained[1]
    assert "classes kept: blue, red; new: teal; left behind: green" in caplog.text
    assert "other settings" not in caplog.text
    heads = ("cls_score", "bbox_pred")
    body = [name for name in given if not name.startswith(heads)]
    assert [name for name in body if not torch.equal(start[name], given[name])] == []
    # Labels: 0 background, 1 blue, 2 teal, 3 red; there 1 red, 2 green, 3 blue.
    for kind in ("weight", "bias"):
        own, old = start[f"cls_score.{kind}"], given[f"cls_score.{kind}"]
        assert torch.equal(own[[0, 1, 3]], old[[0, 3, 1]])
        own, old = (state[f"bbox_pred.{kind}"].unflatten(0, (3, 4)) for state in (start, given))
        assert torch.equal(own[[0, 2]], old[[2, 0]])
    fresh = start["cls_score.weight"][2]
    assert 0 < fresh.abs().max() < 0.06, "of deviation 0.01"
    assert start["cls_score.bias"][2] == 0
    assert loop["model"].backbone.spec == SPEC
    assert loop["model"].proposer.trunk.spec.mean == SPEC.mean


def test_a_run_that_started_so_resumes(run, trained):
    weights = train_detector(run)["weights"]
    expected, _ = load_weights(weights)
    assert load_detector(weights).class_names == ["blue", "teal", "red"]
    checkpoints = sorted(weights.parent.joinpath("checkpoints").iterdir())
    checkpoints[-1].unlink()
    weights.unlink()
    train_detector(replace(run, resume=True))
    found, _ = load_weights(weights)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_auto_follows_the_new_data(run, trained, monkeypatch, caplog):
    loop = given_to_fit("detect.training.train", monkeypatch)
    auto = replace(AUTO, init=str(trained[0]), freeze="stem")
    single = replace(auto.learned, anchor_sizes=MODEL.learned.anchor_sizes)
    with caplog.at_level(logging.INFO):
        train_detector(replace(run, model=replace(auto, learned=single)))
    model, config = loop["model"], loop["config"].model
    assert not model.backbone.stem.conv1.conv.weight.requires_grad
    assert (config.learned.tile_size, config.learned.scale) == (256, None)
    assert config.rcnn.crop_size == 75, "no smaller than the network takes"
    assert (config.proposals_per_image, config.rcnn.detections_per_image) == (60, 100)
    assert "model.learned.tile_size 256 (there 96)" in caplog.text
    assert "proposals_per_image 60 (there 5)" in caplog.text
    with pytest.raises(
        UserError, match=r"levels have \[1, 1, 1\] anchor sizes, and not \[2, 2, 2\]"
    ):
        train_detector(replace(run, run=f"{run.run}-2", model=auto))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0.5}, "it has model.width 0.25, and not 0.5: set them so"),
        ({"learned": replace(MODEL.learned, channels=32)}, "it has model.learned.channels 16"),
        (
            {"learned": replace(MODEL.learned, anchor_ratios=(1.0,))},
            r"its weights do not fit: proposer.rpn.head.* expected \[1, ",
        ),
        ({"init": "nowhere"}, "nowhere: no such file"),
        ({"init": "a.onnx"}, "a.onnx: an exported file cannot be trained further: name the .saf"),
    ],
)
def test_what_cannot_be_started_from_is_one_line(changes, message, run):
    with pytest.raises(UserError, match=message):
        train_detector(replace(run, model=replace(run.model, **changes)))


def test_one_start_for_one_network():
    with pytest.raises(UserError, match=r"model.weights w.*model.init d: set one of them to null"):
        ModelConfig(weights="w", init="d")
    with pytest.raises(UserError, match=r"model.learned.weights w"):
        ModelConfig(learned=LearnedConfig(weights="w"), init="d")


def test_the_proposers_trunk_alone(tmp_path):
    """Its weights must be for images normalised as the crop network's are."""
    torch.manual_seed(4)
    trunk = randomise(
        InceptionV3(normalised_otherwise("inception_v3"), num_classes=0, width=0.25), seed=1
    )
    save_backbone(tmp_path / "trunk.safetensors", trunk)
    learned = replace(MODEL.learned, weights=str(tmp_path / "trunk.safetensors"))
    model = build_detector(replace(MODEL, learned=learned), 2, SPEC)
    own = model.proposer.trunk.state_dict()
    assert all(torch.equal(own[name], value) for name, value in trunk.state_dict().items())
    with pytest.raises(UserError, match=re.escape("for images normalised by mean (0.2, 0.5, 0.7)")):
        build_detector(replace(MODEL, learned=learned), 2)
    # A detector's file needs none of it.
    save_detector(
        tmp_path / "d.safetensors", model, replace(MODEL, learned=learned), ["a", "b"], [1, 2]
    )
    (tmp_path / "trunk.safetensors").unlink()
    load_detector(tmp_path / "d.safetensors", "cpu")
