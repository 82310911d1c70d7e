"""What backbones and detectors share of a run's configuration."""

import dataclasses

import pytest
from helpers.config_keys import leaf_keys

from backbones.classification.pretraining import PretrainConfig
from backbones.common.errors import UserError
from backbones.training.config import TrainConfig
from backbones.training.recipe import OptimConfig
from backbones.training.step import StepConfig
from detect.config import DetectorConfig


@pytest.mark.parametrize("config_class", [PretrainConfig, DetectorConfig])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"eval_every": 0}, "eval_every must be at least 1 or auto"),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be at least 1"),
        ({"processes": 0}, "processes must be at least 1 or auto, got 0"),
        ({"workers": -1}, "workers must be 0 or more, got -1"),
        ({"checkpoint_minutes": -1.0}, "checkpoint_minutes must be 0 or more"),
        (
            {"batch_size": 6, "step": StepConfig(accumulate=4)},
            "batch_size 6 is no multiple of step.accumulate 4",
        ),
    ],
)
def test_values_out_of_range_are_refused(config_class, values, message):
    with pytest.raises(UserError, match=message):
        config_class(**values)


def test_what_is_shared_is_stated_once_but_for_some_defaults():
    own = {"run", "epochs", "batch_size", "optim"}
    for config_class in (PretrainConfig, DetectorConfig):
        shared = {field.name for field in dataclasses.fields(TrainConfig)}
        assert shared & set(config_class.__annotations__) <= own


@pytest.mark.parametrize("config_class", [PretrainConfig, DetectorConfig])
def test_a_resumed_run_keeps_what_decides_its_result(config_class):
    cosine, staircase = (
        config_class(optim=OptimConfig(schedule=schedule)) for schedule in ("cosine", "staircase")
    )
    assert cosine.may_change | {"epochs"} == staircase.may_change
    assert "epochs" not in cosine.may_change
    assert staircase.may_change <= set(leaf_keys(config_class))
    for key in ("seed", "precision", "model.variant", "optim.lr", "eval_every"):
        assert key in leaf_keys(config_class)
        assert key not in staircase.may_change


@pytest.mark.parametrize(
    ("epochs", "every"), [(1, 1), (8, 1), (14, 1), (16, 2), (60, 6), (300, 30)]
)
def test_a_run_is_scored_some_ten_times(epochs, every):
    config = TrainConfig("", epochs, 4, OptimConfig(), eval_every="auto")
    assert config.epochs_between_scores == every
    assert dataclasses.replace(config, eval_every=7).epochs_between_scores == 7
