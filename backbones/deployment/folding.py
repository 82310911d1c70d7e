"""Batch normalisation folded into the convolutions: the same function, made of plain layers.

What `pytorch`, `onnx` and `openvino` beside this file start from.
"""

import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbones.deployment.surgery import copy_layers
from backbones.networks.blocks import ConvNormAct, PooledConvNormAct
from backbones.networks.inception import InceptionV3, check_standard

logger = logging.getLogger(__name__)


class ConvReLU(nn.Conv2d):
    """A convolution with bias and ReLU, what is left of a `ConvNormAct`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, Cin, H, W] -> [N, Cout, H', W']`, non-negative."""
        return super().forward(x).relu_()


def is_fused_right(
    fused: Callable[[ConvReLU], nn.Module],
    dtype: torch.dtype,
    device: torch.device,
    memory_format: torch.memory_format,
) -> bool:
    """Whether what `fused` makes of a `ConvReLU` runs there, and computes the same; else a warning.

    PyTorch may change the operations that such forms call.
    """
    conv = nn.utils.skip_init(ConvReLU, 16, 16, 3, padding=1).requires_grad_(False)
    for parameter in conv.parameters():  # without touching the caller's random numbers
        parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter) / 16)
    conv = conv.to(device, dtype).to(memory_format=memory_format)
    x = torch.linspace(-1, 1, 16 * 25).view(1, 16, 5, 5).to(device, dtype)
    x = x.contiguous(memory_format=memory_format)
    try:
        found = fused(conv)(x)
    except (AttributeError, RuntimeError) as error:  # no such operation; another signature
        logger.warning("no fused convolutions in %s: %s", dtype, str(error).partition("\n")[0])
        return False
    if not torch.allclose(found, conv(x), rtol=0.02, atol=0.02):
        logger.warning("no fused convolutions in %s: they compute something else", dtype)
        return False
    return True


class PooledConvReLU(nn.Sequential):
    """A 1×1 convolution, and of each channel the 3×3 sum with bias and ReLU: what is left of a
    `PooledConvNormAct`."""


def fold_batch_norm(model: InceptionV3) -> InceptionV3:
    """A copy of a trained network for inference: no normalisation, no auxiliary head, no gradients.

    The copy computes what `model` does in evaluation mode, on the same device, to within the
    rounding of its precision. It cannot be trained, and its tensors have other names.

    Raises:
        ValueError: `model` is in training mode: its outputs would depend on the batch. Or it is no
            standard network, see `check_standard`.
    """
    check_standard(model)
    if model.training:
        raise ValueError("only a network in evaluation mode has an inference form: call .eval()")
    # All tensors but the classifier's are replaced below.
    folded = copy_layers(model)
    folded.fc = copy.deepcopy(model.fc).requires_grad_(False)
    folded.aux, folded.aux_head = "none", None
    for parent in list(folded.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, ConvNormAct):
                setattr(parent, name, _fold(layer))
    return folded.eval()


def _fold(layer: ConvNormAct) -> nn.Module:
    assert isinstance(layer.bn, _BatchNorm)  # SyncBatchNorm is one too
    if not isinstance(layer, PooledConvNormAct):
        return fold_conv(layer.conv, layer.bn, ConvReLU)
    weight, bias = _folded_weight(layer.conv, layer.bn)
    # The bias is added after the average, whose windows count the zeros around the border. The
    # average itself is a convolution of each channel with ones, which has room for bias and ReLU
    # and costs less; its ninth goes where weights are rounded anyway, as bf16 has no 1/9.
    ones = torch.ones_like(weight[:, :1]).expand(-1, -1, 3, 3)
    return PooledConvReLU(
        _conv(nn.Conv2d, weight / 9, None),
        _conv(ConvReLU, ones, bias, padding=(1, 1), groups=len(ones)),
    )


def fold_conv(conv: nn.Conv2d, bn: _BatchNorm, kind: type[nn.Conv2d]) -> nn.Conv2d:
    """An ungrouped convolution without bias and the normalisation after it as one, in fp32."""
    return _conv(kind, *_folded_weight(conv, bn), conv.stride, conv.padding)


def _folded_weight(conv: nn.Conv2d, bn: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of convolution and normalisation in one, in double precision."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    bias = bn.bias.double() - bn.running_mean.double() * scale
    return conv.weight.double() * scale[:, None, None, None], bias


def _conv(
    kind: type[nn.Conv2d],
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] | str = (0, 0),
    groups: int = 1,
) -> nn.Conv2d:
    """A convolution with these weights, in fp32."""
    out_channels, in_channels, height, width = weight.shape
    assert not isinstance(padding, str)
    with torch.device("meta"):
        conv = kind(
            in_channels * groups,
            out_channels,
            (height, width),
            (stride[0], stride[1]),
            (padding[0], padding[1]),
            groups=groups,
            bias=bias is not None,
        )
    conv.weight = nn.Parameter(weight.float().contiguous(), requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.float(), requires_grad=False)
    return conv
