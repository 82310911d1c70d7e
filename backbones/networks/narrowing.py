"""A narrow network that does what a wide one does, as far as its channels go, without training.

He, Zhang and Sun, "Channel pruning for accelerating very deep neural networks", ICCV 2017
(https://arxiv.org/abs/1707.06168): layer by layer some channels are kept, and the kernel is solved
for anew by least squares from what the layers before it, narrow already, really give. Here nothing
is fitted by gradients, and channels are chosen by greedy column subset selection.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchvision.transforms.v2 import functional as transforms

from backbones.networks.blocks import ConvNormAct, PooledConvNormAct
from backbones.networks.inception import WIDTHS, InceptionV3
from backbones.networks.statistics import PHOTOGRAPHS, look

IMAGES = 128
"""Pieces of photographs that layers are fitted on."""

SIDES = (50, 300)
"""Least and most pixels of a photograph that a piece shows."""

PLACES = 64
"""Of a map, at most so many are looked at in each image: as many as the last one has."""

BATCH = 16

RIDGES = (1e-5, 1e-3, 1e-2, 1e-1)
"""Regularisations to choose from, in mean variances of what a layer is given."""

ACTIVE_STEPS = 6
"""How often what a ReLU hides is left to the fit."""

logger = logging.getLogger(__name__)


def width_of(state: Mapping[str, Tensor]) -> float | None:
    """The width of a network with these weights, by a layer whose channels differ in all widths."""
    kernel = state.get("stem.conv5.conv.weight")
    channels = kernel.shape[0] if kernel is not None and kernel.ndim else 0
    return next((width for width in WIDTHS if round(192 * width) == channels), None)


@torch.no_grad()
def narrow(
    model: InceptionV3, wide: InceptionV3, view: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Give a network weights with which its channels are like some of a wider one's.

    Args:
        model: changed in place, but for its heads, which stay.
        wide: of the same layout and normalisation. Its maps are of the same sides, or a few times
            as large, and then the mean counts.
        view: what makes of images for `model` those for `wide`.
    """
    start = time.perf_counter()
    modes = model.training, wide.training
    model.eval()
    # Of small images there would be too few places on the last maps.
    field = model.spec.receptive_field
    images, held = _pieces(299 if field == "79_naive" else int(field))
    sides = _map_sides(model, images[:1])
    wanted = _responses(wide.eval(), images if view is None else view(images), sides)
    lost: dict[str, Tensor] = {}

    def fit(name: str, layer: ConvNormAct, given: tuple[Tensor]) -> None:
        inputs = _patches(layer, given[0], name, sides[name])
        targets = wanted.pop(name).float()
        targets = targets[:, choose_channels(targets.relu(), layer.conv.out_channels)]
        out = held.repeat_interleave(len(inputs) // len(images))
        kernel, bias = _solve(inputs, targets, out)
        before = inputs @ kernel
        layer.conv.weight.copy_(kernel.T.reshape(layer.conv.weight.shape))
        variance, mean = torch.var_mean(before, 0)
        norm = layer.bn
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(bias + mean)
        error, spread = _errors(before[out] + bias, targets[out])
        block = name.rpartition(".")[0]
        lost[block] = lost.get(block, torch.zeros(2)) + torch.stack([error, spread])

    hooks = (
        layer.register_forward_pre_hook(partial(fit, name))
        for name, layer in _layers(model).items()
    )
    look(model, [images], hooks)
    model.train(modes[0])
    wide.train(modes[1])
    last = [
        f"{stage}.{len(getattr(model, stage)) - 1}" for stage in ("stage_a", "stage_b", "stage_c")
    ]
    logger.info(
        "narrowed from width %g to %g in %.0f s: on a photograph that no kernel was fitted on, the "
        "last A, B and C block keep %.2f, %.2f and %.2f of the variance of the channels they keep; "
        "classifiers start at random",
        *(wide.width, model.width, time.perf_counter() - start),
        *(1 - float(lost[block][0] / lost[block][1].clamp(min=1e-9)) for block in last),
    )


def choose_channels(responses: Tensor, count: int) -> Tensor:
    """Channels from which all others can be told best, one after the other: `int64 [count]`,
    ascending, of responses `[S, C]` after the ReLU."""
    left = torch.cov(responses.double().T)
    floor = 1e-6 * left.diagonal().mean() + 1e-30
    kept: list[int] = []
    for _ in range(count):
        gain = left.square().sum(0) / (left.diagonal().clamp(min=0) + floor)
        gain[kept] = -1
        kept.append(int(gain.argmax()))
        column = left[:, kept[-1]].clone()
        left -= torch.outer(column, column) / (column[kept[-1]] + floor)
    return torch.tensor(sorted(kept))


def _solve(inputs: Tensor, targets: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Kernel `[D, K]` and bias `[K]` from inputs `[S, D]` whose ReLU is nearest that of targets.

    The ridge is the one that is best where `held` (`bool [S]`), of which nothing else is fitted.
    Where a target is negative, any negative response is as good: there the fit's own becomes the
    target, and the kernel is solved for again, which never makes it worse.
    """
    mean, wanted = inputs[~held].mean(0), targets[~held]
    rows, checks = inputs[~held] - mean, inputs[held] - mean
    double = rows.double()  # the smallest ridge is below the errors of single precision
    gram = double.T @ double
    del double
    strength = gram.diagonal().mean() + 1e-30
    unit = torch.eye(len(gram), dtype=gram.dtype)

    def kernel_for(factor: Tensor, wanted: Tensor) -> Tensor:
        products = (rows.T @ (wanted - wanted.mean(0))).double()
        return torch.cholesky_solve(products, factor).float()

    best, least = None, float("inf")
    for ridge in RIDGES:
        factor = torch.linalg.cholesky(gram + ridge * strength * unit)
        kernel = kernel_for(factor, wanted)
        error = float(_errors(checks @ kernel + wanted.mean(0), targets[held])[0])
        if error < least:
            best, least = (factor, kernel), error
    assert best is not None
    factor, kernel = best
    aim = wanted
    for _ in range(ACTIVE_STEPS):
        found = rows @ kernel + aim.mean(0)
        aim = torch.where(wanted > 0, wanted, found.clamp(max=0))
        kernel = kernel_for(factor, aim)
    return kernel, aim.mean(0) - mean @ kernel


def _errors(found: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Squared errors after the ReLU, and what there is to explain."""
    found, wanted = found.relu(), wanted.relu()
    return (found - wanted).square().sum(), (wanted - wanted.mean(0)).square().sum()


def _layers(model: InceptionV3) -> dict[str, ConvNormAct]:
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, ConvNormAct) and not name.startswith("aux_head")
    }


