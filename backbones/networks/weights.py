"""Weights in and out: safetensors files, torchvision's and timm's names, other variants."""

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from backbones.common.errors import UserError
from backbones.common.files import atomic_write
from backbones.networks.blocks import init_weights
from backbones.networks.inception import InceptionV3, create_backbone
from backbones.networks.specs import SPECS, BackboneSpec
from backbones.networks.stems import stage_grids

logger = logging.getLogger(__name__)

# Ours to torchvision's; timm's network was taken from torchvision and kept its names. Within a
# block all three agree.
_TORCHVISION_MODULES = {
    "stem.conv1": "Conv2d_1a_3x3",
    "stem.conv2": "Conv2d_2a_3x3",
    "stem.conv3": "Conv2d_2b_3x3",
    "stem.conv4": "Conv2d_3b_1x1",
    "stem.conv5": "Conv2d_4a_3x3",
    "stage_a.0": "Mixed_5b",
    "stage_a.1": "Mixed_5c",
    "stage_a.2": "Mixed_5d",
    "reduction_a": "Mixed_6a",
    "stage_b.0": "Mixed_6b",
    "stage_b.1": "Mixed_6c",
    "stage_b.2": "Mixed_6d",
    "stage_b.3": "Mixed_6e",
    "reduction_b": "Mixed_7a",
    "stage_c.0": "Mixed_7b",
    "stage_c.1": "Mixed_7c",
    "aux_head": "AuxLogits",
    "fc": "fc",
}
_COUNTER = ".num_batches_tracked"


