"""Which test says what a key of a configuration means."""

import ast
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

TESTS = Path(__file__).parents[1]

OPTIM = {
    "optimizer": "backbones/training/test_recipe.py::test_sgd_has_momentum",
    "lr": "backbones/training/test_recipe.py::test_adamw_first_step",
    "scale_lr_from": (
        "backbones/training/test_recipe.py::test_the_rate_is_as_it_stands_or_grows_with_the_batch"
    ),
    "momentum": "backbones/training/test_recipe.py::test_sgd_has_momentum",
    "decay": "backbones/training/test_recipe.py::test_rmsprop_is_tensorflows_over_20_steps",
    "eps": "backbones/training/test_recipe.py::test_rmsprop_is_tensorflows_over_20_steps",
    "weight_decay": "backbones/training/test_recipe.py::test_biases_and_normalisation_do_not_decay",
    "layer_decay": (
        "backbones/networks/test_finetuning.py::test_groups_keep_every_parameter_and_its_decay"
    ),
    "clip_grad": (
        "backbones/training/test_step.py::test_the_gradient_is_clipped_to_its_largest_norm"
    ),
    "schedule": "backbones/training/test_recipe.py::test_cosine_schedule_with_warmup",
    "decay_rate": (
        "backbones/training/test_recipe.py::"
        "test_the_staircase_has_the_configurations_height_and_length"
    ),
    "decay_epochs": (
        "backbones/training/test_recipe.py::"
        "test_the_staircase_has_the_configurations_height_and_length"
    ),
    "warmup_epochs": "backbones/training/test_recipe.py::test_cosine_schedule_with_warmup",
    "ema_decay": (
        "backbones/training/test_step.py::test_the_average_follows_the_weights_at_ema_decay"
    ),
}
"""Of `OptimConfig`, which both trainers hand to the loop as it is."""

STEP = {
    "accumulate": (
        "backbones/training/test_step.py::test_a_batch_in_parts_has_the_gradient_of_the_whole"
    ),
    "sync_batch_norm": "backbones/training/test_loop.py::test_sync_batch_norm_needs_a_gpu",
    "compile": (
        "backbones/training/test_loop.py::test_a_compiled_network_trains_to_the_same_weights"
    ),
    "on_non_finite": (
        "backbones/training/test_loop.py::test_a_step_without_a_finite_loss_can_be_skipped"
    ),
}
"""Of `StepConfig`, likewise."""

CHECKPOINTS = {
    "checkpoint_minutes": (
        "backbones/training/test_resume.py::"
        "test_resume_with_rare_checkpoints_drops_the_curves_beyond"
    ),
    "keep_checkpoints": (
        "backbones/training/test_checkpoints.py::test_only_the_newest_checkpoints_stay"
    ),
}
"""Of `TrainConfig`, likewise."""


def leaf_keys(config_class: type, prefix: str = "") -> list[str]:
    """Dotted names of all keys, those of groups included."""
    keys = []
    for field in dataclasses.fields(config_class):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(default):
            keys += leaf_keys(type(default), f"{prefix}{field.name}.")
        else:
            keys.append(prefix + field.name)
    return keys


def check_keys_are_tested(config_class: type, tests: Mapping[str, str]) -> None:
    """Fail unless every key has a test, `file::name` in this folder, that speaks of the key."""
    keys = leaf_keys(config_class)
    untested, unknown = set(keys) - tests.keys(), tests.keys() - set(keys)
    assert not untested, f"name a test that asserts what it means: {sorted(untested)}"
    assert not unknown, f"no keys of {config_class.__name__}: {sorted(unknown)}"
    for key, node in tests.items():
        source = _source(node)
        assert source is not None, f"{key}: there is no {node}"
        name = key.rpartition(".")[2]
        assert re.search(rf"\b{name}\b", source), f"{key}: {node} does not speak of {name}"


def _source(node: str) -> str | None:
    """The text of a test function, its parameters included, or None where there is none."""
    file, _, name = node.partition("::")
    path = TESTS / file
    if not path.is_file():
        return None
    text = path.read_text()
    for function in ast.parse(text).body:
        if isinstance(function, ast.FunctionDef) and function.name == name:
            first = min(part.lineno for part in (function, *function.decorator_list))
            return "\n".join(text.splitlines()[first - 1 : function.end_lineno])
    return None
