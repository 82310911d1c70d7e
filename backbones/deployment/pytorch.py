"""The inference form of a trained network: the same outputs from fewer and cheaper operations.

What was measured on two cores with AVX-512 and AMX, `inception_v3_79` in bf16, decided what is
here. Batch normalisation goes into the convolutions. oneDNN, which PyTorch brings, convolves, adds
the bias and clips in one pass over memory, with weights laid out beforehand. Max-pooling compares
bit patterns. What is not here did not pay: a convolution merged from sibling 1×1 convolutions is no
faster than they are, and its output must be copied apart.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.common.device import resolve_precision
from backbones.deployment import cuda
from backbones.deployment.folding import ConvReLU, fold_batch_norm
from backbones.deployment.onednn import fuse_convolutions
from backbones.deployment.surgery import replace_layers
from backbones.networks.inception import InceptionV3, check_images

_SAME_ORDER = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
"""Integers of the same size, which order the non-negative numbers alike."""

DeployPrecision = Literal["auto", "fp32", "bf16"]


def deploy(model: InceptionV3, precision: DeployPrecision = "auto") -> "DeployedInception":
    """The inference form of `model`, on the device of `model`, which stays as it is.

    Args:
        model: a network in evaluation mode.
        precision: of weights and maps. `auto` is `bf16` where the device computes in it, `fp32`
            elsewhere. Whatever it is, logits and pooled features are `float32`.

    Raises:
        ValueError: `model` is in training mode, or another precision.
    """
    check_precision(precision)
    device = next(model.parameters()).device
    bf16 = resolve_precision(precision, device) == "bf16"
    return DeployedInception(fold_batch_norm(model), torch.bfloat16 if bf16 else torch.float32)


def check_precision(precision: str) -> None:
    """Raise `ValueError` for what is no `DeployPrecision`."""
    if precision not in get_args(DeployPrecision):
        raise ValueError(f"precision must be auto, fp32 or bf16, got {precision!r}")


class DeployedInception(nn.Module):
    """A network for use only, in the place of the `InceptionV3` it was made from by `deploy`.

    It has that one's `spec`, `num_classes`, `num_features` and `feature_info`; `dtype` is that of
    weights and maps, `bfloat16` or `float32`.
    """

    def __init__(self, folded: InceptionV3, dtype: torch.dtype, adapts: bool = True) -> None:
        super().__init__()
        self.spec = folded.spec
        self.num_classes = folded.num_classes
        self.num_features = folded.num_features
        self.feature_info: list[dict[str, Any]] = folded.feature_info
        self.dtype = dtype
        first, *rest = folded.stem.children()
        assert isinstance(first, ConvReLU)
        self.first: nn.Module = first
        self.first_uint8: nn.Module = _take_uint8(first, folded.spec.mean, folded.spec.std, dtype)
        self.stem = nn.Sequential(*rest)
        self.stage_a, self.reduction_a = folded.stage_a, folded.reduction_a
        self.stage_b, self.reduction_b = folded.stage_b, folded.reduction_b
        self.stage_c = folded.stage_c
        self.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.fc = folded.fc.float()  # costs nothing beside the rest
        self.eval()
        if not adapts:
            return
        if first.weight.device.type == "cuda":
            cuda.pool_sums(self)
            cuda.merge_entries(self)
            cuda.fuse_convolutions(self)
        elif first.weight.device.type == "cpu":
            replace_layers(self, nn.MaxPool2d, MaxPoolOfReLU.like)
            fuse_convolutions(self)

    @property
    def input_size(self) -> int:
        """Side in pixels of the square image the variant is meant for."""
        return self.spec.input_size

    def train(self, mode: bool = True) -> "DeployedInception":
        """Raise `ValueError` for training mode."""
        if mode:
            raise ValueError("a deployed network cannot be trained: train the one it was made from")
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `float32 [N, num_classes]`, or pooled features without classes.

        Args:
            x: float images `[N, 3, H, W]` normalised by `spec.mean` and `spec.std`, or `uint8` RGB
                images, which the first convolution normalises.

        Raises:
            ValueError: not a batch of RGB images, or smaller than `spec.min_size`.
        """
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The map after the C blocks, `dtype [N, num_features, h, w]`; `x` as in `forward`."""
        return self.forward_stages(x)[-1]

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The maps after the A, B and C blocks, `dtype`; `x` as in `forward`."""
        check_images(x, self.spec)
        first = self.first_uint8 if x.dtype == torch.uint8 else self.first
        x = first(x.to(self.dtype, memory_format=torch.channels_last))
        a = self.stage_a(self.stem(x))
        b = self.stage_b(self.reduction_a(a))
        return [a, b, self.stage_c(self.reduction_b(b))]

    def forward_head(self, x: Tensor) -> Tensor:
        """Pool and classify a map `[N, num_features, h, w]` into `float32 [N, num_classes]`."""
        # For a channels_last map several times as fast as the mean.
        pooled = F.avg_pool2d(x, x.shape[-2:]).flatten(1).float()
        with torch.autocast(x.device.type, enabled=False):
            return self.fc(pooled)

    def get_classifier(self) -> nn.Module:
        """The last layer: a `Linear`, or an `Identity` without classes."""
        return self.fc


class MaxPoolOfReLU(nn.Module):
    """Max-pooling without padding, on the CPU, of maps without negative numbers.

    Such numbers are in the order of their bit patterns taken as integers, which the processor
    compares many at a time; `F.max_pool2d` takes three times as long for a channels_last map. A
    negative NaN counts as less than all.
    """

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    @classmethod
    def like(cls, pool: nn.MaxPool2d) -> "MaxPoolOfReLU":
        """To take the place of a layer with square windows and without padding."""
        assert (pool.padding, pool.dilation, pool.ceil_mode) == (0, 1, False)
        assert isinstance(pool.kernel_size, int)
        assert isinstance(pool.stride, int)
        return cls(pool.kernel_size, pool.stride)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W] -> [N, C, (H - kernel) // stride + 1, (W - kernel) // stride + 1]`."""
        bits = x.view(_SAME_ORDER[x.dtype])
        return self._along(self._along(bits, 2), 3).view(x.dtype)

    def _along(self, x: Tensor, dim: int) -> Tensor:
        extent = x.shape[dim] - self.kernel_size + 1
        taps = (slice(i, i + extent, self.stride) for i in range(self.kernel_size))
        first, second, *others = (x[(slice(None),) * dim + (tap,)] for tap in taps)
        best = torch.maximum(first, second)
        for other in others:
            torch.maximum(best, other, out=best)
        return best


def _take_uint8(
    conv: ConvReLU, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> ConvReLU:
    """`conv` for RGB values 0..255 instead of normalised ones; it must not pad.

    bf16 holds these values exactly. The shift is that of the weights as rounded to `dtype`, so that
    of the mean only the rounding of the bias is left.
    """
    assert not any(conv.padding)
    assert conv.bias is not None
    scale, shift = (conv.weight.new_tensor(values)[:, None, None] for values in (std, mean))
    weight = (conv.weight / (255 * scale)).to(dtype)
    bias = conv.bias - (weight.float() * 255 * shift).sum((1, 2, 3))
    raw = copy.deepcopy(conv)
    raw.weight = nn.Parameter(weight, requires_grad=False)
    raw.bias = nn.Parameter(bias, requires_grad=False)
    return raw
