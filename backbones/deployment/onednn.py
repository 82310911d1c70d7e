"""Convolution, bias and ReLU as one operation of oneDNN, with which PyTorch convolves on CPUs.

`torch.compile` lowers to these operations too; PyTorch offers them nowhere else and may change
them, so that `can_fuse` tries before anything relies on them.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from backbones.deployment.folding import ConvReLU, is_fused_right
from backbones.deployment.surgery import replace_layers


class OneDNNConv(nn.Module):
    """A convolution, with ReLU where it is a `ConvReLU`, for inference on the CPU.

    oneDNN wants the weight in blocks whose size depends on the processor and on the size of the
    image. They are made when a size comes that is not that of the call before, which costs what a
    convolution without them costs every time. The wrong blocks would cost a hundred times as much,
    but those of another number of images are as good: to within a tenth when measured, where making
    them anew for 12 images in place of 11 took half as long again.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)
        self.weight, self.bias = conv.weight, conv.bias
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.activation = "relu" if isinstance(conv, ConvReLU) else "none"
        self._blocked: tuple[torch.Size, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Blocks can neither be copied nor pickled.
        return self.__dict__ | {"_blocked": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "OneDNNConv":
        before = self.weight.device, self.weight.dtype
        super()._apply(fn, recurse)
        if (self.weight.device, self.weight.dtype) != before:
            raise ValueError(
                "a network deployed on the CPU keeps its device and precision: move the trained "
                "one and deploy that"
            )
        self._blocked = None
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._blocked = None

    def forward(self, x: Tensor) -> Tensor:
        """`[N, Cin, H, W] -> [N, Cout, H', W']`, `channels_last`, as precise as the weight."""
        # Read and written as one, so that threads with other shapes do each other no harm.
        blocked = self._blocked
        if blocked is None or blocked[0] != x.shape[1:]:
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, *self.geometry, list(x.shape)
            )
            self._blocked = blocked = (x.shape[1:], weight)
        return torch.ops.mkldnn._convolution_pointwise(
            x, blocked[1], self.bias, *self.geometry, self.activation, [], ""
        )


def fuse_convolutions(module: nn.Module) -> None:
    """Put `OneDNNConv` in the place of every convolution within `module`, where that is possible.

    Where the processor or PyTorch has no such operation, or off the CPU, all stays as it is.
    """
    parameter = next(module.parameters())
    if parameter.device.type == "cpu" and can_fuse(parameter.dtype):
        replace_layers(module, nn.Conv2d, OneDNNConv)


@functools.cache
def can_fuse(dtype: torch.dtype) -> bool:
    """Whether this PyTorch on this processor has the fused convolution, and it computes right."""
    return is_fused_right(OneDNNConv, dtype, torch.device("cpu"), torch.contiguous_format)
