"""What each network variant is: plain facts, checked against the built networks by the tests."""

import difflib
from dataclasses import dataclass
from typing import Literal

from backbones.common.errors import UserError

Layout = Literal["released", "table1", "v2"]
ReceptiveField = Literal["299", "151", "79", "79_naive"]
GlobalPool = Literal["avg", "max", "avgmax", "catavgmax", ""]


MAX_INPUT_SIZE = 2048
"""Pixels; a file that says more would have gigabytes asked for by its first image."""


@dataclass(frozen=True)
class BackboneSpec:
    """One variant of the network.

    Attributes:
        name: the variant's name, as `create_backbone` takes it.
        layout: which convolutions there are. `released` is the network whose weights were
            published; `table1` is the network as Table 1 of the paper prints it; `v2` is
            Inception-v2, the base of the paper's ablation. Variants of one layout hold parameters
            of the same names and shapes, so each can start from the weights of any other.
        receptive_field: where the stem shrinks the image. `299` by a convolution of stride 2 and a
            max-pool, `151` by the pool alone, `79` by neither. `79_naive` is the `299` network fed
            small images, the baseline the paper argues against.
        input_size: side in pixels of the square image it is meant for. Any other works from
            `min_size` on.
        min_size: smallest side of an image that leaves a pixel for the last blocks.
        mean: subtracted from RGB values scaled to `[0, 1]`, of which it is one.
        std: divided by after that, at most 1.
        interpolation: how images are resized for evaluation.
        crop_fraction: side of the centre crop over the side of the resized image.
        grids: sides of the maps after the A, B and C blocks for an image of `input_size`.
        num_features: channels before the classifier at width 1.

    Raises:
        ValueError: `input_size` is less than `min_size` or far too large, or `mean` or `std` out of
            range.
    """

    name: str
    layout: Layout
    receptive_field: ReceptiveField
    input_size: int
    min_size: int
    grids: tuple[int, int, int]
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    interpolation: str = "bilinear"
    crop_fraction: float = 0.875
    num_features: int = 2048

    def __post_init__(self) -> None:
        size, least = self.input_size, self.min_size
        if type(size) is not int or size < least:
            raise ValueError(f"input_size must be a whole number of at least {least}, got {size!r}")
        if size > MAX_INPUT_SIZE:
            raise ValueError(f"input_size must be at most {MAX_INPUT_SIZE}, got {size}")
        # Statistics of pixels in 0..255 would otherwise show as a network that finds nothing.
        if not all(0 <= value <= 1 for value in self.mean):
            raise ValueError(f"mean must be of values scaled to [0, 1], got {self.mean}")
        if not all(0 < value <= 1 for value in self.std):
            raise ValueError(f"std must be positive, of values scaled to [0, 1], got {self.std}")


def _variants(layout: Layout, suffix: str) -> list[BackboneSpec]:
    return [
        BackboneSpec(f"inception_v3{suffix}", layout, "299", 299, 75, (35, 17, 8)),
        BackboneSpec(f"inception_v3_151{suffix}", layout, "151", 151, 39, (35, 17, 8)),
        BackboneSpec(f"inception_v3_79{suffix}", layout, "79", 79, 21, (36, 17, 8)),
        BackboneSpec(f"inception_v3_79_naive{suffix}", layout, "79_naive", 79, 75, (7, 3, 1)),
    ]


SPECS: dict[str, BackboneSpec] = {
    spec.name: spec
    for spec in (
        *_variants("released", ""),
        *_variants("table1", "_table1"),
        BackboneSpec("inception_v2", "v2", "299", 299, 75, (35, 17, 8)),
    )
}
"""Every variant by name.

Mean, standard deviation, interpolation and crop are those the published weights were trained and
measured with (TensorFlow-Slim's `inception_preprocessing.py`).
"""


def find_spec(name: str) -> BackboneSpec:
    """The variant of a name; raises `UserError` where there is none."""
    if name not in SPECS:
        close = difflib.get_close_matches(name, SPECS)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(SPECS)}"
        raise UserError(f"unknown backbone {name!r}: {hint}")
    return SPECS[name]
