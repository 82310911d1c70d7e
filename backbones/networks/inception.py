"""Inception-v3 and v2 at every receptive field, by name and through timm.

"Rethinking the Inception Architecture for Computer Vision", Szegedy et al., CVPR 2016,
https://arxiv.org/abs/1512.00567.

Importing this module registers the variants with `timm.create_model`, but for `inception_v3`: that
name is timm's own, for the same network with torchvision's parameter names (see
`backbones.networks.conversion.from_torchvision`), and stays so.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import Tensor, nn

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
from backbones.networks.specs import SPECS, BackboneSpec, find_spec
from backbones.networks.stems import Stem, stage_geometry, stem_taps

__all__ = ["WIDTHS", "AuxKind", "InceptionOutput", "InceptionV3", "create_backbone"]

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


class InceptionV3(nn.Module):
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
    ) -> None:
        super().__init__()
        if width not in WIDTHS:
            raise UserError(f"width must be one of {WIDTHS}, got {width}")
        if aux not in ("none", "plain", "batch_norm"):
            raise ValueError(f"aux must be 'none', 'plain' or 'batch_norm', got {aux!r}")
        if num_classes < 0 or (num_classes == 0 and aux != "none"):
            least = 0 if aux == "none" else 1
            raise ValueError(f"num_classes must be at least {least}, got {num_classes}")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout must be in [0, 1), got {dropout}")
        self.spec = spec
        self.num_classes = num_classes
        self.width = width
        self.aux: AuxKind = aux
        self.dropout = dropout

        self.normalization = Normalization(spec.mean, spec.std)
        self.stem = Stem(spec, width)
        channels = self.stem.out_channels
        blocks_a: list[InceptionA] = []
        # Table 1 enters the A blocks with 288 channels; the published network grows to them.
        for pool_features in (64, 64, 64) if spec.layout == "table1" else (32, 64, 64):
            blocks_a.append(InceptionA(channels, pool_features, width))
            channels = blocks_a[-1].out_channels
        self.stage_a = nn.Sequential(*blocks_a)
        self.reduction_a = ReductionA(channels, width)

        channels = self.reduction_a.out_channels
        blocks_b: list[InceptionB] = []
        for channels_7x7 in _CHANNELS_7X7[spec.layout]:
            blocks_b.append(InceptionB(channels, channels_7x7, width))
            channels = blocks_b[-1].out_channels
        self.stage_b = nn.Sequential(*blocks_b)
        self.reduction_b = ReductionB(channels, width)

        c1 = InceptionC(self.reduction_b.out_channels, width)
        c2 = InceptionC(c1.out_channels, width)
        self.stage_c = nn.Sequential(c1, c2)
        self.num_features: int = c2.out_channels
        self.fc: nn.Module = _classifier(self.num_features, num_classes)
        self.aux_head: AuxiliaryHead | None = None
        if aux != "none":
            self.aux_head = AuxiliaryHead(channels, num_classes, aux == "batch_norm", width)

        stages = zip(
            (blocks_a[-1].out_channels, channels, self.num_features),
            stage_geometry(spec),
            ("stage_a", "stage_b", "stage_c"),
            strict=True,
        )
        self.feature_info: list[dict[str, Any]] = [
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
            x: float images `[N, 3, H, W]` normalised by `spec.mean` and `spec.std`, or `uint8` RGB
                images, which are normalised here.

        Returns:
            Logits `[N, num_classes]`; in training with an auxiliary head, an `InceptionOutput`.

        Raises:
            ValueError: not a batch of RGB images, or smaller than `spec.min_size`.
        """
        _, b, c = self.forward_stages(x)
        logits = self.forward_head(c)
        if self.training and self.aux_head is not None:
            return InceptionOutput(logits, self.aux_head(b))
        return logits

    def forward_features(self, x: Tensor) -> Tensor:
        """The map after the C blocks, `[N, num_features, h, w]`; `x` as in `forward`."""
        return self.forward_stages(x)[-1]

    def forward_head(self, x: Tensor) -> Tensor:
        """Pool, drop and classify a map `[N, num_features, h, w]` into `[N, num_classes]`."""
        x = x.mean((2, 3))
        return self.fc(nn.functional.dropout(x, self.dropout, self.training))

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The maps after the A, B and C blocks; `stems.stage_geometry` places them."""
        check_images(x, self.spec)
        if x.dtype == torch.uint8:
            x = self.normalization(x)
        a = self.stage_a(self.stem(x))
        b = self.stage_b(self.reduction_a(a))
        return [a, b, self.stage_c(self.reduction_b(b))]

    def get_classifier(self) -> nn.Module:
        """The last layer: a `Linear`, or an `Identity` without classes."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh classifier for `num_classes` on; the auxiliary head gets one too.

        With 0 the auxiliary head comes off altogether, as it has nothing left to predict.
        """
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {num_classes}")
        like = next(self.parameters())
        self.num_classes = num_classes
        self.fc = _classifier(self.num_features, num_classes).to(like).train(self.training)
        init_weights(self.fc)
        if num_classes == 0:
            self.aux, self.aux_head = "none", None
        if self.aux_head is not None:
            self.aux_head.reset_classifier(num_classes)


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


def check_images(x: Tensor, spec: BackboneSpec) -> None:
    """Raise `ValueError` unless `x` is a batch of RGB images that the variant can take."""
    is_kind = x.is_floating_point() or x.dtype == torch.uint8
    if x.ndim != 4 or x.shape[1] != 3 or not is_kind:
        raise ValueError(
            f"{spec.name} takes uint8 or normalised float images [N, 3, H, W], "
            f"got {x.dtype} {list(x.shape)}"
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


def _classifier(in_features: int, num_classes: int) -> nn.Module:
    return nn.Linear(in_features, num_classes) if num_classes else nn.Identity()


def _timm_entry_point(spec: BackboneSpec) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if kwargs.get("in_chans", 3) != 3:
            raise ValueError(f"{spec.name} takes 3 channels, got in_chans={kwargs['in_chans']}")
        if "drop_rate" in kwargs:  # timm's word for it
            kwargs["dropout"] = kwargs.pop("drop_rate")
        levels = len(stem_taps(spec)) + len(stage_geometry(spec))
        return build_model_with_cfg(
            InceptionV3,
            spec.name,
            pretrained,
            feature_cfg={"feature_cls": "hook", "out_indices": tuple(range(levels))},
            kwargs_filter=("in_chans",),
            spec=spec,
            **kwargs,
        )

    build.__name__ = build.__qualname__ = spec.name
    build.__doc__ = f"Build `{spec.name}` for `timm.create_model`."
    return build


# timm looks this name up in the module of a registered function.
default_cfgs = generate_default_cfgs(
    {
        name: {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, spec.input_size, spec.input_size),
            "min_input_size": (3, spec.min_size, spec.min_size),
            "pool_size": (spec.grids[-1], spec.grids[-1]),
            "crop_pct": spec.crop_fraction,
            "interpolation": spec.interpolation,
            "mean": spec.mean,
            "std": spec.std,
            "first_conv": "stem.conv1.conv",
            "classifier": "fc",
        }
        for name, spec in SPECS.items()
    }
)
for _name, _spec in SPECS.items():
    if not is_model(_name):
        # The function must be found in this module: timm adds its name to `__all__`.
        globals()[_name] = register_model(_timm_entry_point(_spec))
