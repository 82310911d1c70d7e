"""What makes a folded network fast on a GPU: fewer and larger operations, fewer passes over memory.

cuDNN convolves, adds the bias and clips in one pass; sibling 1×1 convolutions read their input
once; a 3×3 average is a pooling there, where a CPU does better with a convolution of each channel.
"""

import functools
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.deployment.folding import ConvReLU, PooledConvReLU, is_fused_right
from backbones.deployment.surgery import replace_layers
from backbones.networks.blocks import InceptionBlock


class AveragedConvReLU(nn.Module):
    """A `PooledConvReLU` whose 3×3 sums are made by pooling."""

    def __init__(self, folded: PooledConvReLU) -> None:
        super().__init__()
        self.conv, sums = folded
        assert isinstance(sums, ConvReLU)
        assert sums.bias is not None
        self.bias = sums.bias

    def forward(self, x: Tensor) -> Tensor:
        """`[N, Cin, H, W] -> [N, Cout, H, W]`, non-negative."""
        # The ninth of the average is in the weights.
        summed = F.avg_pool2d(self.conv(x), 3, stride=1, padding=1, divisor_override=1)
        return summed.add_(self.bias[:, None, None]).relu_()


class MergedBlock(nn.Module):
    """An Inception block that convolves its input once for all its `entries`."""

    def __init__(self, block: InceptionBlock) -> None:
        super().__init__()
        entries = [block.get_submodule(name) for name in block.entries]
        weights, biases = zip(*((conv.weight, conv.bias) for conv in entries), strict=True)
        self.channels = [len(weight) for weight in weights]
        with torch.device("meta"):
            self.merged = ConvReLU(weights[0].shape[1], sum(self.channels), 1)
        self.merged.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
        self.merged.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
        for name in block.entries:
            delattr(block, name)
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """As the block."""
        return self.block.join(x, self.merged(x).split(self.channels, dim=1))


class CudnnConvReLU(nn.Module):
    """A `ConvReLU` in one pass of cuDNN's."""

    def __init__(self, conv: ConvReLU) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)
        self.weight, self.bias = conv.weight, conv.bias
        self.geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, Cin, H, W] -> [N, Cout, H', W']`, non-negative."""
        return torch.cudnn_convolution_relu(x, self.weight, self.bias, *self.geometry)


def pool_sums(network: nn.Module) -> None:
    """Put `AveragedConvReLU` in the place of every `PooledConvReLU`."""
    replace_layers(network, PooledConvReLU, AveragedConvReLU)


def merge_entries(network: nn.Module) -> None:
    """Put `MergedBlock` in the place of every Inception block."""
    replace_layers(network, InceptionBlock, MergedBlock)


def fuse_convolutions(network: nn.Module) -> None:
    """Put `CudnnConvReLU` in the place of every `ConvReLU`, where cuDNN offers it."""
    parameter = next(chain(network.parameters(), network.buffers()))
    if can_fuse(parameter.dtype, parameter.device):
        replace_layers(network, ConvReLU, _fused)


def _fused(conv: ConvReLU) -> nn.Module:
    # The first convolution's three channels fill no vector, for which cuDNN may have nothing.
    return conv if conv.in_channels % 8 else CudnnConvReLU(conv)


@functools.cache
def can_fuse(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the fused convolution runs on this device, and computes right."""
    if device.type != "cuda":
        return False
    return is_fused_right(CudnnConvReLU, dtype, device, torch.channels_last)
