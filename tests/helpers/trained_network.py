"""A network in which a wrong fold, layout or export shows."""

import torch

from backbones import create_backbone
from backbones.networks.normalization import normalize


def trained(name, width=0.25, **kwargs):
    """A network whose normalisation has seen data: nothing in it is one or zero."""
    torch.manual_seed(0)
    model = create_backbone(name, width=width, **({"num_classes": 10} | kwargs)).eval()
    fill_statistics(model)
    if kwargs.get("num_classes") != 0:
        model.fc.weight.data *= 10
    return model


def fill_statistics(model):
    """Normalise as after training."""
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(std=0.3)
            layer.running_mean.normal_(std=0.5)
            layer.running_var.uniform_(0.5, 2)


def images(model, count=2, size=None):
    size = (size or model.input_size,) * 2
    raw = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)
    return raw, normalize(raw, model.spec.mean, model.spec.std)
