"""The detectors that come with the package."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from backbones import UserError
from detect.checkpoint import load_detector
from detect.config import ModelConfig
from detect.starters import find_detector
from detect.training.fine_tuning import load_start

STARTERS = Path(__file__).parents[2] / "detect/starters"


def test_the_starter_is_a_detector_in_half_precision_that_small_starts_from():
    detector = load_detector("starter:voc2007")
    assert len(detector.class_names) == 20
    parameter = next(detector.model.parameters())
    assert (parameter.half().float() == parameter).all()
    detector(np.full((90, 120, 3), 99, np.uint8))
    small = yaml.safe_load((STARTERS.parents[1] / "configs/detector/small.yaml").read_text())
    assert load_start(ModelConfig(init=small["model"]["init"])) is not None


def test_each_starter_has_its_line_in_the_card_and_they_are_small():
    files = list(STARTERS.glob("*.safetensors"))
    card = (STARTERS / "README.md").read_text()
    assert files
    assert all(f"starter:{file.stem}" in card for file in files)
    assert sum(file.stat().st_size for file in files) < 8e6


def test_one_that_is_not_there():
    with pytest.raises(UserError, match="starter:coco: no such starter: there is starter:voc2007"):
        find_detector("starter:coco")
