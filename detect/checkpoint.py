"""A trained detector as one file."""

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from backbones.common.config import from_dict, to_dict
from backbones.common.device import resolve_device
from backbones.common.errors import UserError
from backbones.networks.inception import InceptionV3
from backbones.networks.metadata import (
    broken_metadata,
    checkpoint_metadata,
    read_checkpoint,
    spec_from_metadata,
)
from backbones.networks.state_dicts import check_fit, with_counters
from backbones.networks.weights import save_weights
from detect.build import build_detector
from detect.config import ModelConfig
from detect.deployment.exported import SUFFIXES as EXPORTED
from detect.deployment.exported import classes_of, load_exported
from detect.detector import Detector
from detect.proposals import (
    GridProposer,
    LearnedProposer,
    Proposer,
    SelectiveSearchProposer,
)
from detect.rcnn.model import RCNN
from detect.starters import find_detector

SETTINGS_OF_USE = (
    "proposals_per_image",
    "proposal_score_thresh",
    "learned.nms_thresh",
    "learned.scale",
    "learned.tile_size",
    "learned.pre_nms_top_n",
    "rcnn.crop_size",
    "rcnn.objectness_weight",
    "rcnn.score_thresh",
    "rcnn.nms_thresh",
    "rcnn.soft_nms_sigma",
    "rcnn.agnostic_nms",
    "rcnn.detections_per_image",
)
"""Keys of `ModelConfig` that may have other values in use than in training."""


def save_detector(
    path: str | Path,
    model: RCNN,
    config: ModelConfig,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    metrics: Mapping[str, float] | None = None,
    training: Mapping[str, Any] | None = None,
    largest_image: int | None = None,
) -> None:
    """Write one `.safetensors` file: weights, and as metadata all that `load_detector` needs.

    Args:
        path: file to write; replaced atomically.
        model: the detector.
        config: what it was built from.
        class_names: of labels `1..K`.
        category_ids: of labels `1..K` in the training data.
        metrics: scores it was measured at, e.g. `{"AP50": 0.81}`.
        training: configuration of the run that made it, values that JSON can hold.
        largest_image: longest side of a training image in pixels.

    Raises:
        UserError: these are not the model's classes, or it was built from another configuration, is
            wrapped or deployed, or has weights that are no numbers; or the disk refuses the file.
    """
    if not isinstance(model, RCNN) or not isinstance(model.backbone, InceptionV3):
        raise UserError(
            f"{path}: expected a detector as it is trained, without a wrapper and not deployed, "
            f"got {type(model).__name__}"
        )
    numbers = {len(set(class_names)), len(class_names), len(set(category_ids)), model.num_classes}
    if len(numbers) > 1:
        raise UserError(
            f"{path}: expected {model.num_classes} different class names and category ids, as many "
            f"as the model has, got {len(class_names)} and {len(category_ids)}"
        )
    try:
        classes_of({"class_names": list(class_names), "category_ids": list(category_ids)})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    _check_built_from(model, config, path)
    own: dict[str, Any] = {"config": asdict(config), "category_ids": list(category_ids)}
    if largest_image is not None:
        own["largest_image"] = largest_image
    metadata = checkpoint_metadata("detector", model.backbone, class_names, metrics, training)
    save_weights(path, model.state_dict(), metadata | own)


