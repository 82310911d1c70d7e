"""The published network's weights under torchvision's and timm's names."""

from collections.abc import Mapping

from torch import Tensor

from backbones.common.errors import UserError
from backbones.networks.state_dicts import with_counters

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


def is_torchvision(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether some of the names are torchvision's and timm's."""
    theirs = {name for name in _TORCHVISION_MODULES.values() if name != "fc"}
    return any(name.partition(".")[0] in theirs for name in state_dict)


def from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of torchvision's or timm's `inception_v3` for variants of layout `released`.

    Use them on images normalised by 0.5 and 0.5, which is what torchvision's `transform_input`
    makes of its own normalisation.

    Raises:
        UserError: a name is not one of that network's.
    """
    return with_counters(_rename(state_dict, {v: k for k, v in _TORCHVISION_MODULES.items()}))


def to_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of layout `released`, auxiliary head included, for the same networks.

    torchvision's auxiliary head is the batch-normalised one. Its network must be built
    with `transform_input=False`.

    Raises:
        UserError: a name is not one of that layout's.
    """
    return with_counters(_rename(state_dict, _TORCHVISION_MODULES))


def _rename(state_dict: Mapping[str, Tensor], modules: Mapping[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state_dict.items():
        # No name here is another's prefix, with the dot.
        module = next((m for m in modules if name.startswith(f"{m}.")), None)
        if module is None:
            raise UserError(f"cannot rename {name!r}: not a tensor of the published Inception-v3")
        renamed[modules[module] + name[len(module) :]] = tensor
    return renamed
