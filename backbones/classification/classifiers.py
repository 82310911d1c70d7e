"""Trained networks with their class names, and the images that these classes fit."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backbones.common.errors import UserError
from backbones.common.listing import one_form
from backbones.data.sources import FirstClasses, ImageSource, open_split
from backbones.networks.checkpoint import load_backbone
from backbones.networks.inception import InceptionV3
from backbones.networks.weights import load_metadata
from backbones.training.checkpoints import load_last_checkpoint
from backbones.training.step import weights_in

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classifier:
    """A trained network, on the CPU in evaluation mode."""

    name: str
    """Its file, or its run folder with `(averaged)` or `(raw)`."""
    model: InceptionV3
    in_ensemble: bool = True
    """False for raw weights that stand beside the averaged ones of their run."""


def load_classifiers(paths: Sequence[str | Path]) -> tuple[list[Classifier], list[str]]:
    """Networks of files that `save_backbone` wrote, or of run folders, and their classes.

    A run gives the averaged and the raw weights of its newest checkpoint.

    Raises:
        UserError: a file is missing, damaged or without class names, or has other classes than the
            first.
    """
    classifiers: list[Classifier] = []
    class_names: list[str] = []
    for path in paths:
        is_run = os.path.isdir(path)
        file = Path(path, "last.safetensors") if is_run else Path(path)
        names = load_metadata(file).get("class_names")
        if is_run:
            classifiers += _load_run(Path(path))
        else:
            classifiers.append(Classifier(str(path), load_backbone(path)))
        if names is None:
            raise UserError(f"{file}: has no class names: save it with save_backbone(class_names=)")
        if class_names and names != class_names:
            difference = _first_difference(names, class_names)
            raise UserError(f"{path}: not the classes of {paths[0]}: {difference}")
        class_names = names
    return classifiers, class_names


def _load_run(folder: Path) -> list[Classifier]:
    """The weights of the newest checkpoint, in the network of `last.safetensors`."""
    checkpoint = load_last_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        raise UserError(f"{folder}: has no checkpoint: expected the folder of a training run")
    logger.info("%s: the weights after step %d", folder, checkpoint["state"]["step"])
    classifiers: list[Classifier] = []
    for kind, weights in weights_in(checkpoint).items():
        model = load_backbone(folder / "last.safetensors")
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(
                f"{folder}: its checkpoint does not fit its last.safetensors: one of them is of "
                "another run"
            ) from error
        # The first is what the run gives for use.
        classifiers.append(Classifier(f"{folder} ({kind})", model, in_ensemble=not classifiers))
    return classifiers


def open_matching_split(
    root: str | Path, split: str, class_names: Sequence[str], max_classes: int | None = None
) -> ImageSource:
    """The images of a split, labelled as the network that knows `class_names`; raises as
    `open_split`, and `UserError` where the split has other classes."""
    class_names = [one_form(name) for name in class_names]
    source = open_split(root, split)
    if max_classes is not None:
        source = FirstClasses(source, max_classes)
    elif sorted(source.class_names) == sorted(class_names) != list(source.class_names):
        source = open_split(root, split, class_names)  # they have another order
    if list(source.class_names) != class_names:
        difference = _first_difference(source.class_names, class_names)
        raise UserError(
            f"{root}, {split}: not the classes of the weights: {difference}; of more classes "
            "data.max_classes takes the first so many"
        )
    return source


def _first_difference(found: Sequence[str], expected: Sequence[str]) -> str:
    if len(found) != len(expected):
        return f"{len(found)} of them, expected {len(expected)}"
    number = next(i for i, name in enumerate(found) if name != expected[i])
    return f"number {number} is {found[number]!r}, expected {expected[number]!r}"
