"""A network for large images as one for smaller ones, with what it learned from the large."""

from collections.abc import Mapping

import torch
from torch import Tensor

from backbones.networks.specs import BackboneSpec

STEM_KERNELS = tuple(f"stem.conv{number}.conv.weight" for number in (1, 2, 3))


def repeat_pixels(images: Tensor) -> Tensor:
    """Images `[N, C, H, W]` enlarged to twice their sides, each pixel repeated."""
    return images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def fold_enlargement(kernel: Tensor) -> Tensor:
    """A kernel of stride 1 that sees an image as `kernel`, with stride 2, sees it enlarged.

    Where an image is enlarged to twice its sides by repeating pixels, two of three taps of a
    convolution of stride 2 lie on one pixel: they are added, and the third moves up. So
    `inception_v3_151` gives on an image what `inception_v3` gives on the enlarged one, cut to its
    first 299 pixels, when its first kernel is folded and all else is the same.

    Kernels are `[out, in, 3, 3]`, of convolutions without padding; the last row and column of the
    new one are zero.
    """
    return _along_both_axes(kernel, [[1, 1, 0], [0, 0, 1], [0, 0, 0]])


def average_phases(kernel: Tensor, *, first: bool = False) -> Tensor:
    """A kernel that gives for a pixel the mean of what `kernel` gives where there are four.

    Of an image of four times the sides, the first convolution of `inception_v3` (stride 2) and the
    two after it give two values along each axis for a pixel of the small image. The stem of
    `inception_v3_79` has one: their mean, as far as a linear layer goes. The `first` convolution
    sees pixels, those after it see means.

    Kernels are `[out, in, 3, 3]`; the last row and column of the new one are zero.
    """
    return _along_both_axes(
        kernel,
        [[1, 1, 0.5], [0, 0, 0.5], [0, 0, 0]] if first else [[1, 0.5, 0], [0, 0.5, 1], [0, 0, 0]],
    )


def start_stem(
    state: Mapping[str, Tensor], given: BackboneSpec, wanted: BackboneSpec
) -> tuple[dict[str, Tensor], str | None]:
    """Weights of the network `given` as those that the network `wanted` starts from.

    Returns:
        The weights, with the stem's first kernels made for `wanted`, and what has been done to
        them, or None: between other receptive fields, or of a stem that is none of 3×3 kernels,
        they are as they were.
    """
    kernels = {name: state[name] for name in STEM_KERNELS if name in state}
    if given.receptive_field != "299" or not all(
        kernel.ndim == 4 and kernel.shape[2:] == (3, 3) for kernel in kernels.values()
    ):
        return dict(state), None
    first = STEM_KERNELS[0]
    if wanted.receptive_field == "151" and first in kernels:
        folded = {**state, first: fold_enlargement(kernels[first])}
        return folded, "it sees images as the network for 299 pixels sees them enlarged"
    if wanted.receptive_field == "79" and kernels:
        averaged = {
            name: average_phases(kernel, first=name == first) for name, kernel in kernels.items()
        }
        return {**state, **averaged}, (
            "it sees images nearly as the network for 299 pixels sees them enlarged: its stem's "
            "kernels are averaged, and normalisation is matched on photographs"
        )
    return dict(state), None


def _along_both_axes(kernel: Tensor, mixing: list[list[float]]) -> Tensor:
    """New taps, each a sum of the old ones with the factors of its row, along either axis."""
    kernel = kernel if kernel.dtype == torch.float64 else kernel.float()  # files may hold halves
    matrix = torch.tensor(mixing, dtype=kernel.dtype, device=kernel.device)
    return torch.einsum("oihw,yh,xw->oiyx", kernel, matrix, matrix)
