"""From pixels to what networks take."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalization(nn.Module):
    """`uint8 [N, 3, H, W]` as `float32`: scaled to [0, 1], less the mean, over the deviation.

    Its constants lie where the network does, so that no image waits for them to be copied there;
    they are no part of the weights.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        scale = torch.tensor([1 / (255 * value) for value in std])
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise a batch."""
        return images.float() * self.scale + self.shift


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """As `Normalization`, once; networks do it by themselves."""
    return Normalization(mean, std).to(images.device)(images)
