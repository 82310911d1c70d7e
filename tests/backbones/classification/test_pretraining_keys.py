"""Every key of a pretraining configuration has a test that asserts what it means."""

import dataclasses

import pytest
from helpers.config_keys import CHECKPOINTS, OPTIM, STEP, check_keys_are_tested

from backbones.classification.pretraining import PretrainConfig

DATA = "backbones/data/"
HERE = "backbones/classification/test_pretraining.py::"
LOOP = HERE + "test_the_loop_is_given_what_the_configuration_says"
NETWORK = HERE + "test_the_network_is_the_configurations"
STREAMED = DATA + "test_loaders.py::test_train_shards_are_streamed_and_train_images_make_an_epoch"

TESTS = {
    "run": LOOP,
    "data.root": DATA + "test_loaders.py::test_root_holds_both_splits",
    "data.train_shards": STREAMED,
    "data.train_images": STREAMED,
    "data.classes": STREAMED,
    "data.augment.min_area": (
        DATA + "test_transforms.py::test_training_crops_cover_the_stated_areas_and_ratios"
    ),
    "data.augment.max_ratio": (
        DATA + "test_transforms.py::test_training_crops_cover_the_stated_areas_and_ratios"
    ),
    "data.augment.flip": DATA + "test_transforms.py::test_flip_mirrors_half_or_none",
    "data.augment.color_jitter": DATA + "test_transforms.py::test_colours_change_as_in_torchvision",
    "data.max_classes": (
        DATA + "test_loaders.py::test_max_classes_leaves_the_first_ones_of_both_splits"
    ),
    "model.variant": NETWORK,
    "model.width": NETWORK,
    "model.aux": NETWORK,
    "model.dropout": NETWORK,
    "model.weights": NETWORK,
    **{f"optim.{key}": node for key, node in OPTIM.items()},
    "label_smoothing": HERE + "test_the_loss_has_the_configurations_smoothing_and_weight",
    "aux_weight": HERE + "test_the_loss_has_the_configurations_smoothing_and_weight",
    "epochs": LOOP,
    "batch_size": LOOP,
    "precision": LOOP,
    **{f"step.{key}": node for key, node in STEP.items()},
    "processes": "tools/test_processes.py::test_both_trainers_share_a_batch_among_processes",
    "workers": LOOP,
    "eval_every": (
        "backbones/training/test_loop.py::"
        "test_metrics_are_recorded_every_so_many_epochs_and_at_the_end"
    ),
    **CHECKPOINTS,
    "seed": HERE + "test_seed_decides_the_first_weights",
    "device": LOOP,
    "resume": HERE + "test_a_streamed_run_resumes_in_the_middle_of_an_epoch",
}


def test_every_key_has_a_test_of_its_meaning():
    check_keys_are_tested(PretrainConfig, TESTS)


def test_a_key_without_one_is_found_and_so_is_a_test_that_is_none():
    @dataclasses.dataclass(frozen=True)
    class More(PretrainConfig):
        flag: bool = False
        """Of nothing."""

    for tests, message in (
        (TESTS, r"name a test that asserts what it means: \['flag'\]"),
        (TESTS | {"flag": "no_file.py::test_it"}, "flag: there is no no_file"),
        (TESTS | {"flag": HERE + "test_it"}, "flag: there is no .*::test_it"),
        (TESTS | {"flag": LOOP}, "says does not speak of flag"),
        (TESTS | {"flag": LOOP, "flags": LOOP}, r"no keys of More: \['flags'\]"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_keys_are_tested(More, tests)
