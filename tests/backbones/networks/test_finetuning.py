"""Frozen blocks, and learning rates that fall towards the stem."""

import pytest
import torch
from torch import nn

from backbones import create_backbone
from backbones.common.errors import UserError
from backbones.networks.finetuning import freeze_blocks, keep_frozen, layer_scales
from backbones.training.recipe import OptimConfig, build_optimizer


@pytest.fixture
def network():
    torch.manual_seed(0)
    return create_backbone("inception_v3_79_naive", num_classes=5, width=0.25)


def test_each_block_learns_slower_than_the_one_above(network):
    scales = layer_scales(network, 0.5)
    named = dict(network.named_parameters())
    powers = {
        "stem.conv1": 12,
        "stem.conv5": 12,
        "stage_a.0": 11,
        "stage_a.2": 9,
        "reduction_a": 8,
        "stage_b.0": 7,
        "stage_b.3": 4,
        "reduction_b": 3,
        "stage_c.0": 2,
        "stage_c.1": 1,
    }
    for prefix, power in powers.items():
        found = {scales[id(p)] for name, p in named.items() if name.startswith(prefix + ".")}
        assert found == {0.5**power}, prefix
    outside = {name for name, p in named.items() if id(p) not in scales}
    assert outside == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adamw", "rmsprop_tf"])
def test_groups_keep_every_parameter_and_its_decay(network, optimizer):
    plain = build_optimizer(network, OptimConfig(optimizer=optimizer))
    scaled = build_optimizer(network, OptimConfig(optimizer=optimizer, layer_decay=0.5))
    names = {id(p): name for name, p in network.named_parameters()}

    def settings(built):
        keys = ("weight_decay", "orthogonalize")
        return {
            names[id(p)]: [group.get(key) for key in keys]
            for group in built.param_groups
            for p in group["params"]
        }

    assert settings(scaled) == settings(plain)
    assert settings(plain).keys() == set(names.values())
    scales = layer_scales(network, 0.5)
    for group in scaled.param_groups:
        assert {scales.get(id(p), 1.0) for p in group["params"]} == {group["lr_scale"]}
    assert all("lr_scale" not in group for group in plain.param_groups)


def test_other_networks_are_refused():
    with pytest.raises(UserError, match=r"layer_decay is for Inception networks, not Linear"):
        build_optimizer(nn.Linear(2, 2), OptimConfig(layer_decay=0.5))
    for value in (0.0, 1.0):
        with pytest.raises(UserError, match=r"optim\.layer_decay must be in \(0, 1\) or null"):
            OptimConfig(layer_decay=value)


@pytest.mark.parametrize(
    ("last", "frozen"),
    [
        ("none", []),
        ("stem", ["stem"]),
        ("stage_b", ["stem", "stage_a", "reduction_a", "stage_b"]),
        ("stage_c", ["stem", "stage_a", "reduction_a", "stage_b", "reduction_b", "stage_c"]),
    ],
)
def test_frozen_parts_keep_weights_and_statistics(network, last, frozen):
    freeze_blocks(network, last)
    network.train()
    keep_frozen(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.randn(2, 3, 79, 79)).square().sum().backward()
    optimizer = build_optimizer(network, OptimConfig(optimizer="sgd", lr=0.1))
    optimizer.step()
    parts = {name.split(".")[0] for name in before}
    changed = {
        name.split(".")[0]
        for name, value in network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == parts - set(frozen)
    statistics = {name for name in before if name.endswith("running_mean")}
    for name in statistics:
        moved = not torch.equal(network.state_dict()[name], before[name])
        assert moved == (name.split(".")[0] not in frozen), name
