"""What every proposer is: images in, class-agnostic boxes with scores out, best first."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Proposals(NamedTuple):
    """Regions of one image that may hold an object.

    Attributes:
        boxes: `float32 [N, 4]` xyxy in pixels of the image, inside it and of positive area.
        scores: `float32 [N]` in `[0, 1]`, descending.
    """

    boxes: Tensor
    scores: Tensor


class Proposer(nn.Module):
    """Base of all proposers: call it with images, get one `Proposals` per image.

    A proposer that learns with the detector overrides `forward_train`; the others are the same in
    training and use.
    """

    def forward(self, images: Sequence[Tensor]) -> list[Proposals]:
        """`uint8` RGB images `[3, H_i, W_i]` -> one `Proposals` each, on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(images)")

    def area_in_tiles(self, height: int, width: int) -> float:
        """How many times an image of so many pixels is as large as what is looked at at once: what
        is kept of it may be so many times as much. 1 where it is looked at as a whole."""
        del height, width
        return 1.0

    def forward_train(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
        """As `forward`, with the named losses of the proposer itself (none for a fixed one).

        Targets are on the CPU.
        """
        del targets
        return self(images), {}
