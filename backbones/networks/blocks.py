"""The building blocks of "Rethinking the Inception Architecture" (Szegedy et al., CVPR 2016).

https://arxiv.org/abs/1512.00567. Branches are named as in torchvision and timm, which both follow
the published network; where that differs from a figure, the docstring says so. The letters are the
paper's stages: A on the 35×35 grid, B on 17×17, C on 8×8 (torchvision calls them A, C, E and the
reductions B, D).
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scale_channels(channels: int, width: float) -> int:
    """`channels` times `width`, rounded to a multiple of 16 and at least 16.

    16 numbers fill a vector register of AVX-512 and a tensor core's tile: batch normalisation of 24
    channels takes several times as long as that of 32. All the published widths are multiples.
    """
    return max(16, int(channels * width / 16 + 0.5) * 16)


def init_weights(module: nn.Module) -> None:
    """Initialise one layer (not its children), for `Module.apply`.

    Convolutions as He et al. 2015 (arXiv:1502.01852), truncated at two standard deviations as in
    TF-Slim. A classifier starts near zero (Goyal et al. 2017, arXiv:1706.02677, section 5.1), so
    that the first loss is that of an even guess; the 0.1 of torchvision starts with large logits.
    """
    if isinstance(module, nn.Conv2d):
        _truncated_normal(module, math.sqrt(2 / module.weight[0].numel()))
    elif isinstance(module, nn.Linear):
        _truncated_normal(module, 0.01)
    elif isinstance(module, nn.BatchNorm2d):
        module.reset_parameters()


def _truncated_normal(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    if layer.weight.is_meta:  # no values to set, and torch takes long to find that out
        return
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class ConvNormAct(nn.Module):
    """Convolution, batch normalisation (ε = 1e-3), ReLU: `[N, Cin, H, W] -> [N, Cout, H', W']`.

    Without `norm` the convolution has a bias instead.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, bias=not norm
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3) if norm else nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three."""
        return self.act(self.bn(self.conv(x)))


class PooledConvNormAct(ConvNormAct):
    """`ConvNormAct` of the 3×3 average of its input: a block's pooled branch, convolution first.

    Convolution and average are linear, act on channels and on places, and the zeros around the
    border are counted, so they commute; averaging the few channels that come out of the convolution
    costs a fraction.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, average, normalise, activate."""
        return self.act(self.bn(F.avg_pool2d(self.conv(x), 3, stride=1, padding=1)))


class InceptionBlock(nn.Module):
    """A block: 1×1 convolutions of its input, side by side, and what is made of them.

    Attributes:
        entries: names of these convolutions, but for the pooled branch's.
        out_channels: of the block.
    """

    entries: ClassVar[tuple[str, ...]]
    out_channels: int

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the branches."""
        return self.join(x, [self.get_submodule(name)(x) for name in self.entries])

    def join(self, x: Tensor, entered: Sequence[Tensor]) -> Tensor:
        """The block's output, given its input and what its `entries` made of it."""
        raise NotImplementedError(f"{type(self).__name__} must define join(x, entered)")


class InceptionA(InceptionBlock):
    """The 35×35 block, Figure 5: `[N, Cin, H, W] -> [N, 224 + pool_features, H, W]` at width 1.

    Figure 5 replaces each 5×5 convolution by two 3×3; the published network does so in one branch
    and keeps a 5×5 in the other, and so does this one.
    """

    entries = ("branch1x1", "branch5x5_1", "branch3x3dbl_1")

    def __init__(self, in_channels: int, pool_features: int, width: float = 1.0) -> None:
        super().__init__()
        c48, c64, c96 = (scale_channels(c, width) for c in (48, 64, 96))
        pooled = scale_channels(pool_features, width)
        self.branch1x1 = ConvNormAct(in_channels, c64, 1)
        self.branch5x5_1 = ConvNormAct(in_channels, c48, 1)
        self.branch5x5_2 = ConvNormAct(c48, c64, 5, padding=2)
        self.branch3x3dbl_1 = ConvNormAct(in_channels, c64, 1)
        self.branch3x3dbl_2 = ConvNormAct(c64, c96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNormAct(c96, c96, 3, padding=1)
        self.branch_pool = PooledConvNormAct(in_channels, pooled)
        self.out_channels = c64 + c64 + c96 + pooled

    def join(self, x: Tensor, entered: Sequence[Tensor]) -> Tensor:
        """Concatenate the four branches."""
        branch1x1, branch5x5, branch3x3dbl = entered
        branch5x5 = self.branch5x5_2(branch5x5)
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(branch3x3dbl))
        branch_pool = self.branch_pool(x)
        return torch.cat([branch1x1, branch5x5, branch3x3dbl, branch_pool], 1)


