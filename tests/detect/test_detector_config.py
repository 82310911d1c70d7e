import dataclasses
from pathlib import Path

import pytest
import torch

from backbones.classification.pretraining import PretrainConfig
from backbones.common.config import from_dict, parse_config, to_dict
from backbones.common.errors import UserError
from detect.benchmarks.crop_networks import ComparisonConfig
from detect.benchmarks.speed_accuracy import FrontConfig
from detect.build import build_detector
from detect.config import DataConfig, DetectorConfig, ModelConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_every_config_reads_and_builds(path):
    kind = DetectorConfig if path.parent.name == "detector" else PretrainConfig
    if path.stem.endswith("_comparison"):
        kind = ComparisonConfig
    if path.stem.endswith("_front"):
        kind = FrontConfig
    config = parse_config(kind, ["--config", str(path)])
    assert from_dict(kind, to_dict(config)) == config
    if issubclass(kind, DetectorConfig):
        with torch.device("meta"):
            build_detector(dataclasses.replace(config.model, weights=None), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proposer": "grid", "precomputed": "x.json"}, "model.precomputed is set"),
        ({"proposer": "precomputed"}, "model.precomputed must name a file"),
        ({"proposer": "grid", "proposals_per_image": 5}, "proposals_per_image is for .* learned"),
        ({"proposer": "grid", "proposal_score_thresh": 0.1}, "proposal_score_thresh is for"),
        ({"freeze": "stem"}, "model.freeze stem would keep random weights: set model.weights"),
        ({"proposals_per_image": 0}, "must be at least 1"),
        ({"proposal_score_thresh": 2.0}, "model.proposal_score_thresh must be in"),
    ],
)
def test_model_config_refuses_what_would_not_be_read(options, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**options)


def test_class_names_are_for_voc():
    with pytest.raises(UserError, match=r"data\.class_names is for data\.format voc"):
        DataConfig(format="coco", class_names=("a",))