def _pieces(size: int) -> tuple[Tensor, Tensor]:
    """`uint8 [N, 3, size, size]`, the same each time, and which of them are to check with."""
    random = np.random.default_rng(0)
    photographs = [getattr(data, name)() for name in PHOTOGRAPHS]
    photographs += [data.stereo_motorcycle()[0]]
    from sklearn.datasets import load_sample_image  # which takes a second to import

    photographs += [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    pieces = []
    for index in range(IMAGES):
        photograph = torch.tensor(photographs[index % len(photographs)]).permute(2, 0, 1)
        least, most = SIDES[0], min(SIDES[1], *photograph.shape[1:])
        side = int(least * (most / least) ** random.random())
        top, left = (int(random.integers(length - side + 1)) for length in photograph.shape[1:])
        piece = photograph[:, top : top + side, left : left + side]
        pieces.append(transforms.resize(piece, [size, size], antialias=True))
    return torch.stack(pieces), torch.arange(IMAGES) % len(photographs) == len(photographs) - 1


def _map_sides(model: InceptionV3, image: Tensor) -> dict[str, int]:
    """Sides of what leaves each layer."""
    sides: dict[str, int] = {}

    def note(name: str, *seen: Any) -> None:
        sides[name] = seen[-1].shape[-1]

    look(model, [image], _after_normalisation(model, note))
    return sides


def _after_normalisation(
    model: InceptionV3, note: Callable[..., None]
) -> Iterator[RemovableHandle]:
    """Calls `note(name, normalisation, given, out)` of each layer."""
    for name, layer in _layers(model).items():
        yield layer.bn.register_forward_hook(partial(note, name))


def _places(name: str, side: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image, row and column `[count, P]` of the places of a layer's maps that are looked at."""
    random = torch.Generator().manual_seed(sum(name.encode()))
    flat = torch.stack(
        [torch.randperm(side * side, generator=random)[:PLACES] for _ in range(count)]
    )
    return torch.arange(count)[:, None], flat // side, flat % side


def _responses(wide: InceptionV3, images: Tensor, sides: Mapping[str, int]) -> dict[str, Tensor]:
    """`float16 [S, C]` before the ReLU of each layer."""
    found: dict[str, list[Tensor]] = {name: [] for name in sides}
    places = {name: _places(name, side, len(images)) for name, side in sides.items()}

    def note(name: str, layer: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
        if (factor := out.shape[-1] // sides[name]) > 1:
            out = F.avg_pool2d(out, factor)
        seen = sum(map(len, found[name])) // places[name][1].shape[1]
        _, rows, columns = (index[seen : seen + len(out)] for index in places[name])
        picked = out[torch.arange(len(out))[:, None], :, rows, columns]
        found[name].append(picked.flatten(0, 1).clamp(-6e4, 6e4).half())

    look(wide, images.split(BATCH), _after_normalisation(wide, note))
    return {name: torch.cat(parts) for name, parts in found.items()}


def _patches(layer: ConvNormAct, x: Tensor, name: str, side: int) -> Tensor:
    """`[S, Cin · kh · kw]`: what a layer's kernel sees at these places."""
    if isinstance(layer, PooledConvNormAct):
        x = F.avg_pool2d(x, 3, stride=1, padding=1)
    conv = layer.conv
    (height, width), step = conv.kernel_size, conv.stride[0]
    down, right = map(int, conv.padding)
    x = F.pad(x, (right, right, down, down))
    image, rows, columns = _places(name, side, len(x))
    taps = [
        x[image, :, rows * step + dy, columns * step + dx].flatten(0, 1)
        for dy in range(height)
        for dx in range(width)
    ]
    return torch.stack(taps, -1).flatten(1)
