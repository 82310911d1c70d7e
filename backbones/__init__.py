"""Inception networks for high and low resolution, and their training.

>>> model = create_backbone("inception_v3_79", num_classes=21)
>>> logits = model.eval()(images)  # float [N, 3, 79, 79], normalised by model.spec.mean and .std
"""

from backbones.common.errors import UserError
from backbones.networks import timm_registry  # noqa: F401 - timm knows the variants by it
from backbones.networks.checkpoint import load_backbone, save_backbone
from backbones.networks.conversion import from_torchvision, to_torchvision
from backbones.networks.inception import InceptionOutput, InceptionV3, create_backbone
from backbones.networks.specs import SPECS, BackboneSpec
from backbones.networks.warm_start import start_backbone, warm_start
from backbones.networks.weights import load_weights, save_weights

__version__ = "0.1.0"

__all__ = [
    "SPECS",
    "BackboneSpec",
    "InceptionOutput",
    "InceptionV3",
    "UserError",
    "create_backbone",
    "from_torchvision",
    "load_backbone",
    "load_weights",
    "save_backbone",
    "save_weights",
    "start_backbone",
    "to_torchvision",
    "warm_start",
]
