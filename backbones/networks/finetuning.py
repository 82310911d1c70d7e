"""What fine-tuning does to the layers of a network: freezing, learning rates that fall with depth.

A network here is an `InceptionV3`, or a model that holds one as `backbone`.
"""

from typing import Any, Literal

from torch import nn

from backbones.common.errors import UserError
from backbones.networks.inception import InceptionV3
from backbones.networks.timm_methods import PARTS

Frozen = Literal["none", "stem", "stage_a", "stage_b", "stage_c"]


def freeze_blocks(network: InceptionV3, last: Frozen) -> None:
    """Freeze the parameters from the stem to `last`, which is frozen too; see `keep_frozen`."""
    if last == "none":
        return
    for part in PARTS[: PARTS.index(last) + 1]:
        network.get_submodule(part).requires_grad_(False)


def keep_frozen(network: InceptionV3) -> None:
    """Put frozen parts into eval mode, in which normalisation keeps its statistics.

    To be called after `network.train()`, which puts all parts into training mode.
    """
    for part in map(network.get_submodule, PARTS):
        if not any(parameter.requires_grad for parameter in part.parameters()):
            part.eval()


def layer_scales(model: nn.Module, decay: float) -> dict[int, float]:
    """Learning rate of the blocks of `model`'s network as a factor of the rate of what follows it.

    The last block learns `decay` times as fast as the classifier, the one before `decay` squared
    times, and so on down to the stem, which counts as one block like each Inception block and each
    reduction.

    Returns:
        By `id` of a parameter; other parameters of the model are not in it, and their factor is 1.

    Raises:
        UserError: the model neither is nor holds an `InceptionV3`.
    """
    network = getattr(model, "backbone", model)
    if not isinstance(network, InceptionV3):
        raise UserError(f"optim.layer_decay is for Inception networks, not {type(model).__name__}")
    blocks = [network.get_submodule(name) for name in network.block_names()]
    return {
        id(parameter): decay ** (len(blocks) - place)
        for place, block in enumerate(blocks)
        for parameter in block.parameters()
    }


def scale_groups(groups: list[dict[str, Any]], scales: dict[int, float]) -> list[dict[str, Any]]:
    """Parameter groups divided so that each has one `lr_scale`, from `layer_scales`."""
    divided = []
    for group in groups:
        by_scale: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_scale.setdefault(scales.get(id(parameter), 1.0), []).append(parameter)
        divided += [
            {**group, "params": parameters, "lr_scale": scale}
            for scale, parameters in by_scale.items()
        ]
    return divided