def save_weights(
    path: str | os.PathLike[str], state_dict: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write a `.safetensors` file, replacing an older one only when the new one is whole.

    Args:
        path: the file to write.
        state_dict: tensors by name, on any device and in any memory format.
        metadata: values that JSON can hold, each stored as JSON under its key.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    data = safetensors.torch.save(tensors, texts)
    with atomic_write(path) as file:
        file.write(data)


def load_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors (on the CPU) and metadata of a `.safetensors` file; nothing is executed.

    Metadata that is not JSON, as other programs write it, comes back as the string it is.

    Raises:
        UserError: the file is missing, damaged, or not safetensors; the message names it.
    """
    with _opened(path) as file:
        # Cloned, as the file may be a memory map that changes under the tensors' feet.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        texts = file.metadata() or {}
    return tensors, {key: _parse(text) for key, text in texts.items()}


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata alone, as `load_weights` gives it: reads a few kilobytes.

    Raises:
        UserError: as `load_weights`.
    """
    with _opened(path) as file:
        return {key: _parse(text) for key, text in (file.metadata() or {}).items()}


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    if not Path(path).is_file():
        if Path(path).is_dir():
            found = ", ".join(sorted(file.name for file in Path(path).glob("*.safetensors")))
            raise UserError(f"{path}: this is a folder: name the file in it ({found or 'none'})")
        raise UserError(f"{path}: no such file: expected a .safetensors file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable .safetensors file: {error}") from error


def save_backbone(
    path: str | os.PathLike[str],
    model: InceptionV3,
    class_names: list[str] | None = None,
    **extra: Any,
) -> None:
    """Write a network with all that is needed to use it, for `load_backbone`.

    Args:
        path: the `.safetensors` file to write.
        model: the network.
        class_names: names of its classes, in the order of its logits.
        extra: further metadata that JSON can hold, e.g. `figures={"top1": 0.766}`.

    Raises:
        ValueError: not as many names as classes, or `extra` uses a key of the format's own.
    """
    if class_names is not None and len(class_names) != model.num_classes:
        raise ValueError(f"got {len(class_names)} class names for {model.num_classes} classes")
    metadata = {
        "kind": "backbone",
        "variant": model.spec.name,
        "width": model.width,
        "aux": model.aux,
        "dropout": model.dropout,
        "num_classes": model.num_classes,
        "class_names": class_names,
        "mean": model.spec.mean,
        "std": model.spec.std,
        "input_size": model.spec.input_size,
        "package_version": _package_version(),
    }
    if taken := sorted(metadata.keys() & extra.keys()):
        raise ValueError(f"metadata keys {taken} are written from the model itself")
    save_weights(path, model.state_dict(), metadata | extra)


def load_backbone(path: str | os.PathLike[str]) -> InceptionV3:
    """Read a network that `save_backbone` wrote: on the CPU, in evaluation mode.

    Its `spec` has the mean, the standard deviation and the input size of the file. `load_weights`
    returns the rest of the metadata, class names among them.

    Raises:
        UserError: missing, damaged, another kind of file, or weights that do not fit the metadata.
    """
    state, metadata = load_weights(path)
    kind = metadata.get("kind")
    if kind != "backbone":
        found = "a file without a kind" if kind is None else f"kind {str(kind)[:40]!r}"
        raise UserError(f"{path}: expected a backbone written by save_backbone, found {found}")
    try:
        # Without storage: the sizes in a hostile file cost nothing until they are checked.
        with torch.device("meta"):
            model = _from_metadata(metadata)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        # torch appends a stack trace to some messages.
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise UserError(f"{path}: broken metadata: {reason}") from error
    if problems := _differences(model.state_dict(), state):
        raise UserError(f"{path}: weights do not fit the metadata: {_summary(problems)}")
    model.load_state_dict(_with_counters(state), assign=True)
    return model.eval()


def from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of torchvision's `inception_v3`, for any variant of layout `released`.

    Use them on images normalised by 0.5 and 0.5, which is what torchvision's `transform_input`
    makes of its own normalisation.

    Raises:
        UserError: a name is not one of that network's.
    """
    return _with_counters(_rename(state_dict, {v: k for k, v in _TORCHVISION_MODULES.items()}))


def to_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of layout `released`, auxiliary head included, for torchvision's network.

    torchvision's auxiliary head is the batch-normalised one. The network must be built with
    `transform_input=False`.

    Raises:
        UserError: a name is not one of that layout's.
    """
    return _with_counters(_rename(state_dict, _TORCHVISION_MODULES))


def from_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As `from_torchvision`, for timm's `inception_v3`."""
    return from_torchvision(state_dict)


def to_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As `to_torchvision`, for timm's `inception_v3`."""
    return to_torchvision(state_dict)


def warm_start(model: InceptionV3, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Load another network's weights: any variant of the same layout and width, any classes.

    A classifier (main or auxiliary) for another number of classes, or none at all, leaves `model`
    with a fresh one. A head that `model` does not have is left behind. Everything else must fit.

    Args:
        model: loaded in place; keeps its device and precision.
        state_dict: from `model.state_dict()`, `load_weights` or `from_torchvision`.

    Returns:
        Names of the freshly initialised tensors, which are also logged.

    Raises:
        UserError: any other difference, naming the first tensors with both shapes. `model` is
            unchanged then.
    """
    own = model.state_dict()
    fresh = _heads_to_replace(own, state_dict)
    body = {name: tensor for name, tensor in state_dict.items() if not name.startswith(fresh)}
    expected = {name: tensor for name, tensor in own.items() if not name.startswith(fresh)}
    if problems := _differences(expected, body):
        raise UserError(
            f"these weights do not fit {model.spec.name} (layout {model.spec.layout}, width "
            f"{model.width}): {_summary(problems)}"
        )
    model.load_state_dict(_with_counters(body), strict=False)
    if "fc." in fresh:
        init_weights(model.fc)
    if model.aux_head is not None and "aux_head." in fresh:
        model.aux_head.reset_parameters()
    elif model.aux_head is not None and "aux_head.fc." in fresh:
        model.aux_head.reset_classifier(model.num_classes)

    names = [name for name in own if name.startswith(fresh)]
    if names:
        logger.warning("not in the given weights, freshly initialised: %s", ", ".join(names))
    if unused := [name for name in state_dict if name not in own]:
        logger.info("given weights without a place in the network: %s", ", ".join(unused))
    return names


def _heads_to_replace(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Name prefixes of the heads that differ in their number of classes."""
    fresh = []
    if _num_classes(own, "fc.weight") != _num_classes(state, "fc.weight"):
        fresh.append("fc.")
    own_aux, aux = (_num_classes(s, "aux_head.fc.weight") for s in (own, state))
    if own_aux == 0 or aux == 0:
        fresh.append("aux_head.")
    elif own_aux != aux:
        fresh.append("aux_head.fc.")
    return tuple(fresh)


def _num_classes(state: Mapping[str, Tensor], name: str) -> int:
    return state[name].shape[0] if name in state and state[name].ndim else 0


def _differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """One line for each tensor that is missing, surplus, or of another shape or kind of number."""
    problems = []
    for name in [*expected, *(name for name in state if name not in expected)]:
        # BatchNorm's counters of batches are absent from old files and play no part here.
        if name.endswith(_COUNTER) and name not in state:
            continue
        wanted, found = (
            _describe(tensors[name]) if name in tensors else "nothing"
            for tensors in (expected, state)
        )
        if wanted != found:
            problems.append(f"{name} expected {wanted}, found {found}")
    return problems


def _describe(tensor: Tensor) -> str:
    # Precision may differ, but a float is no integer.
    suffix = "" if tensor.is_floating_point() else f" {tensor.dtype}"
    return f"{list(tensor.shape)}{suffix}"


def _summary(problems: list[str], first: int = 3) -> str:
    rest = len(problems) - first
    return "; ".join(problems[:first]) + (f"; and {rest} more" if rest > 0 else "")


def _rename(state_dict: Mapping[str, Tensor], modules: Mapping[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state_dict.items():
        # No name here is another's prefix, with the dot.
        module = next((m for m in modules if name.startswith(f"{m}.")), None)
        if module is None:
            raise UserError(f"cannot rename {name!r}: not a tensor of the published Inception-v3")
        renamed[modules[module] + name[len(module) :]] = tensor
    return renamed


def _with_counters(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the batch counters that old files lack; with a fixed momentum their value is unused."""
    state = {}
    for name, tensor in state_dict.items():
        state[name] = tensor
        # Where BatchNorm itself keeps the counter: after its running variance.
        counter = name.removesuffix(".running_var") + _COUNTER
        if name.endswith(".running_var") and counter not in state_dict:
            state[counter] = torch.zeros((), dtype=torch.int64, device=tensor.device)
    return state


def _from_metadata(metadata: Mapping[str, Any]) -> InceptionV3:
    """The network the metadata describe; raises KeyError, TypeError or ValueError."""
    num_classes, class_names = metadata["num_classes"], metadata["class_names"]
    if type(num_classes) is not int:
        raise TypeError(f"num_classes is no whole number: {num_classes!r}")
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"{len(class_names)} class names for {num_classes} classes")
    model = create_backbone(
        metadata["variant"],
        num_classes=num_classes,
        width=metadata["width"],
        aux=metadata["aux"],
        dropout=metadata["dropout"],
    )
    model.spec = spec_from_metadata(metadata)
    return model


def spec_from_metadata(metadata: Mapping[str, Any]) -> BackboneSpec:
    """The variant with a file's normalisation and size; raises KeyError, TypeError, ValueError."""
    spec = SPECS[metadata["variant"]]
    input_size = metadata["input_size"]
    if type(input_size) is not int or input_size < spec.min_size:
        raise ValueError(f"input_size must be at least {spec.min_size}, got {input_size!r}")
    spec = replace(
        spec,
        mean=_triple(metadata["mean"], "mean"),
        std=_triple(metadata["std"], "std"),
        input_size=input_size,
        grids=stage_grids(spec, input_size),
    )
    if min(spec.std) <= 0:
        raise ValueError(f"std must be positive, got {spec.std}")
    return spec


def _triple(values: Any, name: str) -> tuple[float, float, float]:
    r, g, b = (float(value) for value in values)
    if not all(map(math.isfinite, (r, g, b))):
        raise ValueError(f"{name} must be finite, got {values}")
    return r, g, b


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _package_version() -> str:
    try:
        return version("lowres-rcnn")
    except PackageNotFoundError:
        return "unknown"  # run from a source tree that was not installed


def describe(model: InceptionV3) -> dict[str, Any]:
    """What a user of the exported network must know to feed it."""
    spec = model.spec
    return {
        "variant": spec.name,
        "width": model.width,
        "input_size": spec.input_size,
        "mean": spec.mean,
        "std": spec.std,
    }
