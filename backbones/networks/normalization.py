"""From pixels to what networks take."""

from collections.abc import Sequence

import torch
from torch import Tensor


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`uint8 [N, 3, H, W]` as `float32`: scaled to [0, 1], less the mean, over the deviation."""
    scale = torch.tensor([1 / (255 * value) for value in std], device=images.device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device)
    return images.float() * scale[:, None, None] + shift[:, None, None]
