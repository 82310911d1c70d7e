"""Trained networks with their class names, and the images that these classes fit."""

from collections.abc import Sequence
from pathlib import Path

from backbones.errors import UserError
from backbones.image_sources import FirstClasses, ImageSource, open_split
from backbones.inception import InceptionV3
from backbones.weights import load_backbone, load_metadata


def load_classifiers(paths: Sequence[str | Path]) -> tuple[list[InceptionV3], list[str]]:
    """Networks that `save_backbone` wrote, on the CPU in evaluation mode, and their classes.

    Raises:
        UserError: a file is missing, damaged or without class names, or has other classes than the
            first.
    """
    models: list[InceptionV3] = []
    class_names: list[str] = []
    for path in paths:
        names = load_metadata(path).get("class_names")
        models.append(load_backbone(path))
        if names is None:
            raise UserError(f"{path}: has no class names: save it with save_backbone(class_names=)")
        if class_names and names != class_names:
            difference = _first_difference(names, class_names)
            raise UserError(f"{path}: not the classes of {paths[0]}: {difference}")
        class_names = names
    return models, class_names


def open_matching_split(
    root: str | Path, split: str, class_names: Sequence[str], max_classes: int | None = None
) -> ImageSource:
    """The images of a split, labelled as the network that knows `class_names`.

    Raises:
        UserError: as `open_split`, or the split has other classes.
    """
    source = open_split(root, split)
    if max_classes is not None:
        source = FirstClasses(source, max_classes)
    if list(source.class_names) != list(class_names):
        difference = _first_difference(source.class_names, class_names)
        raise UserError(f"{root}, {split}: not the classes of the weights: {difference}")
    return source


def _first_difference(found: Sequence[str], expected: Sequence[str]) -> str:
    if len(found) != len(expected):
        return f"{len(found)} of them, expected {len(expected)}"
    number = next(i for i, name in enumerate(found) if name != expected[i])
    return f"number {number} is {found[number]!r}, expected {expected[number]!r}"
