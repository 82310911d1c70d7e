"""Networks that start from the weights of another one."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from backbones.common.errors import UserError
from backbones.networks.blocks import init_weights
from backbones.networks.enlargement import repeat_pixels, start_stem
from backbones.networks.inception import AuxKind, InceptionV3
from backbones.networks.narrowing import narrow, width_of
from backbones.networks.pretrained import read_weights
from backbones.networks.specs import BackboneSpec, find_spec
from backbones.networks.state_dicts import check_fit, with_counters
from backbones.networks.statistics import exact_spec, match_enlarged

MOST_NAMED = 4
"""Layers of a block that a line of the log names."""

logger = logging.getLogger(__name__)


def start_backbone(
    name: str,
    weights: str | os.PathLike[str] | None,
    *,
    num_classes: int,
    width: float = 1.0,
    aux: AuxKind = "none",
    dropout: float = 0.0,
    role: str = "network",
) -> InceptionV3:
    """A network with random weights, or with those of a file and the normalisation they are for.

    Args:
        name, num_classes, width, aux, dropout: as of `create_backbone`.
        weights: a backbone, see `read_weights` for where it may come from and `warm_start` for
            which ones fit. Its mean and standard deviation become the network's, and its input size
            where it is the same variant of ours; a file of another program, which says nothing of
            them, is taken to be for the variant's own, and may have gaps. A network for 151 or 79
            pixels that starts from one for 299 has its first kernels made for it, see `start_stem`,
            and a narrower one all of them, see `narrow`.
        role: what the log calls it, where there are several.

    Raises:
        UserError: an unknown variant, a setting out of range, or a file that cannot be read or
            does not fit.
    """
    spec = find_spec(name)
    if weights is None:
        return InceptionV3(spec, num_classes, width, aux, dropout)
    state, given, own, reason = read_weights(weights)
    if given is not None:
        same = own and given.name == name
        spec = given if same else replace(spec, mean=given.mean, std=given.std)
    logger.info(
        "%s started from %s: images of %d pixels, normalised by mean %s and std %s, %s",
        *(role, weights, spec.input_size, spec.mean, spec.std, reason),
    )
    model = InceptionV3(spec, num_classes, width, aux, dropout)
    try:
        if (width_of(state) or 0) > width:
            start_narrow(model, state, given, gaps=not own)
            return model
        made, done = (state, None) if given is None else start_stem(state, given, spec)
        warm_start(model, made, gaps=not own)
    except UserError as error:
        raise UserError(f"{weights}: {error}") from error
    if done is not None:
        logger.info(done)
        if spec.receptive_field == "79":
            assert given is not None
            match_enlarged(model, state, given)
    return model


def start_narrow(
    model: InceptionV3, state: Mapping[str, Tensor], given: BackboneSpec | None, *, gaps: bool
) -> None:
    """Give `model`, but for its heads, what a wider network of its layout learned, see `narrow`.

    `given` is what is known of that network; `gaps` as of `warm_start`.

    Raises:
        UserError: the weights are of another layout, or incomplete.
    """
    spec, view = model.spec, None
    if given is not None and (given.receptive_field, spec.receptive_field) == ("299", "79"):
        # Messages name what was asked for.
        spec, view = replace(exact_spec(spec), name=spec.name), repeat_pixels
    wide = InceptionV3(spec, num_classes=0, width=width_of(state) or 1)
    warm_start(wide, state if given is None else start_stem(state, given, spec)[0], gaps=gaps)
    narrow(model, wide, view)


def warm_start(
    model: InceptionV3, state_dict: Mapping[str, Tensor], *, gaps: bool = False
) -> list[str]:
    """Load another network's weights: any variant of the same layout and width, any classes.

    A classifier (main or auxiliary) for another number of classes, or none at all, leaves `model`
    with a fresh one. A head that `model` does not have is left behind. Everything else must fit.

    Args:
        model: loaded in place; keeps its device, its precision, and its `spec`: images must be
            normalised as for the given weights, which `start_backbone` sees to.
        state_dict: from `model.state_dict()`, `load_weights` or `from_torchvision`.
        gaps: of the rest of the network too, tensors may be missing: `model` keeps its own there.

    Returns:
        Names of the tensors that are not from the given weights, which are also logged.

    Raises:
        UserError: any other difference, naming the first tensors with both shapes. `model` is
            unchanged then.
    """
    own = model.state_dict()
    fresh = _heads_to_replace(own, state_dict)
    body = {name: tensor for name, tensor in state_dict.items() if not name.startswith(fresh)}
    expected = {name: tensor for name, tensor in own.items() if not name.startswith(fresh)}
    missing = []
    if gaps and not expected.keys().isdisjoint(body):
        missing = [name for name in expected if name not in with_counters(body)]
        expected = {name: tensor for name, tensor in expected.items() if name not in missing}
    spec = model.spec
    network = f"{spec.name} (layout {spec.layout}, width {model.width})"
    if (width := width_of(body)) not in (None, model.width):
        network += f", they are of width {width:g}: set model.width to that or less"
    check_fit(expected, body, f"these weights do not fit {network}")
    model.load_state_dict(with_counters(body), strict=False)
    if "fc." in fresh:
        init_weights(model.fc)
    if model.aux_head is not None and "aux_head." in fresh:
        model.aux_head.reset_parameters()
    elif model.aux_head is not None and "aux_head.fc." in fresh:
        model.aux_head.reset_classifier(model.num_classes)

    names = [name for name in own if name.startswith(fresh)]
    if names:
        logger.warning("not in the given weights, freshly initialised: %s", ", ".join(names))
    if missing:
        logger.warning("the given weights have gaps, started at random: %s", _by_block(missing))
    if unused := [name for name in state_dict if name not in own]:
        logger.info("given weights without a place in the network: %s", ", ".join(unused))
    return [*names, *missing]


def _by_block(names: Sequence[str]) -> str:
    """Tensors as layers under their block: `stage_c.0 (branch1x1, branch3x3_1), stem (conv2)`."""
    layers: dict[str, dict[str, None]] = {}
    for name in names:
        part, *rest = name.split(".")
        block = f"{part}.{rest.pop(0)}" if part.startswith("stage") else part
        layers.setdefault(block, {})[rest[0]] = None
    return ", ".join(
        f"{block} ({', '.join(own) if len(own) <= MOST_NAMED else f'{len(own)} layers'})"
        for block, own in layers.items()
    )


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
