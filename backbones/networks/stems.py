"""The layers before the first Inception block, and where on the image the maps after them lie.

Section 9 of the paper ("Performance on Lower Resolution Input") keeps the computation of the
299×299 network on smaller images by shrinking less in the stem: the first convolution loses its
stride at 151×151, and at 79×79 the first max-pool goes too.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn

from backbones.networks.blocks import ConvNormAct, scale_channels
from backbones.networks.specs import BackboneSpec, Layout


@dataclass(frozen=True)
class StemLayer:
    """One layer of a stem: a `ConvNormAct`, or a max-pool where `channels` is None."""

    name: str
    kernel_size: int
    stride: int = 1
    padding: int = 0
    channels: int | None = None


_THREE_3X3 = (
    StemLayer("conv1", 3, stride=2, channels=32),
    StemLayer("conv2", 3, channels=32),
    StemLayer("conv3", 3, padding=1, channels=64),
)
_POOL1 = StemLayer("pool1", 3, stride=2)
_RELEASED_TAIL = (
    StemLayer("conv4", 1, channels=80),
    StemLayer("conv5", 3, channels=192),
    StemLayer("pool2", 3, stride=2),
)
# The table's last convolution maps 35×35 to 35×35, so it must be padded, though the table does not
# say so.
_TABLE1_TAIL = (
    StemLayer("conv4", 3, channels=80),
    StemLayer("conv5", 3, stride=2, channels=192),
    StemLayer("conv6", 3, padding=1, channels=288),
)

_LAYOUTS: dict[Layout, tuple[StemLayer, ...]] = {
    "released": (*_THREE_3X3, _POOL1, *_RELEASED_TAIL),
    "table1": (*_THREE_3X3, _POOL1, *_TABLE1_TAIL),
    # Table 3's base: one 7×7 where "factorised 7×7" puts three 3×3. Both map 299 to 147.
    "v2": (StemLayer("conv1", 7, stride=2, channels=64), _POOL1, *_RELEASED_TAIL),
}

# Both reductions shrink by 3×3 windows of stride 2 in every branch.
_REDUCTION = StemLayer("reduction", 3, stride=2)


def stem_layers(spec: BackboneSpec) -> tuple[StemLayer, ...]:
    """The layers of the variant's stem, first to last."""
    layers = _LAYOUTS[spec.layout]
    if spec.receptive_field in ("151", "79"):
        layers = (replace(layers[0], stride=1), *layers[1:])
    if spec.receptive_field == "79":
        layers = tuple(layer for layer in layers if layer is not _POOL1)
    return layers


class Stem(nn.Sequential):
    """The variant's stem: `[N, in_chans, H, W] -> [N, out_channels, h, w]`, on the A blocks' grid.

    A left-out pool holds no parameters, so receptive fields of one layout share all names.
    """

    def __init__(self, spec: BackboneSpec, width: float = 1.0, in_chans: int = 3) -> None:
        super().__init__()
        channels = in_chans
        for layer in stem_layers(spec):
            if layer.channels is None:
                self.add_module(layer.name, nn.MaxPool2d(layer.kernel_size, layer.stride))
                continue
            out = scale_channels(layer.channels, width)
            conv = ConvNormAct(channels, out, layer.kernel_size, layer.stride, layer.padding)
            self.add_module(layer.name, conv)
            channels = out
        self.out_channels = channels


class StageGeometry(NamedTuple):
    """How the cells of a map lie on the image.

    Cell `i` of the map has its receptive field centred on `offset + stride * i`, in continuous
    pixel coordinates where pixel `i` spans `[i, i + 1)`. Both axes are alike.
    """

    stride: int
    offset: float


def stage_geometry(spec: BackboneSpec) -> list[StageGeometry]:
    """Geometry of the maps after the A, B and C blocks, e.g. 8, 16, 32 and 13.5, 21.5, 37.5.

    The blocks themselves are padded alike on all sides and move nothing.
    """
    return [_geometry(layers) for layers in _stages(spec)]


def stage_grids(spec: BackboneSpec, size: int) -> tuple[int, int, int]:
    """Sides of the A, B and C blocks' maps for an image of side `size`; 0 where it is too small."""
    a, b, c = (_output_size(layers, size) for layers in _stages(spec))
    return a, b, c


def stem_taps(spec: BackboneSpec) -> list[tuple[StemLayer, int]]:
    """The last convolution at each stride the stem passes through on its way, with that stride.

    These are the stem's entries in `feature_info`; the stride of the A blocks is left to them.
    """
    layers = stem_layers(spec)
    final = _geometry(layers).stride
    taps: dict[int, StemLayer] = {}
    for i, layer in enumerate(layers):
        stride = _geometry(layers[: i + 1]).stride
        if layer.channels is not None and stride < final:
            taps[stride] = layer
    return [(layer, stride) for stride, layer in taps.items()]


def _stages(spec: BackboneSpec) -> list[tuple[StemLayer, ...]]:
    """All layers that move or shrink the map, up to the A, B and C blocks."""
    stem = stem_layers(spec)
    return [stem, (*stem, _REDUCTION), (*stem, _REDUCTION, _REDUCTION)]


def _geometry(layers: tuple[StemLayer, ...]) -> StageGeometry:
    stride, offset = 1, 0.5
    for layer in layers:
        # The first window is centred (k - 1) / 2 cells after its first, which padding moves back.
        offset += stride * ((layer.kernel_size - 1) / 2 - layer.padding)
        stride *= layer.stride
    return StageGeometry(stride, offset)


def _output_size(layers: tuple[StemLayer, ...], size: int) -> int:
    for layer in layers:
        size = (size + 2 * layer.padding - layer.kernel_size) // layer.stride + 1
        if size < 1:
            return 0
    return size
