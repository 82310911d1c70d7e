"""The variants under their names in `timm.create_model` and `timm.list_models`.

Importing this module registers them, but for `inception_v3`: that name is timm's own, for the same
network with torchvision's parameter names (see `backbones.networks.conversion`), and stays so.
"""

from collections.abc import Callable, Mapping
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import Tensor, nn

from backbones.networks.conversion import from_torchvision
from backbones.networks.inception import InceptionV3
from backbones.networks.specs import SPECS, BackboneSpec
from backbones.networks.stems import stage_geometry, stem_taps

__all__: list[str] = []  # timm adds to it


def _fitting(state: Mapping[str, Tensor], model: InceptionV3) -> Mapping[str, Tensor]:
    """Weights, also timm's and torchvision's, without an auxiliary head that `model` has not."""
    if "Conv2d_1a_3x3.conv.weight" in state:
        state = from_torchvision(state)
    if model.aux_head is not None:
        return state
    return {name: tensor for name, tensor in state.items() if not name.startswith("aux_head.")}


def _entry_point(spec: BackboneSpec) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if "drop_rate" in kwargs:  # timm's word for it
            kwargs["dropout"] = kwargs.pop("drop_rate")
        levels = len(stem_taps(spec)) + len(stage_geometry(spec))
        return build_model_with_cfg(
            InceptionV3,
            spec.name,
            pretrained,
            feature_cfg={"feature_cls": "hook", "out_indices": tuple(range(levels))},
            pretrained_filter_fn=_fitting,
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
        globals()[_name] = register_model(_entry_point(_spec))