class ReductionA(nn.Module):
    """35×35 to 17×17, Figure 10: `[N, Cin, H, W] -> [N, 480 + Cin, (H-1)//2, (W-1)//2]`.

    Convolutions of stride 2 beside a pooling layer, so that the grid shrinks without the bottleneck
    of pooling first or the cost of pooling last (Figure 9).
    """

    def __init__(self, in_channels: int, width: float = 1.0) -> None:
        super().__init__()
        c64, c96, c384 = (scale_channels(c, width) for c in (64, 96, 384))
        self.branch3x3 = ConvNormAct(in_channels, c384, 3, stride=2)
        self.branch3x3dbl_1 = ConvNormAct(in_channels, c64, 1)
        self.branch3x3dbl_2 = ConvNormAct(c64, c96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNormAct(c96, c96, 3, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.out_channels = c384 + c96 + in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the three branches."""
        branch3x3 = self.branch3x3(x)
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([branch3x3, branch3x3dbl, self.pool(x)], 1)


class InceptionB(InceptionBlock):
    """The 17×17 block, Figure 6 with n = 7: `[N, Cin, H, W] -> [N, 768, H, W]` at width 1.

    Each 7×7 convolution is a 1×7 followed by a 7×1. `channels_7x7` is the number of channels
    between them, which the published network lets grow from block to block.
    """

    entries = ("branch1x1", "branch7x7_1", "branch7x7dbl_1")

    def __init__(self, in_channels: int, channels_7x7: int, width: float = 1.0) -> None:
        super().__init__()
        c7, c192 = scale_channels(channels_7x7, width), scale_channels(192, width)
        self.branch1x1 = ConvNormAct(in_channels, c192, 1)
        self.branch7x7_1 = ConvNormAct(in_channels, c7, 1)
        self.branch7x7_2 = ConvNormAct(c7, c7, (1, 7), padding=(0, 3))
        self.branch7x7_3 = ConvNormAct(c7, c192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = ConvNormAct(in_channels, c7, 1)
        self.branch7x7dbl_2 = ConvNormAct(c7, c7, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = ConvNormAct(c7, c7, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = ConvNormAct(c7, c7, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = ConvNormAct(c7, c192, (1, 7), padding=(0, 3))
        self.branch_pool = PooledConvNormAct(in_channels, c192)
        self.out_channels = 4 * c192

    def join(self, x: Tensor, entered: Sequence[Tensor]) -> Tensor:
        """Concatenate the four branches."""
        branch1x1, branch7x7, branch7x7dbl = entered
        branch7x7 = self.branch7x7_3(self.branch7x7_2(branch7x7))
        branch7x7dbl = self.branch7x7dbl_3(self.branch7x7dbl_2(branch7x7dbl))
        branch7x7dbl = self.branch7x7dbl_5(self.branch7x7dbl_4(branch7x7dbl))
        branch_pool = self.branch_pool(x)
        return torch.cat([branch1x1, branch7x7, branch7x7dbl, branch_pool], 1)


class ReductionB(InceptionBlock):
    """17×17 to 8×8, Figure 10: `[N, Cin, H, W] -> [N, 512 + Cin, (H-1)//2, (W-1)//2]` at width 1.

    As published, the longer branch has a factorised 7×7 where the figure has a 3×3.
    """

    entries = ("branch3x3_1", "branch7x7x3_1")

    def __init__(self, in_channels: int, width: float = 1.0) -> None:
        super().__init__()
        c192, c320 = scale_channels(192, width), scale_channels(320, width)
        self.branch3x3_1 = ConvNormAct(in_channels, c192, 1)
        self.branch3x3_2 = ConvNormAct(c192, c320, 3, stride=2)
        self.branch7x7x3_1 = ConvNormAct(in_channels, c192, 1)
        self.branch7x7x3_2 = ConvNormAct(c192, c192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvNormAct(c192, c192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvNormAct(c192, c192, 3, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.out_channels = c320 + c192 + in_channels

    def join(self, x: Tensor, entered: Sequence[Tensor]) -> Tensor:
        """Concatenate the three branches."""
        branch3x3, branch7x7x3 = entered
        branch3x3 = self.branch3x3_2(branch3x3)
        branch7x7x3 = self.branch7x7x3_2(branch7x7x3)
        branch7x7x3 = self.branch7x7x3_4(self.branch7x7x3_3(branch7x7x3))
        return torch.cat([branch3x3, branch7x7x3, self.pool(x)], 1)


class InceptionC(InceptionBlock):
    """The 8×8 block, Figure 7: `[N, Cin, H, W] -> [N, 2048, H, W]` at width 1.

    A 1×3 and a 3×1 side by side expand the features, as high-dimensional representations are
    easier to process locally.
    """

    entries = ("branch1x1", "branch3x3_1", "branch3x3dbl_1")

    def __init__(self, in_channels: int, width: float = 1.0) -> None:
        super().__init__()
        c192, c320, c384, c448 = (scale_channels(c, width) for c in (192, 320, 384, 448))
        self.branch1x1 = ConvNormAct(in_channels, c320, 1)
        self.branch3x3_1 = ConvNormAct(in_channels, c384, 1)
        self.branch3x3_2a = ConvNormAct(c384, c384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvNormAct(c384, c384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = ConvNormAct(in_channels, c448, 1)
        self.branch3x3dbl_2 = ConvNormAct(c448, c384, 3, padding=1)
        self.branch3x3dbl_3a = ConvNormAct(c384, c384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvNormAct(c384, c384, (3, 1), padding=(1, 0))
        self.branch_pool = PooledConvNormAct(in_channels, c192)
        self.out_channels = c320 + 4 * c384 + c192

    def join(self, x: Tensor, entered: Sequence[Tensor]) -> Tensor:
        """Concatenate the six branch ends."""
        branch1x1, branch3x3, branch3x3dbl = entered
        branch3x3dbl = self.branch3x3dbl_2(branch3x3dbl)
        branch_pool = self.branch_pool(x)
        return torch.cat(
            [
                branch1x1,
                self.branch3x3_2a(branch3x3),
                self.branch3x3_2b(branch3x3),
                self.branch3x3dbl_3a(branch3x3dbl),
                self.branch3x3dbl_3b(branch3x3dbl),
                branch_pool,
            ],
            1,
        )


class AuxiliaryHead(nn.Module):
    """The auxiliary classifier on the last 17×17 map, Figure 8: `[N, Cin, H, W] -> [N, classes]`.

    `conv1` covers the whole 5×5 grid and so is the head's hidden fully connected layer. The paper's
    "BN auxiliary" (section 10) is the head with that layer batch-normalised too (`batch_norm`), not
    just the convolution before it.
    """

    def __init__(
        self, in_channels: int, num_classes: int, batch_norm: bool, width: float = 1.0
    ) -> None:
        super().__init__()
        c128, c768 = scale_channels(128, width), scale_channels(768, width)
        self.conv0 = ConvNormAct(in_channels, c128, 1)
        self.conv1 = ConvNormAct(c128, c768, 5, norm=batch_norm)
        self.fc = nn.Linear(c768, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all layers, the last two as small as in TF-Slim's `inception_v3.py`."""
        self.apply(init_weights)
        _truncated_normal(self.conv1.conv, 0.01)
        _truncated_normal(self.fc, 0.001)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh last layer for `num_classes` on, on the old one's device and precision."""
        weight = self.fc.weight
        fc = nn.Linear(self.fc.in_features, num_classes, device=weight.device, dtype=weight.dtype)
        self.fc = fc.train(self.training)
        _truncated_normal(self.fc, 0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Pool to 5×5, classify."""
        # The naive 79×79 network has a 3×3 map here; it gets the same supervision.
        is_small = min(x.shape[-2:]) < 17
        x = F.adaptive_avg_pool2d(x, 5) if is_small else F.avg_pool2d(x, 5, stride=3)
        x = self.conv1(self.conv0(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
