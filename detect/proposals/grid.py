"""Sliding windows at several scales and shapes: the proposer that needs no training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from backbones.common.ranges import check_ranges
from detect.proposals.base import Proposals, Proposer


@dataclass(frozen=True)
class GridConfig:
    """Multi-scale windows."""

    sizes: tuple[float, ...] = (16.0, 32.0, 64.0, 128.0)
    """Sides of the sliding windows in pixels (square root of the area)."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Shapes of the sliding windows, height over width."""
    step: float = 0.5
    """Distance of neighbouring windows as a fraction of their side."""

    def __post_init__(self) -> None:
        check_ranges(self, "model.grid.", {"(0, inf)": "sizes aspect_ratios", "(0, 2]": "step"})


class GridProposer(Proposer):
    """All windows of a `GridConfig` on every image, large ones first, all with score 1."""

    def __init__(self, config: GridConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, images: Sequence[Tensor]) -> list[Proposals]:
        """See `Proposer`; what reaches over the image's border is clipped."""
        proposals = []
        for image in images:
            _, height, width = image.shape
            boxes = self._windows(height, width)
            proposals.append(Proposals(boxes, torch.ones(len(boxes))))
        return proposals

    def _windows(self, height: int, width: int) -> Tensor:
        windows = []
        for size in sorted(self.config.sizes, reverse=True):
            for ratio in self.config.aspect_ratios:
                h, w = size * math.sqrt(ratio), size / math.sqrt(ratio)
                y1 = _starts(height, h, self.config.step * h)
                x1 = _starts(width, w, self.config.step * w)
                corner = torch.cartesian_prod(y1, x1)
                window = torch.stack(
                    [corner[:, 1], corner[:, 0], corner[:, 1] + w, corner[:, 0] + h]
                )
                windows.append(window.T)
        return clip_boxes_to_image(torch.cat(windows), (height, width))


def _starts(length: int, window: float, step: float) -> Tensor:
    """Evenly spread window starts that cover `[0, length]` with steps of at most `step`."""
    if window >= length:
        return torch.tensor([(length - window) / 2])
    count = math.ceil((length - window) / step) + 1
    return torch.linspace(0, length - window, count)
