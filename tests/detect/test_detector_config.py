import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from helpers.scenes import make_dataset

from backbones.classification.pretraining import PretrainConfig
from backbones.common.config import from_dict, parse_config, to_dict
from backbones.common.errors import UserError
from backbones.training.recipe import OptimConfig
from backbones.training.step import StepConfig
from detect.benchmarks.crop_networks import ComparisonConfig
from detect.benchmarks.speed_accuracy import SpeedAccuracyConfig
from detect.build import build_detector
from detect.config import DataConfig, DetectorConfig, ModelConfig
from detect.proposals import LearnedConfig
from detect.training.from_data import derive_model

ONE_OBJECT = make_dataset([[(0, 0, 90, 90, 1)]])
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_every_config_reads_and_builds(path):
    kind = DetectorConfig if path.parent.name == "detector" else PretrainConfig
    if path.stem.endswith("_comparison"):
        kind = ComparisonConfig
    if path.stem.endswith("_speed_accuracy"):
        kind = SpeedAccuracyConfig
    config = parse_config(kind, ["--config", str(path)])
    assert from_dict(kind, to_dict(config)) == config
    if issubclass(kind, DetectorConfig):
        with torch.device("meta"):
            # Weights are not downloaded here.
            anew: dict[str, Any] = {"weights": None, "freeze": "none"}
            learned = dataclasses.replace(config.model.learned, **anew)
            model = dataclasses.replace(config.model, learned=learned, **anew)
            build_detector(derive_model(model, ONE_OBJECT), 3)


@pytest.mark.parametrize("name", [None, "bccd_79", "digits_79", "voc_79", "coco_79"])
def test_the_default_recipe_is_the_one_that_was_measured(name):
    arguments = [] if name is None else ["--config", str(CONFIGS / "detector" / f"{name}.yaml")]
    config = parse_config(DetectorConfig, arguments)
    assert config.optim == OptimConfig(
        optimizer="muon",
        lr=0.003,
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=0.5 if name in ("digits_79", "coco_79") else 1.0,
        ema_decay=0.99 if name == "digits_79" else 0.995,
        clip_grad=10.0,
    )
    assert config.model.rcnn.positive_fraction == 0.5
    assert from_dict(DetectorConfig, {"optim": {"lr": 0.1}}).optim.optimizer == "muon"
    # Of classifiers it is the paper's.
    assert PretrainConfig().optim == OptimConfig()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proposer": "grid", "precomputed": "x.json"}, "model.precomputed is set"),
        ({"proposer": "precomputed"}, "model.precomputed must name a file"),
        ({"proposer": "grid", "proposals_per_image": 5}, "proposals_per_image is for .* learned"),
        ({"proposer": "grid", "proposal_score_thresh": 0.1}, "proposal_score_thresh is for"),
        ({"freeze": "stem"}, "model.freeze stem would keep random weights: set model.weights"),
        (
            {"learned": LearnedConfig(freeze="stage_a")},
            "model.learned.freeze stage_a would keep random weights: set model.learned.weights",
        ),
        ({"proposals_per_image": 0}, "must be at least 1"),
        ({"proposal_score_thresh": 2.0}, "model.proposal_score_thresh must be in"),
    ],
)
def test_model_config_refuses_what_would_not_be_read(options, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**options)


def test_images_of_a_step_for_the_proposer_are_those_of_the_whole_step():
    model = ModelConfig(learned=LearnedConfig(images_per_step=2))
    with pytest.raises(UserError, match=r"images_per_step must be null where step\.accumulate"):
        DetectorConfig(model=model, step=StepConfig(accumulate=2))


def test_class_names_are_for_voc():
    with pytest.raises(UserError, match=r"data\.class_names is for data\.format voc"):
        DataConfig(format="coco", class_names=("a",))


def wrong_numbers(config: Any, group: str = "") -> Iterator[tuple[str, str]]:
    """Each key whose number is refused where it is -7, with the message."""
    for name, hint in get_type_hints(type(config)).items():
        if dataclasses.is_dataclass(value := getattr(config, name)):
            yield from wrong_numbers(value, f"{group}{name}.")
        elif re.search("int|float", str(hint)) and not re.search("tuple|ClassVar", str(hint)):
            try:
                dataclasses.replace(config, **{name: -7})
            except UserError as error:
                yield f"{group}{name}", str(error)


@pytest.mark.parametrize("kind", [PretrainConfig, DetectorConfig])
def test_a_number_out_of_its_range_is_told_by_its_key_with_all_its_groups(kind):
    """As a file and `--` have it."""
    messages = dict(wrong_numbers(kind()))
    groups = {key.rpartition(".")[0] for key in messages}
    every = {"", "optim", "step", "data", "model"}
    learned = {"augment", "model.learned", "model.grid", "model.selective_search", "model.rcnn"}
    assert groups == every | ({"data.augment"} if kind is PretrainConfig else learned)
    for key, message in messages.items():
        assert message.startswith(f"{key} "), message
