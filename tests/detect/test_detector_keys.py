"""Every key of a detector's configuration is read: changing it changes the run, or is refused."""

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.config_keys import configuration, leaf_keys
from helpers.contrib import needs_contrib

from backbones import create_backbone
from backbones.common.errors import UserError
from backbones.networks.weights import load_weights, save_backbone
from backbones.training.run_folder import RunFolder
from detect.config import DetectorConfig
from detect.data import make_digits
from detect.training.train import train_detector

VARIANT = "inception_v3_79_naive"

BASE: dict[str, Any] = {
    "data.format": "coco",
    "data.train": "train",
    "data.val": None,
    "data.test": "val",
    "augment.flip": 0.5,
    "augment.scale": [0.9, 1.1],
    "augment.colour": 0.2,
    "augment.crop": 0.5,
    "model.variant": VARIANT,
    "model.learned.image_size": 96,
    "model.learned.channels": 16,
    "model.learned.anchor_sizes": [[12.0, 20.0], [32.0, 48.0], [64.0, 80.0]],
    "model.proposals_per_image": 12,
    "model.proposals_per_image_train": 40,
    "model.rcnn.crops_per_image": 6,
    "optim.optimizer": "sgd",
    "optim.lr": 0.02,
    "optim.clip_grad": 1.0,
    "optim.ema_decay": None,
    "epochs": 2,
    "batch_size": 2,
    "workers": 0,
    "eval_every": 1,
    "device": "cpu",
    "precision": "fp32",
}

# `{}` sets a key back to its default: what is for learned proposals is refused with others.
NOT_LEARNED = {
    "model.learned": {},
    "model.proposals_per_image": {},
    "model.proposals_per_image_train": {},
}

GRID = {**NOT_LEARNED, "model.proposer": "grid"}

SELECTIVE = {**NOT_LEARNED, "model.proposer": "selective_search"}

PRECOMPUTED = {
    **NOT_LEARNED,
    "model.proposer": "precomputed",
    "model.precomputed": "{root}/proposals.json",
}

# Key -> its other value, and what else must be set for the key to have a meaning at all.
CHANGED: dict[str, tuple[Any, dict[str, Any]]] = {
    "data.train": ("val", {}),
    "data.val": ("val", {}),
    "data.test": ("train", {}),
    "augment.flip": (0.0, {}),
    "augment.vertical_flip": (1.0, {}),
    "augment.scale": ([0.5, 0.7], {}),
    "augment.colour": (0.0, {}),
    "augment.crop": (0.0, {}),
    "model.variant": ("inception_v3_79", {}),
    "model.width": (0.5, {}),
    "model.dropout": (0.5, {}),
    "model.weights": ("{root}/backbone.safetensors", {}),
    "model.freeze": ("stage_a", {"model.weights": "{root}/backbone.safetensors"}),
    "model.proposer": ("grid", NOT_LEARNED),
    "model.learned.width": (0.5, {}),
    "model.learned.image_size": (128, {}),
    "model.learned.channels": (24, {}),
    "model.learned.anchor_sizes": ([[10.0, 18.0], [30.0, 46.0], [60.0, 80.0]], {}),
    "model.learned.anchor_ratios": ([1.0], {}),
    "model.learned.positive_iou": (0.4, {}),
    "model.learned.negative_iou": (0.05, {}),
    "model.learned.images_per_step": (1, {}),
    "model.learned.pre_nms_top_n": (4, {}),
    "model.learned.nms_thresh": (0.2, {}),
    "model.grid.sizes": ([40.0], GRID),
    "model.grid.aspect_ratios": ([1.0], GRID),
    "model.grid.step": (1.0, GRID),
    "model.selective_search.mode": ("quality", SELECTIVE),
    "model.selective_search.top_n": (3, SELECTIVE),
    "model.precomputed": ("{root}/more.json", PRECOMPUTED),
    "model.proposals_per_image": (5, {}),
    "model.proposals_per_image_train": (6, {"model.rcnn.jitter_copies": 0}),
    "model.proposal_score_thresh": (0.9, {}),
    "model.rcnn.crop_size": (76, {}),
    "model.rcnn.crop_mode": ("square", {}),
    "model.rcnn.context": (0.2, {}),
    "model.rcnn.positive_iou": (0.3, {"model.rcnn.negative_iou": 0.3}),
    "model.rcnn.negative_iou": (0.1, {}),
    "model.rcnn.crops_per_image": (5, {}),
    "model.rcnn.positive_fraction": (0.75, {}),
    "model.rcnn.jitter_copies": (0, {}),
    "model.rcnn.jitter_strength": (0.1, {}),
    "model.rcnn.regression_iou": (0.8, {}),
    "model.rcnn.delta_std": ([1.0, 1.0, 1.0, 1.0], {}),
    "model.rcnn.regression_weight": (0.1, {}),
    "model.rcnn.objectness_weight": (0.5, {}),
    "model.rcnn.score_thresh": (0.1, {}),
    "model.rcnn.nms_thresh": (0.01, {}),
    "model.rcnn.soft_nms_sigma": (0.5, {}),
    "model.rcnn.detections_per_image": (3, {}),
    "optim.optimizer": ("adamw", {}),
    "optim.lr": (0.01, {}),
    "optim.scale_lr_from": (8, {}),
    "optim.momentum": (0.5, {}),
    "optim.decay": (0.5, {"optim.optimizer": "rmsprop_tf"}),
    "optim.eps": (0.1, {"optim.optimizer": "rmsprop_tf"}),
    "optim.weight_decay": (0.1, {}),
    "optim.layer_decay": (0.5, {}),
    "optim.clip_grad": (0.01, {}),
    "optim.schedule": ("cosine", {}),
    "optim.decay_rate": (0.1, {"optim.decay_epochs": 1.0}),
    "optim.decay_epochs": (1.0, {}),
    "optim.warmup_epochs": (1.0, {}),
    "optim.ema_decay": (0.9, {}),
    "epochs": (3, {}),
    "batch_size": (3, {}),
    "eval_every": (2, {"data.val": "val"}),
    "seed": (1, {}),
    "precision": ("bf16", {}),
}

