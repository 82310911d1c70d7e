"""A network for large images as one for images of half their side, without forgetting anything."""

import torch
from torch import Tensor


def fold_enlargement(kernel: Tensor) -> Tensor:
    """A kernel of stride 1 that sees an image as `kernel`, with stride 2, sees it enlarged.

    Where an image is enlarged to twice its sides by repeating pixels, two of three taps of a
    convolution of stride 2 lie on one pixel: they are added, and the third moves up. So
    `inception_v3_151` gives on an image what `inception_v3` gives on the enlarged one, cut to its
    first 299 pixels, when its first kernel is folded and all else is the same.

    Args:
        kernel: `[out, in, 3, 3]`, of a convolution without padding.

    Returns:
        `[out, in, 3, 3]`; the last row and column are zero.
    """
    for axis in (2, 3):
        first, second, third = kernel.unbind(axis)
        kernel = torch.stack([first + second, third, torch.zeros_like(third)], dim=axis)
    return kernel
