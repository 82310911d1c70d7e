"""A detector that starts from a trained one, for other data and other classes."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backbones.common.config import flatten, from_dict, to_dict
from backbones.common.errors import UserError
from backbones.networks.state_dicts import check_fit
from detect.auto import number
from detect.build import build_detector
from detect.checkpoint import load_detector
from detect.config import ModelConfig
from detect.data.layouts import first_of
from detect.deployment.exported import refuse_exported
from detect.detector import Detector
from detect.rcnn.model import RCNN

STRUCTURE = ("variant", "width", "proposer", "learned.width", "learned.channels")
"""Keys of `ModelConfig` that decide names and shapes of the weights."""

NOT_COMPARED = ("weights", "init", "freeze", "learned.weights", "learned.freeze")
"""Keys of `ModelConfig` about how training starts."""

HEADS = ("cls_score", "bbox_pred")

logger = logging.getLogger(__name__)


def load_start(config: ModelConfig) -> Detector | None:
    """The detector that `config.init` names, on the CPU; None where it names none. Raises
    `UserError` where it is missing, no detector, or, naming the keys, of another structure."""
    if config.init is None:
        return None
    refuse_exported(config.init, "cannot be trained further")
    start = load_detector(config.init, "cpu")
    own, theirs = _flat(config), _flat(_config_of(start))
    if others := [key for key in STRUCTURE if own[key] != theirs[key]]:
        what = ", ".join(f"model.{key} {theirs[key]}" for key in others)
        raise UserError(
            f"model.init {config.init}: it has {what}, and not "
            f"{', '.join(str(own[key]) for key in others)}: set them so, or model.init to null"
        )
    return start


def build_from(config: ModelConfig, class_names: Sequence[str], start: Detector) -> RCNN:
    """A detector with the weights and the normalisation of `start`.

    What it predicts for classes that `start` has by the same name is kept, and for others starts
    anew; the log says which. The configuration is without `auto`.

    Raises:
        UserError: its weights do not fit, naming the first with both shapes.
    """
    given = start.model
    _check_anchors(config, _config_of(start))
    model = build_detector(config, len(class_names), given.backbone.spec)
    state, own = given.state_dict(), model.state_dict()
    heads = {name for name in own if name.startswith(HEADS)}
    rest = {name: tensor for name, tensor in state.items() if name not in heads}
    check_fit(
        {name: tensor for name, tensor in own.items() if name not in heads},
        rest,
        f"model.init {config.init}: its weights do not fit",
    )
    labels = {name: label for label, name in enumerate(start.class_names, 1)}
    kept = {new: labels[name] for new, name in enumerate(class_names, 1) if name in labels}
    model.load_state_dict(
        rest | {name: _rows(name, own[name], state[name], kept) for name in heads}
    )
    _log_start(config, class_names, start)
    return model


def _check_anchors(config: ModelConfig, theirs: ModelConfig) -> None:
    """Raise `UserError` unless each level has as many anchors as there, whatever their sizes."""
    if config.proposer != "learned":
        return
    key = "model.learned.anchor_sizes"
    own, old = (
        [len(level) for level in number(model.learned.anchor_sizes, key)]
        for model in (config, theirs)
    )
    if own != old:
        raise UserError(
            f"model.init {config.init}: its levels have {old} anchor sizes, and not {own}: set "
            f"{key}, there {theirs.learned.anchor_sizes}"
        )


@torch.no_grad()
def _rows(name: str, own: Tensor, given: Tensor, kept: dict[int, int]) -> Tensor:
    """Weight or bias of a head: rows of `given` for the labels in `kept`, and of `own` for others.

    `cls_score` has a row for each label from 0, the background; `bbox_pred` four from label 1 on.
    """
    own, pairs = own.clone(), kept.items()
    if name.startswith("cls_score"):
        for new, old in [(0, 0), *pairs]:
            own[new] = given[old]
        return own
    for new, old in pairs:
        own[4 * new - 4 : 4 * new] = given[4 * old - 4 : 4 * old]
    return own


def _log_start(config: ModelConfig, class_names: Sequence[str], start: Detector) -> None:
    names = start.class_names
    logger.info(
        "started from %s; classes kept: %s; new: %s; left behind: %s",
        config.init,
        _few([name for name in class_names if name in names]),
        _few([name for name in class_names if name not in names]),
        _few([name for name in names if name not in class_names]),
    )
    own, theirs = _flat(config), _flat(_config_of(start))
    if others := [
        f"model.{key} {own[key]} (there {theirs[key]})"
        for key in own
        if key not in NOT_COMPARED and own[key] != theirs[key]
    ]:
        logger.info("with other settings than it was trained with: %s", _few(others))


def _few(names: Sequence[str]) -> str:
    return first_of(names, 4) or "none"


def _config_of(start: Detector) -> ModelConfig:
    return from_dict(ModelConfig, start.metadata["config"])


def _flat(config: ModelConfig) -> dict[str, Any]:
    return flatten(to_dict(config))
