"""Batch normalisation of a network whose kernels were made from those of another."""

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from skimage import data
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchvision.transforms.v2 import functional as transforms

from backbones.networks.enlargement import STEM_KERNELS, repeat_pixels, start_stem
from backbones.networks.specs import SPECS, BackboneSpec
from backbones.networks.stems import Stem

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
"""That come with scikit-image."""

SIDES = (79, 110, 150, 210)
"""Pixels of a photograph that a small image shows."""

LEAST_DEVIATION = 1e-4
"""Added to each, for channels that are constant."""


def photographs(size: int) -> Tensor:
    """Pieces of photographs, `uint8 [N, 3, size, size]`; the same each time."""
    random = torch.Generator().manual_seed(0)
    pieces = []
    for name in PHOTOGRAPHS:
        photograph = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)
        for side in SIDES:
            for _ in range(2):
                top, left = (
                    int(torch.randint(length - side + 1, (), generator=random))
                    for length in photograph.shape[1:]
                )
                piece = photograph[:, top : top + side, left : left + side]
                pieces.append(transforms.resize(piece, [size, size], antialias=True))
    return torch.stack(pieces)


def exact_spec(wanted: BackboneSpec) -> BackboneSpec:
    """Of a network for 79 pixels, the one for 151: for 299 exactly, on images half as large."""
    spec = next(
        spec
        for spec in SPECS.values()
        if (spec.layout, spec.receptive_field) == (wanted.layout, "151")
    )
    return replace(spec, mean=wanted.mean, std=wanted.std)


def match_enlarged(model: Any, state: Mapping[str, Tensor], given: BackboneSpec) -> None:
    """Match an `InceptionV3` for 79 pixels, in place, to the one for 299 that it starts from.

    It has the weights `state` of the network `given` by way of `start_stem`. The exact form of that
    one for half the size, `inception_v3_151`, is given the same images enlarged.
    """
    mode = model.training
    like = copy.deepcopy(model).eval()
    like.spec = exact_spec(model.spec)
    folded = start_stem(state, given, like.spec)[0]
    kernels = {name: folded[name] for name in STEM_KERNELS if name in folded}
    like.stem = Stem(like.spec, like.width)
    like.stem.load_state_dict(model.stem.state_dict())
    like.load_state_dict(kernels, strict=False)
    images = photographs(model.spec.input_size)
    match_statistics(model.eval(), images, like.eval(), repeat_pixels(images))
    model.train(mode)


@torch.no_grad()
def match_statistics(model: nn.Module, images: Tensor, like: nn.Module, larger: Tensor) -> None:
    """Change the running statistics of `model` so that its layers are as strong as those of `like`.

    Where kernels have been averaged, what comes out of them varies less than the statistics that
    came with the weights say, and less still layer by layer. Each normalisation is set in turn so
    that mean and deviation of what leaves it are those in `like`, which starts with the same ones
    and sees the same images `larger`. Training itself then follows the data, as always; weights and
    biases stay as they are.
    """
    wanted: list[tuple[Tensor, Tensor]] = []

    def note(layer: nn.Module, given: tuple[Tensor]) -> None:
        wanted.append(_moments(given[0]))

    def match(layer: nn.BatchNorm2d, given: tuple[Tensor]) -> None:
        (mean, deviation), (its_mean, its_deviation) = _moments(given[0]), next(moments)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        ratio = deviation / its_deviation
        layer.running_mean.copy_(mean - ratio * (its_mean - layer.running_mean))
        variance = ratio**2 * (layer.running_var + layer.eps) - layer.eps
        layer.running_var.copy_(variance.clamp(min=0))

    _with_hooks(like, note, larger)
    moments = iter(wanted)
    _with_hooks(model, match, images)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation `[C]` of `[N, C, H, W]`."""
    return values.mean((0, 2, 3)), values.std((0, 2, 3)) + LEAST_DEVIATION


def _with_hooks(model: Any, hook: Callable[[Any, Any], None], images: Tensor) -> None:
    """Call a hook before each normalisation of a network as it looks at images."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    look(model, [images], [layer.register_forward_pre_hook(hook) for layer in layers])


def look(model: Any, batches: Iterable[Tensor], hooks: Iterable[RemovableHandle]) -> None:
    """Let a network look at images, and take off the hooks that see what it makes of them."""
    with ExitStack() as until:
        for hook in hooks:
            until.enter_context(hook)
        for batch in batches:
            model.forward_features(batch)
