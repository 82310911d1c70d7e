"""The detectors that come with the package."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.shapes import make_shapes

from backbones import UserError
from backbones.common.config import parse_config
from backbones.networks.weights import load_weights
from detect.checkpoint import load_detector
from detect.config import DetectorConfig
from detect.starters import find_detector
from detect.training.train import train_detector

STARTERS = Path(__file__).parents[2] / "detect/starters"


def test_the_starter_is_whole_in_half_precision():
    detector = load_detector("starter:voc2007")
    assert len(detector.class_names) == 20
    detector(np.full((90, 120, 3), 99, np.uint8))
    tensors, metadata = load_weights(find_detector("starter:voc2007"))
    assert {value.dtype for value in tensors.values()} == {torch.float16, torch.int64}
    assert "/" not in json.dumps(metadata["training"]).replace("VOCdevkit/", "").replace(
        "runs/", ""
    )


def test_small_starts_from_it(tmp_path):
    """And trains on: heads of other classes, sizes of other objects."""
    root = make_shapes(tmp_path / "shapes", count=4)
    arguments = ["--config", "small", "--data.format", "coco", "--data.root", str(root)]
    arguments += ["--data.val", "null", "--run", str(tmp_path / "run"), "--device", "cpu"]
    arguments += ["--epochs", "1", "--batch_size", "4", "--workers", "0"]
    config = parse_config(DetectorConfig, arguments)
    assert config.model.init == "starter:voc2007"
    trained, _ = load_weights(train_detector(config)["weights"])
    start, _ = load_weights(find_detector("starter:voc2007"))
    moved = {
        name
        for name, value in start.items()
        if not torch.equal(trained[name].to(value.dtype), value)
    }
    assert {name for name in start if name.endswith("conv.weight")} <= moved


def test_each_starter_has_its_line_in_the_card_and_they_are_small():
    files = list(STARTERS.glob("*.safetensors"))
    card = (STARTERS / "README.md").read_text()
    assert files
    assert all(f"starter:{file.stem}" in card for file in files)
    assert sum(file.stat().st_size for file in files) < 8e6


def test_one_that_is_not_there():
    with pytest.raises(UserError, match="starter:coco: no such starter: there is starter:voc2007"):
        find_detector("starter:coco")
