"""Exchange of the layers of a network."""

import copy
from collections.abc import Callable
from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


def copy_layers(module: Layer) -> Layer:
    """A copy whose layers can be replaced, and whose tensors are those of `module`."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


def replace_layers(module: nn.Module, kind: type[Layer], new: Callable[[Layer], nn.Module]) -> None:
    """Put `new(layer)` in the place of every layer of a kind within `module`."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, kind):
                setattr(parent, name, new(layer))