REFUSED: dict[str, tuple[Any, str]] = {
    "data.format": ("voc", "not found|no such"),
    "data.root": ("nowhere", "not found"),
    "data.class_names": (["a"], "is for data.format voc"),
    "device": ("tpu", "device"),
    "workers": (-1, "must be 0 or more"),
}

ELSEWHERE = {
    "run": "names the folder that every run here is read from",
    "model.selective_search.cache": "changes no result; test_selective_search.py sees it used",
    "resume": "test_detector_training.py resumes runs",
}


@pytest.fixture(scope="module", autouse=True)
def _no_pictures():
    """Half the time of so short a run is the drawing of its curves, which is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "draw_curves", lambda self: None)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A dataset, a backbone checkpoint and two files of proposals."""
    root = make_digits(tmp_path_factory.mktemp("keys"), train=4, val=2, image_size=128)
    torch.manual_seed(9)
    backbone = create_backbone(VARIANT, num_classes=0, width=0.25)
    save_backbone(root / "backbone.safetensors", backbone)
    image_ids = [
        image["id"]
        for split in ("train", "val")
        for image in json.loads((root / "annotations" / f"{split}.json").read_text())["images"]
    ]
    for name, sizes in {"proposals": [20, 40], "more": [20, 30]}.items():
        proposals = [
            {"image_id": image_id, "bbox": [x, x, size, size], "score": 0.5}
            for image_id in image_ids
            for size in sizes
            for x in (0, 25, 50)
        ]
        (root / f"{name}.json").write_text(json.dumps(proposals))
    return root


def outcome(values: dict[str, Any], folder: Path, run: Path) -> dict[str, Any]:
    """What a run leaves: the figures it logs, every weight, the scores and the detections."""
    values = BASE | {"data.root": "{root}", "run": str(run)} | values
    values = {
        key: value.replace("{root}", str(folder)) if isinstance(value, str) else value
        for key, value in values.items()
    }
    trained = train_detector(configuration(DetectorConfig, values))
    state, _ = load_weights(trained["weights"])
    with (run / "curves.csv").open() as file:
        figures = list(csv.reader(file))
    detections = json.loads((run / "test_results.json").read_text())
    weights = {
        name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in state.items()
    }
    # The time it takes is never the same.
    scores = {key: value for key, value in trained["test"].items() if key != "seconds_per_image"}
    return {"figures": figures, "weights": weights, "detections": detections, **scores}


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
    assert sorted([*CHANGED, *REFUSED, *ELSEWHERE]) == sorted(leaf_keys(DetectorConfig))


def test_without_a_change_the_outcome_is_the_same(folder, unchanged, tmp_path):
    assert outcome({}, folder, tmp_path) == unchanged({})


@pytest.mark.parametrize("key", CHANGED)
def test_a_changed_key_changes_the_run(key, folder, unchanged, tmp_path):
    value, context = CHANGED[key]
    if context is SELECTIVE:
        needs_contrib()
    assert outcome(context | {key: value}, folder, tmp_path) != unchanged(context)


@pytest.mark.parametrize("key", REFUSED)
def test_a_wrong_value_is_refused(key, folder, tmp_path):
    value, message = REFUSED[key]
    with pytest.raises(UserError, match=message):
        outcome({key: value}, folder, tmp_path)
