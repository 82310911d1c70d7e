"""Every key of a pretraining configuration is read: changing it changes the run, or is refused."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.config_keys import configuration, leaf_keys
from PIL import Image

from backbones import create_backbone
from backbones.classification.pretraining import PretrainConfig, pretrain
from backbones.common.errors import UserError
from backbones.networks.weights import load_weights, save_backbone
from backbones.training.recipe import classification_loss

VARIANT = "inception_v3_79_naive"

BASE: dict[str, Any] = {
    "data.root": "{root}",
    "model.variant": VARIANT,
    "model.width": 0.25,
    "optim.lr": 0.01,
    "optim.clip_grad": 1.0,
    "epochs": 2,
    "batch_size": 4,
    "workers": 0,
    "device": "cpu",
    "precision": "fp32",
}

STREAMED = {
    "data.train_shards": "{root}/shard-{0..1}.tar",
    "data.train_images": 8,
    "data.classes": "{root}/three.json",
}

# Key -> its other value, and what else must be set for the key to have a meaning at all.
CHANGED: dict[str, tuple[Any, dict[str, Any]]] = {
    "data.max_classes": (2, {}),
    "data.train_shards": ("{root}/other-{0..1}.tar", STREAMED),
    "data.train_images": (4, STREAMED),
    "data.classes": ("{root}/four.json", STREAMED),
    "data.augment.min_area": (0.9, {}),
    "data.augment.max_ratio": (1.0, {}),
    "data.augment.flip": (False, {}),
    "data.augment.color_jitter": (0.0, {}),
    "model.variant": ("inception_v3_79_naive_table1", {}),
    "model.width": (0.5, {}),
    "model.aux": ("none", {}),
    "model.dropout": (0.5, {}),
    "model.weights": ("{root}/backbone.safetensors", {}),
    "optim.optimizer": ("sgd", {}),
    "optim.lr": (0.02, {}),
    "optim.scale_lr_from": (8, {}),
    "optim.momentum": (0.5, {}),
    "optim.decay": (0.5, {}),
    "optim.eps": (0.1, {}),
    "optim.weight_decay": (0.1, {}),
    "optim.layer_decay": (0.5, {}),
    "optim.clip_grad": (0.01, {}),
    "optim.schedule": ("cosine", {}),
    "optim.decay_rate": (0.1, {"optim.decay_epochs": 1.0}),
    "optim.decay_epochs": (1.0, {}),
    "optim.warmup_epochs": (1.0, {}),
    "optim.ema_decay": (None, {}),
    "label_smoothing": (0.0, {}),
    "aux_weight": (0.6, {}),
    "epochs": (1, {}),
    "batch_size": (3, {}),
    "precision": ("bf16", {}),
    "eval_every": (2, {}),
    "step.accumulate": (2, {}),
    "keep_checkpoints": (1, {}),
    "seed": (1, {}),
}

REFUSED: dict[str, tuple[Any, str]] = {
    "data.root": ("nowhere", "nowhere"),
    "device": ("tpu", "device must be"),
    "step.sync_batch_norm": (True, "needs a GPU"),
    "workers": (-1, "must be 0 or more"),
}

ELSEWHERE = {
    "run": "names the folder that every run here is read from",
    "step.compile": "test_training.py trains a compiled network",
    "step.on_non_finite": "test_training.py skips a step",
    "checkpoint_minutes": "test_resume.py resumes between epochs",
    "resume": "test_train_backbone.py resumes runs",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures in two classes, and a checkpoint."""
    root = tmp_path_factory.mktemp("keys")
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("dark", "light", "none")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(128 * label, 128 * label + 127, (32, 32, 3))
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(root / split / name / f"{index}.png")
    for name in ("shard-0", "shard-1", "other-0", "other-1"):
        with tarfile.open(root / f"{name}.tar", "w") as tar:
            for index in range(4):
                label = (index + (name < "shard")) % 3
                tar.add(root / "train" / "dark" / f"{index}.png", f"{index}.png")
                info = tarfile.TarInfo(f"{index}.cls")
                info.size = 1
                tar.addfile(info, io.BytesIO(str(label).encode()))
    (root / "three.json").write_text('["dark", "light", "none"]')
    (root / "four.json").write_text('["dark", "light", "none", "fourth"]')
    torch.manual_seed(9)
    backbone = create_backbone(VARIANT, num_classes=2, width=0.25)
    save_backbone(root / "backbone.safetensors", backbone, ["dark", "light"])
    return root


def outcome(values: dict[str, Any], folder: Path, run: Path) -> dict[str, Any]:
    """What a run leaves: the figures it logs and every weight."""
    values = BASE | {"run": str(run)} | values
    values = {
        key: value.replace("{root}", str(folder)) if isinstance(value, str) else value
        for key, value in values.items()
    }
    pretrain(configuration(PretrainConfig, values))
    state, _ = load_weights(run / "last.safetensors")
    with (run / "curves.csv").open() as file:
        figures = list(csv.reader(file))
    return {
        "figures": figures,
        "checkpoints": sorted(path.name for path in (run / "checkpoints").iterdir()),
        "weights": {name: tensor.flatten().tolist() for name, tensor in state.items()},
    }


@pytest.fixture(scope="module")
def unchanged(folder, tmp_path_factory) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The outcome of the base configuration with a context; made once for each context."""
    made: dict[str, dict[str, Any]] = {}

    def make(context: dict[str, Any]) -> dict[str, Any]:
        name = json.dumps(context)
        if name not in made:
            made[name] = outcome(context, folder, tmp_path_factory.mktemp("unchanged"))
        return made[name]

    return make


def test_the_tables_cover_every_key():
    assert sorted([*CHANGED, *REFUSED, *ELSEWHERE]) == sorted(leaf_keys(PretrainConfig))


def test_without_a_change_the_outcome_is_the_same(folder, unchanged, tmp_path):
    assert outcome({}, folder, tmp_path) == unchanged({})


@pytest.mark.parametrize("key", CHANGED)
def test_a_changed_key_changes_the_run(key, folder, unchanged, tmp_path):
    value, context = CHANGED[key]
    assert outcome(context | {key: value}, folder, tmp_path) != unchanged(context)


@pytest.mark.parametrize("key", REFUSED)
def test_a_wrong_value_is_refused(key, folder, tmp_path):
    value, message = REFUSED[key]
    with pytest.raises(UserError, match=message):
        outcome({key: value}, folder, tmp_path)


@pytest.mark.parametrize(("workers", "broken_at"), [(0, 3), (2, 4)])
def test_a_streamed_run_resumes_in_the_middle_of_an_epoch(
    workers, broken_at, folder, tmp_path, monkeypatch
):
    streamed = STREAMED | {"workers": workers, "checkpoint_minutes": 0.0, "batch_size": 2}
    expected = outcome(streamed, folder, tmp_path / "unbroken")
    calls = iter(range(100))

    def broken(*arguments):
        if next(calls) == broken_at:
            raise KeyboardInterrupt
        return classification_loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("backbones.classification.pretraining.classification_loss", broken)
        with pytest.raises(KeyboardInterrupt):
            outcome(streamed, folder, tmp_path / "run")
    resumed = outcome(streamed | {"resume": True}, folder, tmp_path / "run")
    assert resumed == expected
    other = streamed | {"workers": 2 - workers, "resume": True, "epochs": 3}
    if workers == 0:
        with pytest.raises(UserError, match="cannot be continued by 2"):
            outcome(other, folder, tmp_path / "run")
