"""Inception-v3 and v2 at every receptive field, by name.

"Rethinking the Inception Architecture for Computer Vision", Szegedy et al., CVPR 2016,
https://arxiv.org/abs/1512.00567.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import Sequential

from backbones.common.errors import UserError
from backbones.networks.blocks import (
    AuxiliaryHead,
    InceptionA,
    InceptionB,
    InceptionC,
    ReductionA,
    ReductionB,
    init_weights,
)
from backbones.networks.normalization import Normalization
from backbones.networks.specs import SPECS, BackboneSpec, GlobalPool, find_spec
from backbones.networks.stems import Stem, stage_geometry, stem_taps
from backbones.networks.timm_methods import TimmMethods

WIDTHS = (0.25, 0.5, 0.75, 1.0)
AuxKind = Literal["none", "plain", "batch_norm"]

# Channels between the factorised 7×7 convolutions. Table 1 prints five blocks and no widths: the
# fifth repeats one of the two middle blocks of the published network.
_CHANNELS_7X7 = {
    "released": (128, 160, 160, 192),
    "v2": (128, 160, 160, 192),
    "table1": (128, 160, 160, 160, 192),
}


class InceptionOutput(NamedTuple):
    """What a network with an auxiliary head returns in training; both float `[N, num_classes]`."""

    logits: Tensor
    aux_logits: Tensor


def check_setting(group: str, width: float, dropout: float = 0.0) -> None:
    """Raise `UserError` for what no network has; keys stand in `group`, with its dot: `model.`."""
    if width not in WIDTHS:
        raise UserError(f"{group}width must be one of {WIDTHS}, got {width}")
    if not 0 <= dropout < 1:
        raise UserError(f"{group}dropout must be in [0, 1), got {dropout}")


class InceptionV3(TimmMethods):
    """Inception-v3, or v2, with the stem that `spec` asks for.

    Args:
        spec: the variant, one of `backbones.networks.specs.SPECS`.
        num_classes: size of the classifier; 0 leaves it out, and the network returns the pooled
            features `[N, num_features]`.
        width: multiplies all channels, one of `WIDTHS`.
        aux: auxiliary head on the last B block. Its fully connected layer is batch-normalised with
            `batch_norm` (the paper's Inception-v3) and not with `plain` (the rows before in the
            paper's Table 3); its convolution always is.
        dropout: probability in `[0, 1)` of dropping a pooled feature in training.
        in_chans: channels of the images.
        global_pool: what makes numbers of the last map, see `reset_classifier`.

    Raises:
        ValueError: an argument out of range (a `UserError`, which is a `ValueError`, where it is
            a setting of a configuration), or an auxiliary head without classes.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        num_classes: int = 1000,
        width: float = 1.0,
        aux: AuxKind = "none",
        dropout: float = 0.0,
        in_chans: int = 3,
        global_pool: GlobalPool = "avg",
    ) -> None:
        super().__init__()
        if in_chans < 1:
            raise ValueError(f"in_chans must be at least 1, got {in_chans}")
        check_setting("", width, dropout)
        if aux not in ("none", "plain", "batch_norm"):
            raise ValueError(f"aux must be 'none', 'plain' or 'batch_norm', got {aux!r}")
        if num_classes < 0 or (num_classes == 0 and aux != "none"):
            least = 0 if aux == "none" else 1
            raise ValueError(f"num_classes must be at least {least}, got {num_classes}")
        self.spec = spec
        self.width = width
        self.aux: AuxKind = aux
        self.dropout = dropout
        self.in_chans = in_chans

        self.normalization = Normalization(spec.mean, spec.std)
        self.stem = Stem(spec, width, in_chans)
        channels = self.stem.out_channels
        blocks_a: list[InceptionA] = []
        # Table 1 enters the A blocks with 288 channels; the published network grows to them.
        for pool_features in (64, 64, 64) if spec.layout == "table1" else (32, 64, 64):
            blocks_a.append(InceptionA(channels, pool_features, width))
            channels = blocks_a[-1].out_channels
        self.stage_a = Sequential(*blocks_a)
        self.reduction_a = ReductionA(channels, width)

        channels = self.reduction_a.out_channels
        blocks_b: list[InceptionB] = []
        for channels_7x7 in _CHANNELS_7X7[spec.layout]:
            blocks_b.append(InceptionB(channels, channels_7x7, width))
            channels = blocks_b[-1].out_channels
        self.stage_b = Sequential(*blocks_b)
        self.reduction_b = ReductionB(channels, width)

        c1 = InceptionC(self.reduction_b.out_channels, width)
        c2 = InceptionC(c1.out_channels, width)
        self.stage_c = Sequential(c1, c2)
        self.num_features = c2.out_channels
        self.set_head(num_classes, global_pool)
        self.aux_head: AuxiliaryHead | None = None
        if aux != "none":
            self.aux_head = AuxiliaryHead(channels, num_classes, aux == "batch_norm", width)

        stages = zip(
            (blocks_a[-1].out_channels, channels, self.num_features),
            stage_geometry(spec),
            ("stage_a", "stage_b", "stage_c"),
            strict=True,
        )
        self.feature_info = [
            {
                "num_chs": getattr(self.stem, layer.name).conv.out_channels,
                "reduction": stride,
                "module": f"stem.{layer.name}",
            }
            for layer, stride in stem_taps(spec)
        ] + [
            {"num_chs": num_chs, "reduction": geometry.stride, "module": module}
            for num_chs, geometry, module in stages
        ]
        for name, child in self.named_children():
            if name != "aux_head":  # initialises itself
                child.apply(init_weights)

    @property
    def input_size(self) -> int:
        """Side in pixels of the square image the variant is meant for."""
        return self.spec.input_size

    def forward(self, x: Tensor) -> Tensor | InceptionOutput:
        """Classify images.

        Args:
            x: float images `[N, in_chans, H, W]` normalised by `spec.mean` and `spec.std`, or
                `uint8` RGB images, which are normalised here.

        Returns:
            Logits `[N, num_classes]`; in training with an auxiliary head, an `InceptionOutput`.

        Raises:
            ValueError: not a batch of such images, or smaller than `spec.min_size`.
        """
        _, b, c = self.forward_stages(x)
        logits = self.forward_head(c)
        if self.training and self.aux_head is not None:
            return InceptionOutput(logits, self.aux_head(b))
        return logits

    def forward_features(self, x: Tensor) -> Tensor:
        """The map after the C blocks, `[N, num_features, h, w]`; `x` as in `forward`."""
        return self.forward_stages(x)[-1]

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The maps after the A, B and C blocks; `stems.stage_geometry` places them."""
        a = self.through(self.stage_a, self.through(self.stem, self.prepare(x)))
        b = self.through(self.stage_b, self.through(self.reduction_a, a))
        return [a, b, self.through(self.stage_c, self.through(self.reduction_b, b))]

    def prepare(self, x: Tensor) -> Tensor:
        """Check images, and normalise those that are `uint8`; as in `forward`."""
        check_images(x, self.spec, self.in_chans)
        return self.normalization(x) if x.dtype == torch.uint8 else x


def create_backbone(
    name: str,
    *,
    num_classes: int = 1000,
    width: float = 1.0,
    aux: AuxKind = "none",
    dropout: float = 0.0,
) -> InceptionV3:
    """A network with random weights; the arguments are `InceptionV3`'s.

    Args:
        name: a variant from `backbones.networks.specs.SPECS`.
        num_classes: size of the classifier, 0 for none.
        width: multiplies all channels, one of `WIDTHS`.
        aux: kind of auxiliary head.
        dropout: probability of dropping a pooled feature in training.

    Raises:
        UserError: no variant has this name.
        ValueError: another argument is out of range.
    """
    return InceptionV3(find_spec(name), num_classes, width, aux, dropout)


def check_standard(network: InceptionV3) -> None:
    """Raise `UserError` for what files, exports, inference forms and detectors have no room for."""
    pool = network.global_pool.pool_type.removeprefix("fast")
    found = [f"in_chans {network.in_chans}"] if network.in_chans != 3 else []
    found += [f"global_pool {pool!r}"] if pool != "avg" else []
    found += ["layers taken off"] if type(network.stage_c) is not Sequential else []
    if found:
        raise UserError(
            f"{network.spec.name} has {' and '.join(found)}: checkpoints, exports, inference forms "
            "and detectors are of whole networks with 3 channels and global_pool 'avg'; PyTorch "
            "keeps this one with torch.save(network.state_dict(), file)"
        )


def check_images(x: Tensor, spec: BackboneSpec, in_chans: int = 3) -> None:
    """Raise `ValueError` unless `x` is a batch of images that the variant can take: float
    `[N, in_chans, H, W]`, or `uint8` where `in_chans` is 3."""
    is_kind = x.is_floating_point() or (x.dtype == torch.uint8 and in_chans == 3)
    if x.ndim != 4 or x.shape[1] != in_chans or not is_kind:
        kinds = "uint8 or normalised float" if in_chans == 3 else "normalised float"
        raise ValueError(
            f"{spec.name} takes {kinds} images [N, {in_chans}, H, W], got {x.dtype} {list(x.shape)}"
        )
    height, width = x.shape[-2:]
    if min(height, width) < spec.min_size:
        least = spec.min_size
        raise ValueError(
            f"{spec.name} takes images of at least {least}x{least} pixels, "
            f"got {height}x{width}; {_suggest_variant(spec, min(height, width))}"
        )


def _suggest_variant(spec: BackboneSpec, size: int) -> str:
    fitting = [s for s in SPECS.values() if s.layout == spec.layout and s.min_size <= size]
    if not fitting:
        smallest = min(SPECS.values(), key=lambda s: s.min_size)
        least = smallest.min_size
        return f"{smallest.name} takes the smallest images, {least}x{least}"
    best = max(fitting, key=lambda s: s.min_size)
    return f"{best.name} takes {best.min_size}x{best.min_size} and more"
