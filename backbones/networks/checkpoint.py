"""A trained backbone as one file."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from backbones.networks.inception import InceptionV3
from backbones.networks.metadata import (
    broken_metadata,
    checkpoint_metadata,
    read_checkpoint,
    spec_from_metadata,
)
from backbones.networks.normalization import Normalization
from backbones.networks.state_dicts import check_fit, with_counters
from backbones.networks.weights import save_weights


def save_backbone(
    path: str | os.PathLike[str],
    model: InceptionV3,
    class_names: Sequence[str] | None = None,
    *,
    metrics: Mapping[str, float] | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a network with all that is needed to use it, for `load_backbone`.

    Args:
        path: the `.safetensors` file to write; replaced atomically.
        model: the network.
        class_names: names of its classes, in the order of its logits.
        metrics: scores it was measured at, e.g. `{"top1": 0.766}`.
        training: configuration of the run that made it, values that JSON can hold.

    Raises:
        ValueError: not as many names as classes.
    """
    if class_names is not None and len(class_names) != model.num_classes:
        raise ValueError(f"got {len(class_names)} class names for {model.num_classes} classes")
    own = {"aux": model.aux, "dropout": model.dropout, "num_classes": model.num_classes}
    metadata = checkpoint_metadata("backbone", model, class_names, metrics, training)
    save_weights(path, model.state_dict(), metadata | own)


def load_backbone(path: str | os.PathLike[str]) -> InceptionV3:
    """Read a network that `save_backbone` wrote: on the CPU, in evaluation mode.

    Its weights are fp32, whatever the file's are. Its `spec` has the mean, the standard deviation
    and the input size of the file. `weights.load_metadata` returns all the file says, class names
    among it.

    Raises:
        UserError: missing, damaged, another kind of file, of a newer release, or weights that do
            not fit the metadata.
    """
    state, metadata = read_checkpoint(path, "backbone")
    # Without storage: the sizes in a hostile file cost nothing until they are checked.
    with broken_metadata(path), torch.device("meta"):
        model = _build(metadata)
    check_fit(model.state_dict(), state, f"{path}: weights do not fit the metadata")
    model.load_state_dict(with_counters(state), assign=True)
    # No part of the file, and until now without storage.
    model.normalization = Normalization(model.spec.mean, model.spec.std)
    return model.float().eval()


def _build(metadata: Mapping[str, Any]) -> InceptionV3:
    num_classes, class_names = metadata["num_classes"], metadata["class_names"]
    if type(num_classes) is not int:
        raise TypeError(f"num_classes is no whole number: {num_classes!r}")
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"{len(class_names)} class names for {num_classes} classes")
    return InceptionV3(
        spec_from_metadata(metadata),
        num_classes,
        metadata["width"],
        metadata["aux"],
        metadata["dropout"],
    )