def load_detector(
    path: str | Path, device: str = "auto", settings: Mapping[str, Any] | None = None
) -> Detector:
    """Read a file that `save_detector` or `export_detector` wrote. No code in it is executed.

    Its networks normalise images as the file says, and crops have the size that it says unless
    `rcnn.crop_size` sets one.

    Args:
        path: the file (a `.onnx` or `.xml` of `export_detector` runs on the CPU, with the settings
            that it was written with), or a run folder, of which `best.safetensors` is taken, or
            where nothing chose `last.safetensors`.
        device: `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one.
        settings: keys of `ModelConfig` with other values than in training, groups as mappings, such
            as `{"proposal_score_thresh": 0.1, "rcnn": {"nms_thresh": 0.4}}`; those in
            `SETTINGS_OF_USE`, as the weights were trained for the others.

    Raises:
        UserError: missing, not a detector, of a newer release, or one whose tensors do not fit its
            own configuration or the settings.
        MissingPackageError: it needs an optional package that is not there.
    """
    path = find_detector(path)
    if path.suffix in EXPORTED:
        if settings:
            raise UserError(f"{path}: a file of export keeps its settings: remove model")
        if device not in ("auto", "cpu"):
            raise UserError(f"{path}: a file of export runs on the CPU: remove device")
        return load_exported(path)
    _check_settings({} if settings is None else settings)
    state, metadata = read_checkpoint(path, "detector")
    with broken_metadata(path):
        config_dict = dict(metadata["config"])
        class_names, category_ids = classes_of(metadata)
        trained_as = _started_anew(config_dict)
        spec = spec_from_metadata(metadata)
        if spec.name != trained_as.variant:
            raise ValueError(f"variant is {spec.name} but config.variant {trained_as.variant}")
        # Without storage: the sizes in a hostile file cost nothing until they are checked.
        with torch.device("meta"):
            outline = build_detector(trained_as, len(class_names), spec).state_dict()
    check_fit(outline, state, f"{path}: weights do not fit the metadata")
    config = trained_as
    if settings:
        trained_with = to_dict(trained_as)
        if (settings.get("rcnn") or {}).get("soft_nms_sigma") is not None:
            # Not used beside it, and so refused with another value than the default.
            trained_with["rcnn"].pop("nms_thresh")
        config = from_dict(ModelConfig, _changed(trained_with, settings))
    model = build_detector(config, len(class_names), spec)
    model.load_state_dict(with_counters(state))
    # `infer` goes on with the same weights alone; what was read counts, as files are replaced.
    digest = metadata.get("digest") or _digest_of(state)
    metadata = {**metadata, "config": to_dict(config), "digest": digest}
    return Detector(model.to(resolve_device(device)), class_names, category_ids, metadata)


def _started_anew(config: Mapping[str, Any]) -> ModelConfig:
    """A configuration as it was in training, but for the weights that this began with: others are
    there, and those files need not exist any more."""
    anew: dict[str, Any] = {"weights": None, "init": None, "freeze": "none"}
    if "learned" in config:
        anew["learned"] = config["learned"] | {"weights": None, "freeze": "none"}
    return from_dict(ModelConfig, {**config, **anew})


def _check_built_from(model: RCNN, config: ModelConfig, path: str | Path) -> None:
    """Raise `UserError` where a file with both would not be read, or be another detector."""
    with torch.device("meta"):
        outline = build_detector(
            _started_anew(to_dict(config)), model.num_classes, model.backbone.spec
        )
    what = f"{path}: config is not what the model was built from"
    check_fit(outline.state_dict(), model.state_dict(), what)
    ours, theirs = (
        asdict(one.config) | {f"proposer's {key}": v for key, v in _settings(one.proposer).items()}
        for one in (outline, model)
    )
    for key, value in ours.items():
        if value != theirs.get(key):
            raise UserError(f"{what}: {key} is {value}, of the model {theirs.get(key)}")


def _settings(proposer: Proposer | None) -> dict[str, Any]:
    """What a proposer has besides tensors."""
    found: dict[str, Any] = {"type": type(proposer).__name__}
    if isinstance(proposer, LearnedProposer):
        start = {"weights": None, "freeze": "none"}
        keys = ("scale", "tile_size", "anchor_sizes", "score_thresh")
        found |= asdict(proposer.config) | start | {key: getattr(proposer, key) for key in keys}
        found |= {"top_n": proposer.rpn.top_n, "top_n_train": proposer.rpn.top_n_train}
    elif isinstance(proposer, GridProposer | SelectiveSearchProposer):
        found |= asdict(proposer.config)
    return found


def _digest_of(state: Mapping[str, Tensor]) -> str:
    """Of tensors from a file that names none."""
    return hashlib.sha256(safetensors.torch.save(dict(state))).hexdigest()


def _check_settings(settings: Mapping[str, Any], prefix: str = "") -> None:
    """Raise `UserError` for a key that training has fixed."""
    if not isinstance(settings, Mapping):
        raise UserError(f"settings: expected keys with their values, got {settings!r}")
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and not prefix:
            _check_settings(value, f"{key}.")
        elif name not in SETTINGS_OF_USE:
            near = difflib.get_close_matches(name, SETTINGS_OF_USE, n=1, cutoff=0.8)
            hint = f", did you mean model.{near[0]}?" if near else "."
            known = ", ".join(f"model.{setting}" for setting in SETTINGS_OF_USE)
            raise UserError(f"model.{name} is no setting of use{hint} There are {known}")


def _changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings with other values for some keys."""
    changed = dict(config)
    for key, value in changes.items():
        own = config.get(key)
        if isinstance(own, Mapping) and isinstance(value, Mapping):
            value = _changed(own, value)
        changed[key] = value
    return changed
