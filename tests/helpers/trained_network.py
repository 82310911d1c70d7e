"""A network in which a wrong fold, layout or export shows."""

from dataclasses import replace

import torch
from torch import nn

from backbones import SPECS, InceptionV3, create_backbone
from backbones.networks.normalization import normalize


def trained(variant, width=0.25, num_classes=10, **kwargs):
    """A network whose normalisation has seen data: nothing in it is one or zero.

    `variant` is a name or a `BackboneSpec`.
    """
    torch.manual_seed(0)
    spec = SPECS.get(variant, variant)
    model = InceptionV3(spec, num_classes, width, **kwargs).eval()
    fill_statistics(model)
    if num_classes:
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


def normalised_otherwise(name, **changes):
    """A variant whose images are normalised as no other's."""
    return replace(SPECS[name], mean=(0.2, 0.5, 0.7), std=(0.3, 0.25, 0.2), **changes)


def images(model, count=2, size=None):
    size = (size or model.input_size,) * 2
    raw = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)
    return raw, normalize(raw, model.spec.mean, model.spec.std)


def small(name="inception_v3_79", **kwargs):
    """An untrained network of ten classes that costs little."""
    return create_backbone(name, **({"num_classes": 10, "width": 0.25} | kwargs))


def randomise(model, seed):
    """Random weights of a size that keeps signals alive, and random running statistics."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            std = (2 / module.weight[0].numel()) ** 0.5
            module.weight.data.normal_(0, std, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.8, 1.2, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.8, 1.2, generator=generator)
            module.num_batches_tracked.fill_(7)
    return model


def assert_same_tensors(state, expected):
    assert state.keys() == expected.keys()
    assert [name for name in state if not torch.equal(state[name], expected[name])] == []
