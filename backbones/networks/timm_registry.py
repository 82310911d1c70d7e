"""The variants under their names in `timm.create_model` and `timm.list_models`.

Importing this module registers them, but for `inception_v3`: that name is timm's own, for the same
network with torchvision's parameter names (see `backbones.networks.conversion`), and stays so.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import Tensor, nn
from torchvision.models import Inception_V3_Weights

from backbones.common.errors import UserError
from backbones.networks.conversion import from_torchvision, is_torchvision
from backbones.networks.enlargement import start_stem
from backbones.networks.inception import InceptionV3
from backbones.networks.narrowing import width_of
from backbones.networks.specs import SPECS, BackboneSpec
from backbones.networks.statistics import match_enlarged
from backbones.networks.stems import stage_geometry, stem_taps
from backbones.networks.warm_start import start_narrow

__all__: list[str] = []  # timm adds to it


def _start(state: dict[str, Tensor], model: InceptionV3) -> dict[str, Tensor]:
    """What `model` starts from, without an auxiliary head that is not its own.

    Weights of torchvision's and timm's `inception_v3` are fitted to a stem without strides; see
    `backbones.networks.enlargement`.
    """
    own = model.state_dict()
    of_public = is_torchvision(state)
    state = from_torchvision(state) if of_public else state
    state = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith("aux_head.") or (name in own and own[name].shape == tensor.shape)
    }
    given = SPECS["inception_v3"] if of_public else None
    if (width_of(state) or 0) > model.width:
        # One for colours, as the weights are: timm makes the first kernel for other channels later.
        narrow = InceptionV3(model.spec, num_classes=0, width=model.width)
        start_narrow(narrow, state, given, gaps=False)
        return {**own, **narrow.state_dict()}
    if given is None:
        return state
    made, _ = start_stem(state, given, model.spec)
    if model.spec.receptive_field == "79":
        colours = InceptionV3(model.spec, num_classes=0, width=model.width)
        colours.load_state_dict(
            {name: made[name] for name in colours.state_dict() if name in made}, strict=False
        )
        match_enlarged(colours, state, given)
        made |= {name: own for name, own in colours.state_dict().items() if "running" in name}
    return made


def _entry_point(spec: BackboneSpec) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if "drop_rate" in kwargs:  # timm's word for it
            kwargs["dropout"] = kwargs.pop("drop_rate")
        levels = len(stem_taps(spec)) + len(stage_geometry(spec))
        # What a caller says of other weights than the usual ones.
        configs = (kwargs.get(key) for key in ("pretrained_cfg", "pretrained_cfg_overlay"))
        said = {key: one[key] for one in configs if isinstance(one, dict) for key in one}
        image: dict[str, Any] = {key: tuple(said[key]) for key in ("mean", "std") if key in said}
        try:
            return build_model_with_cfg(
                InceptionV3,
                spec.name,
                pretrained,
                feature_cfg={"feature_cls": "hook", "out_indices": tuple(range(levels))},
                pretrained_filter_fn=_start,
                spec=replace(spec, **image),
                **kwargs,
            )
        except OSError as error:  # those of all the HTTP clients that there are extend it
            if not pretrained:
                raise
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise UserError(
                f"{spec.name}: the pretrained weights cannot be read ({reason}): try again, or "
                f"download {Inception_V3_Weights.IMAGENET1K_V1.url} and give "
                'pretrained_cfg_overlay={"file": "inception_v3_google-0cc3c7bd.pth"}'
            ) from error

    build.__name__ = build.__qualname__ = spec.name
    build.__doc__ = f"Build `{spec.name}` for `timm.create_model`."
    return build


# timm looks this name up in the module of a registered function.
default_cfgs = generate_default_cfgs(
    {
        name: {
            "url": Inception_V3_Weights.IMAGENET1K_V1.url if spec.layout == "released" else "",
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
