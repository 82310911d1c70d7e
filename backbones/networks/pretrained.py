"""Weights that a network starts from: files of ours and of others, and names of public ones.

Public weights are those of torchvision's and timm's `inception_v3`, which those libraries download,
keep and check.
"""

import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import load_model_config_from_hf, load_state_dict, load_state_dict_from_hf
from torch import Tensor
from torchvision.models import Inception_V3_Weights

from backbones.common import distributed
from backbones.common.errors import UserError
from backbones.common.read_json import parse_json
from backbones.common.torch_files import check_whole
from backbones.networks import hub
from backbones.networks.conversion import from_torchvision, is_torchvision
from backbones.networks.metadata import (
    broken_metadata,
    read_checkpoint,
    spec_from_metadata,
    triple,
)
from backbones.networks.specs import SPECS, BackboneSpec
from backbones.networks.weights import check_finite, find_weights

PICKLED = (".pth", ".pt", ".bin", ".tar")
"""What torch writes; only tensors and plain values in it are read."""


class GivenWeights(NamedTuple):
    """What a network can start from.

    Attributes:
        state: tensors by the names they have here, on the CPU.
        spec: the network they are of and how it wants images, as far as they say.
        own: they are of a file that `save_backbone` wrote, and so complete.
        reason: why images are normalised by `spec`, for the log.
    """

    state: dict[str, Tensor]
    spec: BackboneSpec | None
    own: bool
    reason: str


def read_weights(weights: str | os.PathLike[str]) -> GivenWeights:
    """Weights of a file, of a run folder, or by name.

    Args:
        weights: a `.safetensors` file; a run folder, of which `best.safetensors` is taken, or where
            nothing chose `last.safetensors`; a state dict that torch wrote; or
            `torchvision:IMAGENET1K_V1`, `timm:NAME` as `timm.list_pretrained("inception_v3")` gives
            them, `hf-hub:OWNER/NAME` or `hf-hub:OWNER/NAME@REVISION`, which are downloaded once.
            A file of another program wants images as the `config.json` beside it says, where there
            is one as on the Hugging Face hub.

    Raises:
        UserError: missing, damaged, of another network, or not to be downloaded.
    """
    scheme, _, name = os.fspath(weights).partition(":")
    if scheme in _NAMED:
        if distributed.world_size() > 1:
            # Once for all processes of a machine, which then find it there.
            distributed.call_on_main(partial(_discard, _NAMED[scheme], name))
        state, spec = _NAMED[scheme](name)
        return _public(str(weights), state, spec)
    file, metadata = find_weights(weights), dict[str, Any]()
    if file.suffix in PICKLED:
        state = _read_pickled(file)
    else:
        state, metadata = read_checkpoint(file, "backbone", or_foreign=True)
    if "kind" in metadata:
        with broken_metadata(file):
            spec = spec_from_metadata(metadata)
        return GivenWeights(state, spec, True, "as the weights were trained")
    beside = file.with_name("config.json")
    config = None
    if os.path.isfile(beside):
        config = _spec_from_config(beside, _read_config(beside))
    return _public(file, state, config)


def _public(where: str | Path, state: dict[str, Tensor], spec: BackboneSpec | None) -> GivenWeights:
    check_finite(where, state)
    reason = "as is usual for this network, for the weights do not say"
    if spec is not None:
        reason = "as the weights were trained"
    if is_torchvision(state):
        try:
            state = from_torchvision(state)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        spec = spec or SPECS["inception_v3"]
    return GivenWeights(state, spec, False, reason)


def _read_pickled(file: Path) -> dict[str, Tensor]:
    try:
        if zipfile.is_zipfile(file):
            check_whole(file)
        state = load_state_dict(str(file), weights_only=True)
    except Exception as error:  # of a broken file torch raises about anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, AttributeError) or "weights_only" in reason:
            # Of the second timm says how to execute it nevertheless.
            reason = "it is something else, or holds more than tensors"
        raise UserError(
            f"{file}: not a state dict that can be read without executing what is in it: {reason}"
        ) from error
    return _tensors(file, state)


def _tensors(where: str | Path, state: Any) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not state:
        raise UserError(f"{where}: expected a state dict, tensors by name")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{where}: {name!r} is no tensor: expected a state dict")
    return state


def _read_config(file: Path) -> Any:
    try:
        return parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error


def _spec_from_config(where: str | Path, config: Any) -> BackboneSpec:
    """The network that timm describes in `config.json`."""
    with broken_metadata(where, "description of a network"):
        name, image = config["architecture"], config.get("pretrained_cfg", config)
        spec = SPECS.get(name)
        if spec is not None:
            spec = replace(spec, mean=triple(image["mean"]), std=triple(image["std"]))
    if spec is None:
        raise UserError(
            f"{where}: weights of {name!r}: expected those of an inception_v3 of torchvision, timm "
            "or this package"
        )
    return spec


def _from_torchvision(name: str) -> tuple[dict[str, Tensor], BackboneSpec]:
    known = {weights.name: weights for weights in Inception_V3_Weights}
    if name not in known:
        raise UserError(f"torchvision:{name}: expected torchvision:{' or '.join(known)}")
    url = known[name].url
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    with hub.download(f"torchvision:{name}", f"{url} to {file}"):
        state = known[name].get_state_dict(progress=False, check_hash=True, weights_only=True)
    # Images are normalised twice there, by ImageNet's statistics and, in `transform_input`, from
    # them to 0.5: to the network they are as ours.
    return _tensors(file, state), SPECS["inception_v3"]


def _from_timm(name: str) -> tuple[dict[str, Tensor], BackboneSpec]:
    known = timm.list_pretrained("inception_v3.*")
    config = timm.get_pretrained_cfg(name) if name in known else None
    if config is None or config.hf_hub_id is None:
        raise UserError(f"timm:{name}: expected timm:{' or timm:'.join(known)}")
    return _from_hub(config.hf_hub_id)


def _from_hub(name: str) -> tuple[dict[str, Tensor], BackboneSpec]:
    repository, _ = hub.split_name(name)
    files = (
        f"{hub.WEIGHTS} and config.json from {hub.page_of(repository)} "
        f"into a folder, and set the weights to that {hub.WEIGHTS}"
    )
    where = hub.SCHEME + name
    with hub.download(where, files), hub.asked_once():
        image, architecture, _ = load_model_config_from_hf(name)
        spec = _spec_from_config(where, {"architecture": architecture, **image})
        state = load_state_dict_from_hf(name, weights_only=True)
    return _tensors(where, state), spec


def _discard(function: Callable[[str], Any], name: str) -> None:
    """Call a function for what it leaves on the disk: its result would go through the network."""
    function(name)


_NAMED: dict[str, Callable[[str], tuple[dict[str, Tensor], BackboneSpec]]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "hf-hub": _from_hub,
}
